"""Windows: how tokens on a grid fall into groups, and back.

Tokens stay in row-major order everywhere; grouping is one reshape-and-permute and lives here alone.

Shapes: B batch, N tokens, G groups, S tokens in a group, C width.
"""

import torch
from torch import Tensor

from elit.elastic.grid import Grid, Window


def group(x_BNC: Tensor, grid: Grid, window: Window) -> Tensor:
    """Row-major tokens (B, N, C) to groups (B, G, S, C); groups, and the tokens in each, are in row-major order too."""
    (gt, gh, gw), (t, h, w) = window.groups(grid), window.axes
    batch, _, width = x_BNC.shape
    x = x_BNC.reshape(batch, gt, t, gh, h, gw, w, width).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, gt * gh * gw, window.size, width)


def ungroup(x_BGSC: Tensor, grid: Grid, window: Window) -> Tensor:
    """The inverse of `group`: (B, G, S, C) to row-major tokens (B, N, C)."""
    (gt, gh, gw), (t, h, w) = window.groups(grid), window.axes
    batch, width = x_BGSC.shape[0], x_BGSC.shape[-1]
    x = x_BGSC.reshape(batch, gt, gh, gw, t, h, w, width).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, grid.size, width)


def token_index(grid: Grid, window: Window, device: torch.device | None = None) -> Tensor:
    """(G, S) row-major index, in the whole grid, of every group's tokens."""
    return group(torch.arange(grid.size, device=device).view(1, -1, 1), grid, window)[0, :, :, 0]
