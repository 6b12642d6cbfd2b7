"""The layout in which the authors' tools keep latents, read for training without touching the pictures.

DIR/vae-sd/00000/img-mean-std-00000000.npy   float32 (8, h, w): four channels of mean, four of standard deviation, unscaled
DIR/vae-sd/dataset.json                      {"labels": [["00000/img-mean-std-00000000.npy", 6], ...]}, or null
DIR/images/                                  the pictures, with a dataset.json of their own; its labels are read where
                                             vae-sd/ has none, and the pictures where alignment looks at them: files pair by
                                             folder and trailing digits
Without any dataset.json, labels are the sorted names of the folders in vae-sd/.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elit.autoencoders import STABLE_DIFFUSION_SCALE as SCALE
from elit.codec import DataEncoding, Latents
from elit.data.arrays import read_npy
from elit.data.crops import decode
from elit.data.dataset import latent_input
from elit.data.loader import NewGenerators, counts_of
from elit.data.pictures_on_disk import PassedOver
from elit.data.sources import FolderSource, read_picture
from elit.errors import UserError
from elit.pixels import as_tensor

FOLDER, PICTURES = "vae-sd", "images"


class LatentFiles(FolderSource):
    """The .npy files of a folder, with their labels."""

    suffixes = (".npy",)


class PublishedLatents:
    """Latents of the published layout; a model input is 0.18215 (mean + standard deviation x noise).

    Raises UserError for a folder without latents, for labels that fit no file, and for a file of another shape.
    """

    exact = True
    members: tuple[Tensor, ...] = ()

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        source = LatentFiles(str(self.folder / FOLDER))
        listed = list(source.listing())  # of .npy files: what else is there belongs to others
        if not listed:
            raise UserError(f"{self.folder / FOLDER} holds no .npy files; write them with the tool that made the pictures")
        self.files = [key for key, _ in listed]
        self.label_names = source.label_names
        labels = [label for _, label in listed]
        pictures = self.folder / PICTURES
        if source.labels_file is None and (pictures / "dataset.json").is_file():
            paired = FolderSource(str(pictures))
            self.label_names, labels = paired.label_names, paired_labels(self.files, paired.table, str(self.folder))
        self.labels = torch.tensor([-1 if label is None else label for label in labels])
        channels, height, width = self.stored(0).shape
        self.shape = (channels // 2, height, width)

    def __len__(self) -> int:
        return len(self.files)

    def stored(self, row: int) -> np.ndarray:
        """(8, h, w) float32 of one file: means, then standard deviations."""
        file = self.folder / FOLDER / self.files[row]
        try:
            array = read_npy(file)
        except UserError as error:
            raise UserError(f"{file} is not a whole .npy file ({error}); write it again") from error
        shape = self.shape if row else (array.shape[0] // 2, *array.shape[1:]) if array.ndim == 3 else ()
        if array.dtype not in (np.float32, np.float16) or len(shape) != 3 or array.shape != (2 * shape[0], *shape[1:]):
            raise UserError(f"{file} is {array.dtype} {array.shape} and not float32 (8, h, w) as the first; write it again")
        return array

    @property
    def encoding(self) -> DataEncoding:
        return Latents(SCALE, 0.0)

    @property
    def label_counts(self) -> tuple[int, ...]:
        """The files of each label."""
        return counts_of(self.labels, len(self.label_names))

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """x (B, 4, h, w) float32 and labels (B,) int64, -1 where there is none; row i draws noise from generators[i]."""
        x = torch.empty(len(rows), *self.shape)
        for i, (row, generator) in enumerate(zip(rows.tolist(), generators, strict=True)):
            x[i] = latent_input(self.stored(row), self.shape, "mean-std", SCALE, 0.0, generator)
        return x, self.labels[rows]

    def stored_features(self, encoder: str) -> None:
        """None: a vision encoder looks at the pictures. Raises UserError where they are not there."""
        self.pixels(torch.tensor([0]))

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        """The pictures (B, 3, H, W) uint8 of the rows, which alignment looks at."""
        return self.pixels(rows)

    @cached_property
    def pictures(self) -> list[str]:
        """The picture file of each row, below images/. Raises UserError where one is missing."""
        source = FolderSource(str(self.folder / PICTURES))
        paths = list(source.walk(PassedOver()))
        by_place = {place(path): path for path in paths}
        if len(by_place) < len(paths):
            raise UserError(f"{source.name} holds pictures of one folder and number; give each digits of its own")
        missing = [file for file in self.files if place(file) not in by_place]
        if missing:
            raise UserError(f"{source.name} has no picture of {missing[0]}; bring it, for alignment looks at the pictures")
        return [by_place[place(file)] for file in self.files]

    def pixels(self, rows: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 of the rows' pictures. Raises UserError for one that cannot be read, or of another size."""
        images: list[Tensor] = []
        for row in rows.tolist():
            file = self.folder / PICTURES / self.pictures[row]
            try:
                images.append(as_tensor(decode(read_picture(file))))
            except (OSError, UserError) as error:
                raise UserError(f"{file} cannot be read ({error}); write it again") from error
            if images[-1].shape != images[0].shape:
                (height, width), (first_height, first_width) = images[-1].shape[1:], images[0].shape[1:]
                raise UserError(
                    f"{file} is {height} x {width} and another {first_height} x {first_width}; write all in one size"
                )
        return torch.stack(images)


def paired_labels(files: Sequence[str], table: dict[str, int] | None, name: str) -> list[int | None]:
    """The label of each file, by its picture's: the one in the same folder whose name ends in the same digits."""
    if table is None:
        return [None] * len(files)
    by_place = {place(path): label for path, label in table.items()}
    if len(by_place) < len(table):
        raise UserError(f"{name}/images/dataset.json names pictures of one folder and number; give each digits of its own")
    missing = [file for file in files if place(file) not in by_place]
    if missing:
        raise UserError(f"{name}/images/dataset.json has no label for the picture of {missing[0]}; write it again")
    return [by_place[place(file)] for file in files]


def place(path: str) -> tuple[str, str]:
    """A path's folder, and the digits at the end of its name."""
    folder, _, base = path.rpartition("/")
    digits = re.search(r"(\d*)$", base.rpartition(".")[0])
    return folder, digits[1] if digits else ""
