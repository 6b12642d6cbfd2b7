"""Pixels and latents: what turns images into a model's input, and its output into images.

A model's input is scale (z - shift), where z is what the codec knows; z / scale + shift is autoencoders.py's alone.
"""

import math
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from elit.autoencoders import Factor, KLCodec, by_channel, kinds_of, load_autoencoder, told
from elit.errors import UserError
from elit.records import record


@record
class Pixels:
    """Images themselves: RGB in [-1, 1]."""

    kind: Literal["pixels"] = "pixels"


@record
class Latents:
    """What a codec makes of images or clips: scale (z - shift), where z is the codec's own.

    scale, shift: one number, or one for each channel. codec: which one, "" where not known.
    """

    scale: Factor = 1.0
    shift: Factor = 0.0
    codec: str = ""
    kind: Literal["latents"] = "latents"


DataEncoding: TypeAlias = Pixels | Latents  # what data are, and what a model trained on them makes


class Codec(Protocol):
    """Decodes latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1], and latents of clips, (B, C, t, h, w), to clips."""

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


Values = Literal["moments", "mean-std", "samples"]


def moments_to_latents(
    stored_BMhw: Tensor, noise_BChw: Tensor, values: Values, scale: Factor = 1.0, shift: Factor = 0.0
) -> Tensor:
    """(B, C, h, w), or of clips (B, C, t, h, w), a model's input, scale (z - shift), of what was stored of z.

    values: "moments", mean and log-variance, which is clamped to [-30, 20] as diffusers does; "mean-std", mean and standard
    deviation; both are 2C channels, and z = mean + deviation x noise. "samples": C channels, z itself; noise is not used.
    Raises UserError for another number of channels.
    """
    channels = noise_BChw.shape[1]
    wanted = channels if values == "samples" else 2 * channels
    if stored_BMhw.shape[1] != wanted:
        stored = stored_BMhw.shape[1]
        raise UserError(f"{channels} channels of latents stored as {values} are {wanted} channels on disk, and not {stored}")
    scales, shifts = by_channel(scale, noise_BChw), by_channel(shift, noise_BChw)
    if values == "samples":
        return scales * (stored_BMhw - shifts)
    mean, spread = stored_BMhw.chunk(2, dim=1)
    if values == "moments":
        # exp(spread / 2), as exp2 because torch splits an exp of more than 2,048 numbers over threads, which costs more
        spread = spread.clamp(-30, 20).mul_(0.5 / math.log(2)).exp2_()
    return torch.addcmul(mean, spread, noise_BChw).sub_(shifts).mul_(scales)


def load_codec(
    name: str | None, channels: int, device: torch.device, encoding: DataEncoding | None = None, frames: int = 1
) -> Codec:
    """The codec of a model whose output has `channels`: none for pixels, else an autoencoder by folder or hub id.

    encoding: what the model makes, as its card says. Where no card says it, three channels without a codec are pixels.
    frames: of the latents, of a model of clips. `name` may be "ema" or "mse", the two decoders of Stable Diffusion. Raises
    UserError for a latent model without a codec, a model of pixels with one, a codec of pictures for clips or the reverse,
    of other channels, frames, scale or shift, or one that cannot be read or fetched.
    """
    if name is None:
        if not makes_pixels(encoding, channels):
            made_with = f" (its latents are of {encoding.codec})" if isinstance(encoding, Latents) and encoding.codec else ""
            such = "--codec ema" if frames == 1 else "--codec Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae"
            raise UserError(
                f"the model makes latents of {channels} channels{made_with}; give their decoder with --codec, such as {such}"
            )
        return PixelCodec()
    if isinstance(encoding, Pixels):
        raise UserError(f"the model makes pixels, which need no codec; leave --codec {name} out")
    codec = load_autoencoder(name, device)
    check_sort(codec, clips=frames > 1, whose="the model makes")
    codec.check_latent_frames(frames)
    if codec.channels != channels:
        raise UserError(f"the codec {name} decodes {codec.channels} channels; the model makes {channels}")
    if encoding is not None:
        check_scale(name, codec, encoding)
    return codec


def makes_pixels(encoding: DataEncoding | None, channels: int) -> bool:
    """Whether a model's output of so many channels is a picture as it is. Where no card says it, three channels are."""
    return channels == 3 if encoding is None else isinstance(encoding, Pixels)


def check_sort(codec: KLCodec, clips: bool, whose: str) -> None:
    """Raises UserError for a codec of pictures where there are clips, and the reverse. whose: such as "the model makes"."""
    if codec.of_clips != clips:
        of, made = ("pictures", "clips") if clips else ("clips", "pictures")
        raise UserError(
            f"the codec, an {codec.kind}, is of {of}, and {whose} {made}; give one of {made}: an {kinds_of(clips)}"
        )


def check_scale(name: str, codec: KLCodec, latents: Latents) -> None:
    """Raises UserError where a codec's scale or shift are not those of the latents, which are thus another's.

    A decoder tuned further, as "ema" and "mse" are of each other, may have other weights.
    """
    if (codec.scale, codec.shift) != (latents.scale, latents.shift):
        raise UserError(
            f"the codec {name} has scale {told(codec.scale)} and shift {told(codec.shift)}, and the latents"
            f" {told(latents.scale)} and {told(latents.shift)}; give the codec that they were made with"
            f" ({latents.codec or 'not recorded'})"
        )
