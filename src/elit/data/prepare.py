"""Pictures, or clips, of any source to a prepared folder: cropped, resampled and encoded on all cores.

The rows are a function of the source and the settings alone: any number of processes, and a run that was killed and
started again, write the same bytes. The pictures are taken in parts of a few; see shards.py.
"""

import dataclasses
import hashlib
import io
import itertools
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from elit.console import progress_bar, say
from elit.data.clips import ClipFolder, decode_clip
from elit.data.crops import CROPS, crop, decode, default_buckets
from elit.data.dataset import DataInfo, read_info
from elit.data.pictures_on_disk import PassedOver, legible
from elit.data.processes import end_with_parent, own_processes
from elit.data.shards import Preparation
from elit.data.sources import Source, SourceOptions, open_source
from elit.errors import UserError
from elit.files import whole_folder
from elit.labels import label_index

PART_BYTES = 2**24  # of raw pixels in a part
Listed = tuple[str, int | None]


@dataclass(frozen=True)
class ImageSettings:
    """What decides the rows of prepared images.

    source: as `open_source` takes it. size: pixels of a side. crop: a name in CROPS. seed: of random crops. buckets:
    (height, width) pairs for the crop "buckets"; () for `default_buckets` with multiples of bucket_step. count: only the
    first pictures, where it is not None.
    """

    source: str
    size: int = 256
    crop: str = "center-crop-adm"
    seed: int = 0
    buckets: tuple[tuple[int, int], ...] = ()
    bucket_step: int = 16
    count: int | None = None
    options: SourceOptions = field(default_factory=SourceOptions)
    kind: ClassVar[Literal["images", "clips"]] = "images"

    def __post_init__(self) -> None:
        for name in ("size", "bucket_step", "count"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= (65_536 if name == "size" else 2**40):
                raise UserError(f"{name} is {value}; it must be at least 1, and a side at most 65536 pixels")
        if self.crop not in CROPS:
            raise UserError(f"there is no crop {self.crop!r}; choose one of {', '.join(CROPS)}")
        if self.buckets and self.crop != "buckets":
            raise UserError(f"buckets are given and the crop is {self.crop}; give --crop buckets with them")

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The buckets there are; () for a crop to one size."""
        if self.crop != "buckets":
            return ()
        return self.buckets or default_buckets(self.size, self.bucket_step)

    @property
    def part_rows(self) -> int:
        """Pictures of a part."""
        return min(64, max(1, PART_BYTES // (3 * self.size * self.size)))

    def info(self, label_names: tuple[str, ...]) -> DataInfo:
        """The description of the rows, without their number."""
        size = None if self.sizes else (self.size, self.size)
        return DataInfo("images", 0, size, label_names, buckets=self.sizes, source=legible(self.source), crop=self.crop)

    def frames_of(self, content: bytes, key: str) -> list[Image.Image]:
        """The picture of a file, or the frames of a clip. Raises UserError where it cannot be read."""
        return [decode(content)]


@dataclass(frozen=True)
class ClipSettings(ImageSettings):
    """The same of clips, all of one size. frames: of each, the first of every `every`-th; shorter ones are left out."""

    frames: int = 8
    every: int = 1
    kind: ClassVar[Literal["images", "clips"]] = "clips"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop == "buckets":
            raise UserError("clips are prepared in one size; give another --crop")
        if not 2 <= self.frames <= 4096 or self.every < 1:
            raise UserError(f"a clip has 2 to 4096 frames, of every 1 or more, not {self.frames} of every {self.every}")

    @property
    def part_rows(self) -> int:
        return min(64, max(1, PART_BYTES // (3 * self.frames * self.size * self.size)))

    def info(self, label_names: tuple[str, ...]) -> DataInfo:
        return dataclasses.replace(super().info(label_names), kind="clips", frames=self.frames)

    def frames_of(self, content: bytes, key: str) -> list[Image.Image]:
        return decode_clip(content, Path(key).suffix, self.frames, self.every)


def prepare_images(
    settings: ImageSettings, out: str | Path, workers: int | None = None, source: Source | None = None
) -> DataInfo:
    """Writes the prepared folder `out`, or goes on with it; returns what it holds.

    workers: processes, as many as there are cores if None; 1 works in this process. source: what `settings.source` names,
    where `open_source` does not know it. A picture that cannot be read is
    left out and listed in skipped.json. Raises UserError for a source that is missing, empty or unreadable, a folder
    that was prepared with other settings or where another preparation is at work, and where no picture can be read.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    if source is None:
        clips = isinstance(settings, ClipSettings)
        source = ClipFolder(settings.source) if clips else open_source(settings.source, settings.options)
    info = settings.info(source.label_names)
    total, listing = survey(source, settings)
    recorded = {**dataclasses.asdict(settings), "source": legible(settings.source)}
    recorded |= {"pictures": total, "listing": listing, "kind": settings.kind}
    with Preparation(out, recorded) as work:
        if work.is_finished:
            say(f"{out} is already prepared")
            return read_info(work.out)
        parts = -(-total // settings.part_rows)
        _write_parts(work, settings, source, info, total, workers)
        counts: Counter[int] = Counter()
        for note in work.notes(parts):
            counts.update({int(label): n for label, n in note.labels.items()})
        info = dataclasses.replace(info, label_counts=tuple(counts[i] for i in range(len(info.label_names))))
        return work.finish(info, parts)


def survey(source: Source, settings: ImageSettings) -> tuple[int, str]:
    """The number of pictures and a hash of what is listed, so that a source that changed is noticed."""
    digest, total, passed = hashlib.sha256(), 0, PassedOver()
    for key, label in itertools.islice(source.listing(passed), settings.count):
        digest.update(f"{key}\0{label}\n".encode("utf8", "surrogateescape"))
        total += 1
    if not total:
        such = "cats/1.png" if settings.kind == "images" else "cats/1.gif"
        raise UserError(f"{settings.source} holds no {settings.kind}; put them in one folder per class, such as {such}")
    passed.tell(settings.source)
    return total, digest.hexdigest()[:16]


def _write_parts(
    work: Preparation, settings: ImageSettings, source: Source, info: DataInfo, total: int, workers: int
) -> None:
    """Writes the parts that are missing, with a bar."""
    listing = itertools.islice(source.listing(), settings.count)
    parts = enumerate(iter(lambda: list(itertools.islice(listing, settings.part_rows)), []))
    missing = ((part, listed) for part, listed in parts if not work.has(part))
    with progress_bar() as bar:
        task = bar.add_task("preparing", total=total, unit=settings.kind)
        finished = sum(work.has(part) for part in range(-(-total // settings.part_rows)))
        bar.update(task, completed=min(total, finished * settings.part_rows))

        def advance(pictures: int) -> None:
            bar.update(task, advance=pictures)

        if workers == 1:
            worker = _Worker(work.out, settings, source, info.schema)
            for part, listed in missing:
                advance(worker.write(part, listed))
        else:
            _in_processes(missing, (work.out, settings, source, info.schema), workers, advance)


class _Worker:
    """One process's share of the work: a source opened once, and parts written to the folder."""

    def __init__(self, out: Path, settings: ImageSettings, source: Source, schema: pa.Schema) -> None:
        self.work, self.settings, self.source, self.schema = Preparation(out, {}), settings, source, schema

    def write(self, part: int, listed: list[Listed]) -> int:
        """Writes a part; the number of pictures that it was made of."""
        columns: dict[str, list[Any]] = {"label": [], "key": [], "image": [], "bucket": []}
        skipped = []
        for key, label in listed:
            try:
                image, bucket = self._picture(key)
            except ValueError as error:
                skipped.append((legible(key), str(error)))
                continue
            columns["label"].append(label)
            columns["key"].append(legible(key))
            columns["bucket"].append(bucket)
            columns["image"].append({"bytes": image, "path": None})
        labels = Counter(label for label in columns["label"] if label is not None)
        self.work.write(part, self.schema, columns, skipped, labels=dict(sorted(labels.items())))
        return len(listed)

    def _picture(self, key: str) -> tuple[bytes, int]:
        """A picture's crop as a PNG, or a clip's frames one below another, all cropped alike; and its bucket.

        Raises UserError where it cannot be read.
        """
        settings = self.settings
        frames = settings.frames_of(self.source.read(key), key)
        how = (settings.crop, settings.size, settings.seed, legible(key), settings.sizes)
        cropped = [crop(frame, *how) for frame in frames]
        return encode(below_each_other([image for image, _ in cropped])), cropped[0][1]


def below_each_other(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size as one."""
    if len(images) == 1:
        return images[0]
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images]))


def encode(image: Image.Image) -> bytes:
    """A PNG, lightly compressed: the next level takes longer than all else, for a few per cent of the size."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


_worker: _Worker | None = None  # of a worker process


def _start_worker(*arguments: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    end_with_parent()
    _worker = _Worker(*arguments)


def _write_part(part: int, listed: list[Listed]) -> int:
    assert _worker is not None
    return _worker.write(part, listed)


def _in_processes(
    tasks: Iterator[tuple[int, list[Listed]]], arguments: tuple[Any, ...], workers: int, advance: Callable[[int], None]
) -> None:
    """Runs `_write_part` on every task; at most two tasks a process wait, so that memory does not grow with their number."""
    pool = ProcessPoolExecutor(workers, own_processes(__name__), _start_worker, arguments)
    waiting: set[Future[int]] = set()
    try:
        for part, listed in tasks:
            waiting.add(pool.submit(_write_part, part, listed))
            while len(waiting) >= 2 * workers:
                waiting = _settle(waiting, advance)
        while waiting:
            waiting = _settle(waiting, advance)
    except BrokenProcessPool as error:
        raise UserError(
            "a process was ended from outside, perhaps for want of memory; run the command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(waiting: set[Future[int]], advance: Callable[[int], None]) -> set[Future[int]]:
    """Waits for a task to end; those that have not."""
    done, pending = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        advance(future.result())
    return pending


def write_folder(source: Source, out: Path, labels: Sequence[str], count: int | None) -> int:
    """Writes a source's picture files, as they are, as a folder of class folders; returns how many.

    labels: names of the classes to write, all if there are none. count: at most so many of each. Raises UserError for a
    label that is not there, where `out` exists, and where no picture can be read; those that cannot are told.
    """
    if out.exists():
        raise UserError(f"{out} exists; give another folder with --out")
    if count is not None and count < 1:
        raise UserError(f"count is {count}; it must be at least 1")
    names, passed = source.label_names, PassedOver()
    chosen = {label_index(label, len(names), names) for label in labels or names}
    if not chosen:
        raise UserError("none of these pictures has a label, and each label makes a folder")
    if len({safe_name(names[label]) for label in chosen}) < len(chosen):
        raise UserError("two of the classes would have one folder's name; choose one of them with --labels")
    written: Counter[int] = Counter()
    with whole_folder(out) as part:
        for key, label in source.listing(passed):
            if label in chosen and (count is None or written[label] < count):
                try:
                    content = source.read(key)
                except UserError as error:
                    passed.add(f"unreadable: {error}", key)
                    continue
                file = part / safe_name(names[label]) / f"{written[label]:06d}{Path(legible(key)).suffix or '.png'}"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)
                written[label] += 1
        if not written:
            raise UserError(f"none of the pictures could be read ({passed}); give another source")
    passed.tell("the source")
    return written.total()


def safe_name(name: str) -> str:
    """A class's name as a folder's."""
    return re.sub(r"[^\w.,() -]", "_", name).lstrip(".") or "_"
