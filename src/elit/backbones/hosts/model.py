"""A transformer of diffusers as a model of this library: velocity(x, t, prompts, budget), for training and sampling.

A row per host that can be trained says how a batch is given to it. Those of flow matching whose samples are pictures can.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elit.backbones.hosts.budgets import CORE, at_level
from elit.backbones.hosts.core import HostCore
from elit.backbones.hosts.elasticize import elasticize_as
from elit.backbones.hosts.table import host_named
from elit.condition import Condition, Prompts, Text
from elit.elastic.grid import Extent, Grid
from elit.elastic.interface import ReadLayer, WriteLayer
from elit.elastic.levels import Level
from elit.elastic.model import Around, ElasticModel, Input
from elit.errors import UserError
from elit.outlines import without_memory

GUIDANCE = 3.5  # what transformers that were distilled with guidance are told, as diffusers' own training scripts do


@dataclass(frozen=True)
class Form:
    """How a host is given a batch.

    channels, patch: of the pictures (B, C, H, W), told by its configuration. widths: of a token of text and, where it takes
    one, of the pooled text. arguments: of a forward, for (x, t with 1 = noise, prompts, configuration). packed: whether its
    tokens are squares of 2 x 2 values, put into a row before it sees them.
    """

    channels: Callable[[Any], int]
    patch: Callable[[Any], int]
    widths: Callable[[Any], tuple[int, int | None]]
    arguments: Callable[[Tensor, Tensor, Prompts, Any], dict[str, Any]]
    packed: bool = False


def pack(x_BCHW: Tensor) -> Tensor:
    """(B, H / 2 * W / 2, 4 C): a token of every 2 x 2 values, its numbers by channel, row and column."""
    batch, channels, height, width = x_BCHW.shape
    x = x_BCHW.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens_BND: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: (B, C, H, W)."""
    batch, _, width_D = tokens_BND.shape
    x = tokens_BND.view(batch, height // 2, width // 2, width_D // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, width_D // 4, height, width)


def _sd3(x: Tensor, t: Tensor, prompts: Prompts, config: Any) -> dict[str, Any]:
    text = prompts.text
    return {
        "hidden_states": x,
        "encoder_hidden_states": text.tokens,
        "pooled_projections": text.pooled,
        "timestep": 1000 * t,
    }


def _flux(x: Tensor, t: Tensor, prompts: Prompts, config: Any) -> dict[str, Any]:
    text, (rows, columns) = prompts.text, (side // 2 for side in x.shape[2:])
    places = torch.cartesian_prod(*(torch.arange(n, device=x.device, dtype=x.dtype) for n in (rows, columns)))
    return {
        "hidden_states": pack(x),
        "encoder_hidden_states": text.tokens,
        "pooled_projections": text.pooled,
        "timestep": t,
        "img_ids": torch.cat([torch.zeros_like(places[:, :1]), places.view(-1, 2)], dim=1),
        "txt_ids": torch.zeros(text.tokens.shape[1], 3, device=x.device, dtype=x.dtype),
        "guidance": torch.full_like(t, GUIDANCE) if config.guidance_embeds else None,
    }


def _qwen(x: Tensor, t: Tensor, prompts: Prompts, config: Any) -> dict[str, Any]:
    text = prompts.text
    return {
        "hidden_states": pack(x),
        "encoder_hidden_states": text.tokens,
        "encoder_hidden_states_mask": text.mask.long(),
        "timestep": t,
        "img_shapes": [[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x),
    }


FORMS = {
    "SD3Transformer2DModel": Form(
        channels=lambda config: config.in_channels,
        patch=lambda config: config.patch_size,
        widths=lambda config: (config.joint_attention_dim, config.pooled_projection_dim),
        arguments=_sd3,
    ),
    "FluxTransformer2DModel": Form(
        channels=lambda config: config.in_channels // 4,
        patch=lambda config: 2,
        widths=lambda config: (config.joint_attention_dim, config.pooled_projection_dim),
        arguments=_flux,
        packed=True,
    ),
    "QwenImageTransformer2DModel": Form(
        channels=lambda config: config.in_channels // 4,
        patch=lambda config: 2,
        widths=lambda config: (config.joint_attention_dim, None),
        arguments=_qwen,
        packed=True,
    ),
}


def form_of(name: str) -> Form:
    """How a host of this class is given a batch. Raises UserError for one that cannot be trained, or is none."""
    host_named(name)
    if name not in FORMS:
        raise UserError(f"a {name} can be made elastic, and cannot be trained here; those that can: {', '.join(FORMS)}")
    return FORMS[name]


def check_embeddings(name: str, takes: tuple[int, int | None], width: int, pooled: int, what: str) -> None:
    """Raises UserError where embeddings of these widths are not what a host takes. what: their name, in the error."""
    wanted = (takes[0], pooled if takes[1] is None else takes[1])
    if (width, pooled) != wanted:
        raise UserError(
            f"{what} holds embeddings of {width} and, pooled, {pooled} numbers, and this {name} takes {wanted[0]} and"
            f" {wanted[1]}; prepare prompts with the encoder that it was made for"
        )


class HostModel(ElasticModel):
    """A transformer of diffusers, dense or elastic, that predicts the velocity of pictures (B, C, H, W).

    size: height and width of the pictures that it is trained on, in values. tokens: as `ElasticModel` has it.
    Raises UserError for a host that cannot be trained, and for pictures that it does not take.
    """

    null_class = 0  # it is told prompts, and no labels
    label_sizes = ()

    def __init__(self, transformer: Any, size: tuple[int, int], tokens: int = 1) -> None:
        super().__init__()
        self.name, self.tokens = type(transformer).__name__, tokens
        self.form, self.config = form_of(self.name), transformer.config
        self.transformer = transformer
        channels, patch = self.form.channels(self.config), self.form.patch(self.config)
        height, width = size
        if height % patch or width % patch:
            raise UserError(f"pictures of {height} x {width} cannot be cut into patches of {patch} x {patch}; resize them")
        largest = getattr(self.config, "pos_embed_max_size", None)
        if largest is not None and max(size) // patch > largest:
            raise UserError(
                f"pictures of {height} x {width} have more than the {largest} patches a side that this {self.name} has"
                " places for; make them smaller"
            )
        self.input = Input(channels, Extent(height, width), patch)

    @property
    def core(self) -> HostCore | None:
        found = getattr(self.transformer, CORE, None)
        return found if isinstance(found, HostCore) else None

    @property
    def grid(self) -> Grid:
        return self.grid_of(self.input.extent.axes[1:])

    def grid_of(self, sides: tuple[int, ...]) -> Grid:
        """Of pictures of this height and width."""
        return Grid(*(side // self.input.patch for side in sides))

    def made_of(self) -> list[object]:
        settings = {key: value for key, value in self.config.items() if key[0] != "_"}
        return [self.name, settings, None if self.core is None else asdict(self.core.config)]

    def outline(self) -> "HostModel":
        """The same model without memory: some transformers have tables that a count on stand-ins would lose them."""
        if self.transformer.device.type == "meta":
            return self
        with without_memory():
            made = type(self.transformer).from_config(self.config)
            if self.core is not None:
                elasticize_as(made, self.core.config)
            for name, lora in getattr(self.transformer, "peft_config", {}).items():
                made.add_adapter(lora, adapter_name=name)
        height, width = self.input.extent.height, self.input.extent.width
        return HostModel(made, (height, width), self.tokens).eval()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | Condition, budget: Any = None, around: Around | None = None
    ) -> Tensor:
        """The velocity at x (B, C, H, W) and times t (B,) in [0, 1] with 1 = noise, told `Prompts`; see `ElasticModel`."""
        if not isinstance(y, Prompts):
            raise UserError(
                f"a {self.name} is told Prompts, as elit.open_prompts(FOLDER) gives them, and not {type(y).__name__}"
            )
        return super().forward(x, t, y, budget, around)

    def run(self, x: Tensor, t: Tensor, condition: Condition, level: Level, around: Around | None = None) -> Tensor:
        assert isinstance(condition, Prompts)
        if around is not None:
            raise UserError("a step cache is for models of this library; for transformers diffusers has its own")
        dtype = next(self.parameters()).dtype
        text = condition.text.each(lambda one: one if one.dtype == torch.bool else one.to(dtype))
        told = self.form.arguments(x.to(dtype), t, Prompts(text, condition.nothing), self.config)
        with nullcontext() if self.core is None else at_level(self.core, level, self.grid_of(x.shape[2:])):
            made: Tensor = self.transformer(**told, return_dict=False)[0]
        return unpack(made, *x.shape[2:]) if self.form.packed else made

    def example(self, batch: int = 1, device: torch.device | str | None = None) -> tuple[Tensor, Tensor, Prompts]:
        """Pictures, times and texts of `tokens` tokens each, all zeros."""
        x, t, _ = super().example(batch, device)
        width, pooled = self.form.widths(self.config)
        mask = torch.ones(batch, self.tokens, dtype=torch.bool, device=x.device)
        text = Text(x.new_zeros(batch, self.tokens, width), mask, x.new_zeros(batch, pooled or 0))
        return x, t, Prompts(text, text.each(lambda one: one[0]))

    def blocks_of_host(self) -> list[nn.Module]:
        """The transformer's own blocks, first to last."""
        lists = [getattr(self.transformer, name) for name in host_named(self.name).lists]
        return [block for blocks in lists for block in blocks.children()]

    def host_blocks(self) -> list[str]:
        own = {id(block) for block in self.blocks_of_host()}
        return [name for name, module in self.named_modules() if id(module) in own]

    def units(self) -> list[nn.Module]:
        own = {id(block) for block in self.blocks_of_host()}
        return [module for module in self.modules() if id(module) in own or isinstance(module, ReadLayer | WriteLayer)]

    def set_checkpointing(self, on: bool = True) -> None:
        if on:
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.disable_gradient_checkpointing()

    def interface_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if name.startswith(f"transformer.{CORE}.")}

    def hidden_matrices(self) -> list[Tensor]:
        """The weights of the linears inside the units, without modulations and LoRAs."""
        return [
            module.weight
            for unit in self.units()
            for name, module in unit.named_modules()
            if isinstance(module, nn.Linear) and not any(part in name for part in ("mod", "norm", "lora_"))
        ]

    def canonical_names(self) -> dict[str, str]:
        return {name: name for name in self.state_dict()}
