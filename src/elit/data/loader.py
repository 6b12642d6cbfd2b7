"""Which rows of the data a step trains on, their random numbers, and the batches of many steps read ahead.

All are functions of (seed, step, index) alone: any number of ranks and workers, and a resumed run, see the same batches.
"""

import bisect
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elit.codec import DataEncoding
from elit.console import say
from elit.data.processes import own_processes
from elit.seeding import generator_for

S = TypeVar("S")
T = TypeVar("T")


Stored: TypeAlias = tuple[int, int, int]  # rows, columns and width of an encoder's features
NewGenerators: TypeAlias = Callable[[], list[torch.Generator]]


class Data(Protocol):
    """What training and evaluation read: images in memory, a prepared folder, the published layout, or a stream.

    encoding: what an input is, pixels or latents. shape: (channels, height, width) of one input, or of a clip (channels,
    frames, height, width). label_names: () where they
    are not known. label_counts: the rows of each label, so that a class without any is seen. exact: whether rows are read
    by number, so that a resumed run sees the same data. members: the rows of each size there is; batches are of one.
    """

    @property
    def encoding(self) -> DataEncoding: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def label_counts(self) -> tuple[int, ...]: ...
    @property
    def exact(self) -> bool: ...
    @property
    def members(self) -> Sequence[Tensor]: ...
    def __len__(self) -> int: ...
    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Model inputs (B, *shape) float32, and labels (B,) int64, -1 where there is none; row i draws from generator i."""
        ...

    def stored_features(self, encoder: str) -> Stored | None:
        """The shape of the features of a vision encoder that were stored; None where it looks at the pictures themselves.

        Raises UserError for data with neither.
        """
        ...

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        """What alignment looks at: pictures (B, 3, H, W) uint8, or stored features (B, T, D).

        x_BCHW: what `read` gave for these rows. generators: makes new ones, as those that `read` drew from.
        """
        ...


def column_of(encoder: str) -> str:
    """The name that stored features of an encoder go by."""
    return Path(encoder).name


def counts_of(labels: Tensor, classes: int) -> tuple[int, ...]:
    """How often each label from 0 on comes, of at least so many classes; -1 is none."""
    return tuple(torch.bincount(labels[labels >= 0], minlength=classes).tolist())


def read_part(data: Data, seed: int, batch_size: int, step: int, part: range) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (B,), inputs and labels of those samples of a step's batch that are in `part`, such as a rank's range(64, 128).

    Raises UserError for data that cannot be read.
    """
    if data.exact:
        rows = rows_of_step(seed, len(data), batch_size, step, data.members)[part.start : part.stop]
    else:  # a stream gives its next rows, whichever are asked for
        rows = torch.arange(len(part))
    return rows, *data.read(rows, sample_generators("data", seed, step, part.start, part.stop))


def read_ahead(load: Callable[[int], T], steps: range, workers: int = 0) -> Generator[T, None, None]:
    """load(step) of each step, in order. workers: 0 makes each when it is asked for; 1 makes two ahead in a thread; more
    are processes, two ahead each, for which `load` must be picklable.

    A thread starts at once, and is enough for latents. Threads beyond the first would wait for each other: so small are
    the pieces of work between which they need Python's lock.
    """
    if workers == 0:
        yield from map(load, steps)
    elif workers == 1:
        yield from in_threads(load, steps, 1)
    else:
        made = DataLoader(
            *(_Steps(load), None),
            sampler=steps,
            num_workers=workers,
            multiprocessing_context=own_processes(__name__),
            worker_init_fn=_end_with_trainer,
        )
        done = 0
        try:
            for value in made:
                if isinstance(value, Exception):
                    raise value
                done += 1
                yield value
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            say("a process that reads data was ended from outside; a thread reads on, with the same batches")
            yield from in_threads(load, steps[done:], 1)


def _end_with_trainer(worker: int) -> None:
    """Has a process that reads ahead end when its trainer does, in whichever way, and leave requests to stop to it."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):  # a terminal's, and a scheduler's, go to all processes
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def wait() -> None:
        multiprocessing.connection.wait([trainer.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Steps(Dataset[Any]):
    """load(step) at place `step`; an error is a value too, which would otherwise be told with its traceback."""

    def __init__(self, load: Callable[[int], Any]) -> None:
        self.load = load

    def __getitem__(self, step: int) -> Any:
        try:
            return self.load(step)
        except (ValueError, OSError) as error:
            return error


def in_threads(load: Callable[[S], T], items: Iterable[S], threads: int) -> Generator[T, None, None]:
    """load(item) of each item, in order, made by so many threads, two ahead each."""
    torch.get_num_threads()  # settles this thread's own number, before each other takes one: teams of theirs would
    pool = ThreadPoolExecutor(threads, "elit-data", torch.set_num_threads, (1,))  # push the model's off the processors
    ahead: deque[Future[T]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(load, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def rows_of_step(seed: int, count: int, batch_size: int, step: int, members: Sequence[Tensor] = ()) -> Tensor:
    """(batch_size,): the rows of a step. Each epoch is a new random order of all `count` rows; epochs follow gaplessly.

    members: the rows of each of several buckets. A batch is then of one bucket: each bucket has its own gapless sequence
    of epochs cut into batches, and an epoch has, in random order, the batches that become full in it. So every row comes
    as often as every other, in small buckets too.
    """
    if len(members) <= 1:
        return _gapless(("epoch", seed), count, batch_size, step)
    sizes = [len(rows) for rows in members]

    def batches_before(epoch: int) -> int:
        return sum(epoch * size // batch_size for size in sizes)

    last = (step + len(sizes)) * batch_size // count + 1
    epoch = bisect.bisect_right(range(last + 1), step, key=batches_before) - 1
    full = [
        (bucket, turn)
        for bucket, size in enumerate(sizes)
        for turn in range(epoch * size // batch_size, (epoch + 1) * size // batch_size)
    ]
    place = _order(("buckets", seed, epoch), len(full))[step - batches_before(epoch)]
    bucket, turn = full[int(place)]
    return members[bucket][_gapless(("epoch", seed, bucket), sizes[bucket], batch_size, turn)]


def sample_generators(name: str, seed: int, step: int, first: int, last: int) -> list[torch.Generator]:
    """A generator of its own for each sample first..last-1 of a step's batch, whichever rank or micro-batch holds it."""
    return [generator_for(name, seed, step, index) for index in range(first, last)]


def _gapless(key: tuple[str | int, ...], count: int, batch_size: int, step: int) -> Tensor:
    """Places step * batch_size and on of the sequence of random orders of range(count)."""
    place = torch.arange(batch_size * step, batch_size * (step + 1))
    epochs, index = place // count, place % count
    return torch.cat([_order((*key, int(epoch)), count)[index[epochs == epoch]] for epoch in epochs.unique()])


@functools.lru_cache(maxsize=16)
def _order(key: tuple[str | int, ...], count: int) -> Tensor:
    """A random order of range(count); kept, since the steps of an epoch share it."""
    return torch.randperm(count, generator=generator_for(*key))
