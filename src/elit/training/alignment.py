"""Representation alignment (REPA, Yu et al., 2025): a block's tokens, projected, point where a vision encoder's do."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.data.loader import Data, NewGenerators, Stored
from elit.elastic.grid import Grid
from elit.elastic.model import ElasticModel
from elit.encoder import VisionEncoder, load_encoder
from elit.training.config import AlignmentConfig, alignment_depth


class Projector(nn.Sequential):
    """linear-SiLU-linear-SiLU-linear, from a model's tokens to an encoder's. Trained beside the model, not part of it."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


class Tap:
    """Notes the tokens (B, N, C) that a block makes in each forward with gradients, by a hook."""

    def __init__(self, block: nn.Module) -> None:
        self.tokens: Tensor | None = None
        self.hook = block.register_forward_hook(self.note)

    def note(self, block: nn.Module, given: Any, tokens_BNC: Tensor) -> None:
        if torch.is_grad_enabled():
            self.tokens = tokens_BNC

    def take(self) -> Tensor:
        """The tokens of the last forward, once."""
        tokens, self.tokens = self.tokens, None
        assert tokens is not None
        return tokens


def resample_tokens(tokens_BTD: Tensor, grid: Grid, to: Grid) -> Tensor:
    """Tokens on one grid resampled to another: bilinear, antialiased where the other is coarser (a triangle filter)."""
    if grid == to:
        return tokens_BTD
    image = tokens_BTD.transpose(1, 2).unflatten(2, (grid.height, grid.width)).float()
    image = F.interpolate(image, (to.height, to.width), mode="bilinear", antialias=True)
    return image.flatten(2).transpose(1, 2)


def alignment_loss(projected_BND: Tensor, target_BND: Tensor) -> Tensor:
    """Minus the mean cosine of the projected tokens and the encoder's, in float32: a scalar in [-1, 1]."""
    return -F.cosine_similarity(projected_BND.float(), target_BND.float(), dim=-1).mean()


@dataclass
class Aligner:
    """The parts of alignment: whose tokens are taken, what projects them, and the encoder or the stored features' grid."""

    tap: Tap
    projector: nn.Module
    encoder: VisionEncoder | None
    stored_grid: Grid | None
    weight: float

    def loss(self, target: Tensor, grid: Grid) -> Tensor:
        """Weighted, of the forward that has just been at a grid of tokens; `target` as of `alignment_target`."""
        if self.encoder is None:
            assert self.stored_grid is not None
            tokens_BTD, from_grid = target, self.stored_grid
        else:
            tokens_BTD = self.encoder.encoder_tokens(target)
            from_grid = Grid(*self.encoder.grid(target.shape[-2], target.shape[-1]))
        projected = self.projector(self.tap.take())
        return self.weight * alignment_loss(projected, resample_tokens(tokens_BTD, from_grid, grid))


def make_aligner(
    alignment: AlignmentConfig, model: ElasticModel, device: torch.device, stored: Stored | None = None
) -> Aligner:
    """Hooks the model and makes its projector, from the global generator. `stored`: as of `stored_features`.

    Raises UserError for an encoder that cannot be loaded.
    """
    encoder = load_encoder(alignment.encoder, device) if stored is None else None
    width = encoder.width if stored is None else stored[2]  # type: ignore[union-attr]
    grid = None if stored is None else Grid(*stored[:2])
    tap = Tap(model.blocks[alignment_depth(alignment, model.config) - 1])
    projector = Projector(model.config.width, alignment.width, width).to(device)
    return Aligner(tap, projector, encoder, grid, alignment.weight)


def stored_features(alignment: AlignmentConfig, data: Data) -> Stored | None:
    """(rows, columns, width) of the encoder's stored features; None where it looks at pictures, and where alignment is off.

    Raises UserError for data with neither features nor pictures.
    """
    return data.stored_features(alignment.encoder) if alignment.enabled else None


def alignment_target(
    alignment: AlignmentConfig,
    data: Data,
    rows: Tensor,
    x_BCHW: Tensor,
    generators: NewGenerators,
) -> Tensor | None:
    """What the rows' tokens are aligned with: uint8 pixels (B, 3, H, W), or stored features (B, T, D). None when off."""
    return data.target(alignment.encoder, rows, x_BCHW, generators) if alignment.enabled else None
