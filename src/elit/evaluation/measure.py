"""Features of a set of images, streamed: their exact moments and, where a measure asks for them, their rows on disk.

Image i of a set is in run i // R whatever the number of processes, and a run goes through the network at once, so features
are the same bits in one process and in many (on the same kind of device, with the same threads); so are the moments.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from elit.console import progress_bar
from elit.distributed import from_main, is_main, rank, together, world_size
from elit.errors import UserError
from elit.evaluation.arrays import Array
from elit.evaluation.extractors import Extractor, Outputs
from elit.evaluation.moments import MomentSums
from elit.evaluation.sources import Source, prefetched
from elit.evaluation.statistics import Provenance, Statistics
from elit.files import digest, told

LARGEST_BATCH = 65_536


class Rows:
    """(count, width) float32 in an .npy file that every process writes its rows to; removed when left."""

    def __init__(self, file: Path, count: int, width: int) -> None:
        self.file = file
        from_main(lambda: _make_array(file, count, width))
        self.array = together(lambda: _mapped(file))

    def write(self, first: int, rows_ND: Tensor) -> None:
        self.array[first : first + len(rows_ND)] = rows_ND.cpu().numpy()

    def remove(self) -> None:
        """Removes the file, in the main process; what is mapped of it stays readable until then let go."""
        if is_main():
            self.file.unlink(missing_ok=True)


def _make_array(file: Path, count: int, width: int) -> None:
    """An .npy file of zeros, all of whose room on the disk is taken now: later a full disk would end the process."""
    with told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # another command's of the same name keeps what it has mapped
        np.lib.format.open_memmap(file, "w+", np.float32, (count, width)).flush()
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _mapped(file: Path) -> Array:
    """The array that the main process made. Raises UserError where this one cannot open it."""
    try:
        array: Array = np.load(file, mmap_mode="r+", allow_pickle=False)
    except OSError as error:
        why = f"rank {rank()} cannot open {file}, which the first process made ({error.strerror or error})"
        raise UserError(f"{why}; give an --out on storage that all processes share") from error
    return array


@dataclass
class HeldRows:
    """Rows that are in memory, as a reference that comes with the package has them."""

    array: Array

    def remove(self) -> None:
        """They are in no file."""


@dataclass
class Measured:
    """Statistics of a set; rows of pooled features and of logits where asked for."""

    statistics: Statistics
    pooled: Rows | HeldRows | None = None
    logits: Rows | None = None

    def __enter__(self) -> "Measured":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def remove(self) -> None:
        """Removes the files of rows."""
        for store in (self.pooled, self.logits):
            if store is not None:
                store.remove()


@dataclass(frozen=True)
class Wanted:
    """What is measured of a set: features of a network, and whether their rows, and those of its logits, are kept."""

    extractor: Extractor
    rows: bool = False
    logits: bool = False


class _Pass:
    """One network's part of a pass over images: the sums and rows of its features so far."""

    def __init__(self, wanted: Wanted, count: int, work: Path) -> None:
        extractor = self.extractor = wanted.extractor
        device = extractor.device if extractor.device.type == "cuda" else "cpu"
        self.pooled, self.spatial = MomentSums(extractor.width, device), MomentSums(extractor.spatial_width, device)
        self.rows: list[Rows | None] = []
        for kept, suffix, width in (
            (wanted.rows, "pooled", extractor.width),
            (wanted.logits, "logits", extractor.logits_width),
        ):
            file = work.with_name(f"{work.name}.{digest(extractor.fingerprint.encode())}.{suffix}.npy")
            self.rows.append(Rows(file, count, width) if kept and width else None)

    def add(self, source: Source, first: int, pixels_NCHW: Tensor) -> None:
        """Takes a run of images in."""
        out = self.extractor(pixels_NCHW)
        check_finite(out, source, first)
        self.pooled.add(out.pooled)
        if out.spatial is not None:
            self.spatial.add(out.spatial)
        for store, values in zip(self.rows, (out.pooled, out.logits), strict=True):
            if store is not None and values is not None:
                store.write(first, values)

    def merge(self) -> None:
        """Adds up the sums of all processes, each of which has then written its rows."""
        self.pooled.merge_processes()
        if self.extractor.spatial_width:
            self.spatial.merge_processes()

    def measured(self, source: Source) -> Measured:
        """What came of it."""
        network = self.extractor
        told_of = Provenance(source.name, network.name, source.count, source.size, network.fingerprint, network.resize)
        spatial = self.spatial.moments() if network.spatial_width else None
        return Measured(Statistics(self.pooled.moments(), told_of, spatial), *self.rows)

    def remove(self) -> None:
        """Removes the files of rows."""
        for store in self.rows:
            if store is not None:
                store.remove()


