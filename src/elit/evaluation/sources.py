"""Images to evaluate, read by number as uint8: a folder, an .npz, the emoji, tensors, or a model that is sampled on the fly.

A picture is RGB. Grey ones are repeated over the three channels and transparent ones laid on white, as training reads them;
`notes` says how many were. Nothing is resized unless a size is asked for: then the central square is, by Lanczos.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elit.codec import Codec, Latents
from elit.data.crops import crop_center, decode, decode_told
from elit.data.dataset import PreparedData, is_prepared
from elit.data.loader import in_threads
from elit.data.pictures_on_disk import LABELS_FILE, SETTINGS_FILE, PassedOver, legible
from elit.data.sources import FolderSource, read_picture
from elit.distributed import gather_from_ranks, sum_over_ranks
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.arrays import array_names, map_array, told_names
from elit.generation import tile_images
from elit.labels import LabelRule
from elit.pixels import as_tensor, to_uint8
from elit.recipe import Recipe
from elit.words import one_line, spread

GREY, TRANSPARENT = "grey or of a palette", "with transparency"
READERS = 2  # threads that decode the next images


class Source(Protocol):
    """`count` images of one `size` (height, width). grain: they are best read in runs of a multiple of this.

    in_memory: reading takes no time, or the time of the device that the features take too, so that nothing is prefetched.
    """

    @property
    def name(self) -> str: ...

    @property
    def grain(self) -> int: ...

    @property
    def in_memory(self) -> bool: ...

    @property
    def count(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def read(self, first: int, last: int) -> Tensor:
        """(last - first, 3, H, W) uint8, on the CPU."""
        ...

    def label(self, index: int) -> str:
        """What image a number is, for a message."""
        ...

    def leave_out_broken(self) -> bool:
        """Takes what could not be read from the set, once all was read; True where there was any: then read all again."""
        ...

    def notes(self) -> list[str]:
        """What was done to images that a reader of the figures should know."""
        ...


@dataclass
class Images:
    """(N, 3, H, W) uint8 in memory."""

    name: str
    images: Tensor
    grain = 1
    in_memory = True

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def read(self, first: int, last: int) -> Tensor:
        return self.images[first:last]

    def label(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def leave_out_broken(self) -> bool:
        return False

    def notes(self) -> list[str]:
        return []


@dataclass
class Pictures:
    """Image files of one size. square: resize them to that instead, after cutting out the central square.

    A file that cannot be read becomes black when it is met, and `leave_out_broken` then takes it from the set. passed:
    what was passed over where the files were listed.
    """

    name: str
    files: Sequence[Path]
    square: int | None = None
    passed: PassedOver = field(default_factory=PassedOver)
    converted: Counter[str] = field(default_factory=Counter)
    grain = 1
    in_memory = False

    def __post_init__(self) -> None:
        self.broken: dict[Path, str] = {}
        self.size: tuple[int, int] = (self.square, self.square) if self.square else self._first_size()

    @property
    def count(self) -> int:
        return len(self.files)

    def _first_size(self) -> tuple[int, int]:
        """(height, width) of the first file that can be read."""
        why = ""
        for file in self.files:
            try:
                picture = decode(read_picture(file))
            except (OSError, UserError) as error:
                why = why or f"{file}: {error}"
                continue
            return picture.height, picture.width
        raise UserError(f"none of the {self.count} images of {self.name} can be read ({why}); mend them or give others")

    def read(self, first: int, last: int) -> Tensor:
        return torch.stack([self._read(file) for file in self.files[first:last]])

    def _read(self, file: Path) -> Tensor:
        try:
            picture, was = decode_told(read_picture(file))
        except (OSError, UserError) as error:
            self.broken[file] = one_line(str(error))
            return torch.zeros(3, *self.size, dtype=torch.uint8)
        if was:
            self.converted[was] += 1
        if self.square:
            picture = crop_center(picture, self.square, self.square)
        if (picture.height, picture.width) != self.size:
            raise UserError(
                f"{file} is {picture.width} x {picture.height}, and {self.files[0].name} is {self.size[1]} x {self.size[0]}:"
                " images of one set have one size; give --size N to resize their central squares"
            )
        return as_tensor(picture)

    def leave_out_broken(self) -> bool:
        """Takes the files that could not be read from the set, in every process; whether there were any, so that what was
        measured is to be measured again. Raises UserError where fewer than two are left."""
        found = {str(file): why for part in gather_from_ranks(self.broken) for file, why in part.items()}
        if not found:
            return False
        for name, why in sorted(found.items()):
            self.passed.add(f"unreadable: {why}", name)
        self.files, self.broken = [file for file in self.files if str(file) not in found], {}
        self.converted.clear()
        if self.count < 2:
            raise UserError(
                f"{self.name} has {self.count} images that can be read ({self.passed}); mend them or give others"
            )
        return True

    def label(self, index: int) -> str:
        return str(self.files[index])

    def notes(self) -> list[str]:
        """Every process of a torchrun calls this."""
        kinds = (GREY, TRANSPARENT)
        counts = sum_over_ranks(torch.tensor([self.converted[kind] for kind in kinds])).tolist()
        told = zip(kinds, counts, strict=True)
        notes = [f"{count} images {kind} were made RGB, transparency on white" for kind, count in told if count]
        return [*notes, f"passed over: {legible(str(self.passed))}"] if self.passed else notes


@dataclass
class PreparedImages:
    """Pictures that `elit prepare` wrote. square: resize their central squares to that. rows: which are taken."""

    name: str
    data: PreparedData
    rows: Sequence[int]
    square: int | None = None
    grain = 1
    in_memory = False

    def __post_init__(self) -> None:
        if self.data.info.size is None and not self.square:
            raise UserError(f"{self.name} has pictures of several sizes; give --size N to resize their central squares")
        self.count = len(self.rows)
        height, width = self.data.shape[-2:]
        self.size = (self.square, self.square) if self.square else (height, width)

    def read(self, first: int, last: int) -> Tensor:
        return torch.stack([self._read(row) for row in self.rows[first:last]])

    def _read(self, row: int) -> Tensor:
        pixels = self.data.image(row)
        if not self.square or pixels.shape[1:] == (self.square, self.square):
            return pixels
        return as_tensor(crop_center(Image.fromarray(pixels.permute(1, 2, 0).numpy()), self.square, self.square))

    def label(self, index: int) -> str:
        return f"row {self.rows[index]} of {self.name}"

    def leave_out_broken(self) -> bool:
        return False

    def notes(self) -> list[str]:
        return []


@dataclass
class Array:
    """`arr_0` of an .npz, (N, H, W, 3) uint8, mapped from the disk where it is not compressed. rows: which are taken."""

    name: str
    array: np.ndarray[Any, Any]
    rows: Sequence[int]
    grain = 1
    in_memory = False

    def __post_init__(self) -> None:
        self.count = len(self.rows)
        self.size = (self.array.shape[1], self.array.shape[2])

    def read(self, first: int, last: int) -> Tensor:
        return torch.from_numpy(self.array[list(self.rows[first:last])]).permute(0, 3, 1, 2).contiguous()

    def label(self, index: int) -> str:
        return f"image {self.rows[index]} of {self.name}"

    def leave_out_broken(self) -> bool:
        return False

    def notes(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Sampled:
    """The images 0 .. count - 1 that `elit sample` would make of a model, made when they are read, and kept nowhere."""

    name: str
    model: ElasticModel
    recipe: Recipe
    labels: LabelRule
    codec: Codec
    count: int
    in_memory = True

    def __post_init__(self) -> None:
        if self.model.samples.of_clips:
            raise UserError(f"pictures are evaluated, and {self.name} makes clips; give a model of pictures")

    @property
    def grain(self) -> int:
        return self.recipe.tile

    @property
    def size(self) -> tuple[int, int]:
        return decoded_size(self.model, self.codec)

    def read(self, first: int, last: int) -> Tensor:
        tiles = range(first // self.grain, -(-last // self.grain))
        images = torch.cat([to_uint8(tile_images(self.model, self.recipe, self.labels, self.codec, tile)) for tile in tiles])
        start = tiles.start * self.grain
        return images[first - start : last - start]

    def label(self, index: int) -> str:
        return f"sample {index} of {self.name}"

    def leave_out_broken(self) -> bool:
        return False

    def notes(self) -> list[str]:
        return []


def decoded_size(model: ElasticModel, codec: Codec) -> tuple[int, int]:
    """(height, width) of the images that a codec makes of a model's output."""
    blank = torch.zeros(1, *model.samples.shape, device=next(model.parameters()).device)
    height, width = codec.decode(blank).shape[2:]
    return height, width


