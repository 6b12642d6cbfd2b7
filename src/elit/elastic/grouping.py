"""Windows: how tokens on a grid fall into groups, and back.

Tokens stay in row-major order everywhere; grouping is one reshape-and-permute and lives here alone.

Shapes: B batch, N tokens, G groups, S tokens in a group, C width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extent:
    """A size in tokens along height, width and, for video, frames. An image has one frame."""

    height: int
    width: int
    frames: int = 1

    def __post_init__(self) -> None:
        if any(not isinstance(n, int) or n < 1 for n in self.axes):
            raise ValueError(f"a {type(self).__name__.lower()} has whole positive sides, not {self.axes}")

    @property
    def axes(self) -> tuple[int, int, int]:
        """(frames, height, width): the order of the tokens, slowest first."""
        return self.frames, self.height, self.width

    @property
    def size(self) -> int:
        """Tokens inside."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return "x".join(str(n) for n in (self.axes if self.frames > 1 else self.axes[1:]))


@dataclass(frozen=True)
class Grid(Extent):
    """The tokens of an image (height x width) or of a video (frames x height x width), in row-major order."""


@dataclass(frozen=True)
class Window(Extent):
    """The tokens that form one group. Windows tile the grid without overlap."""

    def groups(self, grid: Grid) -> tuple[int, int, int]:
        """Number of windows along (frames, height, width) of the grid.

        Raises ValueError, naming the nearest windows that do fit, where the window does not divide the grid.
        """
        if any(n % w for n, w in zip(grid.axes, self.axes, strict=True)):
            fitting = " or ".join(str(window) for window in nearest_windows(grid, self))
            raise ValueError(f"a window of {self} does not divide a grid of {grid} tokens; the nearest that do: {fitting}")
        frames, height, width = (n // w for n, w in zip(grid.axes, self.axes, strict=True))
        return frames, height, width


def nearest_windows(grid: Grid, window: Window) -> list[Window]:
    """The largest window not above, and the smallest not below, that divide the grid on every axis."""

    def divisors(n: int) -> list[int]:
        return [d for d in range(1, n + 1) if n % d == 0]

    def build(sides: list[int]) -> Window:
        return Window(frames=sides[0], height=sides[1], width=sides[2])

    axes = list(zip(grid.axes, window.axes, strict=True))
    below = build([max(d for d in divisors(n) if d <= w) if w <= n else n for n, w in axes])
    above = build([min((d for d in divisors(n) if d >= w), default=n) for n, w in axes])
    return [below] if below == above else [below, above]


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
