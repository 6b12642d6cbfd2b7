"""What a backbone is made of: its configuration, without torch."""

from dataclasses import dataclass

from elit.elastic.grid import Grid, Window
from elit.elastic.levels import Levels
from elit.errors import UserError


@dataclass(frozen=True)
class DiTConfig:
    """A DiT. Dense where `group_size` is None; otherwise elastic, with the split head - core - tail.

    input_size: of the input, (height, width) or one side; patch_size, in_channels: of the input.
    width, depth, heads, mlp_ratio: of the blocks. num_classes: the null class is the row after them.
    qk_norm: LayerNorm of queries and keys in the blocks. rope: rotary positions instead of fixed sin-cos and the table.
    group_size: the window's (height, width) in tokens, or one side. head_depth, tail_depth: blocks before Read and
    after Write. read_depth, write_depth, interface_mlp_ratio: of Read and Write. write_sees_dropped: see `LatentCore`.
    latent_table: rows of the learned table of latent positions, which a `rope` model has not; 4096 in the published models.
    """

    input_size: int | tuple[int, int] = 32
    patch_size: int = 2
    in_channels: int = 4
    num_classes: int = 1000
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    rope: bool = False
    group_size: int | tuple[int, int] | None = None
    head_depth: int = 2
    tail_depth: int = 2
    read_depth: int = 1
    write_depth: int = 1
    interface_mlp_ratio: float = 1.0
    write_sees_dropped: bool = False
    latent_table: int = 4096

    def __post_init__(self) -> None:
        for name in ("input_size", "group_size"):  # a pair read from JSON is a list
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for name in ("num_classes", "depth", "patch_size", "in_channels", "width", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.width % self.heads or self.width % 4 or (self.width // self.heads) % 2:
            raise UserError(f"width {self.width} must be a multiple of 4 and of 2 x heads, with heads = {self.heads}")
        for side in pair(self.input_size):
            if side < 1 or side % self.patch_size:
                raise UserError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.window is None:
            return
        self.window.groups(self.grid)
        if min(self.head_depth, self.tail_depth) < 0 or self.head_depth + self.tail_depth >= self.depth:
            raise UserError(
                f"head_depth {self.head_depth} + tail_depth {self.tail_depth} leave no core in a depth of {self.depth}"
            )
        if min(self.read_depth, self.write_depth) < 1:
            raise UserError("read_depth and write_depth are at least 1")
        if not self.rope and self.grid.size > self.latent_table:
            raise UserError(
                f"a grid of {self.grid.size} tokens is beyond the {self.latent_table} rows of latent_table; set rope=True"
            )

    @property
    def grid(self) -> Grid:
        height, width = pair(self.input_size)
        return Grid(height // self.patch_size, width // self.patch_size)

    @property
    def levels(self) -> Levels:
        """The levels of a model of this configuration: one for a dense one."""
        return Levels(1 if self.window is None else self.window.size)

    @property
    def window(self) -> Window | None:
        return None if self.group_size is None else Window(*pair(self.group_size))


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as a pair or as one side."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
