"""Labelled images in memory, and how a source of them is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from elit.data.crops import crop_center, decode
from elit.errors import UserError
from elit.pixels import as_tensor, to_float

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class LabelledImages:
    """images (N, 3, H, W) uint8, labels (N,) int64, and the name of every label."""

    images: Tensor
    labels: Tensor
    label_names: tuple[str, ...]

    exact = True  # rows are read by number, so that a resumed run sees the same data
    members: ClassVar[tuple[Tensor, ...]] = ()  # all of one size

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input of a model: channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Inputs (B, C, H, W) float32 in [-1, 1] and labels (B,) of some rows; images in memory use no random numbers."""
        return to_float(self.images[rows]), self.labels[rows]


def load_images(source: str, size: int) -> LabelledImages:
    """The images of a source: "emoji", the embedded default, or a folder of class folders.

    Raises UserError for a folder that is missing, empty or unreadable.
    """
    if source == "emoji":
        from elit.data.emoji import load_emoji

        return load_emoji(size)
    return load_folder(Path(source), size)


def load_folder(folder: Path, size: int) -> LabelledImages:
    """A folder with one folder of images per class, cropped to the central square and resampled (Lanczos) to `size`.

    Labels follow the sorted names of the class folders. Raises UserError where there is nothing to read, or where a
    file cannot be read, naming it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of class folders, or emoji for the embedded images")
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no images; put them in one folder per class, such as {folder / 'cats' / '1.png'}")
    names = sorted({p.parent.name for p in files})
    images = torch.stack([load_square(p, size) for p in files])
    labels = torch.tensor([names.index(p.parent.name) for p in files])
    return LabelledImages(images, labels, tuple(names))


def load_square(file: Path, size: int) -> Tensor:
    """One image's central square, resampled (Lanczos) to (3, size, size) uint8."""
    try:
        picture = decode(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an image ({error}); mend or remove it") from error
    return as_tensor(crop_center(picture, size, size))
