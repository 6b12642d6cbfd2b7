"""Pixels and latents: what turns images into a model's input, and its output into images.

Scale and shift live here and nowhere else: a model's input is scale (z - shift), where z is what the codec knows.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import torch
from annotated_types import Ge, Le
from torch import Tensor

from elit.errors import UserError
from elit.records import Positive, checked, record
from elit.weights import check_finite, digest_of
from elit.words import one_line

STABLE_DIFFUSION_SCALE = 0.18215  # of the first codecs of that name, "ema" and "mse"
KNOWN_CODECS = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}


@record
class Pixels:
    """Images themselves: RGB in [-1, 1]."""

    kind: Literal["pixels"] = "pixels"


@record
class Latents:
    """What a codec makes of images: scale (z - shift), where z is the codec's own. codec: which one, "" where not known."""

    scale: float = 1.0
    shift: float = 0.0
    codec: str = ""
    kind: Literal["latents"] = "latents"


DataEncoding: TypeAlias = Pixels | Latents  # what data are, and what a model trained on them makes


@record
class CodecNumbers:
    """What a codec's own configuration says of latents: a model's input is scaling_factor (z - shift_factor)."""

    latent_channels: Annotated[int, Ge(1), Le(2**16)]
    scaling_factor: Positive = STABLE_DIFFUSION_SCALE
    shift_factor: float | None = None


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
    """An AutoencoderKL of diffusers: images are decode(x / scale + shift).

    side: pixels of an image's side for one latent cell. needs_float32: whether its config asks for it (`force_upcast`).
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        config = autoencoder.config
        numbers = {name: config[name] for name in ("latent_channels", "scaling_factor", "shift_factor") if name in config}
        known = checked(numbers, CodecNumbers, "the config.json of this AutoencoderKL")
        self.channels, self.scale, self.shift = known.latent_channels, known.scaling_factor, known.shift_factor or 0.0
        self.side = 2 ** (len(config["block_out_channels"]) - 1)
        self.needs_float32 = bool(config.get("force_upcast", True))
        check_finite(autoencoder.state_dict(), "this AutoencoderKL cannot be used")
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise UserError("this AutoencoderKL normalises each channel by itself; give one with a scaling_factor alone")
        self.name = f"AutoencoderKL {digest_of(autoencoder)} scale {self.scale:g} shift {self.shift:g}"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        self.autoencoder.to(device=device, dtype=dtype)

    def _as_input(self, x: Tensor) -> Tensor:
        parameter = next(self.autoencoder.parameters())
        return x.to(parameter.device, parameter.dtype)

    @torch.no_grad()
    def encode_moments(self, images_BCHW: Tensor) -> Tensor:
        """(B, 2C, H / side, W / side) float32 of images in [-1, 1]: mean, then log-variance, of z, which is not scaled yet.

        Raises UserError for sides that are no multiples of `side`.
        """
        height, width = images_BCHW.shape[-2:]
        if height % self.side or width % self.side:
            raise UserError(f"the codec needs sides that are multiples of {self.side}, and an image is {height} x {width}")
        with torch.autocast(images_BCHW.device.type, enabled=False):  # whatever precision its caller trains in
            moments: Tensor = self.autoencoder.encode(self._as_input(images_BCHW)).latent_dist.parameters
        return moments.float()

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        if latents_BCHW.ndim != 4:
            raise UserError(
                "an AutoencoderKL decodes pictures, and the model makes clips, whose latents elit does not decode"
            )
        with torch.autocast(latents_BCHW.device.type, enabled=False):
            images: Tensor = self.autoencoder.decode(self._as_input(latents_BCHW / self.scale + self.shift)).sample
        return images.float()


Values = Literal["moments", "mean-std", "samples"]


def moments_to_latents(
    stored_BMhw: Tensor, noise_BChw: Tensor, values: Values, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    """(B, C, h, w) a model's input, scale (z - shift), of what was stored of z.

    values: "moments", mean and log-variance, which is clamped to [-30, 20] as diffusers does; "mean-std", mean and standard
    deviation; both are 2C channels, and z = mean + deviation x noise. "samples": C channels, z itself; noise is not used.
    Raises UserError for another number of channels.
    """
    channels = noise_BChw.shape[1]
    wanted = channels if values == "samples" else 2 * channels
    if stored_BMhw.shape[1] != wanted:
        stored = stored_BMhw.shape[1]
        raise UserError(f"{channels} channels of latents stored as {values} are {wanted} channels on disk, and not {stored}")
    if values == "samples":
        return scale * (stored_BMhw - shift)
    mean, spread = stored_BMhw.chunk(2, dim=1)
    if values == "moments":
        # exp(spread / 2), as exp2 because torch splits an exp of more than 2,048 numbers over threads, which costs more
        spread = spread.clamp(-30, 20).mul_(0.5 / math.log(2)).exp2_()
    return torch.addcmul(mean, spread, noise_BChw).sub_(shift).mul_(scale)


def load_codec(name: str | None, channels: int, device: torch.device, encoding: DataEncoding | None = None) -> Codec:
    """The codec of a model whose output has `channels`: none for pixels, else an AutoencoderKL by folder or hub id.

    encoding: what the model makes, as its card says. Where no card says it, three channels without a codec are pixels.
    `name` may be "ema" or "mse", the two decoders of Stable Diffusion. Raises UserError for a latent model without a
    codec, a model of pixels with one, a codec of other channels, scale or shift, or one that cannot be read or fetched.
    """
    if name is None:
        if not makes_pixels(encoding, channels):
            made_with = f" (its latents are of {encoding.codec})" if isinstance(encoding, Latents) and encoding.codec else ""
            raise UserError(
                f"the model makes latents of {channels} channels{made_with}; give their decoder with --codec, such as"
                " --codec ema"
            )
        return PixelCodec()
    if isinstance(encoding, Pixels):
        raise UserError(f"the model makes pixels, which need no codec; leave --codec {name} out")
    codec = load_autoencoder(name, device)
    if codec.channels != channels:
        raise UserError(f"the codec {name} decodes {codec.channels} channels; the model makes {channels}")
    if encoding is not None:
        check_scale(name, codec, encoding)
    return codec


def makes_pixels(encoding: DataEncoding | None, channels: int) -> bool:
    """Whether a model's output of so many channels is a picture as it is. Where no card says it, three channels are."""
    return channels == 3 if encoding is None else isinstance(encoding, Pixels)


