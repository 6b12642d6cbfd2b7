"""Sampling at scale: image i is a function of (model, settings, seed, i), made once, and whole or absent.

OUT/KEY/settings.json        all that changes pixels; KEY is its hash, so two settings never share a folder
OUT/KEY/00000/000000.png     image 0; a folder for every thousand
OUT/KEY/dataset.json         the labels: {"labels": [["00000/000000.png", 3], ...]}
OUT/KEY/sheet.png            the first images side by side, to look at
OUT/KEY.npz                  if asked: arr_0, (N, H, W, 3) uint8

The model always runs on whole tiles of one size, since matrix products differ in the last bit with the batch's size. So the
bytes are the same for any number of processes and any batch, on the same kind of device.
"""

import hashlib
import json
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from elit.codec import Codec, PixelCodec
from elit.console import console, progress_bar
from elit.distributed import barrier, is_main, rank, world_size
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.files import write_whole, written_whole
from elit.guidance import Guidance
from elit.labels import LabelRule
from elit.pictures import save_png, tile
from elit.pixels import as_tensor, to_float, to_uint8
from elit.sampling import image_noise, sample
from elit.weights import fingerprint

SETTINGS_FILE, LABELS_FILE, SHEET_FILE = "settings.json", "dataset.json", "sheet.png"
SHEET_IMAGES = 64
PER_FOLDER = 1000
WRITERS, QUEUED = 2, 32  # threads, and tiles waiting for them
SHEET_SIDE = 96  # pixels of a small image on the sheet, at least


@dataclass(frozen=True)
class Recipe:
    """What, with a model, decides the pixels of image i. tile: images in one call of the model."""

    labels: LabelRule
    sampler: str = "euler"
    steps: int = 25
    budget: float | Schedule = 1.0
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    path: str = "linear"
    tile: int = 8

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise UserError(f"a tile holds at least 1 image, not {self.tile}")

    def settings(self, model: ElasticModel, codec: Codec) -> dict[str, Any]:
        """All that changes pixels, as settings.json holds it; budgets are written as the levels that they run."""
        parameter = next(model.parameters())

        def level(budget: float | None) -> str | None:
            return None if budget is None else model.levels.name(model.levels.of(budget))

        schedule = self.budget if isinstance(self.budget, Schedule) else Schedule(otherwise=self.budget)
        return {
            "model": fingerprint(model),
            "sampler": self.sampler,
            "steps": self.steps,
            "budget": [*([time, level(budget)] for time, budget in schedule.pieces), level(schedule.otherwise)],
            "guidance": {**asdict(self.guidance), "weak_budget": level(self.guidance.weak_budget)},
            "seed": self.seed,
            "path": self.path,
            "labels": asdict(self.labels),
            "tile": self.tile,
            "codec": codec.name,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
        }

    def images(self, model: ElasticModel, codec: Codec, tile: int) -> Tensor:
        """(tile, 3, H, W) in [-1, 1]: the whole tile of that number."""
        first = tile * self.tile
        labels = [self.labels.label(self.seed, first + i) for i in range(self.tile)]
        shape = (self.tile, *model.input.shape)
        sde_noise = None
        if self.sampler == "euler_maruyama":
            sde_noise = image_noise(self.seed, (self.tile, self.steps - 1, *shape[1:]), "sde", first).transpose(0, 1)
        x = sample(
            model,
            labels,
            self.sampler,
            self.steps,
            self.budget,
            self.guidance,
            noise=image_noise(self.seed, shape, first=first),
            sde_noise=sde_noise,
            path=self.path,
        )
        return codec.decode(x).cpu()


def image_name(index: int) -> str:
    """00000/000000.png, relative to the sample's folder."""
    return f"{index // PER_FOLDER:05d}/{index:06d}.png"


