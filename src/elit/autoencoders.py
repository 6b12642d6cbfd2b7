"""Autoencoders of diffusers, of pictures and of clips: z from pixels, pixels from z, and the scale and shift of their own.

B batch, C channels, T frames, H and W pixels, h and w cells of latents; a clip is (C, T, H, W), a picture (C, H, W).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from annotated_types import Ge, Le
from torch import Tensor

from elit.errors import UserError
from elit.files import digest
from elit.records import Positive, checked, record
from elit.weights import check_finite, digest_of
from elit.words import one_line

STABLE_DIFFUSION_SCALE = 0.18215  # of the first codecs of that name, "ema" and "mse"
KNOWN_CODECS = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}

Factor: TypeAlias = float | tuple[float, ...]  # one number, or one for each channel
Ratio = Annotated[int, Ge(1), Le(2**10)]


@record
class CodecNumbers:
    """What an autoencoder says of itself.

    A model's input is scaling_factor (z - shift_factor), or scaling_factor (z - latents_mean) / latents_std, channel by
    channel. side: pixels of a picture's side in one latent cell. time: frames in one latent frame behind the first, which
    has one. step: a clip has one frame and a multiple of so many.
    """

    latent_channels: Annotated[int, Ge(1), Le(2**16)]
    side: Ratio
    scaling_factor: Positive = STABLE_DIFFUSION_SCALE
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[Positive, ...] | None = None
    time: Ratio = 1
    step: Ratio = 1

    def __post_init__(self) -> None:
        means, deviations = self.latents_mean, self.latents_std
        if (means is None) != (deviations is None) or (means and self.shift_factor):
            raise UserError("latents_mean and latents_std come together, and without a shift_factor")
        if means is not None and {len(means), len(deviations or ())} != {self.latent_channels}:
            raise UserError(f"latents_mean and latents_std are not of its {self.latent_channels} channels")

    @property
    def factors(self) -> tuple[Factor, Factor]:
        """scale and shift: a model's input is scale (z - shift)."""
        if self.latents_mean is None or self.latents_std is None:
            return self.scaling_factor, self.shift_factor or 0.0
        return tuple(self.scaling_factor / deviation for deviation in self.latents_std), self.latents_mean


@dataclass(frozen=True)
class Kind:
    """A class of diffusers. numbers: the fields of its `CodecNumbers`, from where such an autoencoder has them."""

    of_clips: bool
    numbers: Callable[[Any], dict[str, object]]


def _given(autoencoder: Any, *names: str) -> dict[str, object]:
    """Those of these numbers that its configuration has."""
    return {name: autoencoder.config[name] for name in names if name in autoencoder.config}


def _pictures(autoencoder: Any) -> dict[str, object]:
    blocks = len(autoencoder.config["block_out_channels"])
    named = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
    return {"side": 2 ** (blocks - 1), **_given(autoencoder, *named)}


def _cogvideox(autoencoder: Any) -> dict[str, object]:
    """Encodes 8 frames at a time and decodes 2 latent frames: what is one more than a multiple of them is as long again."""
    time = int(autoencoder.config["temporal_compression_ratio"])
    side = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
    return {"side": side, "time": time, "step": max(8, 2 * time), **_given(autoencoder, "latent_channels", "scaling_factor")}


def _hunyuan(autoencoder: Any) -> dict[str, object]:
    side, time = autoencoder.spatial_compression_ratio, autoencoder.temporal_compression_ratio
    return {"side": side, "time": time, "step": time, **_given(autoencoder, "latent_channels", "scaling_factor")}


def _ltx(autoencoder: Any) -> dict[str, object]:
    """Keeps the mean and deviation of each channel beside its weights."""
    normal = {"latents_mean": autoencoder.latents_mean.tolist(), "latents_std": autoencoder.latents_std.tolist()}
    return _hunyuan(autoencoder) | normal


def _wan(autoencoder: Any) -> dict[str, object]:
    """Encodes 4 frames at a time. It has no scaling factor."""
    config = autoencoder.config
    time = 2 ** sum(config["temperal_downsample"])
    side = 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)
    numbers = {"latent_channels": config["z_dim"], "scaling_factor": 1.0, "side": side, "time": time, "step": max(4, time)}
    return numbers | _given(autoencoder, "latents_mean", "latents_std")


KINDS = {
    "AutoencoderKL": Kind(False, _pictures),
    "AutoencoderKLCogVideoX": Kind(True, _cogvideox),
    "AutoencoderKLHunyuanVideo": Kind(True, _hunyuan),
    "AutoencoderKLLTXVideo": Kind(True, _ltx),
    "AutoencoderKLWan": Kind(True, _wan),
}


def kinds_of(clips: bool) -> str:
    """The classes of diffusers that are known, of clips or of pictures, such as "AutoencoderKLA or AutoencoderKLB"."""
    *first, last = [name for name, kind in KINDS.items() if kind.of_clips == clips]
    return f"{', '.join(first)} or {last}" if first else last


def by_channel(factor: Factor, like_BC: Tensor) -> float | Tensor:
    """A factor as it multiplies tensors (B, C, ...)."""
    if not isinstance(factor, tuple):
        return factor
    return like_BC.new_tensor(factor).view(1, -1, *[1] * (like_BC.ndim - 2))


def told(factor: Factor) -> str:
    """A factor in an error or a name: many numbers by a hash of them."""
    return f"by channel {digest(repr(factor).encode())}" if isinstance(factor, tuple) else f"{factor:g}"


