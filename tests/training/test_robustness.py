"""Runs in several processes that are stopped, killed, locked out or out of room: they end alike, and go on exactly."""

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from by_config import CPU, draw_batch, load_data, make_state, reads_of, train_step
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elit.cli import main
from elit.data.images import LabelledImages
from elit.distributed import OneRankError, gathered, process_group
from elit.errors import NumbersError, UserError
from elit.training import loop
from elit.training import step as step_module
from elit.training.batch import Batch
from elit.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, state_tensors
from elit.training.config import TrainConfig
from elit.training.loop import draw_own, train
from elit.training.parts import take_apart
from elit.training.run_folder import open_run
from elit.training.stopping import asked_to_stop
from ranks import run_ranks, start_ranks, torchrun, wait_for

Make = Callable[..., TrainConfig]
Arguments = Callable[..., list[str]]


def wait_until(there: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def shards(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its file and name."""
    return {
        f"{file.name} {name}": tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def test_stopped_and_killed_runs_go_on_exactly(tmp_path: Path, arguments: Arguments) -> None:
    """SIGKILL to one of two ranks: the other tells and exits 1; SIGKILL to both; SIGTERM to one: both exit 0.

    After the kills every shard is, bit for bit, that of two ranks that were left alone.
    """
    options = {"steps": 100_000, "log__checkpoint_every": 2, "log__keep": 1000, "optimizer__schedule": "cosine"}
    straight, run = tmp_path / "straight", tmp_path / "run"

    def start(out: Path, log: str) -> list[int]:
        return start_ranks(2, lambda: sys.exit(main(["train", *arguments(out=out, **options)])), tmp_path / log)

    for victims, codes in (([0], [-signal.SIGKILL, 1]), ([0, 1], [-signal.SIGKILL, -signal.SIGKILL])):
        before = len(checkpoints(run))
        processes = start(run, f"killed {victims}")
        wait_until(lambda before=before: len(checkpoints(run)) > before)
        for victim in victims:
            os.kill(processes[victim], signal.SIGKILL)
        assert wait_for(processes) == codes
    told = (tmp_path / "killed [0]").read_text()
    assert "rank 1 lost another process" in told and "Traceback" not in told
    assert "going on from" in (tmp_path / "killed [0, 1]").read_text()

    last = checkpoints(run)[-1]
    processes = start(straight, "stopped")
    wait_until((straight / "checkpoints" / last.name / "training.json").is_file)
    os.kill(processes[1], signal.SIGTERM)
    assert wait_for(processes) == [0, 0]
    stopped = checkpoints(straight)[-1]
    assert f"stopped at step {int(stopped.name[5:])} as asked" in (tmp_path / "stopped").read_text()
    ours, theirs = shards(last), shards(straight / "checkpoints" / last.name)
    assert ours.keys() == theirs.keys() and len({key.split()[0] for key in ours}) == 3
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_checkpoint_of_two_ranks_is_that_of_one(make_config: Make, tmp_path: Path, device: torch.device) -> None:
    """Saved by two ranks, loaded by one, saved by it, loaded by two: the same bits, also of weights of a single row.

    With Muon, beside which AdamW has what is no hidden matrix.
    """
    config = make_config(model__group_size=1, budget__lowest=1, optimizer__name="muon")
    data, whole = load_data(config), tmp_path / "whole.safetensors"

    def state_of(folder: Path | None) -> dict[str, torch.Tensor]:
        state = make_state(config, device)
        if folder is not None:
            load_checkpoint(folder, state)
            assert state.step == 3 and all(float(s["step"]) == 3 for s in state.optimizers[-1].state.values())
        tensors = {key: gathered(tensor).clone() for key, tensor in state_tensors(state).items()}
        return tensors | {key: gathered(tensor).clone() for key, tensor in state.ema.items()}

    def two_save() -> None:
        with process_group():
            state = make_state(config, device)
            for step in range(3):
                share = range(2) if os.environ["RANK"] == "0" else range(2, 4)
                train_step(config, state, draw_batch(config, data, step, share), device)
            save_checkpoint(tmp_path / "two", state, keep=1)
            tensors = {key: gathered(tensor).clone() for key, tensor in (state_tensors(state) | state.ema).items()}
            if os.environ["RANK"] == "0":
                save_file(tensors, whole)

    log = tmp_path / "log"
    assert run_ranks(2, two_save, log) == [0, 0], log.read_text()
    two = checkpoints(tmp_path / "two")[-1]
    assert len(list(two.glob("shard-*"))) == 2
    expected, one = load_file(whole), state_of(two)
    assert expected.keys() == one.keys()
    assert [key for key in one if not torch.equal(one[key], expected[key])] == []
    assert any(value.any() for key, value in one.items() if key.startswith("optimizer"))

    state = make_state(config, device)
    load_checkpoint(two, state)
    again = save_checkpoint(tmp_path / "one", state, keep=1)

    def two_load() -> None:
        with process_group():
            back = state_of(again)
            assert [key for key in back if not torch.equal(back[key], expected[key])] == []

    assert run_ranks(2, two_load, log) == [0, 0], log.read_text()

    next(two.glob("shard-00001-*")).unlink()  # what is left tells all shapes, and would leave half the weights as they were
    with pytest.raises(ValueError, match=r"is not a checkpoint of this run .*remove it"):
        load_checkpoint(two, make_state(config, device))


def test_checkpoints_of_one_file_are_read(make_config: Make, tmp_path: Path, device: torch.device) -> None:
    """As they were before there were shards: training.safetensors with AdamW's steps, and training.json with the step."""
    config = make_config()
    state = make_state(config, device)
    for step in range(2):
        train_step(config, state, draw_batch(config, load_data(config), step), device)
    folder = save_checkpoint(tmp_path, state, keep=1)
    tensors = {key: tensor.clone() for key, tensor in state_tensors(state).items()}
    steps = {f"optimizer.step.{name}": torch.tensor(2.0) for name, _ in state.model.named_parameters()}
    save_file(tensors | steps, folder / "training.safetensors")
    next(folder.glob("shard-*")).unlink()
    (folder / "training.json").write_text('{"step": 2}\n')
    back = make_state(make_config(seed=5), device)
    load_checkpoint(folder, back)
    assert back.step == 2
    ours, theirs = state_tensors(back), state_tensors(state)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert all(float(kept["step"]) == 2 for kept in back.optimizers[0].state.values())


def test_a_run_keeps_others_out(make_config: Make, tmp_path: Path) -> None:
    """A second process in the same folder is refused by a sentence that names the first, which goes on."""
    config = make_config(steps=100_000, log__checkpoint_every=0)
    log = tmp_path / "log"
    processes = start_ranks(1, lambda: train(config), log)
    lock = Path(config.out) / ".lock"
    wait_until(lambda: lock.is_file() and lock.read_text())
    with pytest.raises(ValueError, match=f"another process is training in .* .process {processes[0]} on .*--out"):
        train(config)
    os.kill(processes[0], signal.SIGTERM)
    assert wait_for(processes) == [0], log.read_text()


@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_ends_the_run_and_keeps_what_was(
    make_config: Make, tmp_path: Path, count: int, device: torch.device
) -> None:
    """Where one rank's files cannot grow, all exit 2 with one sentence; the checkpoint before stays, and is gone on from.

    Logging goes on without its files, and a path that says timeout makes no lost process.
    """
    config = make_config(out=tmp_path / "timeout-sweep", steps=6, log__every=1, log__checkpoint_every=2, log__keep=1)
    run, log = Path(config.out), tmp_path / "log"

    def short_of_room() -> None:
        if os.environ["RANK"] == str(count - 1):
            wait_until(lambda: checkpoints(run))
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        train(config)

    save_first = make_state(config, device)
    for step in range(2):
        train_step(config, save_first, draw_batch(config, load_data(config), step), device)
    before = save_checkpoint(open_run(config, reads_of(config, load_data(config))), save_first, keep=1)
    assert run_ranks(count, short_of_room, log) == [2] * count, log.read_text()
    assert re.search(r"step_00000004 could not be written \(File too large\); the last whole", log.read_text())
    assert "Traceback" not in log.read_text() and "Exception" not in log.read_text()
    assert checkpoints(run) == [before]
    assert list((run / "checkpoints").glob(".step*")) == []
    assert train(config).name == "step_00000006"


@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_that_is_not_finite_skips_the_step_everywhere(
    make_config: Make, tmp_path: Path, count: int, device: torch.device
) -> None:
    """One rank's NaN: no rank's weights, moments or average move, the loss scale is halved, and the next step is taken."""
    config = make_config(dtype="fp16", batch_size=4)
    data, log = load_data(config), tmp_path / "log"

    def work() -> None:
        with process_group():
            state = make_state(config, device)
            rank = int(os.environ["RANK"])
            share = range(rank * 4 // count, (rank + 1) * 4 // count)
            train_step(config, state, draw_batch(config, data, 0, share), device)
            assert state.skipped == 0
            before = {key: gathered(t).clone() for key, t in (state_tensors(state) | state.ema).items()}
            batch = draw_batch(config, data, 1, share)
            if rank == count - 1:
                batch.flow.x_t[0, 0, 0, 0] = float("nan")
            train_step(config, state, batch, device)
            assert (state.step, state.skipped, state.skipped_in_row) == (2, 1, 1)
            assert state.scaler.get_scale() == 2.0**15
            after = {key: gathered(t) for key, t in (state_tensors(state) | state.ema).items()}
            assert all(torch.equal(before[key], after[key]) for key in before)
            folder = save_checkpoint(tmp_path / "saved", state, keep=1)
            train_step(config, state, draw_batch(config, data, 2, share), device)
            assert (state.skipped, state.skipped_in_row) == (1, 0)
            assert not torch.equal(gathered(state.ema["final.linear.weight"]), before["final.linear.weight"])
            again = make_state(config, device)
            load_checkpoint(folder, again)
            assert (again.step, again.skipped, again.skipped_in_row) == (2, 1, 1)
            assert again.scaler.get_scale() == 2.0**15
            train_step(config, again, draw_batch(config, data, 2, share), device)
            ours, theirs = state_tensors(again), state_tensors(state)
            assert all(torch.equal(gathered(ours[key]), gathered(theirs[key])) for key in theirs)

    assert run_ranks(count, work, log) == [0] * count, log.read_text()


def test_a_run_whose_every_step_was_skipped_does_not_end_well(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than the limit, all of them without a finite loss: an error, and no checkpoint of untrained weights."""
    drawn = draw_own

    def without_numbers(*given: Any) -> Batch:
        batch = drawn(*given)
        batch.flow.x_t.fill_(float("nan"))
        return batch

    monkeypatch.setattr(loop, "draw_own", without_numbers)
    config = make_config(steps=3)
    with pytest.raises(NumbersError, match=r"not finite in the last 3 steps, up to step 3.*there is no whole checkpoint"):
        train(config)
    assert checkpoints(Path(config.out)) == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR1"])
def test_each_request_to_stop_saves_and_says_where(make_config: Make, tmp_path: Path, name: str) -> None:
    """As SIGTERM does: the step that was reached is kept and named, and the process ends well."""
    config = make_config(steps=100_000, log__checkpoint_every=0, log__every=1)
    log, rows = tmp_path / "log", Path(config.out) / "log.jsonl"
    processes = start_ranks(1, lambda: train(config), log)
    wait_until(rows.is_file)
    os.kill(processes[0], getattr(signal, name))
    assert wait_for(processes) == [0], log.read_text()
    [last] = checkpoints(Path(config.out))
    assert f"stopped at step {int(last.name[5:])} as asked; it is in {last}, and the same command" in log.read_text()


def test_what_is_ignored_from_the_start_stays_so() -> None:
    """A run under nohup outlives its terminal; a second Ctrl-C ends a run at once; all handlers are put back."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mine = signal.getsignal(signal.SIGINT)
    try:
        with asked_to_stop() as asked, asked_to_stop(("SIGINT",), asked):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.is_set()
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.is_set()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) == mine and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_classes_without_pictures_are_told(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    train(make_config(steps=1, model__num_classes=5))
    told = " ".join(capfd.readouterr().err.split())
    assert "of the 5 classes of model.num_classes, the data hold no samples of 2, 3, 4:" in told
    assert "set model.num_classes 2, or give them pictures" in told


def test_what_fails_to_be_made_in_one_process_is_told_as_itself(
    make_config: Make, tmp_path: Path, device: torch.device
) -> None:
    """Not as a lost process, though the others are about to share the weights out."""
    config, log = make_config(), tmp_path / "log"

    def work() -> None:
        def no_model(*given: Any) -> None:
            raise UserError("the encoder is not here")

        with process_group():
            if os.environ["RANK"] == "1":
                step_module.make_objective = no_model
            make_state(config, device)

    assert run_ranks(2, work, log) == [2, 2]
    assert log.read_text().count("UserError: the encoder is not here") == 2


def test_half_precision_trains_like_float32(make_config: Make, device: torch.device) -> None:
    """The losses in fp16, whose gradients are scaled, are those in fp32 to its rounding, and none of them is skipped."""
    losses = {}
    for dtype in ("fp32", "fp16"):
        config = make_config(dtype=dtype, batch_size=16)
        data, state = load_data(config), make_state(config, device)
        losses[dtype] = [train_step(config, state, draw_batch(config, data, step), device).loss.item() for step in range(12)]
        assert state.skipped == 0
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=5e-3)


def test_mistakes_end_every_rank_with_one_sentence(arguments: Arguments, tmp_path: Path) -> None:
    """A mesh that the processes do not form, and a batch too small for them: exit 2 each, told once, nothing made."""
    for options, told in (
        ({"parallel__shard": 3}, "parallel.replicate 1 x parallel.shard 3 does not fit 2 processes"),
        ({"batch_size": 3, "accumulate": 2}, "batch_size 3 leaves parts of no sample"),
    ):
        log = tmp_path / f"{len(told)}.log"
        wrong = arguments(**options)
        assert run_ranks(2, lambda wrong=wrong: sys.exit(main(["train", *wrong])), log) == [2, 2]
        assert log.read_text().count("elit: ") == 1 and told in log.read_text()
        assert "Traceback" not in log.read_text()
    assert not (tmp_path / "run").exists()


def test_a_rank_that_hangs_counts_as_lost(arguments: Arguments, tmp_path: Path) -> None:
    """SIGSTOP to one: the other waits for the configured time, tells, and exits 1."""
    log, run = tmp_path / "log", tmp_path / "run"
    options = arguments(steps=100_000, parallel__timeout=6, log__checkpoint_every=3)
    processes = start_ranks(2, lambda: sys.exit(main(["train", *options])), log)
    wait_until(lambda: checkpoints(run))
    os.kill(processes[1], signal.SIGSTOP)
    stopped = time.monotonic()
    assert wait_for(processes[:1]) == [1]
    assert 4 < time.monotonic() - stopped < 60
    os.kill(processes[1], signal.SIGKILL)
    wait_for(processes[1:])
    assert "rank 0 lost another process" in log.read_text()


def test_torchrun_restarts_what_died(arguments: Arguments, tmp_path: Path) -> None:
    """The launcher's agent: SIGKILL to a worker, and its restart of both goes on to the end and exits 0."""
    run, log = tmp_path / "run", tmp_path / "log"
    options = arguments(steps=12, log__checkpoint_every=4)
    processes = start_ranks(1, lambda: torchrun(2, lambda: sys.exit(main(["train", *options])), max_restarts=1), log)
    wait_until(lambda: checkpoints(run))
    os.kill(int((run / ".lock").read_text().split()[1]), signal.SIGKILL)
    assert wait_for(processes) == [0], log.read_text()
    assert "going on from" in log.read_text()
    assert checkpoints(run)[-1].name == "step_00000012"
    with safe_open(checkpoints(run)[-1] / "model.safetensors", "pt") as file:
        assert "final.linear.weight" in file.keys()  # noqa: SIM118


def test_data_that_one_rank_cannot_read_names_it(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have read something else, so the error tells whose it is; alone it is as it was."""
    config = make_config()

    class Torn(LabelledImages):
        def read(self, rows: torch.Tensor, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
            raise UserError("shard 3 is cut short")

    data = load_data(config)
    torn = Torn(data.images, data.labels, data.label_names)
    with pytest.raises(ValueError, match=r"^shard 3 is cut short"):
        draw_own(take_apart(config, CPU).draws, torn, range(4), 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(OneRankError, match=r"^rank 1: shard 3 is cut short"):
        draw_own(take_apart(config, CPU).draws, torn, range(4), 0)