def generate(
    model: ElasticModel, recipe: Recipe, count: int, out: Path, codec: Codec | None = None, batch: int = 1, npz: bool = False
) -> Path:
    """Makes the images 0 .. count - 1 that are not there yet, and returns their folder, OUT/KEY.

    batch: tiles sampled between two hand-overs to the writers. Every process of a torchrun calls this with the same
    arguments. Raises UserError for a folder of other settings, and OSError where a file cannot be written; what is
    finished is kept, and the same call goes on.
    """
    if count < 1 or batch < 1:
        raise UserError(f"at least one image and one tile are made at a time, not {count} and {batch}")
    codec = codec or PixelCodec()
    folder = open_folder(out, recipe.settings(model, codec))
    tiles = [tile for tile in range(rank(), -(-count // recipe.tile), world_size()) if missing(folder, recipe, tile, count)]
    with progress_bar() as bar, writers() as write:
        total = sum(len(missing(folder, recipe, tile, count)) for tile in tiles)
        task = bar.add_task("sampling", total=total, unit="images", visible=is_main())
        for first in range(0, len(tiles), batch):
            made = [(tile, recipe.images(model, codec, tile)) for tile in tiles[first : first + batch]]
            for tile, images in made:
                wanted = missing(folder, recipe, tile, count)
                write(images[[i - tile * recipe.tile for i in wanted]], [folder / image_name(i) for i in wanted])
                bar.advance(task, len(wanted))
    barrier()
    if is_main():
        finish(folder, recipe, count, npz)
    barrier()
    return folder


def open_folder(out: Path, settings: dict[str, Any]) -> Path:
    """OUT/KEY, made or found. Raises UserError where it, or OUT itself, holds a sample of other settings."""
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    folder = out / hashlib.sha256(text.encode()).hexdigest()[:12]
    for place in (out, folder):
        if not (place / SETTINGS_FILE).is_file():
            continue
        found = (place / SETTINGS_FILE).read_text(encoding="utf8")
        if found != text:
            raise UserError(f"{place} holds images of other settings ({_differing(found, text)}); give another --out")
        return place
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS_FILE, text)
    return folder


def _differing(found: str, wanted: str) -> str:
    new = json.loads(wanted)
    try:
        old = json.loads(found)
        wrong = [f"{key} is {old.get(key)} there and {value} now" for key, value in new.items() if old.get(key) != value]
    except (ValueError, AttributeError):
        return f"its {SETTINGS_FILE} cannot be read"
    return "; ".join(wrong[:3]) or f"its {SETTINGS_FILE} has more than this version knows"


def missing(folder: Path, recipe: Recipe, tile: int, count: int) -> list[int]:
    """The images of a tile that are asked for and not there."""
    last = min((tile + 1) * recipe.tile, count)
    return [i for i in range(tile * recipe.tile, last) if not (folder / image_name(i)).is_file()]


@contextmanager
def writers() -> Iterator[Callable[[Tensor, Sequence[Path]], None]]:
    """write(images_NCHW, files): queues PNG files for threads of their own, so that sampling does not wait.

    A task is a tile, and runs no torch: many small tasks would hand the interpreter's lock to and fro while the processors
    are full of the model's threads. The queue is bounded. The first write that fails raises its error at a later call, or
    at the end.
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:

        def write(images_NCHW: Tensor, files: Sequence[Path]) -> None:
            while pending and (pending[0].done() or len(pending) > QUEUED):
                pending.popleft().result()
            pending.append(pool.submit(_write, to_uint8(images_NCHW).permute(0, 2, 3, 1).contiguous().numpy(), files))

        try:
            yield write
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _write(pixels_NHWC: NDArray[np.uint8], files: Sequence[Path]) -> None:
    for pixels, file in zip(pixels_NHWC, files, strict=True):
        try:
            file.parent.mkdir(exist_ok=True)
            with written_whole(file) as part:
                Image.fromarray(pixels).save(part, format="PNG")
        except OSError as error:
            why = error.strerror or error
            text = f"{file} could not be written ({why}); all before it is kept: make room, and give the same command"
            raise OSError(text) from error


def finish(folder: Path, recipe: Recipe, count: int, npz: bool) -> None:
    """Removes what a kill left half-written, and writes the labels, the sheet and, if asked, the .npz."""
    for part in folder.glob("*/.*.part"):
        part.unlink(missing_ok=True)
    names = [image_name(i) for i in range(count)]
    labels = [[name, recipe.labels.label(recipe.seed, i)] for i, name in enumerate(names)]
    write_whole(folder / LABELS_FILE, json.dumps({"labels": labels}) + "\n")
    save_png(side_by_side([folder / name for name in names[:SHEET_IMAGES]]), folder / SHEET_FILE, optimize=False)
    if npz:
        save_npz([folder / name for name in names], folder.with_name(f"{folder.name}.npz"))


def side_by_side(files: Sequence[Path], columns: int = 8) -> Image.Image:
    """Image files of one size, row by row, on white; small ones enlarged."""
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(as_tensor(image.convert("RGB")))
    return tile(to_float(torch.stack(images)), columns, scale=max(1, SHEET_SIDE // images[0].shape[-1]))


def save_npz(files: Sequence[Path], file: Path) -> None:
    """The images as `arr_0`, (N, H, W, 3) uint8, one at a time: the file that ADM's evaluator reads."""
    with Image.open(files[0]) as image:
        shape = (len(files), image.height, image.width, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with written_whole(file) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo("arr_0.npy")  # of a fixed date, so that equal images make equal files
        with archive.open(entry, "w", force_zip64=True) as stream, progress_bar() as bar:
            np.lib.format.write_array_header_1_0(stream, header)
            for name in bar.track(files, description="writing the .npz"):
                with Image.open(name) as image:
                    stream.write(np.asarray(image.convert("RGB")).tobytes())
    console.print(f"the images as one array are in {file}")
