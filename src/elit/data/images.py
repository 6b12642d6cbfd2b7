"""Labelled images in memory, and how a folder of them is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from elit.codec import DataEncoding, Pixels
from elit.data.crops import crop_center, decode
from elit.data.loader import NewGenerators, counts_of
from elit.data.pictures_on_disk import SUFFIXES, PassedOver
from elit.data.sources import FolderSource, ZipSource, read_picture
from elit.distributed import is_main
from elit.errors import UserError
from elit.pixels import as_tensor, to_float

__all__ = ["SUFFIXES", "LabelledImages", "load_folder", "load_square"]


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

    @property
    def encoding(self) -> DataEncoding:
        return Pixels()

    @property
    def label_counts(self) -> tuple[int, ...]:
        """The images of each label."""
        return counts_of(self.labels, len(self.label_names))

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Inputs (B, C, H, W) float32 in [-1, 1] and labels (B,) of some rows; images in memory use no random numbers."""
        return to_float(self.images[rows]), self.labels[rows]

    def stored_features(self, encoder: str) -> None:
        """None: a vision encoder looks at the pictures."""

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        """The pictures (B, 3, H, W) uint8, which alignment looks at."""
        return self.images[rows]


def load_folder(folder: str | Path, size: int) -> LabelledImages:
    """The pictures of a folder or a zip file in memory, each its central square resampled (Lanczos) to `size`.

    Which files are pictures, and their labels, are as `elit prepare` has it. A picture that cannot be read is left out; how
    many, and what was passed over, is told. Raises UserError where there is nothing to read.
    """
    name = str(folder)
    source = ZipSource(name) if name.lower().endswith(".zip") else FolderSource(name)
    passed, images, labels = PassedOver(), [], []
    for key, label in source.listing(passed):
        try:
            images.append(square(source.read(key), size))
        except UserError as error:
            passed.add(f"unreadable: {error}", key)
            continue
        labels.append(-1 if label is None else label)
    if not images:
        raise UserError(f"{name} holds no images that can be read ({passed}); give another folder")
    if is_main():
        passed.tell(name)
    return LabelledImages(torch.stack(images), torch.tensor(labels), source.label_names)


def load_square(file: Path, size: int) -> Tensor:
    """One image's central square, resampled (Lanczos) to (3, size, size) uint8. Raises UserError, naming the file."""
    try:
        return square(read_picture(file), size)
    except (OSError, UserError) as error:
        raise UserError(f"{file} cannot be read as an image ({error}); mend or remove it") from error


def square(content: bytes, size: int) -> Tensor:
    """A picture file's central square, resampled (Lanczos) to (3, size, size) uint8."""
    return as_tensor(crop_center(decode(content), size, size))
