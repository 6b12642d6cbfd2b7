"""Tiny AutoencoderKLs with drawn weights, of the kinds that diffusion models use."""

from pathlib import Path
from typing import Any

import torch

KINDS: dict[str, dict[str, Any]] = {
    "sd": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True},
    "flux": {
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True,
        "use_quant_conv": False, "use_post_quant_conv": False,
    },
    "fp16": {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": False},
}  # fmt: skip


def make_autoencoder(kind: str, blocks: int = 2, **more: Any) -> Any:
    """One of a kind, whose cells are 2^(blocks - 1) pixels wide, with fields of its config overridden."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8,) * blocks,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=1,
            norm_num_groups=4,
            **{**KINDS[kind], **more},
        ).eval()


def save_autoencoder(folder: Path, kind: str, **more: Any) -> Path:
    """Writes one as diffusers does, and returns the folder."""
    make_autoencoder(kind, **more).save_pretrained(folder)
    return folder
