"""Vision encoders: what alignment compares a model's tokens with. Any ViT that `transformers.AutoModel` loads."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from elit.errors import UserError
from elit.records import Positive, read_json

Normalisation: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OF_HEADS = ("pooler", "head", "mask_token")  # weights that patch tokens do not depend on
INPUT_OF_256 = 224  # pixels of the encoder's input for 256 pixels of the image


class VisionEncoder:
    """Patch tokens of images. patch: pixels of a patch's side; width: D; normalisation: mean and deviation per channel.

    column: the last part of the name, which stored features go by.
    """

    def __init__(self, model: Any, name: str, normalisation: Normalisation = IMAGENET) -> None:
        model = getattr(model, "vision_model", model)  # CLIP and its kin have a text tower too
        config = getattr(model.config, "vision_config", model.config)
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int):
            raise UserError(f"{name} is no vision transformer with square patches; give one, such as facebook/dinov2-base")
        self.model, self.name, self.patch, self.width = model.eval().requires_grad_(False), name, patch, config.hidden_size
        self.column = Path(name).name
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation)
        takes = inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def to(self, device: torch.device | str) -> "VisionEncoder":
        """Moves the network, in place."""
        self.model.to(device)
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of images of that size: 224 pixels for 256, in whole patches, at least one."""
        rows, columns = (max(1, round(INPUT_OF_256 * side / 256 / self.patch)) for side in (height, width))
        return rows, columns

    @torch.no_grad()
    def encoder_tokens(self, images_BCHW: Tensor) -> Tensor:
        """(B, T, D) float32 tokens of uint8 images (B, 3, H, W), row by row of `grid(H, W)`; no class or register tokens.

        The input is pixels / 255, normalised, resampled (bicubic) to 224 pixels for 256 (REPA, Yu et al., 2024).
        Raises UserError for an encoder whose tokens do not fit its grid, such as a hierarchical one.
        """
        device = next(self.model.parameters()).device
        rows, columns = self.grid(images_BCHW.shape[-2], images_BCHW.shape[-1])
        pixels = (images_BCHW.to(device).float() / 255 - self.mean.to(device)) / self.std.to(device)
        pixels = F.interpolate(pixels, (rows * self.patch, columns * self.patch), mode="bicubic")
        tokens_BTD: Tensor = self.model(pixels, **self.options).last_hidden_state
        if tokens_BTD.ndim != 3 or tokens_BTD.shape[1] < rows * columns:
            raise UserError(
                f"{self.name} makes {tuple(tokens_BTD.shape[1:])} for {rows} x {columns} patches, not a token for each;"
                " give a plain vision transformer, such as facebook/dinov2-base"
            )
        return tokens_BTD[:, -rows * columns :].float()  # the class and register tokens come first


def load_encoder(name: str, device: torch.device | str = "cpu") -> VisionEncoder:
    """The vision encoder of a folder or hub id, in float32, normalised as its own preprocessor_config.json says, if at all.

    Raises UserError as `load_backbone` does, and for one that is no vision transformer.
    """
    model, file = load_backbone(name), preprocessor_file(name)
    return VisionEncoder(model, name, IMAGENET if file is None else normalisation_in(file)).to(device)


def preprocessor_file(name: str) -> Path | None:
    """The preprocessor_config.json of a folder or hub id, if it has one."""
    from transformers.utils.hub import cached_file

    file = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)


def load_backbone(name: str, kind: str = "vision") -> Any:
    """What `transformers.AutoModel` makes of a folder or hub id, in float32 whatever the weights are kept in, frozen.

    kind: what an error calls it.

    Raises UserError for one that cannot be read or fetched, or lacks weights, which would be drawn instead.
    """
    from transformers import AutoModel

    try:
        found = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"no {kind} model could be loaded from {name!r} ({why}); fetch it where there is a network with"
            f" `hf download {name}`, or give a folder with its config.json and model.safetensors"
        ) from error
    model, report = found
    if missing := [key for key in report["missing_keys"] if not any(part in key for part in OF_HEADS)]:
        raise UserError(f"{name} lacks weights of its own, such as {sorted(missing)[0]}; fetch or write it again")
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Preprocessor:
    """What is read of a preprocessor_config.json: the mean and deviation of red, green and blue, of values in [0, 1]."""

    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[Positive, Positive, Positive] | None = None


def normalisation_in(file: Path) -> Normalisation:
    """The mean and deviation in a preprocessor_config.json; ImageNet's where it names none."""
    found = read_json(file, Preprocessor)
    return found.image_mean or IMAGENET[0], found.image_std or IMAGENET[1]
