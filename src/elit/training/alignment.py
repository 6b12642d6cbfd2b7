"""Representation alignment (REPA, Yu et al., 2025): a block's tokens, projected, point where a vision encoder's do."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.backbones.dit import DiT
from elit.data.dataset import PreparedData
from elit.data.images import LabelledImages, to_uint8
from elit.elastic import Grid
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
    """Notes the tokens (B, N, C) that a block makes in each forward, by a hook."""

    def __init__(self, block: nn.Module) -> None:
        self.tokens: Tensor | None = None
        self.hook = block.register_forward_hook(self.note)

    def note(self, block: nn.Module, given: Any, tokens_BNC: Tensor) -> None:
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
    """The parts of alignment: whose tokens are taken, what projects them, and the encoder, None for prepared features."""

    tap: Tap
    projector: nn.Module
    encoder: VisionEncoder | None
    weight: float

    def loss(self, target: Tensor, grid: Grid) -> Tensor:
        """Weighted, of the forward that has just been at a grid of tokens; `target` as of `alignment_target`."""
        if self.encoder is None:
            target_BTD, target_grid = target, feature_grid(target.shape[1], grid)
        else:
            target_BTD = self.encoder.encoder_tokens(target)
            target_grid = Grid(*self.encoder.grid(target.shape[-2], target.shape[-1]))
        projected = self.projector(self.tap.take())
        return self.weight * alignment_loss(projected, resample_tokens(target_BTD, target_grid, grid))


def make_aligner(alignment: AlignmentConfig, model: DiT, device: torch.device, width: int | None = None) -> Aligner:
    """Hooks the model and makes its projector, from the global generator. `width`: of prepared features, if those are used.

    Raises ValueError for an encoder that cannot be loaded.
    """
    encoder = load_encoder(alignment.encoder, device) if width is None else None
    out = width if encoder is None else encoder.width
    assert out is not None
    projector = Projector(model.config.width, alignment.width, out).to(device)
    return Aligner(Tap(model.blocks[alignment_depth(alignment, model.config) - 1]), projector, encoder, alignment.weight)


def feature_grid(tokens: int, like: Grid) -> Grid:
    """The grid of so many tokens with the proportions of another."""
    height = max(1, round((tokens * like.height / like.width) ** 0.5))
    if tokens % height:
        raise ValueError(f"{tokens} tokens of features form no grid of the proportions {like}; prepare them again")
    return Grid(height, tokens // height)


def feature_name(alignment: AlignmentConfig, data: LabelledImages | PreparedData) -> str | None:
    """The column of prepared data that holds the encoder's features; None for pixels, whose features are computed.

    Raises ValueError for latents without such a column.
    """
    if not isinstance(data, PreparedData) or data.info.kind == "images":
        return None
    names = list(data.info.features)
    found = [name for name in names if name in (alignment.encoder, alignment.encoder.rstrip("/").split("/")[-1])]
    if not found:
        raise ValueError(
            f"{data.folder} has no features of {alignment.encoder}, but {', '.join(names) or 'none'};"
            " set alignment.encoder, or prepare the data again with --features"
        )
    return found[0]


def alignment_target(
    alignment: AlignmentConfig, data: LabelledImages | PreparedData, rows: Tensor, x_BCHW: Tensor
) -> Tensor | None:
    """What the rows' tokens are aligned with: uint8 pixels (B, 3, H, W), or prepared features (B, T, D). None when off."""
    if not alignment.on:
        return None
    name = feature_name(alignment, data)
    if name is None:
        return to_uint8(x_BCHW)
    assert isinstance(data, PreparedData)
    return data.feature(name, rows)