def open_images(
    name: str, square: int | None = None, count: int | None = None, like: tuple[int, int] | None = None
) -> Source:
    """The images of "emoji", a folder (with all below it, or as `elit prepare` wrote it), or an .npz with `arr_0`.

    square: resize to it. count: take so many, spread evenly over all in their order. like: the size that is wanted, which
    the emoji are then made in. Raises UserError for what holds no images, or fewer than asked.
    """
    if name == "emoji":
        from elit.data.emoji import load_emoji

        side = square or (like or (32, 32))[0]
        images = load_emoji(side).images
        return Images("emoji", images[list(_rows(count, len(images), name))])
    path = Path(name).expanduser()
    if is_prepared(path):
        data = PreparedData(path)
        if data.info.frames > 1:
            raise UserError(f"{name} holds clips, and pictures are evaluated; give a folder of pictures")
        if isinstance(data.encoding, Latents):
            raise UserError(f"{name} holds latents; give the folder of the pictures that they were made of")
        return PreparedImages(name, data, _rows(count, len(data), name), square)
    if path.is_dir():
        passed = PassedOver()
        files = image_files(path, passed)
        return Pictures(name, [files[i] for i in _rows(count, len(files), name)], square, passed)
    if path.suffix == ".npz":
        array = open_array(path)
        if square and array.shape[1:3] != (square, square):
            raise UserError(f"--size resizes files of a folder, and not the array in {name}, which is {array.shape}")
        return Array(name, array, _rows(count, len(array), name))
    raise UserError(f"there are no images at {name}; give a folder, an .npz with arr_0, or emoji")


