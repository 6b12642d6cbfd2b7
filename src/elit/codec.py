"""Pixels and latents: what turns a model's output into images. Scale and shift live here and nowhere else."""

import hashlib
from typing import Any, Protocol

import torch
from torch import Tensor

KNOWN_CODECS = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}


class Codec(Protocol):
    """Decodes latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""

    name: str
    channels: int

    def decode(self, latents_BCHW: Tensor) -> Tensor: ...

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None: ...


class PixelCodec:
    """Models of pixels need no decoding."""

    name, channels = "pixels", 3

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        pass


class KLCodec:
    """An AutoencoderKL of diffusers: images are decode(z / scale + shift)."""

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        config = autoencoder.config
        self.channels = int(config["latent_channels"])
        self.scale = float(config["scaling_factor"])
        self.shift = float(config.get("shift_factor") or 0.0)
        digest = hashlib.sha256()
        for tensor in autoencoder.state_dict().values():
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        self.name = f"AutoencoderKL {digest.hexdigest()[:12]}"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        self.autoencoder.to(device=device, dtype=dtype)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        parameter = next(self.autoencoder.parameters())
        z = latents_BCHW.to(parameter.device, parameter.dtype) / self.scale + self.shift
        return self.autoencoder.decode(z).sample.float()


def load_codec(name: str | None, channels: int, device: torch.device) -> Codec:
    """The codec of a model whose output has `channels`: none for pixels, else an AutoencoderKL by folder or hub id.

    `name` may be "ema" or "mse", the two decoders of Stable Diffusion. Raises ValueError for a latent model without a
    codec, a codec of another number of channels, or one that cannot be read or fetched.
    """
    if name is None:
        if channels != 3:
            raise ValueError(
                f"the model makes latents of {channels} channels; give their decoder with --codec, such as --codec ema"
            )
        return PixelCodec()
    from diffusers import AutoencoderKL

    source = KNOWN_CODECS.get(name, name)
    try:
        autoencoder = AutoencoderKL.from_pretrained(source, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"no AutoencoderKL could be loaded from {source!r} ({why}); give a folder that holds one"
        ) from error
    codec = KLCodec(autoencoder.to(device))
    if codec.channels != channels:
        raise ValueError(f"the codec {source} decodes {codec.channels} channels; the model makes {channels}")
    return codec
