"""What a backbone is made of: its configuration, without torch."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen

from elit.elastic.grid import Grid, Window
from elit.elastic.levels import Levels
from elit.errors import UserError
from elit.records import check_fields, record

# Bounds far above every model that there is, and below what hangs or swells: who asks for more has mistyped.
Side = Annotated[int, Ge(1), Le(2**16)]  # of an input; heads and channels are fewer too
Layers = Annotated[int, Ge(1), Le(1024)]
LayersOrNone = Annotated[int, Ge(0), Le(1024)]
Width = Annotated[int, Ge(1), Le(2**23)]
Ratio = Annotated[float, Gt(0), Le(64)]
MOST_TOKENS, MOST_LATENTS = 2**20, 2**12  # of a grid, and of a window


@record
class DiTConfig:
    """A DiT. Dense where `group_size` is None; otherwise elastic, with the split head - core - tail.

    input_size: height and width of the input, as a pair or one side.
    patch_size: side of the square that becomes one token.
    in_channels: channels of the input, 3 for pixels.
    num_classes: classes that there are labels of; the null class is the row after them.
    label_factors: how many values each factor of a label has, such as [96, 7] for a kind and a style, where labels have
    several; each has one more, "any", and num_classes counts all labels of which one factor at least is not open.
    width: values of a token.
    depth: number of blocks.
    heads: attention heads of a block.
    mlp_ratio: hidden width of a block's MLP, in widths.
    qk_norm: whether queries and keys are normalised in the blocks.
    rope: whether positions are rotary, instead of fixed sine and cosine and a learned table of the latents'.
    group_size: height and width, in tokens, of the window whose tokens are read together, as a pair or one side; null makes
    a dense model.
    head_depth: blocks before Read.
    tail_depth: blocks after Write.
    read_depth: layers of Read.
    write_depth: layers of Write.
    interface_mlp_ratio: hidden width of the MLPs of Read and Write, in widths.
    write_sees_dropped: whether Write attends to the latents that a budget leaves out, as the published weights were trained.
    latent_table: rows of the learned table of latent positions, which a model with rope has not.
    anchor: "none", the paper's interface; "sharp", "pyramid" or "cells", one that starts from the tokens (see
    `elastic.anchors`).
    """

    input_size: Side | tuple[Side, Side] = 32
    patch_size: Annotated[int, Ge(1), Le(1024)] = 2
    in_channels: Side = 4
    num_classes: Annotated[int, Ge(1), Le(2**24)] = 1000
    label_factors: Annotated[tuple[Annotated[int, Ge(1), Le(2**24)], ...], MaxLen(8)] = ()
    width: Width = 384
    depth: Layers = 12
    heads: Side = 6
    mlp_ratio: Ratio = 4.0
    qk_norm: bool = False
    rope: bool = False
    group_size: Side | tuple[Side, Side] | None = None
    head_depth: LayersOrNone = 2
    tail_depth: LayersOrNone = 2
    read_depth: Layers = 1
    write_depth: Layers = 1
    interface_mlp_ratio: Ratio = 1.0
    write_sees_dropped: bool = False
    latent_table: Annotated[int, Ge(0), Le(MOST_TOKENS)] = 4096
    anchor: Literal["none", "sharp", "pyramid", "cells"] = "none"

    def __post_init__(self) -> None:
        for name in ("input_size", "group_size", "label_factors"):  # a pair read from JSON is a list
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_fields(self)
        if self.width % self.heads or self.width % 4 or (self.width // self.heads) % 2:
            raise UserError(f"width {self.width} must be a multiple of 4 and of 2 x heads, with heads = {self.heads}")
        for name in ("mlp_ratio", "interface_mlp_ratio"):
            if self.width * getattr(self, name) < 1:
                raise UserError(
                    f"{name} {getattr(self, name)} leaves an MLP of width {self.width} without any hidden values"
                )
        if self.label_factors and (labels := math.prod(size + 1 for size in self.label_factors) - 1) != self.num_classes:
            raise UserError(
                f"label_factors {list(self.label_factors)} make {labels} labels, each factor open or not, and num_classes is"
                f" {self.num_classes}; set num_classes {labels}"
            )
        if any(side % self.patch_size for side in pair(self.input_size)):
            raise UserError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.grid.size > MOST_TOKENS:
            raise UserError(
                f"a grid of {self.grid} tokens is too large; input_size / patch_size gives {MOST_TOKENS} at most"
            )
        if self.window is not None:
            self._check_elastic(self.window)

    def _check_elastic(self, window: Window) -> None:
        if window.size > MOST_LATENTS:
            raise UserError(f"a group of {window} tokens is too large; group_size gives {MOST_LATENTS} latents at most")
        if self.anchor != "none" and self.write_sees_dropped:
            raise UserError("an anchored interface writes what the core changes, so write_sees_dropped has no meaning there")
        if self.head_depth + self.tail_depth >= self.depth:
            raise UserError(
                f"head_depth {self.head_depth} + tail_depth {self.tail_depth} leave no core in a depth of {self.depth}"
            )
        if not self.rope and self.grid.size > self.latent_table:
            raise UserError(
                f"a grid of {self.grid.size} tokens is beyond the {self.latent_table} rows of latent_table; set rope=True"
            )

    @property
    def grid(self) -> Grid:
        height, width = pair(self.input_size)
        return Grid(height // self.patch_size, width // self.patch_size)

    @property
    def label_sizes(self) -> tuple[int, ...]:
        """How many values each factor of a label has."""
        return self.label_factors or (self.num_classes,)

    @property
    def levels(self) -> Levels:
        """The levels of a model of this configuration: one for a dense one."""
        return Levels(1 if self.window is None else self.window.size)

    @property
    def window(self) -> Window | None:
        return None if self.group_size is None else Window(*pair(self.group_size))


@record
class UViTConfig(DiTConfig):
    """A U-ViT: a DiT with long skips. Its elastic form has as many blocks before Read as after Write."""

    def _check_elastic(self, window: Window) -> None:
        super()._check_elastic(window)
        if self.head_depth != self.tail_depth:
            raise UserError(
                f"head_depth {self.head_depth} and tail_depth {self.tail_depth} differ, and a U-ViT's skips join the i-th"
                " block to the i-th from the end: give both the same"
            )


@record
class HDiTConfig(DiTConfig):
    """An HDiT: a DiT whose middle blocks run on a quarter of the tokens, twice as wide.

    fold: the blocks before the tokens are folded, and those before they are unfolded again.
    """

    fold: tuple[LayersOrNone, LayersOrNone] = (4, 8)

    def __post_init__(self) -> None:
        if isinstance(self.fold, list):
            object.__setattr__(self, "fold", tuple(self.fold))
        super().__post_init__()
        start, end = self.fold
        if not 0 <= start < end <= self.depth:
            raise UserError(
                f"fold {self.fold} is no run of blocks in a depth of {self.depth}; give (start, end), such as (4, 8)"
            )
        if self.grid.height % 2 or self.grid.width % 2:
            raise UserError(f"a grid of {self.grid} tokens cannot be folded by 2 x 2; give another input_size")

    def _check_elastic(self, window: Window) -> None:
        super()._check_elastic(window)
        if self.anchor == "cells":
            raise UserError("an HDiT folds latents by fours, which anchor cells does not know; set anchor sharp or pyramid")
        if window.height % 2 or window.width % 2:
            raise UserError(f"a window of {window} tokens cannot be folded by 2 x 2; give an even group_size")
        window.groups(self.grid)  # whole windows alone
        if not self.head_depth <= self.fold[0] < self.fold[1] <= self.depth - self.tail_depth:
            raise UserError(
                f"fold {self.fold} does not lie within the core, blocks {self.head_depth} to {self.depth - self.tail_depth}"
            )

    @property
    def levels(self) -> Levels:
        """Latents are folded by fours."""
        return Levels(1) if self.window is None else Levels(self.window.size, 4)


@record
class PaddedConfig(DiTConfig):
    """A DiT that sees its input within a border of zeros, and predicts nothing there.

    padding: tokens of zeros on every side.
    """

    padding: Annotated[int, Ge(0), Le(1024)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rope:
            raise UserError("a padded model needs positions that hold for any grid; set rope true")

    @property
    def padded_grid(self) -> Grid:
        """The grid with its border."""
        return Grid(self.grid.height + 2 * self.padding, self.grid.width + 2 * self.padding)


@record
class DFMConfig(DiTConfig):
    """A DiT of decomposable flow matching: a pyramid of `stages` images, the coarsest first, in the tokens of one.

    stages: of the pyramid; each halves the image, and the patch too, so that all have the same grid of tokens.
    """

    stages: Annotated[int, Ge(1), Le(8)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings = 2 ** (self.stages - 1)
        if self.patch_size % halvings:
            raise UserError(
                f"{self.stages} stages halve patches {self.stages - 1} times, and patch_size {self.patch_size} is no"
                f" multiple of {halvings}; give fewer stages or larger patches"
            )


@record
class VideoConfig(DiTConfig):
    """A DiT of clips. A patch is of one frame, and `group_size` has the sides of the window in each of its frames.

    frames: of the input, each of `input_size`.
    group_frames: of the window whose tokens are read together.
    """

    frames: Annotated[int, Ge(2), Le(2**12)] = 8
    group_frames: Annotated[int, Ge(1), Le(2**12)] = 2

    def _check_elastic(self, window: Window) -> None:
        super()._check_elastic(window)
        if self.group_frames > self.frames:
            raise UserError(
                f"group_frames {self.group_frames} is more than the {self.frames} frames that there are; give {self.frames}"
                " at most"
            )

    @property
    def grid(self) -> Grid:
        height, width = pair(self.input_size)
        return Grid(height // self.patch_size, width // self.patch_size, self.frames)

    @property
    def window(self) -> Window | None:
        return None if self.group_size is None else Window(*pair(self.group_size), self.group_frames)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as a pair or as one side."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
