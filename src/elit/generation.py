"""Sampling at scale: image i is a function of (model, recipe, labels, i), made once, and whole or absent.

OUT/KEY/settings.json        all that changes pixels; KEY is its hash, so two settings never share a folder
OUT/KEY/00000/000000.png     image 0; a folder for every thousand; of a model of clips 000000.gif or 000000.mp4
OUT/KEY/dataset.json         the labels: {"labels": [["00000/000000.png", 3], ...]}, and the classes' names where known
OUT/KEY/sheet.png            the first images side by side with their labels, to look at; of clips sheet.gif
OUT/KEY.npz                  if asked: arr_0, (N, H, W, 3) uint8

The model always runs on whole tiles of one size, since matrix products differ in the last bit with the batch's size. So the
bytes are the same for any number of processes and any batch, on the same kind of device. One command at a time works in a
folder, which it holds by a lock for all its processes.
"""

import json
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from elit.codec import Codec, PixelCodec
from elit.console import progress_bar, say
from elit.distributed import barrier, from_main, is_main, rank, together, world_size
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.files import (
    check_writable,
    digest,
    locked,
    open_regular,
    read_bytes,
    remove_leftovers,
    told,
    write_whole,
    written_whole,
)
from elit.labels import LabelRule
from elit.media import Format, chosen_format, read_clip, save_clip
from elit.pictures import moving_sheet, save_png, sheet
from elit.pixels import as_tensor, to_float, to_uint8
from elit.recipe import Recipe
from elit.records import read_json, record
from elit.sampling import image_noise
from elit.weights import fingerprint

SETTINGS_FILE, LABELS_FILE, SHEET_FILE, MOVING_SHEET_FILE = "settings.json", "dataset.json", "sheet.png", "sheet.gif"
SHEET_IMAGES, SHEET_CLIPS = 64, 32
PER_FOLDER = 1000
MOST_IMAGES, LARGEST_BATCH = 10_000_000, 4096  # of one folder; tiles between two hand-overs
SETTINGS_BYTES = 2**20
WRITERS, QUEUED = 2, 32  # threads, and tiles waiting for them


@record
class Listing:
    """What dataset.json holds: the file and the label of every image, and what the classes are called."""

    labels: tuple[tuple[str, int], ...]
    label_names: tuple[str, ...] = ()


def settings_of(
    model: ElasticModel, recipe: Recipe, labels: LabelRule, codec: Codec, form: Format = "png"
) -> dict[str, object]:
    """All that changes pixels, as settings.json holds it; budgets are written as the levels that they run."""
    parameter = next(model.parameters())

    def level(budget: float | None) -> str | None:
        return None if budget is None else model.levels.name(model.levels.of(budget))

    schedule = recipe.budget if isinstance(recipe.budget, Schedule) else Schedule(otherwise=recipe.budget)
    return {
        "model": fingerprint(model),
        "sampler": recipe.sampler,
        "steps": recipe.steps,
        "budget": [*([time, level(budget)] for time, budget in schedule.pieces), level(schedule.otherwise)],
        "guidance": {**asdict(recipe.guidance), "weak_budget": level(recipe.guidance.weak_budget)},
        "seed": recipe.seed,
        "path": recipe.path,
        **labels.settings(),
        "tile": recipe.tile,
        "codec": codec.name,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        **_stages_of(model, recipe),
        **({} if recipe.shift == 1 else {"shift": recipe.shift}),
        **({} if recipe.cache is None else {"cache": asdict(recipe.cache)}),
        **({} if form == "png" else {"format": form}),
    }


def _stages_of(model: ElasticModel, recipe: Recipe) -> dict[str, object]:
    """The steps and thresholds of a model's stages; nothing where it has one."""
    parts = [(stage, times) for stage, times in recipe.parts(model) if stage is not None]
    if not parts:
        return {}
    return {"steps": [len(times) - 1 for _, times in parts], "thresholds": parts[0][0].thresholds[:-1]}


