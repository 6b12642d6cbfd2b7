"""Which rows a step trains on, and batches read ahead: the same for any number of ranks and workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from elit.console import console
from elit.data.images import LabelledImages
from elit.data.loader import in_threads, read_ahead, read_part, rows_of_step, sample_generators
from elit.seeding import generator_for


class Noisy(LabelledImages):
    """Rows that draw: x is the row's number and a draw from its generator."""

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        draws = torch.stack([torch.rand((), generator=g) for g in generators])
        return torch.stack([rows.float(), draws], dim=1), self.labels[rows]


DATA = Noisy(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10), ())


def test_an_epoch_has_every_row_once_and_epochs_differ() -> None:
    """Batches of 4 from 10 rows: each ten places in a row, whatever batch they fall in, are a permutation."""
    rows = torch.cat([rows_of_step(3, 10, 4, step) for step in range(10)])
    epochs = rows.view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert not torch.equal(rows, torch.cat([rows_of_step(4, 10, 4, step) for step in range(10)]))
    assert torch.equal(rows_of_step(3, 10, 25, 1)[:5], torch.cat([rows_of_step(3, 10, 5, step) for step in range(5, 6)]))


MEMBERS = (torch.arange(0, 13), torch.arange(13, 14), torch.arange(14, 20))


def test_batches_of_buckets_are_of_one_bucket_and_take_every_row_equally_often() -> None:
    """Buckets of 13, 1 and 6 rows, batches of 4: in four epochs (20 batches) each row comes four times."""
    steps = [rows_of_step(0, 20, 4, step, MEMBERS) for step in range(20)]
    bucket = torch.tensor([0] * 13 + [1] + [2] * 6)
    assert all(len(bucket[rows].unique()) == 1 for rows in steps)
    assert Counter(torch.cat(steps).tolist()) == dict.fromkeys(range(20), 4)
    order = [int(bucket[rows[0]]) for rows in steps]
    assert order.count(1) == 1 and order != sorted(order)


def test_batches_of_buckets_stay_even_for_long() -> None:
    """At any step, rows have come nearly equally often: no bucket is ahead by more than a batch and an epoch."""
    counts = torch.zeros(20)
    for step in range(301):
        counts += torch.bincount(rows_of_step(7, 20, 4, step, MEMBERS), minlength=20)
        if step > 20:
            share = torch.stack([counts[rows].mean() for rows in MEMBERS]) / (4 * (step + 1) / 20)
            assert ((share - 1).abs() * 4 * (step + 1) / 20 <= 5).all()
    assert abs(counts.mean() - 60.2) < 1e-4


def test_one_bucket_is_the_same_as_none() -> None:
    assert torch.equal(rows_of_step(0, 20, 4, 9, [torch.arange(20)]), rows_of_step(0, 20, 4, 9))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_workers_share_one_batch(workers: int) -> None:
    """Two ranks' parts together are the batch of one, in order, from any step on; each sample draws from its place."""

    def batches(part: range) -> list[tuple[torch.Tensor, ...]]:
        return list(read_ahead(partial(read_part, DATA, 5, 6, part=part), range(2, 9), workers))

    whole, first, second = (batches(part) for part in (range(6), range(2), range(2, 6)))
    for batch, *halves in zip(whole, first, second, strict=True):
        assert all(torch.equal(torch.cat(both), one) for one, *both in zip(batch, *halves, strict=True))
        assert torch.equal(batch[1][:, 0].long(), batch[2])
    assert float(whole[1][1][4, 1]) == float(torch.rand((), generator=generator_for("data", 5, 3, 4)))


def test_generators_of_a_share_are_those_of_the_whole() -> None:
    whole = [torch.rand((), generator=g).item() for g in sample_generators("data", 0, 1, 0, 6)]
    assert [torch.rand((), generator=g).item() for g in sample_generators("data", 0, 1, 2, 5)] == whole[2:5]
    assert len(set(whole)) == 6


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_keep_the_order_and_a_bound(threads: int) -> None:
    """However long an item takes; no more than two a thread, and the one in use, are made before they are asked for."""
    made: list[int] = []

    def load(item: int) -> int:
        threading.Event().wait(0.01 if item % 3 == 0 else 0)
        made.append(item)
        return item

    taken = []
    for item in in_threads(load, range(3, 23), threads):
        assert len(made) - len(taken) <= 2 * threads + 1
        taken.append(item)
    assert taken == list(range(3, 23))


def broken_at_four(step: int) -> int:
    if step == 4:
        raise ValueError("row 4 is broken")
    return step


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_comes_at_its_step_and_ends_the_workers(workers: int) -> None:
    before, taken = {child.pid for child in multiprocessing.active_children()}, []
    with pytest.raises(ValueError, match=r"^row 4 is broken$"):
        for step in read_ahead(broken_at_four, range(10), workers):
            taken.append(step)
    assert taken == [0, 1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("elit-data")]
    for child in multiprocessing.active_children():
        if child.pid not in before:
            child.join(20)
            assert not child.is_alive()


def killed_at_four(step: int) -> int:
    if step == 4 and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return step


def test_a_thread_reads_on_where_a_process_is_killed() -> None:
    """As a scheduler's signal to the whole group does it: no batch is lost or comes twice."""
    with console.capture() as said:
        assert list(read_ahead(killed_at_four, range(2, 12), 2)) == list(range(2, 12))
    assert "a process that reads data was ended from outside" in said.get()


def number_of_process(step: int) -> int:
    return os.getpid()


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


TRAINER = """
import signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from elit.data.loader import read_ahead
from test_loader import number_of_process
numbers, noted = read_ahead(number_of_process, range(100), 2), Path(sys.argv[1])
noted.with_name("part").write_text(f"{next(numbers)} {next(numbers)}")
noted.with_name("part").rename(noted)
while True:
    signal.pause()
"""


def test_readers_end_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    """Whatever the readers are at, none of them outlives it by more than moments."""
    noted, here = tmp_path / "readers", Path(__file__).parent
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, noted, here, here.parent])
    while not noted.is_file():
        assert trainer.poll() is None
        time.sleep(0.01)
    readers = [int(number) for number in noted.read_text().split()]
    assert len(set(readers)) == 2 and all(alive(reader) for reader in readers)
    trainer.kill()
    trainer.wait()
    end = time.monotonic() + 20
    while any(alive(reader) for reader in readers):
        assert time.monotonic() < end
        time.sleep(0.01)
