"""DiT / SiT (Peebles and Xie, 2023; Ma et al., 2024) and its elastic form: `[*head, LatentCore, *tail]`.

Shapes: B batch, N tokens, C width; images are (B, channels, height, width).
"""

from torch import Tensor, nn

from elit.backbones.config import DiTConfig, pair
from elit.backbones.layers import Block, FinalLayer, LabelEmbedding, TimestepEmbedding, patchify, sincos_table, unpatchify
from elit.condition import Condition, Labels
from elit.elastic.anchors import Anchors
from elit.elastic.core import LatentCore, Layout, Trunk
from elit.elastic.grid import Extent, Grid
from elit.elastic.interface import Read, Write, init_interface
from elit.elastic.levels import Level
from elit.elastic.model import Around, ElasticModel, Input
from elit.elastic.rope import token_rope
from elit.errors import UserError


class DiT(ElasticModel):
    """A diffusion transformer on images: v = model(x, t, y, budget)."""

    config: DiTConfig
    positions: Tensor  # of the tokens, where they are not rotary

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.input = self.make_input()
        self.null_class, self.label_sizes = config.num_classes, config.label_sizes
        self.make_first()
        self.label_embedding = LabelEmbedding(config.label_sizes, config.width)
        self.blocks = nn.ModuleList(self.make_stack(self.make_blocks()))
        self.make_last()
        self.reset_positions()
        self.init_weights()

    def make_input(self) -> Input:
        """What the model takes."""
        return Input(self.config.in_channels, Extent(*pair(self.config.input_size)), self.config.patch_size)

    def make_first(self) -> None:
        """Makes what comes before the blocks and depends on the input: embeddings of patches and of times."""
        self.patch_embedding: nn.Module = nn.Linear(self.config.patch_size**2 * self.config.in_channels, self.config.width)
        self.time_embedding: nn.Module = TimestepEmbedding(self.config.width)

    def make_last(self) -> None:
        """Makes what comes after the blocks."""
        self.final: nn.Module = FinalLayer(self.config.width, self.config.patch_size**2 * self.config.in_channels)

    def embed(self, x: Tensor) -> Tensor:
        """The tokens (B, N, C) of an input, without positions."""
        return self.patch_embedding(patchify(x, self.config.patch_size))

    def predict(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid) -> Tensor:
        """The velocity that the last tokens tell."""
        return unpatchify(self.final(x_BNC, c_BC), grid, self.config.patch_size)

    def make_blocks(self) -> list[Block]:
        """The host's own blocks, first to last."""
        config = self.config
        return [Block(config.width, config.heads, config.mlp_ratio, config.qk_norm) for _ in range(config.depth)]

    def make_trunk(self, blocks: list[Block]) -> nn.Module:
        """The host's middle, of these blocks, as it runs on latents."""
        return Trunk(blocks)

    def make_stack(self, blocks: list[Block]) -> list[nn.Module]:
        """What runs one after another: the blocks, in an elastic model with a latent core in place of the middle ones."""
        config, window = self.config, self.config.window
        if window is None:
            return list(blocks)
        head, tail = config.head_depth, config.depth - config.tail_depth
        step = config.levels.step
        table = 0 if config.rope else config.latent_table
        core = LatentCore(
            Read(config.width, config.heads, window.size, config.read_depth, config.interface_mlp_ratio, table),
            self.make_trunk(blocks[head:tail]),
            Write(config.width, config.heads, window.size, config.write_depth, config.interface_mlp_ratio),
            window,
            head_width=config.width // config.heads if config.rope else None,
            write_sees_dropped=config.write_sees_dropped,
            step=step,
            anchors=None if config.anchor == "none" else Anchors(window, config.anchor, step),
        )
        return [*blocks[:head], core, *blocks[tail:]]

    def run_stack(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        """Tokens (B, N, C) through the whole stack."""
        for block in self.blocks:
            x_BNC = block(x_BNC, c_BC, layout)
        return x_BNC

    def init_weights(self) -> None:
        """Xavier-uniform linears with zero bias; N(0, 0.02) tables and time MLP; zero modulation and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias) if module.bias is not None else None
        nn.init.normal_(self.label_embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, TimestepEmbedding):
                nn.init.normal_(module.fc1.weight, std=0.02)
                nn.init.normal_(module.fc2.weight, std=0.02)
            if isinstance(module, Block | FinalLayer):
                nn.init.zeros_(module.modulation.weight)
            if isinstance(module, FinalLayer):
                nn.init.zeros_(module.linear.weight)
        if self.core is not None:
            init_interface(self.core.read, self.core.write, self.core.anchors)

    def reset_positions(self) -> None:
        """(Re)computes the fixed sin-cos table of the tokens, which no file holds."""
        if not self.config.rope:
            table = sincos_table(self.config.grid, self.config.width).to(self.label_embedding.weight.device)
            self.register_buffer("positions", table, persistent=False)

    def run(self, x: Tensor, t: Tensor, condition: Condition, level: Level, around: Around | None = None) -> Tensor:
        """The velocity at a level; see `ElasticModel.forward`."""
        grid = self.check(x, t, condition)
        weights = self.label_embedding.weight.dtype  # of the residual stream too, whatever autocast makes of products
        h = self.embed(x.to(weights)).to(weights)
        rope = None
        if self.config.rope:
            rope = token_rope(grid, self.config.width // self.config.heads, x.device)
        else:
            h = h + (self.positions if grid == self.config.grid else sincos_table(grid, self.config.width).to(h))
        assert isinstance(condition, Labels)
        c = self.time_embedding(t) + self.label_embedding(condition.y)
        layout = Layout(grid, rope, level)
        h = self.run_stack(h, c, layout) if around is None else around(h, lambda h: self.run_stack(h, c, layout))
        return self.predict(h, c, grid)

    def check(self, x: Tensor, t: Tensor, condition: Condition) -> Grid:
        """The grid of tokens of `x`. Raises UserError, naming the argument, for an input that the model cannot take."""
        config, grid = self.config, self.grid_of(x)
        per_stage = self.stages > 1 and isinstance(t, Tensor) and t.shape == (len(x), self.stages)
        if not per_stage and (not isinstance(t, Tensor) or t.shape != x.shape[:1]):
            given = tuple(t.shape) if isinstance(t, Tensor) else t
            stages = f", or {self.stages} of each, one per stage" if self.stages > 1 else ""
            raise UserError(f"t is a tensor of {len(x)} times, one per sample{stages}, not {given}")
        if not isinstance(condition, Labels):
            raise UserError(f"this model is told class labels y, not {type(condition).__name__}")
        condition.check(len(x))
        if config.window is not None and not config.rope and grid != config.grid:
            raise UserError(
                f"the learned positions hold for a grid of {config.grid} tokens only, not {grid}; for other sizes"
                " make and train the model with rope=True"
            )
        return grid

    def grid_of(self, x: Tensor) -> Grid:
        """The grid of tokens of an input of the right form. Raises UserError for another."""
        channels, patch = self.input.channels, self.input.patch
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % patch or x.shape[3] % patch:
            raise UserError(f"the input is (B, {channels}, H, W) with H and W multiples of {patch}, not {tuple(x.shape)}")
        return Grid(x.shape[2] // patch, x.shape[3] // patch)