def tile_images(model: ElasticModel, recipe: Recipe, labels: LabelRule, codec: Codec, number: int) -> Tensor:
    """(tile, 3, H, W), or clips (tile, 3, T, H, W), in [-1, 1]: the whole tile of that number."""
    first = number * recipe.tile
    shape = (recipe.tile, *model.input.shape)
    sde_noise = None
    if recipe.sampler == "euler_maruyama":
        places = (recipe.tile, recipe.total_steps - 1, *shape[1:])
        sde_noise = image_noise(recipe.seed, places, "sde", first).transpose(0, 1)
    noise = image_noise(recipe.seed, shape, first=first)
    chosen = [labels.label(recipe.seed, first + i) for i in range(recipe.tile)]
    return codec.decode(recipe.draw(model, labels.told(chosen), noise, sde_noise)).cpu()


def image_name(index: int, form: Format = "png") -> str:
    """00000/000000.png, relative to the sample's folder."""
    return f"{index // PER_FOLDER:05d}/{index:06d}.{form}"


def folder_of(out: Path, settings: dict[str, object]) -> Path:
    """OUT/KEY, whether it is there or not."""
    return out / digest(_text_of(settings))


def check_count(count: int) -> None:
    """Raises UserError for a count of images that cannot be."""
    if not 1 <= count <= MOST_IMAGES:
        raise UserError(f"at least 1 image is made, and at most {MOST_IMAGES:,}, not {count:,}; give another --count")


def fitting_tile(
    model: ElasticModel, recipe: Recipe, labels: LabelRule, codec: Codec, out: Path, form: Format = "png"
) -> Recipe:
    """The recipe, of a small tile so that no image is made in vain; with the usual tile where OUT holds such a sample.

    So a small sample takes no longer than it must, and one that is there is gone on with.
    """
    usual = replace(recipe, tile=Recipe.tile)
    if recipe.tile < usual.tile:
        settings = settings_of(model, usual, labels, codec, form)
        if folder_of(out, settings).is_dir() or _holds(out, settings):
            return usual
        say(f"images are made {recipe.tile} at a time; to add more to them later, give --tile {usual.tile} now")
    return recipe


def _holds(folder: Path, settings: dict[str, object]) -> bool:
    """Whether a folder holds a sample of just these settings."""
    file = folder / SETTINGS_FILE
    return file.is_file() and read_bytes(file, SETTINGS_BYTES) == _text_of(settings)


