"""Images to evaluate, read by number as uint8: a folder, an .npz, the emoji, tensors, or a model that is sampled on the fly.

A picture is RGB. Grey ones are repeated over the three channels and transparent ones laid on white, as training reads them;
`notes` says how many were. Nothing is resized unless a size is asked for: then the central square is, by Lanczos.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elit.codec import Codec
from elit.data.crops import crop_center, open_picture, upright
from elit.data.images import SUFFIXES
from elit.data.loader import in_threads
from elit.distributed import sum_over_ranks
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.statistics import npz_members
from elit.generation import LABELS_FILE, SETTINGS_FILE, SHEET_FILE, tile_images
from elit.labels import LabelRule
from elit.pixels import as_tensor, to_uint8
from elit.recipe import Recipe
from elit.words import spread

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

    def notes(self) -> list[str]:
        return []


@dataclass
class Pictures:
    """Image files of one size. square: resize them to that instead, after cutting out the central square."""

    name: str
    files: Sequence[Path]
    square: int | None = None
    converted: Counter[str] = field(default_factory=Counter)
    grain = 1
    in_memory = False

    def __post_init__(self) -> None:
        self.count = len(self.files)
        side = self.square
        self.size: tuple[int, int] = (side, side) if side else self._open(self.files[0])[1]
        self.converted.clear()  # that one is read again

    def read(self, first: int, last: int) -> Tensor:
        return torch.stack([self._read(file) for file in self.files[first:last]])

    def _read(self, file: Path) -> Tensor:
        pixels, size = self._open(file)
        if size != self.size:
            raise UserError(
                f"{file} is {size[1]} x {size[0]}, and {self.files[0].name} is {self.size[1]} x {self.size[0]}: images of"
                " one set have one size; give --size N to resize their central squares"
            )
        return pixels

    def _open(self, file: Path) -> tuple[Tensor, tuple[int, int]]:
        try:
            with open_picture(file.read_bytes()) as image:
                if image.mode != "RGB":
                    self.converted[TRANSPARENT if image.has_transparency_data else GREY] += 1
                picture = upright(image)
                pixels = as_tensor(crop_center(picture, self.square, self.square) if self.square else picture)
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: what PIL raises for a broken PNG chunk
            raise UserError(f"{file} cannot be read as an image ({error}); mend or remove it") from error
        return pixels, (pixels.shape[1], pixels.shape[2])

    def label(self, index: int) -> str:
        return str(self.files[index])

    def notes(self) -> list[str]:
        """Every process of a torchrun calls this."""
        kinds = (GREY, TRANSPARENT)
        counts = sum_over_ranks(torch.tensor([self.converted[kind] for kind in kinds])).tolist()
        told = zip(kinds, counts, strict=True)
        return [f"{count} images {kind} were made RGB, transparency on white" for kind, count in told if count]


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

    def notes(self) -> list[str]:
        return []


def decoded_size(model: ElasticModel, codec: Codec) -> tuple[int, int]:
    """(height, width) of the images that a codec makes of a model's output."""
    blank = torch.zeros(1, *model.input.shape, device=next(model.parameters()).device)
    height, width = codec.decode(blank).shape[2:]
    return height, width


def open_images(
    name: str, square: int | None = None, count: int | None = None, like: tuple[int, int] | None = None
) -> Source:
    """The images of "emoji", a folder (with all below it), or an .npz with `arr_0`.

    square: resize to it. count: take so many, spread evenly over all in their order. like: the size that is wanted, which
    the emoji are then made in. Raises UserError for what holds no images, or fewer than asked.
    """
    if name == "emoji":
        from elit.data.emoji import load_emoji

        side = square or (like or (32, 32))[0]
        images = load_emoji(side).images
        return Images("emoji", images[list(_rows(count, len(images), name))])
    path = Path(name)
    if path.is_dir():
        files = image_files(path)
        return Pictures(name, [files[i] for i in _rows(count, len(files), name)], square)
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


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted; of a folder of `elit sample`, those that its dataset.json lists."""
    listed = folder / LABELS_FILE
    if listed.is_file():
        try:
            names = [str(name) for name, *_ in json.loads(listed.read_text(encoding="utf8"))["labels"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{listed} does not list images ({error}); mend or remove it") from error
        files = [folder / name for name in names]
    else:
        several = sorted(folder.glob(f"*/{SETTINGS_FILE}"))
        if len(several) > 1:
            raise UserError(
                f"{folder} holds {len(several)} samples of different settings; give one, such as {several[0].parent}"
            )
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name != SHEET_FILE)
        files = [p for p in files if not p.name.startswith(".")]
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return files


def open_array(file: Path) -> np.ndarray[Any, Any]:
    """(N, H, W, 3) uint8: `arr_0` of an .npz. Raises UserError for another shape or type, saying how to mend it."""
    if "arr_0" not in npz_members(file):
        raise UserError(f"{file} holds no images: it has {', '.join(npz_members(file))} and no arr_0")
    try:
        array = map_array(file, "arr_0.npy")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"arr_0 of {file} cannot be read ({error}); fetch or make it again") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise UserError(
            f"arr_0 of {file} is {array.shape} {array.dtype}; images are (N, H, W, 3) uint8, RGB: convert them before"
        )
    return array


def map_array(file: Path, member: str) -> np.ndarray[Any, Any]:
    """An array of an .npz, mapped from the disk; read into memory where it is compressed."""
    with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
        entry = archive.getinfo(member)
        if entry.compress_type != zipfile.ZIP_STORED:
            array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return array
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        inside = stream.tell()
    if dtype.hasobject:
        raise UserError("it holds Python objects")
    with file.open("rb") as raw:  # the file's own header, of a length that it tells, is before the array
        raw.seek(entry.header_offset + 26)
        name, extra = (int.from_bytes(raw.read(2), "little") for _ in range(2))
    start = entry.header_offset + 30 + name + extra + inside
    return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


def prefetched(
    read: Callable[[int, int], Tensor], runs: Iterable[tuple[int, int]], in_memory: bool
) -> Iterator[tuple[int, Tensor]]:
    """(first, read(first, last)) of every run, in their order; threads of their own decode the next ones meanwhile."""

    def load(run: tuple[int, int]) -> tuple[int, Tensor]:
        return run[0], read(*run)

    yield from map(load, runs) if in_memory else in_threads(load, runs, READERS)
