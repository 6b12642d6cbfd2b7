"""ElasticBlock: the middle blocks of any transformer as one block, which runs on as many latents as a budget allows."""

from collections.abc import Iterable

from torch import Tensor, nn

from elit.elastic.anchors import Anchor, Anchors
from elit.elastic.core import LatentCore, Layout, Trunk
from elit.elastic.grid import Grid, Window
from elit.elastic.interface import Read, Write, init_interface
from elit.elastic.levels import Budget
from elit.errors import UserError


class PlainTrunk(Trunk):
    """Blocks that are called as block(x_BNC, c_BC)."""

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        for block in self:
            x_BNC = block(x_BNC, c_BC)
        return x_BNC


class ElasticBlock(nn.Module):
    """Read, some blocks of your own on the latents, and Write, in the place of those blocks.

    With `anchor="sharp"` the full budget computes at first what the blocks did alone.

    Args:
        blocks: called as block(x_BNC, c_BC) with any number of tokens N; positions are in the tokens already.
        width: C, of tokens and conditioning. heads: of Read's and Write's attention.
        window: the tokens that are read together: a side, (rows, columns) or (frames, rows, columns). It need not divide
            the grid.
        anchor: "sharp", "pyramid", or "none" for the paper's interface (see `elit.elastic.anchors`).
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        width: int,
        heads: int,
        window: int | tuple[int, ...],
        anchor: Anchor = "sharp",
    ) -> None:
        super().__init__()
        sides = (window, window) if isinstance(window, int) else tuple(window)
        if len(sides) not in (2, 3):
            raise UserError(f"window is a side, (rows, columns) or (frames, rows, columns) of tokens, not {window}")
        size = Window(*sides[-2:], *sides[:-2])
        read, write = Read(width, heads, size.size), Write(width, heads, size.size)
        anchors = None if anchor == "none" else Anchors(size, anchor)
        init_interface(read, write, anchors)
        self.core = LatentCore(read, PlainTrunk(blocks), write, size, anchors=anchors)

    def forward(self, x_BNC: Tensor, c_BC: Tensor, grid: tuple[int, ...], budget: Budget = None) -> Tensor:
        """Tokens (B, N, C) to tokens, at a budget: None (full), a fraction in (0, 1], or one per sample.

        grid: (rows, columns) or (frames, rows, columns) of the N tokens, in row-major order. Raises UserError for a budget
        or a grid that does not fit.
        """
        made = Grid(*grid[-2:], *grid[:-2])
        if made.size != x_BNC.shape[1]:
            raise UserError(f"{x_BNC.shape[1]} tokens came, and the grid {made} has {made.size}")
        return self.core(x_BNC, c_BC, Layout(made, level=self.core.levels.resolve(budget, len(x_BNC))))
