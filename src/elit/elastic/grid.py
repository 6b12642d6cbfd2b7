"""Sizes in tokens: the grid of an image or a video, and the windows that tile it. Without torch."""

from dataclasses import dataclass

from elit.errors import UserError


@dataclass(frozen=True)
class Extent:
    """A size in tokens along height, width and, for video, frames. An image has one frame."""

    height: int
    width: int
    frames: int = 1

    def __post_init__(self) -> None:
        if any(not isinstance(n, int) or n < 1 for n in self.axes):
            raise UserError(f"a {type(self).__name__.lower()} has whole positive sides, not {self.axes}")

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

        Raises UserError, naming the nearest windows that do fit, where the window does not divide the grid.
        """
        if any(n % w for n, w in zip(grid.axes, self.axes, strict=True)):
            fitting = " or ".join(str(window) for window in nearest_windows(grid, self))
            raise UserError(f"a window of {self} does not divide a grid of {grid} tokens; the nearest that do: {fitting}")
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


@dataclass(frozen=True)
class Region:
    """A part of a grid that a window, or a smaller one at the grid's edge, tiles without rest.

    corner: the region's first token in the grid, (frame, row, column). grid: the region's own. window: of its groups.
    """

    corner: tuple[int, int, int]
    grid: Grid
    window: Window

    def inside(self, whole: Window) -> list[int]:
        """The row-major numbers, in the whole window, of the tokens that this region's window has."""
        (frames, height, width), (_, rows, columns) = self.window.axes, whole.axes
        return [
            (frame * rows + row) * columns + column
            for frame in range(frames)
            for row in range(height)
            for column in range(width)
        ]


def regions(grid: Grid, window: Window) -> list[Region]:
    """The parts of a grid: where the window divides it the whole, else what it tiles and the edges with what is left.

    A grid of 5 x 5 under a window of 2 x 2 has 4 x 4 tokens of it, 4 x 1 and 1 x 4 of windows cut short, and the corner.
    """
    axes = []
    for n, w in zip(grid.axes, window.axes, strict=True):
        rest = n % w
        axes.append([piece for piece in ((0, n - rest, w), (n - rest, rest, rest)) if piece[1]])
    return [
        Region(
            (t[0], y[0], x[0]),
            Grid(frames=t[1], height=y[1], width=x[1]),
            Window(frames=t[2], height=y[2], width=x[2]),
        )
        for t in axes[0]
        for y in axes[1]
        for x in axes[2]
    ]
