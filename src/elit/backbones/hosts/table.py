"""The hosts: one row per transformer of diffusers, which says how its blocks are called and where its grid comes from.

Nothing here imports diffusers: a row reads configurations, arguments and tables by their names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from elit.elastic.grid import Grid
from elit.errors import UserError
from elit.words import suggest

PAGE = "docs/hosts.md"
Told = Mapping[str, Any]  # arguments of a transformer or of a block, by name; each host has its own
Cut = Callable[[Any, Tensor, int], Any]  # (an argument for all N tokens, the tokens' numbers that are left, N) -> for those


@dataclass(frozen=True)
class Host:
    """What ELIT has to know of a transformer of diffusers.

    transformer: the name of its class.
    lists: its lists of blocks that one core can span, in the order in which they run.
    arguments: of a block, in order; with gradient checkpointing a host passes all by position.
    returns: what a block returns, in order.
    grid: where the tokens sit, of (the transformer's arguments, its configuration).
    condition: what modulates Read (B, C), of (a block's arguments, the core's first block, C).
    cut: how arguments that have an entry per token are cut to those that latents stand on.
    samples: the block's arguments that have a row per sample.
    noise: the timestep of pure noise.
    halves: how one batch holds the conditional and the unconditional pass; None where a host makes them one by one.
    text_in_front: whether the text's tokens stand before the image's in `hidden_states`.
    refused: arguments of the transformer that a latent core cannot serve, and why.
    unfit: why a configuration of it cannot be made elastic, or None.
    """

    transformer: str
    lists: tuple[str, ...]
    arguments: tuple[str, ...]
    returns: tuple[str, ...]
    grid: Callable[[Told, Any], Grid]
    condition: Callable[[Told, nn.Module, int], Tensor]
    samples: tuple[str, ...]
    cut: Mapping[str, Cut] = field(default_factory=dict)
    noise: float = 1000.0
    halves: Literal["unconditional first", "conditional first"] | None = None
    text_in_front: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    unfit: Callable[[Any], str | None] = lambda config: None


# Grids


def _latent_grid(told: Told, config: Any) -> Grid:
    """Of latents (B, C, H, W) or (B, C, T, H, W), cut into patches."""
    sides, patch = told["hidden_states"].shape[2:], config.patch_size
    if len(sides) == 2:
        return Grid(sides[0] // patch, sides[1] // patch)
    frames, height, width = (
        patch if isinstance(patch, tuple | list) else (config.patch_size_t, config.patch_size, config.patch_size)
    )
    return Grid(frames=sides[0] // frames, height=sides[1] // height, width=sides[2] // width)


def _grid_of_ids(told: Told, config: Any) -> Grid:
    """Of the tokens' places `img_ids` (N, A), whose second and third column are row and column.

    A pipeline gives the same tensor at every step. It is read, for which a GPU is waited for, only the first time.
    """
    if torch.compiler.is_compiling():
        raise UserError("a graph of the whole transformer cannot read the grid; give elit.budget(..., grid=(rows, columns))")
    ids = told["img_ids"]
    if ids.is_inference():  # whose changes nobody counts
        return _read_ids(ids)
    version, grid = _grids.get(ids, (None, None))
    if grid is None or version != ids._version:
        grid = _read_ids(ids)
        _grids[ids] = (ids._version, grid)
    return grid


_grids = WeakTensorKeyDictionary()  # of the tensors of places that are alive: their version, and the grid that they are


def _read_ids(ids: Tensor) -> Grid:
    ids = ids[0] if ids.ndim == 3 else ids
    places = (ids[:, 1:3] - ids[:1, 1:3]).round().long()
    height, width = (int(n) + 1 for n in places[-1].tolist())
    if height * width == len(ids) and bool((ids[:, 0] == ids[0, 0]).all()):
        rows, columns = (torch.arange(n, device=ids.device) for n in (height, width))
        if torch.equal(places, torch.cartesian_prod(rows, columns).view(-1, 2)):
            return Grid(height, width)
    raise UserError(
        f"the {len(ids)} image tokens are not one grid, row by row: tokens of reference pictures, as of Kontext, have no"
        f" place in a window; see {PAGE}"
    )


def _grid_of_shapes(told: Told, config: Any) -> Grid:
    """Of `img_shapes`: (frames, rows, columns) per sample, each alone in a list; ControlNet pipelines leave out the list."""
    shapes = [[shape] if isinstance(shape[0], int) else shape for shape in told["img_shapes"]]
    if any(len(shape) != 1 or tuple(shape[0]) != tuple(shapes[0][0]) for shape in shapes):
        raise UserError(f"img_shapes {told['img_shapes']} are several pictures; a latent core takes one grid; see {PAGE}")
    frames, height, width = shapes[0][0]
    return Grid(frames=frames, height=height, width=width)


def _grid_told(told: Told, config: Any) -> Grid:
    """Of `num_frames`, `height` and `width`, which count tokens."""
    return Grid(frames=told["num_frames"], height=told["height"], width=told["width"])


# What modulates Read


def _mean_of(name: str) -> Callable[[Told, nn.Module, int], Tensor]:
    """An argument that holds one or several vectors of the width C per sample: their mean."""

    def condition(told: Told, block: nn.Module, width: int) -> Tensor:
        temb = told[name]
        return temb.reshape(len(temb), temb.shape[1:].numel() // width, width).mean(1)  # also of no sample at all

    return condition


def _embedded_label(told: Told, block: Any, width: int) -> Tensor:
    """DiT embeds time and label in every block."""
    return block.norm1.emb(told["timestep"], told["class_labels"], hidden_dtype=told["hidden_states"].dtype)


# Cuts


def _behind_text(tables: Any, at: Tensor, tokens: int) -> Any:
    """Cosines and sines (text + N, D)."""
    return tuple(torch.cat([table[: len(table) - tokens], table[len(table) - tokens :][at]]) for table in tables)


def _beside_text(tables: Any, at: Tensor, tokens: int) -> Any:
    """(of the image (N, D), of the text)."""
    image, text = tables
    return image[at], text


def _rows(tables: Any, at: Tensor, tokens: int) -> Any:
    """Cosines and sines (N, D)."""
    return tuple(table[at] for table in tables)


def _columns(tables: Any, at: Tensor, tokens: int) -> Any:
    """Cosines and sines (B or 1, N, ...)."""
    return tuple(table[:, at] for table in tables)


def _mask_before_text(mask: Tensor, at: Tensor, tokens: int) -> Tensor:
    """A mask (B, 1, 1, N + text)."""
    return torch.cat([mask[..., at], mask[..., tokens:]], dim=-1)


# Refusals

_RESIDUALS = "a ControlNet adds its residuals block by block, and most blocks are in the latent core"
_SKIPPED = "it counts blocks, and those of the latent core are one"


def _per_token_time(config: Any) -> str | None:
    return "it modulates every token by a time of its own (zero_cond_t)" if config.zero_cond_t else None


def _replaced_tokens(config: Any) -> str | None:
    replaced = config.image_condition_type == "token_replace"
    return "its first frame's tokens are modulated by another time (token_replace)" if replaced else None


_JOINT = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "joint_attention_kwargs")
_BASIC = (
    "hidden_states",
    "attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "timestep",
    "cross_attention_kwargs",
    "class_labels",
)

HOSTS = (
    Host(
        transformer="SD3Transformer2DModel",
        lists=("transformer_blocks",),
        arguments=("hidden_states", "encoder_hidden_states", "temb", "joint_attention_kwargs"),
        returns=("encoder_hidden_states", "hidden_states"),
        grid=_latent_grid,
        condition=_mean_of("temb"),
        samples=("hidden_states", "encoder_hidden_states", "temb"),
        halves="unconditional first",
        refused={"block_controlnet_hidden_states": _RESIDUALS, "skip_layers": _SKIPPED},
    ),
    Host(
        transformer="FluxTransformer2DModel",
        lists=("transformer_blocks", "single_transformer_blocks"),
        arguments=_JOINT,
        returns=("encoder_hidden_states", "hidden_states"),
        grid=_grid_of_ids,
        condition=_mean_of("temb"),
        samples=("hidden_states", "encoder_hidden_states", "temb"),
        cut={"image_rotary_emb": _behind_text},
        noise=1.0,
        refused={"controlnet_block_samples": _RESIDUALS, "controlnet_single_block_samples": _RESIDUALS},
    ),
    Host(
        transformer="Flux2Transformer2DModel",
        lists=("single_transformer_blocks",),
        arguments=("hidden_states", "encoder_hidden_states", "temb_mod", "image_rotary_emb", "joint_attention_kwargs"),
        returns=("hidden_states",),
        grid=_grid_of_ids,
        condition=_mean_of("temb_mod"),
        samples=("hidden_states", "temb_mod"),
        cut={"image_rotary_emb": _behind_text},
        noise=1.0,
        text_in_front=True,
        refused={"kv_cache_mode": "its cache keeps keys and values of reference pictures' tokens"},
    ),
    Host(
        transformer="QwenImageTransformer2DModel",
        lists=("transformer_blocks",),
        arguments=(
            "hidden_states",
            "encoder_hidden_states",
            "encoder_hidden_states_mask",
            "temb",
            "image_rotary_emb",
            "joint_attention_kwargs",
            "modulate_index",
        ),
        returns=("encoder_hidden_states", "hidden_states"),
        grid=_grid_of_shapes,
        condition=_mean_of("temb"),
        samples=("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "temb"),
        cut={"image_rotary_emb": _beside_text},
        noise=1.0,
        refused={"controlnet_block_samples": _RESIDUALS},
        unfit=_per_token_time,
    ),
    Host(
        transformer="WanTransformer3DModel",
        lists=("blocks",),
        arguments=("hidden_states", "encoder_hidden_states", "temb", "rotary_emb"),
        returns=("hidden_states",),
        grid=_latent_grid,
        condition=_mean_of("temb"),
        samples=("hidden_states", "encoder_hidden_states", "temb"),
        cut={"rotary_emb": _columns},
    ),
    Host(
        transformer="DiTTransformer2DModel",
        lists=("transformer_blocks",),
        arguments=_BASIC,
        returns=("hidden_states",),
        grid=_latent_grid,
        condition=_embedded_label,
        samples=("hidden_states", "timestep", "class_labels"),
        halves="conditional first",
    ),
    Host(
        transformer="PixArtTransformer2DModel",
        lists=("transformer_blocks",),
        arguments=_BASIC,
        returns=("hidden_states",),
        grid=_latent_grid,
        condition=_mean_of("timestep"),
        samples=("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep"),
        halves="unconditional first",
        refused={"attention_mask": "it masks image tokens, of which the latent core has others"},
    ),
    Host(
        transformer="HunyuanVideoTransformer3DModel",
        lists=("transformer_blocks", "single_transformer_blocks"),
        arguments=(
            "hidden_states",
            "encoder_hidden_states",
            "temb",
            "attention_mask",
            "image_rotary_emb",
            "token_replace_emb",
            "num_tokens",
        ),
        returns=("hidden_states", "encoder_hidden_states"),
        grid=_latent_grid,
        condition=_mean_of("temb"),
        samples=("hidden_states", "encoder_hidden_states", "temb", "attention_mask"),
        cut={"attention_mask": _mask_before_text, "image_rotary_emb": _rows},
        unfit=_replaced_tokens,
    ),
    Host(
        transformer="LTXVideoTransformer3DModel",
        lists=("transformer_blocks",),
        arguments=("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "encoder_attention_mask"),
        returns=("hidden_states",),
        grid=_grid_told,
        condition=_mean_of("temb"),
        samples=("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "encoder_attention_mask"),
        cut={"image_rotary_emb": _columns},
        halves="unconditional first",
        refused={"video_coords": "its tokens are told by their places alone, which may be no grid"},
    ),
)

UNFIT = {"SanaTransformer2DModel": "the feed-forward of its blocks is a convolution over the whole grid of tokens"}


def host_named(name: str) -> Host:
    """The row of a transformer's class. Raises UserError, saying why or naming those known, for any other."""
    if name in UNFIT:
        raise UserError(f"{name} cannot be made elastic: {UNFIT[name]}; see {PAGE}")
    row = next((host for host in HOSTS if host.transformer == name), None)
    if row is None:
        known = [host.transformer for host in HOSTS]
        raise UserError(f"{name} is no host that can be made elastic; {suggest(name, known)}; see {PAGE}")
    return row


def check_call(host: Host, told: Told) -> None:
    """Raises UserError for arguments of a transformer that a latent core cannot serve."""
    for name, why in host.refused.items():
        if told.get(name) is not None:
            raise UserError(f"an elastic {host.transformer} takes no {name}: {why}; see {PAGE}")
    time = told.get("timestep")
    if isinstance(time, Tensor) and time.ndim > 1 and time.shape[1] > 1:
        raise UserError(
            f"an elastic {host.transformer} takes one timestep per sample, not {tuple(time.shape)}: latents stand for"
            f" tokens of many times; see {PAGE}"
        )
