"""Representation alignment (REPA, Yu et al., 2025): a block's tokens, projected, point where a vision encoder's do."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from elit.elastic import Grid


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