class KLCodec:
    """An autoencoder of a class in KINDS: pixels are decode(x / scale + shift).

    side: pixels of an image's side for one latent cell. needs_float32: whether its config asks for it (`force_upcast`).
    Raises UserError for numbers that cannot be, weights that are not finite, and one that draws noise when it decodes.
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.kind = type(autoencoder).__name__
        self.of_clips = KINDS[self.kind].of_clips
        self.numbers = checked(KINDS[self.kind].numbers(autoencoder), CodecNumbers, f"the config.json of this {self.kind}")
        self.channels, self.side = self.numbers.latent_channels, self.numbers.side
        self.scale, self.shift = self.numbers.factors
        config = autoencoder.config
        self.needs_float32 = bool(config.get("force_upcast", not self.of_clips))
        check_finite(autoencoder.state_dict(), f"this {self.kind} cannot be used")
        if any(config.get("decoder_inject_noise") or ()):
            raise UserError(
                f"this {self.kind} draws noise when it decodes, so no clip would be the same again; give one whose"
                " decoder_inject_noise is false"
            )
        self.name = f"{self.kind} {digest_of(autoencoder)} scale {told(self.scale)} shift {told(self.shift)}"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        self.autoencoder.to(device=device, dtype=dtype)

    def _as_input(self, x: Tensor) -> Tensor:
        parameter = next(self.autoencoder.parameters())
        return x.to(parameter.device, parameter.dtype)

    def latent_frames(self, frames: int) -> int:
        """Of the latents of so many frames: (frames - 1) / time + 1. Raises UserError for a number it cannot take."""
        step, time = self.numbers.step, self.numbers.time
        if over := (frames - 1) % step:
            fitting = [str(count) for count in (frames - over, frames - over + step) if count > 1]
            raise UserError(
                f"this {self.kind} takes clips of one frame and a multiple of {step}, and these have {frames}; prepare"
                f" them with --frames {' or '.join(fitting)}"
            )
        return (frames - 1) // time + 1

    def check_latent_frames(self, count: int) -> None:
        """Raises UserError for a number of latent frames that no clip has."""
        step = self.numbers.step // self.numbers.time
        if (count - 1) % step:
            raise UserError(
                f"this {self.kind} decodes one latent frame and a multiple of {step}, and the model makes {count}; give the"
                " codec that its latents were made with"
            )

    @torch.no_grad()
    def encode_moments(self, images_BCHW: Tensor) -> Tensor:
        """(B, 2C, h, w) float32 of images in [-1, 1]: mean, then log-variance, of z, which is not scaled yet.

        Of clips (B, 3, T, H, W) it is (B, 2C, t, h, w). Raises UserError for sides that are no multiples of `side`, and
        for frames that the autoencoder cannot take.
        """
        height, width = images_BCHW.shape[-2:]
        if height % self.side or width % self.side:
            raise UserError(f"the codec needs sides that are multiples of {self.side}, and an image is {height} x {width}")
        cells = (height // self.side, width // self.side)
        wanted = (self.latent_frames(images_BCHW.shape[2]), *cells) if self.of_clips else cells
        with torch.autocast(images_BCHW.device.type, enabled=False):  # whatever precision its caller trains in
            moments: Tensor = self.autoencoder.encode(self._as_input(images_BCHW)).latent_dist.parameters
        if moments.shape[1:] != (2 * self.channels, *wanted):
            found, said = (" x ".join(map(str, shape)) for shape in (moments.shape[2:], wanted))
            raise UserError(f"the config.json of this {self.kind} says latents of {said}, and it makes {found}")
        return moments.float()

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) of pictures, (B, 3, T, H, W) of clips."""
        latents = latents_BCHW / by_channel(self.scale, latents_BCHW) + by_channel(self.shift, latents_BCHW)
        given = [self._as_input(latents)]
        if self.autoencoder.config.get("timestep_conditioning"):  # time 0, for nothing is added to the latents
            given.append(torch.zeros_like(given[0][:, 0, 0, 0, 0]))
        with torch.autocast(latents_BCHW.device.type, enabled=False):
            images: Tensor = self.autoencoder.decode(*given).sample
        return images.float()


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> KLCodec:
    """An autoencoder by folder or hub id, or "ema" or "mse", in float32: of the class that its config.json names.

    A folder of a hub's repository is written behind its id, such as "black-forest-labs/FLUX.1-dev/vae". Raises UserError
    where there is none, or one of a class that is not in KINDS.
    """
    import diffusers

    source, subfolder = KNOWN_CODECS.get(name, name), None
    if source.count("/") == 2 and not Path(source).exists():
        source, _, subfolder = source.rpartition("/")
    kind = "AutoencoderKL"
    try:
        kind = diffusers.AutoencoderKL.load_config(source, subfolder=subfolder).get("_class_name", kind)
        if kind in KINDS:
            autoencoder = getattr(diffusers, kind).from_pretrained(
                source, subfolder=subfolder, use_safetensors=True, low_cpu_mem_usage=False
            )
    except MemoryError:
        raise
    except Exception as error:  # a folder chosen by anyone can make its reader raise anything
        why = one_line(str(error))[:200]
        raise UserError(f"no {kind} could be loaded from {name!r} ({why}); give a folder that holds one") from error
    if kind not in KINDS:
        raise UserError(
            f"{name!r} holds a codec of the kind {one_line(str(kind))[:80]}, which elit does not know; give an"
            f" {kinds_of(clips=False)} of pictures, or of clips an {kinds_of(clips=True)}"
        )
    return KLCodec(autoencoder.to(device))