def _rows(count: int | None, total: int, name: str) -> Sequence[int]:
    if count is not None and not 1 <= count <= total:
        raise UserError(f"{name} holds {total} images, so {count} cannot be taken; give another --count")
    return spread(total if count is None else count, total)


def image_files(folder: Path, passed: PassedOver | None = None) -> list[Path]:
    """The image files below a folder, as `elit prepare` and `elit train` find them; of a folder of `elit sample`, those that
    its dataset.json lists. What is passed over is counted in `passed`."""
    if not (folder / LABELS_FILE).is_file():
        several = sorted(folder.glob(f"*/{SETTINGS_FILE}"))
        if len(several) > 1:
            raise UserError(
                f"{folder} holds {len(several)} samples of different settings; give one, such as {several[0].parent}"
            )
    passed = PassedOver() if passed is None else passed
    files = [folder / key for key in FolderSource(str(folder)).pictures(passed)]
    if not files:
        raise UserError(f"{folder} holds no images ({passed or 'it is empty'}); give a folder of pictures")
    return files


def open_array(file: Path) -> np.ndarray[Any, Any]:
    """(N, H, W, 3) uint8: `arr_0` of an .npz. Raises UserError for another shape or type, saying how to mend it."""
    if "arr_0" not in array_names(file):
        raise UserError(f"{file} holds no images: it has {told_names(file)} and no arr_0.npy; write it with numpy.savez")
    array = map_array(file, "arr_0")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise UserError(
            f"arr_0 of {file} is {array.shape} {array.dtype}; images are (N, H, W, 3) uint8, RGB: convert them before"
        )
    return array


def prefetched(
    read: Callable[[int, int], Tensor], runs: Iterable[tuple[int, int]], in_memory: bool
) -> Iterator[tuple[int, Tensor]]:
    """(first, read(first, last)) of every run, in their order; threads of their own decode the next ones meanwhile."""

    def load(run: tuple[int, int]) -> tuple[int, Tensor]:
        return run[0], read(*run)

    yield from map(load, runs) if in_memory else in_threads(load, runs, READERS)
