"""Tiny transformers of diffusers, randomly initialised, with inputs for any grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import elit

WIDTH, HEADS, TEXT = 32, 2, 5  # tokens of text
SIZES = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS}
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Tiny:
    """A tiny host.

    depth: of its blocks, over all lists that a core may span. video: whether its grid has frames. square: whether only
    square grids come out whole. arguments: of a forward of `batch` samples on a grid (frames, rows, columns).
    """

    build: Callable[[], Any]
    arguments: Callable[[int, tuple[int, int, int]], Arguments]
    depth: int = 6
    video: bool = False
    square: bool = False

    def made(self, seed: int = 0) -> Any:
        """The transformer, in eval mode, every weight random: biases, gates and output layers too."""
        torch.manual_seed(seed)
        transformer = self.build().eval()
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if parameter.ndim < 2 and "norm" not in name:
                    parameter.normal_(std=0.1)
        return transformer

    def grid(self, ragged: bool = False) -> tuple[int, int, int]:
        """A grid that a window of 2 x 2 divides, or one that it does not."""
        if self.square:
            return (1, 5, 5) if ragged else (1, 4, 4)
        rows, columns = (5, 7) if ragged else (4, 6)
        return (3 if self.video else 1, rows, columns)

    def elastic(self, head: int = 2, tail: int = 1, window: int | tuple[int, ...] = 2, **options: Any) -> Any:
        return elit.elasticize(self.made(), head=head, tail=tail, window=window, **options)


def image(batch: int, grid: tuple[int, int, int], channels: int = 4, patch: int = 2) -> Tensor:
    return torch.randn(batch, channels, grid[1] * patch, grid[2] * patch)


def video(batch: int, grid: tuple[int, int, int], channels: int = 4) -> Tensor:
    return torch.randn(batch, channels, grid[0], grid[1] * 2, grid[2] * 2)


def tokens(batch: int, grid: tuple[int, int, int], channels: int = 8) -> Tensor:
    return torch.randn(batch, grid[0] * grid[1] * grid[2], channels)


def text(batch: int, width: int = 24) -> Tensor:
    return torch.randn(batch, TEXT, width)


def ids(grid: tuple[int, int, int], columns: int) -> Tensor:
    places = torch.cartesian_prod(torch.arange(grid[1]), torch.arange(grid[2])).view(-1, 2).float()
    return torch.cat([torch.zeros(len(places), 1), places, torch.zeros(len(places), columns - 3)], dim=1)


def mask(batch: int) -> Tensor:
    """The last token of text is padding in the first sample."""
    made = torch.ones(batch, TEXT)
    made[0, -1] = 0
    return made


def times(batch: int, noise: float = 1000.0) -> Tensor:
    return torch.linspace(0.9, 0.4, batch) * noise


def told(batch: int, noise: float = 1000.0, masked: bool = False, pooled: bool = False) -> Arguments:
    """What a host is told beside the image: text, and the time, which is `noise` at pure noise."""
    made: Arguments = {"encoder_hidden_states": text(batch)}
    if masked:
        made["encoder_attention_mask"] = mask(batch)
    if pooled:
        made["pooled_projections"] = torch.randn(batch, 12)
    return made | {"timestep": times(batch, noise)}


TINY = {
    "SD3Transformer2DModel": Tiny(
        lambda: diffusers.SD3Transformer2DModel(
            **SIZES,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            joint_attention_dim=24,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=12,
            pos_embed_max_size=16,
            dual_attention_layers=(0, 3),
            qk_norm="rms_norm",
        ),
        lambda batch, grid: {
            "hidden_states": image(batch, grid),
            **told(batch, pooled=True),
        },
    ),
    "FluxTransformer2DModel": Tiny(
        lambda: diffusers.FluxTransformer2DModel(
            **SIZES,
            in_channels=8,
            num_layers=3,
            num_single_layers=4,
            joint_attention_dim=24,
            pooled_projection_dim=12,
            axes_dims_rope=(4, 6, 6),
        ),
        lambda batch, grid: {
            "hidden_states": tokens(batch, grid),
            **told(batch, 1.0, pooled=True),
            "img_ids": ids(grid, 3),
            "txt_ids": torch.zeros(TEXT, 3),
        },
        depth=7,
    ),
    "Flux2Transformer2DModel": Tiny(
        lambda: diffusers.Flux2Transformer2DModel(
            **SIZES,
            in_channels=8,
            num_layers=2,
            num_single_layers=5,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        lambda batch, grid: {
            "hidden_states": tokens(batch, grid),
            **told(batch, 1.0),
            "img_ids": ids(grid, 4),
            "txt_ids": torch.cat([torch.zeros(TEXT, 3), torch.arange(TEXT)[:, None]], dim=1),
        },
        depth=5,
    ),
    "QwenImageTransformer2DModel": Tiny(
        lambda: diffusers.QwenImageTransformer2DModel(
            **SIZES, in_channels=8, out_channels=2, num_layers=6, joint_attention_dim=24, axes_dims_rope=(4, 6, 6)
        ),
        lambda batch, grid: {
            "hidden_states": tokens(batch, grid),
            **told(batch, 1.0),
            "encoder_hidden_states_mask": mask(batch).long(),
            "img_shapes": [[grid]] * batch,
        },
    ),
    "WanTransformer3DModel": Tiny(
        lambda: diffusers.WanTransformer3DModel(
            **SIZES,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=48,
            num_layers=6,
            rope_max_seq_len=32,
        ),
        lambda batch, grid: {
            "hidden_states": video(batch, grid),
            **told(batch),
        },
        video=True,
    ),
    "DiTTransformer2DModel": Tiny(
        lambda: diffusers.DiTTransformer2DModel(
            **SIZES, in_channels=4, out_channels=4, num_layers=6, sample_size=8, num_embeds_ada_norm=7
        ),
        lambda batch, grid: {
            "hidden_states": image(batch, grid),
            "timestep": times(batch).long(),
            "class_labels": torch.arange(batch) % 7,
        },
        square=True,
    ),
    "PixArtTransformer2DModel": Tiny(
        lambda: diffusers.PixArtTransformer2DModel(
            **SIZES,
            in_channels=4,
            out_channels=8,
            num_layers=6,
            sample_size=16,
            cross_attention_dim=WIDTH,
            caption_channels=24,
        ),
        lambda batch, grid: {
            "hidden_states": image(batch, grid),
            **told(batch, masked=True),
            "timestep": times(batch).long(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            **SIZES,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=4,
            num_refiner_layers=1,
            text_embed_dim=24,
            pooled_projection_dim=12,
            rope_axes_dim=(4, 6, 6),
        ),
        lambda batch, grid: {
            "hidden_states": video(batch, grid),
            **told(batch, masked=True, pooled=True),
            "guidance": torch.full((batch,), 6000.0),
        },
        depth=7,
        video=True,
    ),
    "LTXVideoTransformer3DModel": Tiny(
        lambda: diffusers.LTXVideoTransformer3DModel(
            **SIZES, in_channels=8, out_channels=8, num_layers=6, cross_attention_dim=WIDTH, caption_channels=24
        ),
        lambda batch, grid: {
            "hidden_states": tokens(batch, grid),
            **told(batch, masked=True),
            "num_frames": grid[0],
            "height": grid[1],
            "width": grid[2],
            "rope_interpolation_scale": (1 / 25 * 8, 32, 32),
        },
        video=True,
    ),
}


def inputs(tiny: Tiny, batch: int = 2, ragged: bool = False) -> Arguments:
    """The same inputs at every call."""
    torch.manual_seed(1)
    return tiny.arguments(batch, tiny.grid(ragged))


def out(transformer: nn.Module, arguments: Arguments) -> Tensor:
    return transformer(**arguments, return_dict=False)[0]
