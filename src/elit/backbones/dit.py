"""DiT / SiT (Peebles and Xie, 2023; Ma et al., 2024) and its elastic form: `[*head, LatentCore, *tail]`.

Shapes: B batch, N tokens, C width; images are (B, channels, height, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elit.backbones.layers import Block, FinalLayer, TimestepEmbedding, patchify, sincos_table, unpatchify
from elit.elastic import Grid, LatentCore, Layout, Read, Window, Write, init_interface
from elit.elastic.budget import Level, resolve
from elit.elastic.interface import ReadLayer, WriteLayer
from elit.elastic.rope import token_rope

Budget = float | Sequence[float] | Tensor | None


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
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.width % self.heads or self.width % 4 or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of 2 x heads, with heads = {self.heads}")
        for side in pair(self.input_size):
            if side < 1 or side % self.patch_size:
                raise ValueError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.window is None:
            return
        self.window.groups(self.grid)
        if min(self.head_depth, self.tail_depth) < 0 or self.head_depth + self.tail_depth >= self.depth:
            raise ValueError(
                f"head_depth {self.head_depth} + tail_depth {self.tail_depth} leave no core in a depth of {self.depth}"
            )
        if min(self.read_depth, self.write_depth) < 1:
            raise ValueError("read_depth and write_depth are at least 1")
        if not self.rope and self.grid.size > self.latent_table:
            raise ValueError(
                f"a grid of {self.grid.size} tokens is beyond the {self.latent_table} rows of latent_table; set rope=True"
            )

    @property
    def grid(self) -> Grid:
        height, width = pair(self.input_size)
        return Grid(height // self.patch_size, width // self.patch_size)

    @property
    def window(self) -> Window | None:
        return None if self.group_size is None else Window(*pair(self.group_size))


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as a pair or as one side."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class DiT(nn.Module):
    """Predicts the velocity of a flow on images: v = model(x, t, y, budget)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch_values = config.width, config.patch_size**2 * config.in_channels
        self.patch_embedding = nn.Linear(patch_values, width)
        self.time_embedding = TimestepEmbedding(width)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        blocks = [Block(width, config.heads, config.mlp_ratio, config.qk_norm) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks if config.window is None else self._make_elastic(blocks, config.window))
        self.final = FinalLayer(width, patch_values)
        self.reset_positions()
        self.init_weights()

    def _make_elastic(self, blocks: list[Block], window: Window) -> list[nn.Module]:
        config = self.config
        head, tail = config.head_depth, config.depth - config.tail_depth
        core = LatentCore(
            Read(
                config.width,
                config.heads,
                window.size,
                config.read_depth,
                config.interface_mlp_ratio,
                table=0 if config.rope else config.latent_table,
            ),
            blocks[head:tail],
            Write(config.width, config.heads, window.size, config.write_depth, config.interface_mlp_ratio),
            window,
            head_width=config.width // config.heads if config.rope else None,
            write_sees_dropped=config.write_sees_dropped,
        )
        return [*blocks[:head], core, *blocks[tail:]]

    def init_weights(self) -> None:
        """Xavier-uniform linears with zero bias; N(0, 0.02) tables and time MLP; zero modulation and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias) if module.bias is not None else None
        for table in (self.label_embedding, self.time_embedding.fc1, self.time_embedding.fc2):
            nn.init.normal_(table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block | FinalLayer):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.final.linear.weight)
        if self.core is not None:
            init_interface(self.core.read, self.core.write)

    def reset_positions(self) -> None:
        """(Re)computes the fixed sin-cos table of the tokens, which no file holds."""
        if not self.config.rope:
            self.register_buffer("positions", sincos_table(self.config.grid, self.config.width), persistent=False)

    @property
    def core(self) -> LatentCore | None:
        """The latent core, or None in a dense model."""
        return next((block for block in self.blocks if isinstance(block, LatentCore)), None)

    @property
    def latents(self) -> int:
        """J, the number of levels; 1 for a dense model, whose only budget is the full one."""
        return 1 if self.core is None else self.core.latents

    def host_blocks(self) -> list[str]:
        """The names of the host's own blocks, first to last, whether in the core or outside: block i is what i names."""
        return [name for name, module in self.named_modules() if isinstance(module, Block)]

    @property
    def null_class(self) -> int:
        """The label that stands for no label."""
        return self.config.num_classes

    @property
    def input_shape(self) -> tuple[int, int]:
        """(height, width) of the inputs that the model was made for."""
        return pair(self.config.input_size)

    def compile_blocks(self, **options: Any) -> None:
        """torch.compile block by block: quicker to compile than the whole, and one graph serves every block and budget.

        Of each its forward alone, so that hooks, with which FSDP gathers weights, stay outside the graph. options: of
        torch.compile.
        """
        for module in self.modules():
            if isinstance(module, Block | ReadLayer | WriteLayer):
                module.forward = torch.compile(module.forward, **options)  # type: ignore[method-assign]

    def set_checkpointing(self, on: bool = True) -> None:
        """Recompute every block, those of the core too, in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Block):
                module.checkpointing = on

    def forward(self, x: Tensor, t: Tensor, y: Tensor, budget: Budget = None) -> Tensor:
        """The velocity (B, C, H, W) at x (B, C, H, W), times t (B,) in [0, 1] with 1 = noise, labels y (B,) int.

        `y = num_classes` is the null class. `budget` is None (full), a fraction in (0, 1], or one per sample: a ceiling
        on the share of latents the core runs. Raises ValueError for a budget, label or size the model does not have.
        """
        if self.core is None and not (budget is None or (isinstance(budget, float | int) and budget == 1)):
            raise ValueError(f"budget {budget} was asked of a dense model, which has the full budget alone")
        return self.run(x, t, y, resolve(budget, self.latents, len(x)))

    def run(self, x: Tensor, t: Tensor, y: Tensor, level: Level) -> Tensor:
        """`forward` at a level (latents per group) instead of a budget."""
        grid = self.check(x, y)
        h = self.patch_embedding(patchify(x.to(self.patch_embedding.weight.dtype), self.config.patch_size))
        rope = None
        if self.config.rope:
            rope = token_rope(grid, self.config.width // self.config.heads, x.device)
        else:
            h = h + (self.positions if grid == self.config.grid else sincos_table(grid, self.config.width).to(h))
        c = self.time_embedding(t) + self.label_embedding(y)
        layout = Layout(grid, rope, level)
        for block in self.blocks:
            h = block(h, c, layout)
        return unpatchify(self.final(h, c), grid, self.config.patch_size)

    def check(self, x: Tensor, y: Tensor) -> Grid:
        """The grid of tokens of `x`; raises ValueError for an input the model cannot take."""
        config = self.config
        if (
            x.ndim != 4
            or x.shape[1] != config.in_channels
            or x.shape[2] % config.patch_size
            or x.shape[3] % config.patch_size
        ):
            raise ValueError(
                f"the input is (B, {config.in_channels}, H, W) with H and W multiples of {config.patch_size},"
                f" not {tuple(x.shape)}"
            )
        if (
            type(y) is Tensor
            and y.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and bool(((y < 0) | (y > self.null_class)).any())
        ):
            raise ValueError(f"labels are 0 to {self.null_class - 1}, and {self.null_class} for none, not {y.tolist()}")
        grid = Grid(x.shape[2] // config.patch_size, x.shape[3] // config.patch_size)
        if config.window is not None and not config.rope and grid != config.grid:
            raise ValueError(
                f"the learned positions hold for a grid of {config.grid} tokens only, not {grid}; for other sizes"
                " make and train the model with rope=True"
            )
        return grid

    def at_budget(self, k: float) -> "FixedBudget":
        """The model at one budget as a module of static shapes, (x, t, y) -> v, for torch.export and torch.compile.

        `k` is a count of latents per group (an int, 1 to J) or a fraction (a float in (0, 1]). Weights are shared.
        """
        if isinstance(k, int):
            if not 1 <= k <= self.latents:
                raise ValueError(f"{k} latents per group were asked for; the model has 1 to {self.latents}")
            return FixedBudget(self, k)
        level = resolve(k, self.latents, 1)
        assert isinstance(level, int)
        return FixedBudget(self, level)


class FixedBudget(nn.Module):
    """A model at one level."""

    def __init__(self, model: DiT, level: int) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model.run(x, t, y, self.level)
