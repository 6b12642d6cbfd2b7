"""HDiT: a DiT with an hourglass in its middle, which folds 2 x 2 tokens into one of twice the width (Crowson et al., 2024).

Of 28 blocks the first 8 and the last 8 run on every token, and the 12 between on a quarter of them, twice as wide. What
goes around the fold is added again behind it. Conditioning stays at the outer width, and attention sees everything. In the
elastic form it is latents that are folded, four of a group after one another, so that levels are multiples of 4.

Shapes: B batch, N tokens, G groups, C width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from elit.backbones.config import HDiTConfig
from elit.backbones.dit import DiT
from elit.backbones.layers import Block
from elit.condition import Condition
from elit.elastic.core import HostPart, Layout
from elit.elastic.grid import Grid, Window
from elit.elastic.grouping import group, ungroup
from elit.errors import UserError

SQUARE = Window(2, 2)


class Fold(HostPart):
    """A linear between four tokens side by side and one of twice the width; `canonical` is "narrow" or "widen"."""

    def __init__(self, canonical: str, inside: int, outside: int) -> None:
        super().__init__()
        self.canonical = canonical
        self.linear = nn.Linear(inside, outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Hourglass(nn.Module):
    """The middle of an HDiT: blocks before the fold, wide ones in it, and blocks after it.

    of_latents: it runs on latents, four of a group after one another, and not on the tokens of a grid.
    """

    def __init__(
        self, before: Sequence[Block], inside: Sequence[Block], after: Sequence[Block], width: int, of_latents: bool
    ) -> None:
        super().__init__()
        self.of_latents = of_latents
        self.before = nn.ModuleList(before)
        self.narrow = Fold("narrow", 4 * width, 2 * width)
        self.inside = nn.ModuleList(inside)
        self.widen = Fold("widen", 2 * width, 4 * width)
        self.after = nn.ModuleList(after)

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        for block in self.before:
            x_BNC = block(x_BNC, c_BC, layout)
        around_BNC = x_BNC
        rope = None if layout.rope is None else self.four(layout.rope, layout.grid)[:, :, 0]  # of the first of each four
        y = self.narrow(self.four(x_BNC, layout.grid).flatten(2))
        for block in self.inside:
            y = block(y, c_BC, Layout(Grid(1, y.shape[1]), rope))
        x_BNC = around_BNC + self.back(self.widen(y).unflatten(-1, (4, -1)), layout.grid)
        for block in self.after:
            x_BNC = block(x_BNC, c_BC, layout)
        return x_BNC

    def four(self, x_BNC: Tensor, grid: Grid) -> Tensor:
        """(B, N / 4, 4, C): 2 x 2 neighbours on the grid, or four latents of a group."""
        return x_BNC.unflatten(1, (-1, 4)) if self.of_latents else group(x_BNC, grid, SQUARE)

    def back(self, x_BG4C: Tensor, grid: Grid) -> Tensor:
        """The inverse of `four`."""
        return x_BG4C.flatten(1, 2) if self.of_latents else ungroup(x_BG4C, grid, SQUARE)


class HDiT(DiT):
    """A DiT with an hourglass in its middle."""

    config: HDiTConfig

    def make_blocks(self) -> list[Block]:
        config, (start, end) = self.config, self.config.fold
        blocks = super().make_blocks()
        for i in range(start, end):
            blocks[i] = Block(2 * config.width, 2 * config.heads, config.mlp_ratio, config.qk_norm, told=config.width)
        return blocks

    def make_trunk(self, blocks: list[Block]) -> nn.Module:
        first = self.config.head_depth if self.config.window is not None else 0
        start, end = (block - first for block in self.config.fold)
        of_latents = self.config.window is not None
        return Hourglass(blocks[:start], blocks[start:end], blocks[end:], self.config.width, of_latents)

    def make_stack(self, blocks: list[Block]) -> list[nn.Module]:
        return super().make_stack(blocks) if self.config.window is not None else [self.make_trunk(blocks)]

    def check(self, x: Tensor, t: Tensor, condition: Condition) -> Grid:
        grid = super().check(x, t, condition)
        if grid.height % 2 or grid.width % 2:
            raise UserError(f"an HDiT folds 2 x 2 tokens, and a grid of {grid} has an odd side; give another size")
        if self.config.window is not None:
            self.config.window.groups(grid)  # whole windows alone, whose latents come in fours
        return grid