def generate(
    model: ElasticModel,
    recipe: Recipe,
    labels: LabelRule,
    count: int,
    out: Path,
    codec: Codec | None = None,
    batch: int = 1,
    npz: bool = False,
    label_names: Sequence[str] = (),
    form: Format | None = None,
) -> Path:
    """Makes the images 0 .. count - 1 that are not there yet, and returns their folder, OUT/KEY.

    batch: tiles sampled between two hand-overs to the writers. label_names: of the model's classes, for dataset.json. form:
    of the files, as `chosen_format` takes it. Every process of a torchrun calls this with the same arguments. Raises
    UserError for counts that cannot be, a folder of other settings or one that another command works in, and OSError where
    a file cannot be written; what is finished is kept, and the same call goes on. What one process meets, all of them
    raise.
    """
    check_count(count)
    if not 1 <= batch <= LARGEST_BATCH:
        raise UserError(
            f"at least 1 tile is made at a time, and at most {LARGEST_BATCH:,}, not {batch:,}; give another --batch"
        )
    codec, form = codec or PixelCodec(), chosen_format(form, model.samples.of_clips)
    if npz and form != "png":
        raise UserError("an .npz of images is of pictures, and the model makes clips; leave --npz out")
    settings = settings_of(model, recipe, labels, codec, form)
    folder = from_main(lambda: open_folder(out, settings))
    with _held(folder, lambda alone: _begin(folder, settings, count, npz, alone)):
        numbers = range(rank(), -(-count // recipe.tile), world_size())
        tiles = [number for number in numbers if missing(folder, recipe, number, count, form)]

        def work() -> None:
            with progress_bar() as bar, writers() as write:
                total = sum(len(missing(folder, recipe, number, count, form)) for number in tiles)
                task = bar.add_task("sampling", total=total, unit="images", visible=is_main())
                for first in range(0, len(tiles), batch):
                    some = tiles[first : first + batch]
                    for number, images in [(n, tile_images(model, recipe, labels, codec, n)) for n in some]:
                        wanted = missing(folder, recipe, number, count, form)
                        files = [folder / image_name(i, form) for i in wanted]
                        write(images[[i - number * recipe.tile for i in wanted]], files)
                        bar.advance(task, len(wanted))

        together(work)
        from_main(lambda: finish(folder, Listing(_labels(recipe, labels, count, form), tuple(label_names)), npz, form))
    return folder


@contextmanager
def _held(folder: Path, take: Callable[[bool], None]) -> Iterator[None]:
    """Keeps other commands out of a sample's folder while inside: the first process holds it for all of this one.

    take: called once it is held, and told whether the system has locks.
    """
    with ExitStack() as stack:
        from_main(lambda: take(stack.enter_context(locked(folder, "sampling"))))
        yield
        barrier()


def _begin(folder: Path, settings: dict[str, object], count: int, npz: bool, alone: bool) -> None:
    """Writes the settings of a new folder, removes what a kill left half-written, and refuses to shrink an .npz."""
    for place in (folder, *(inner for inner in folder.iterdir() if inner.is_dir())):
        remove_leftovers(place, everyones=alone)
    array = folder.with_name(f"{folder.name}.npz")
    remove_leftovers(folder.parent, of=array.name, everyones=alone)
    if not (folder / SETTINGS_FILE).is_file():
        write_whole(folder / SETTINGS_FILE, _text_of(settings).decode())
    before = _listed_before(folder)
    if npz and array.is_file() and len(before) > count and not _all_there(folder, before):
        raise UserError(
            f"{array} holds {len(before):,} images, whose files are not all there, and would shrink to {count:,}; move it"
            f" elsewhere, or give --count {len(before)}"
        )


def _text_of(settings: dict[str, object]) -> bytes:
    """What settings.json holds."""
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


def open_folder(out: Path, settings: dict[str, object]) -> Path:
    """OUT/KEY, made or found. Raises UserError where it, or OUT itself, holds a sample of other settings."""
    folder = folder_of(out, settings)
    for place in (out, folder):
        if not (place / SETTINGS_FILE).is_file():
            continue
        if not _holds(place, settings):
            why = _differing(place / SETTINGS_FILE, settings)
            raise UserError(f"{place} holds images of other settings ({why}); give another --out")
        check_writable(place)
        return place
    check_writable(folder)
    return folder


def _differing(file: Path, wanted: dict[str, object]) -> str:
    """How the settings of a file differ from those that are wanted."""
    try:
        old = read_json(file, dict[str, object], SETTINGS_BYTES)
    except UserError:
        return f"its {SETTINGS_FILE} cannot be read"
    new = json.loads(_text_of(wanted))
    wrong = [f"{key} is {old.get(key)} there and {value} now" for key, value in new.items() if old.get(key) != value]
    return "; ".join(wrong[:3]) or f"its {SETTINGS_FILE} has more than this version knows"


def missing(folder: Path, recipe: Recipe, number: int, count: int, form: Format) -> list[int]:
    """The images of a tile that are asked for and not there."""
    last = min((number + 1) * recipe.tile, count)
    return [i for i in range(number * recipe.tile, last) if not (folder / image_name(i, form)).is_file()]


@contextmanager
def writers() -> Iterator[Callable[[Tensor, Sequence[Path]], None]]:
    """write(images_NCHW, files): queues files of pictures, or of clips (N, C, T, H, W), for threads of their own, so that
    sampling does not wait.

    A task is a tile, and runs no torch: many small tasks would hand the interpreter's lock to and fro while the processors
    are full of the model's threads. The queue is bounded. The first write that fails raises its error at a later call, or
    at the end.
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:

        def write(images: Tensor, files: Sequence[Path]) -> None:
            while pending and (pending[0].done() or len(pending) > QUEUED):
                pending.popleft().result()
            pending.append(pool.submit(_write, to_uint8(images).movedim(1, -1).contiguous().numpy(), files))

        try:
            yield write
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _write(several: NDArray[np.uint8], files: Sequence[Path]) -> None:
    """several: pictures (N, H, W, C), or clips (N, T, H, W, C)."""
    for pixels, file in zip(several, files, strict=True):
        with told(file):
            file.parent.mkdir(exist_ok=True)
        if pixels.ndim == 4:
            save_clip([Image.fromarray(frame) for frame in pixels], file)
            continue
        with written_whole(file) as part:
            Image.fromarray(pixels).save(part, format="PNG")


def _labels(recipe: Recipe, labels: LabelRule, count: int, form: Format) -> tuple[tuple[str, int], ...]:
    return tuple((image_name(i, form), labels.label(recipe.seed, i)) for i in range(count))


def finish(folder: Path, listing: Listing, npz: bool, form: Format = "png") -> None:
    """Writes the labels, the sheet and, if asked, the .npz. Images that an earlier command made beyond these stay listed."""
    before, count = _listed_before(folder), len(listing.labels)
    if len(before) > count and before[:count] == listing.labels:
        if _all_there(folder, before):
            say(f"{folder} holds {len(before):,} images from before, which all stay listed")
            listing = Listing(before, listing.label_names)
        else:
            say(f"{folder} listed {len(before):,} images, of which some are gone")
    told_labels: dict[str, object] = {"labels": listing.labels}
    if listing.label_names:
        told_labels["label_names"] = listing.label_names
    write_whole(folder / LABELS_FILE, json.dumps(told_labels) + "\n")
    names = [name for name, _ in listing.labels]
    called = [_called(label, listing.label_names) for _, label in listing.labels[:SHEET_IMAGES]]
    if form == "png":
        save_png(side_by_side([folder / name for name in names[:SHEET_IMAGES]], called), folder / SHEET_FILE, optimize=False)
    else:
        shown = [folder / name for name in names[:SHEET_CLIPS]]
        save_clip(clips_side_by_side(shown, called[:SHEET_CLIPS]), folder / MOVING_SHEET_FILE)
    if npz:
        save_npz([folder / name for name in names], folder.with_name(f"{folder.name}.npz"))


def _all_there(folder: Path, listed: Sequence[tuple[str, int]]) -> bool:
    return all((folder / name).is_file() for name, _ in listed)


def _listed_before(folder: Path) -> tuple[tuple[str, int], ...]:
    """What dataset.json lists; nothing where it is not there, or cannot be read and is written anew."""
    try:
        return read_json(folder / LABELS_FILE, Listing).labels
    except UserError:
        return ()


def read_sample(file: Path, like: tuple[int, int] | None = None) -> Image.Image:
    """One image of a sample's folder, RGB.

    like: the (width, height) that it must have. Raises UserError for one that cannot be read, or has another size.
    """
    try:
        with open_regular(file) as stream, Image.open(stream, formats=("PNG",)) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file} cannot be read as an image ({error}); remove it, and give the same command again"
        ) from error
    if like is not None and picture.size != like:
        sizes = " and not ".join(f"{width} x {height}" for width, height in (picture.size, like))
        raise UserError(f"{file} is {sizes} as the others are; remove it, and give the same command again")
    return picture


def _called(label: int, names: Sequence[str]) -> str:
    """A class by its name, or by its number where that is not known."""
    return names[label] if label < len(names) else str(label)


def side_by_side(files: Sequence[Path], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Image files of one size, row by row, each with its caption below; small ones enlarged."""
    first = read_sample(files[0])
    images = torch.stack([as_tensor(read_sample(file, first.size)) for file in files])
    return sheet(to_float(images), [""] * min(columns, len(files)), captions=captions)


def clips_side_by_side(files: Sequence[Path], captions: Sequence[str], columns: int = 8) -> list[Image.Image]:
    """The same of files of clips, frame by frame. Raises UserError for one of another size or length than the first."""
    clips = [read_clip(file) for file in files]
    for file, clip in zip(files, clips, strict=True):
        if clip.shape != clips[0].shape:
            raise UserError(
                f"{file} is not as long and as large as the others are; remove it, and give the same command again"
            )
    return moving_sheet(to_float(torch.stack(clips)), [""] * min(columns, len(files)), captions=captions)


def save_npz(files: Sequence[Path], file: Path) -> None:
    """The images as `arr_0`, (N, H, W, 3) uint8, one at a time: the file that ADM's evaluator reads."""
    first = read_sample(files[0])
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), first.height, first.width, 3)}
    with written_whole(file) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo("arr_0.npy")  # of a fixed date, so that equal images make equal files
        with archive.open(entry, "w", force_zip64=True) as stream, progress_bar() as bar:
            np.lib.format.write_array_header_1_0(stream, header)
            for name in bar.track(files, description="writing the .npz"):
                stream.write(np.asarray(read_sample(name, first.size)).tobytes())
    say(f"the images as one array are in {file}")
