"""Tiny autoencoders of pictures and of clips with drawn weights, of the kinds that diffusion models use."""

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


MEANS, DEVIATIONS = [0.5, -1.0, 0.0, 2.0], [1.0, 0.5, 2.0, 4.0]
OF_CLIPS: dict[str, dict[str, Any]] = {
    "CogVideoX": {
        "latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2,
        "temporal_compression_ratio": 2, "scaling_factor": 0.7,
    },
    "HunyuanVideo": {
        "latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("HunyuanVideoDownBlock3D",) * 3, "up_block_types": ("HunyuanVideoUpBlock3D",) * 3,
        "spatial_compression_ratio": 4, "scaling_factor": 0.476986,
    },
    "LTXVideo": {
        "latent_channels": 4, "block_out_channels": (8, 8, 8), "down_block_types": ("LTXVideoDownBlock3D",) * 3,
        "decoder_block_out_channels": (8, 8, 8), "layers_per_block": (1,) * 4, "decoder_layers_per_block": (1,) * 4,
        "spatio_temporal_scaling": (True, True, False), "decoder_spatio_temporal_scaling": (True, True, False),
        "decoder_inject_noise": (False,) * 4, "downsample_type": ("conv",) * 3, "upsample_residual": (False,) * 3,
        "upsample_factor": (1,) * 3, "patch_size": 1, "scaling_factor": 0.5,
    },
    "Wan": {
        "z_dim": 4, "base_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, True],
        "latents_mean": MEANS, "latents_std": DEVIATIONS,
    },
}  # fmt: skip


def make_clip_autoencoder(kind: str, **more: Any) -> Any:
    """An AutoencoderKL of clips, such as "Wan", with fields of its config overridden."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = getattr(diffusers, f"AutoencoderKL{kind}")(**{**OF_CLIPS[kind], **more}).eval()
    if kind == "LTXVideo":  # which keeps these beside its weights
        autoencoder.latents_mean.copy_(torch.tensor(MEANS))
        autoencoder.latents_std.copy_(torch.tensor(DEVIATIONS))
    return autoencoder


def save_autoencoder(folder: Path, kind: str, **more: Any) -> Path:
    """Writes one as diffusers does, and returns the folder."""
    make_autoencoder(kind, **more).save_pretrained(folder)
    return folder
