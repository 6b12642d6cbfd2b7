"""Devices and ranks: who is who with and without a group, and what is told of those that are gone."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from elit import distributed
from elit.distributed import (
    LostRankError,
    anywhere,
    barrier,
    from_main,
    is_main,
    local_device,
    make_mesh,
    own_share,
    process_group,
    rank,
    sum_over_ranks,
    tells_of_lost_rank,
    together,
    world_size,
)
from elit.errors import UserError
from ranks import run_ranks

CPU = torch.device("cpu")


def test_one_process_is_rank_0_of_1_and_needs_no_group() -> None:
    with process_group():
        assert (rank(), world_size(), is_main()) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        barrier()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("abacus", "there is no device 'abacus'; give cpu, cuda, or one of several such as cuda:1$"),
        ("0", "there is no device '0'; give cpu"),
        ("meta", "cannot be used here .* try --device cpu"),
    ],
)
def test_devices(name: str, message: str) -> None:
    assert local_device("cpu") == CPU
    with pytest.raises(UserError, match=message):
        local_device(name)


@pytest.mark.parametrize(
    "work",
    [
        lambda: own_share(10),
        barrier,
        lambda: together(lambda: 1),
        lambda: from_main(lambda: 1),
        lambda: anywhere([True]),
        lambda: sum_over_ranks(torch.ones(1)),
    ],
    ids=["share", "barrier", "together", "from_main", "anywhere", "sum"],
)
def test_a_part_of_the_work_is_not_taken_for_all(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launcher started two that have not met, nothing is shared out, gathered or waited for."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but this process is in no group"):
        work()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        work()


def test_only_a_collective_tells_of_a_lost_rank(tmp_path: Path) -> None:
    """Not words: neither one process nor several lose another by an error's text, an errno or too little memory."""
    errors = [RuntimeError("timeout: connection closed by peer, nccl"), OSError(28, "No space left in timeout-sweep")]
    assert not any(map(tells_of_lost_rank, errors))

    def work() -> None:
        with process_group():
            assert not any(map(tells_of_lost_rank, [*errors, MemoryError("timed out")]))

    log = tmp_path / "log"
    assert run_ranks(2, work, log) == [0, 0], log.read_text()


def test_a_mistake_of_one_is_raised_by_all(tmp_path: Path) -> None:
    """The same sentence, of the same kind; a fault of the program keeps its trace, and the others are told of it."""

    def work() -> None:
        def fail(error: Exception, failing: int) -> None:
            if rank() == failing:
                raise error

        with process_group():
            for failing in (0, 1):
                with pytest.raises(UserError, match=r"^no such thing$"):
                    together(lambda failing=failing: fail(UserError("no such thing"), failing))
                with pytest.raises(OSError, match="File too large") as raised:
                    together(lambda failing=failing: fail(OSError(27, "File too large", "/x"), failing))
                assert (raised.value.errno, raised.value.filename) == (27, "/x")
                kind, told = (KeyError, "a fault") if rank() == failing else (LostRankError, f"rank {failing} failed")
                with pytest.raises(kind, match=told):
                    together(lambda failing=failing: fail(KeyError("a fault"), failing))

    log = tmp_path / "log"
    assert run_ranks(2, work, log) == [0, 0], log.read_text()


@pytest.mark.parametrize("alone", [0, 1])
def test_who_never_comes_is_missed_within_minutes(tmp_path: Path, alone: int) -> None:
    """Whatever the group's own timeout: before all have met, a process waits five minutes, here seconds, and says so."""

    def work() -> None:
        if rank() != alone:
            os._exit(0)
        distributed.MEETING = timedelta(seconds=3)
        began = time.monotonic()
        with pytest.raises(LostRankError), process_group(timedelta(hours=24)):
            pass
        assert time.monotonic() - began < 60

    log = tmp_path / "log"
    assert run_ranks(2, work, log) == [0, 0], log.read_text()


def test_every_group_of_a_mesh_has_the_timeout(tmp_path: Path) -> None:
    def work() -> None:
        with process_group(timedelta(seconds=77)):
            mesh = make_mesh(2, 2, CPU, timedelta(seconds=77))
            assert mesh is not None and mesh.shape == (2, 2)
            assert tuple(mesh.get_coordinate() or ()) == (rank() // 2, rank() % 2)
            for group in (mesh.get_group("replicate"), mesh.get_group("shard"), torch.distributed.group.WORLD):
                assert group._get_backend(CPU).options._timeout == timedelta(seconds=77)

    log = tmp_path / "log"
    assert run_ranks(4, work, log) == [0, 0, 0, 0], log.read_text()
