"""Windows: how tokens on a grid fall into groups, and back.

Tokens stay in row-major order everywhere; grouping is one reshape-and-permute and lives here alone.

Shapes: B batch, N tokens, G groups, S tokens in a group, C width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from elit.elastic.grid import Grid, Region, Window


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


def cut(x_BNC: Tensor, grid: Grid, region: Region) -> Tensor:
    """The tokens of a region, in row-major order; all of them where the region is the grid."""
    if region.grid == grid:
        return x_BNC
    (t, y, x), (frames, height, width) = region.corner, region.grid.axes
    whole = x_BNC.unflatten(1, grid.axes)
    return whole[:, t : t + frames, y : y + height, x : x + width].flatten(1, 3)


def joined(parts: Sequence[Tensor], grid: Grid | None = None, regions: Sequence[Region] = ()) -> Tensor:
    """The inverse of `cut` over all regions of a grid; without a grid, the parts (B, N, C) one behind another."""
    if len(parts) == 1:
        return parts[0]
    if grid is None:
        return torch.cat(list(parts), dim=1)
    numbers = torch.arange(grid.size, device=parts[0].device).view(1, -1, 1)
    order = torch.cat([cut(numbers, grid, region) for region in regions], dim=1)[0, :, 0]
    return torch.cat(list(parts), dim=1)[:, order.argsort()]


def token_index(grid: Grid, region: Region, device: torch.device | None = None) -> Tensor:
    """(G, S) row-major index, in the whole grid, of the tokens of every group of a region."""
    numbers = torch.arange(grid.size, device=device).view(1, -1, 1)
    return group(cut(numbers, grid, region), region.grid, region.window)[0, :, :, 0]