def measure_features(
    source: Source, extractor: Extractor, batch: int, work: Path, rows: bool = False, text: str | None = None
) -> Measured:
    """The statistics of all images of a source, and if asked for their rows: `measure_all` of one network."""
    return measure_all(source, [Wanted(extractor, rows)], batch, work, text)[0]


def measure_all(source: Source, wanted: Sequence[Wanted], batch: int, work: Path, text: str | None = None) -> list[Measured]:
    """The statistics of all images of a source in the features of several networks, each image being read or made once.

    Rows are in files `work` + a suffix. text: what a progress bar says; none is shown without. batch: images in one call
    of a network, rounded up to the source's grain; it changes last bits. Every process of a torchrun calls this with the
    same arguments and gets the same statistics; what one of them meets, all raise. Raises UserError for features that are
    not finite, naming the image, and OSError where rows have no room.
    """
    if not 1 <= batch <= LARGEST_BATCH:
        raise UserError(f"a batch holds at least 1 image, and at most {LARGEST_BATCH:,}, not {batch:,}; give --batch 16")
    found = None
    while found is None:  # read again without the images that turned out to be broken
        found = _one_pass(source, wanted, batch, work, text)
    return found


def _one_pass(source: Source, wanted: Sequence[Wanted], batch: int, work: Path, text: str | None) -> list[Measured] | None:
    """What `measure_all` gives; None where there were broken images, which are then out of the source."""
    passes: list[_Pass] = []
    with ExitStack() as on_error:
        for one in wanted:
            passes.append(_Pass(one, source.count, work))
            on_error.callback(passes[-1].remove)
        together(lambda: _read_all(source, passes, batch, text))
        for each in passes:
            each.merge()
        if source.leave_out_broken():
            return None
        found = [each.measured(source) for each in passes]
        on_error.pop_all()
    return found


def _read_all(source: Source, passes: Sequence[_Pass], batch: int, text: str | None) -> None:
    """Takes this process's share of the images through every network."""
    run = -(-batch // source.grain) * source.grain
    runs = [(i, min(i + run, source.count)) for i in range(rank() * run, source.count, world_size() * run)]
    with told_progress(text, sum(last - first for first, last in runs)) as done:
        for first, pixels in prefetched(source.read, runs, source.in_memory):
            for one in passes:
                one.add(source, first, pixels)
            done(len(pixels))


@contextmanager
def told_progress(text: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """done(n): n more images are done, as a bar shows under `text`; in the main process alone, and not without a text."""
    if text is None or not is_main():
        yield lambda n: None
        return
    with progress_bar() as bar:
        task = bar.add_task(text, total=total, unit="images")
        yield lambda n: bar.advance(task, n)


def check_finite(out: Outputs, source: Source, first: int) -> None:
    """Raises UserError, naming the image, for features that are not finite."""
    bad = ~out.pooled.isfinite().all(1)
    for other in (out.spatial, out.logits):
        if other is not None:
            bad |= ~other.isfinite().all(1)
    if bool(bad.any()):
        place = first + int(torch.nonzero(bad)[0])
        raise UserError(
            f"{source.label(place)} has features that are not finite: the image or the weights are damaged, or half"
            " precision is too little (give --features-dtype fp32)"
        )