def check_scale(name: str, codec: KLCodec, latents: Latents) -> None:
    """Raises UserError where a codec's scale or shift are not those of the latents, which are thus another's.

    A decoder tuned further, as "ema" and "mse" are of each other, may have other weights.
    """
    if (codec.scale, codec.shift) != (latents.scale, latents.shift):
        raise UserError(
            f"the codec {name} has scale {codec.scale:g} and shift {codec.shift:g}, and the latents {latents.scale:g} and"
            f" {latents.shift:g}; give the codec that they were made with ({latents.codec or 'not recorded'})"
        )


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> KLCodec:
    """An AutoencoderKL by folder or hub id, or "ema" or "mse", in float32. Raises UserError where there is none.

    A folder of a hub's repository is written behind its id, such as "black-forest-labs/FLUX.1-dev/vae".
    """
    from diffusers import AutoencoderKL

    source = KNOWN_CODECS.get(name, name)
    subfolder = ""
    if source.count("/") == 2 and not Path(source).exists():
        source, _, subfolder = source.rpartition("/")
    try:
        autoencoder = AutoencoderKL.from_pretrained(
            source, subfolder=subfolder or None, use_safetensors=True, low_cpu_mem_usage=False
        )
    except MemoryError:
        raise
    except Exception as error:  # a folder chosen by anyone can make its reader raise anything
        why = one_line(str(error))[:200]
        raise UserError(f"no AutoencoderKL could be loaded from {name!r} ({why}); give a folder that holds one") from error
    return KLCodec(autoencoder.to(device))
