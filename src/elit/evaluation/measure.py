"""Features of a set of images, streamed: their exact moments and, where a measure asks for them, their rows on disk.

Image i of a set is in run i // R whatever the number of processes, and a run goes through the network at once, so features
are the same bits in one process and in many (on the same kind of device, with the same threads); so are the moments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elit.console import progress_bar
from elit.distributed import barrier, is_main, named_rank, rank, world_size
from elit.errors import UserError
from elit.evaluation.extractors import Extractor, Outputs
from elit.evaluation.moments import MomentSums
from elit.evaluation.sources import Source, prefetched
from elit.evaluation.statistics import Provenance, Statistics


class Rows:
    """(count, width) float32 in an .npy file that every process writes its rows to; removed when left."""

    def __init__(self, file: Path, count: int, width: int) -> None:
        self.file = file
        if is_main():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)  # another command's of the same name keeps what it has mapped
            np.lib.format.open_memmap(file, "w+", np.float32, (count, width)).flush()
        barrier()
        self.array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r+", allow_pickle=False)

    def write(self, first: int, rows_ND: Tensor) -> None:
        self.array[first : first + len(rows_ND)] = rows_ND.cpu().numpy()

    def remove(self) -> None:
        """Removes the file, in the main process; what is mapped of it stays readable until then let go."""
        if is_main():
            self.file.unlink(missing_ok=True)


@dataclass
class Measured:
    """Statistics of a set; rows of pooled features and of logits where asked for."""

    statistics: Statistics
    pooled: Rows | None = None
    logits: Rows | None = None

    def __enter__(self) -> "Measured":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        remove_all((self.pooled, self.logits))


def measure_features(
    source: Source,
    extractor: Extractor,
    batch: int,
    work: Path,
    rows: bool = False,
    logits: bool = False,
    text: str | None = None,
) -> Measured:
    """The statistics of all images of a source, and if asked for their rows, in files `work` + a suffix.

    text: what a progress bar says; none is shown without. batch: images in one call of the network, rounded up to the
    source's grain; it changes last bits. Every process of a torchrun calls this with the same arguments and gets the same
    statistics. Raises UserError for features that are not finite, naming the image.
    """
    if batch < 1:
        raise UserError(f"a batch holds at least 1 image, not {batch}")
    run = -(-batch // source.grain) * source.grain
    runs = [(i, min(i + run, source.count)) for i in range(rank() * run, source.count, world_size() * run)]
    device = extractor.device if extractor.device.type == "cuda" else "cpu"
    pooled_sums = MomentSums(extractor.width, device)
    spatial_sums = MomentSums(extractor.spatial_width, device)
    with ExitStack() as on_error:
        stores = []
        for wanted, suffix, width in ((rows, "pooled", extractor.width), (logits, "logits", extractor.logits_width)):
            file = work.with_name(f"{work.name}.{suffix}.npy")
            stores.append(Rows(file, source.count, width) if wanted else None)
            on_error.callback(remove_all, stores)
        with told_progress(text, sum(last - first for first, last in runs)) as done, named_rank():
            for first, pixels in prefetched(source.read, runs, source.in_memory):
                out = extractor(pixels)
                check_finite(out, source, first)
                pooled_sums.add(out.pooled)
                if out.spatial is not None:
                    spatial_sums.add(out.spatial)
                for store, values in zip(stores, (out.pooled, out.logits), strict=True):
                    if store is not None and values is not None:
                        store.write(first, values)
                done(len(pixels))
        pooled_sums.merge_processes()  # and so every process has written its rows
        if extractor.spatial_width:
            spatial_sums.merge_processes()
        if source.leave_out_broken():
            remove_all(stores)
            on_error.pop_all()
            return measure_features(source, extractor, batch, work, rows, logits, text)
        told = Provenance(source.name, extractor.name, source.count, source.size, extractor.fingerprint, extractor.resize)
        spatial = spatial_sums.moments() if extractor.spatial_width else None
        statistics = Statistics(pooled_sums.moments(), told, spatial)
        on_error.pop_all()
    return Measured(statistics, *stores)


@contextmanager
def told_progress(text: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """done(n): n more images are done, as a bar shows under `text`; in the main process alone, and not without a text."""
    if text is None or not is_main():
        yield lambda n: None
        return
    with progress_bar() as bar:
        task = bar.add_task(text, total=total, unit="images")
        yield lambda n: bar.advance(task, n)


def remove_all(stores: Sequence[Rows | None]) -> None:
    """Removes the files of rows."""
    for store in stores:
        if store is not None:
            store.remove()


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
