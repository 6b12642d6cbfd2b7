"""Runs that are killed: they go on exactly, and a checkpoint is whole or absent."""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from by_config import draw_batch, load_data, make_state, reads_of, train_step
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elit import load_model
from elit.cli import main
from elit.training import checkpoint
from elit.training.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint, tidy
from elit.training.config import TrainConfig
from elit.training.loop import train
from elit.training.run_folder import open_run
from ranks import run_ranks, start_ranks, wait_for

SHARD = "shard-00001-model-00001-of-00001.safetensors"
Make = Callable[..., TrainConfig]


def kill_at(folder: Path, process: int) -> None:
    """SIGKILL as soon as a checkpoint is there."""
    while not folder.is_dir():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert wait_for([process]) == [-signal.SIGKILL]


def opened(config: TrainConfig) -> Path:
    """The run's folder, made or found."""
    return open_run(config, reads_of(config, load_data(config)))


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def trained_state(config: TrainConfig, steps: int, device: torch.device) -> TrainState:
    """A state some steps into training."""
    state, data = make_state(config, device), load_data(config)
    for step in range(steps):
        train_step(config, state, draw_batch(config, data, step), device)
    return state


def assert_same_checkpoint(folder: Path, other: Path) -> None:
    """The same step, and bit for bit the same averaged weights, raw weights and moments."""
    assert (folder / "training.json").read_text() == (other / "training.json").read_text()
    for name in ("model.safetensors", SHARD):
        a, b = load_file(folder / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_a_killed_run_goes_on_exactly(tmp_path: Path, arguments: Callable[..., list[str]], make_config: Make) -> None:
    """18 steps, and 18 steps of which the process was killed around the 6th, end in the same bits.

    With Muon, beside which AdamW has what is no hidden matrix.
    """
    options = {
        "steps": 18, "batch_size": 8, "log__checkpoint_every": 6, "log__keep": 9, "log__preview_every": 8,
        "optimizer__name": "muon", "optimizer__schedule": "cosine", "optimizer__warmup_steps": 11,
    }  # fmt: skip
    run, log = tmp_path / "killed", tmp_path / "log"

    def elit() -> None:
        sys.exit(main(["train", *arguments(out=run, **options)]))

    kill_at(run / "checkpoints" / "step_00000006", start_ranks(1, elit, log)[0])
    assert not (run / "checkpoints" / "step_00000018").exists()
    assert run_ranks(1, elit, log) == [0], log.read_text()

    straight = train(make_config(out=tmp_path / "straight", **options))
    assert [folder.name for folder in checkpoints(run)] == [f"step_{k:08d}" for k in (6, 12, 18)]
    for folder in checkpoints(run):
        assert_same_checkpoint(folder, straight.parent / folder.name)
    moments = load_file(straight / SHARD)
    assert any(key.startswith("optimizer.exp_avg_sq.") and value.any() for key, value in moments.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_holds_the_whole_state(make_config: Make, tmp_path: Path, optimizer: str, device: torch.device) -> None:
    """Loaded into a fresh state it is the saved one to the bit; its folder is a model folder of the average."""
    config = make_config(optimizer__name=optimizer)
    saved, loaded = trained_state(config, 3, device), make_state(make_config(seed=9, optimizer__name=optimizer), device)
    folder = save_checkpoint(tmp_path, saved, keep=1)
    load_checkpoint(folder, loaded)
    assert loaded.step == saved.step == 3
    model = dict(load_model(folder).named_parameters())
    for (name, a), (_, b) in zip(saved.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(saved.ema[name], loaded.ema[name])
        assert torch.equal(saved.ema[name], model[name])
        kept, back = saved.optimizer_of[a].state[a], loaded.optimizer_of[b].state[b]
        assert kept.keys() == back.keys() and kept
        assert all(torch.equal(value, back[key]) for key, value in kept.items())


def test_a_loaded_state_needs_its_file_no_longer(make_config: Make, tmp_path: Path, device: torch.device) -> None:
    """What becomes of the checkpoint afterwards does not reach the state: nothing in it is a view of the file."""
    saved, loaded = trained_state(make_config(), 2, device), make_state(make_config(), device)
    folder = save_checkpoint(tmp_path, saved, keep=1)
    load_checkpoint(folder, loaded)
    for name in ("model.safetensors", SHARD):
        size = (folder / name).stat().st_size
        with (folder / name).open("r+b") as file:
            file.write(b"\xff" * size)
    for (name, a), (_, b) in zip(saved.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(saved.ema[name], loaded.ema[name])
        kept, back = saved.optimizer_of[a].state[a], loaded.optimizer_of[b].state[b]
        assert kept.keys() == back.keys() and kept
        assert all(torch.equal(value, back[key]) for key, value in kept.items())


def killed_in(save: Callable[[], object], operation: int) -> bool:
    """Runs `save` in a fork that kills itself before its n-th change of the file system; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def audit(event: str, args: tuple[object, ...]) -> None:
            changing = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
            if changing or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

        sys.addaudithook(audit)
        try:
            save()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("step", [2, 1], ids=["and prunes", "over itself"])
def test_a_kill_at_any_moment_of_saving_leaves_whole_checkpoints(
    tmp_path: Path, make_config: Make, step: int, device: torch.device
) -> None:
    """Killed before any change of a file, a save leaves only checkpoints that load, and always one, once tidied."""
    config = make_config()
    state, fresh = trained_state(config, 1, device), make_state(config, device)
    save_checkpoint(tmp_path / "before", state, keep=1)
    state.step = step
    operation, killed, loaded = 0, True, []
    while killed:
        run = Path(shutil.copytree(tmp_path / "before", tmp_path / f"run {operation}"))
        killed = killed_in(lambda run=run: save_checkpoint(run, state, keep=1), operation)
        tidy(run)
        found = checkpoints(run)
        assert found and not list((run / "checkpoints").glob(".*"))
        for folder in found:
            content = {file.name: file.read_bytes() for file in folder.iterdir()}
            if content not in loaded:  # what has loaded before does so again
                load_checkpoint(folder, fresh)
                load_model(folder)
                loaded.append(content)
        operation += 1
    assert operation > 4
    assert checkpoints(run)[-1].name == f"step_{step:08d}"


def test_a_part_left_by_a_kill_is_not_a_checkpoint(make_config: Make) -> None:
    """Half a folder under its passing name is passed over, and the run goes on from the whole one before."""
    config = make_config(steps=6, log__checkpoint_every=3, log__keep=9)
    straight = train(config)
    expected = load_file(straight / "model.safetensors")
    run = Path(config.out)
    part = straight.with_name(f".{straight.name}.12345.part")
    straight.rename(part)
    (part / "training.json").unlink()
    assert [folder.name for folder in checkpoints(run)] == ["step_00000003"]
    assert train(config) == straight
    again = load_file(straight / "model.safetensors")
    assert all(torch.equal(expected[key], again[key]) for key in expected)


def test_a_truncated_checkpoint_is_refused(make_config: Make) -> None:
    """A file of the newest checkpoint cut short is a ValueError that names it, and nothing is overwritten."""
    config = make_config(steps=2)
    folder = train(config)
    whole = files_of(folder)
    for name, share in product(("model.safetensors", "training.json", SHARD), (0.0, 0.05, 0.6, 0.999)):
        content = whole[folder / name]
        (folder / name).write_bytes(content[: min(int(share * len(content)), len(content) - 3)])
        before = files_of(folder)
        with pytest.raises(ValueError, match=folder.name):
            train(config)
        assert files_of(folder) == before, (name, share)
        (folder / name).write_bytes(content)


def test_a_checkpoint_of_another_model_is_refused(make_config: Make, tmp_path: Path, device: torch.device) -> None:
    """Weights of another shape or name are a ValueError that says what to do."""
    folder = save_checkpoint(tmp_path, trained_state(make_config(), 1, device), keep=1)
    for other in ({"model__width": 32}, {"model__depth": 4}, {"model__num_classes": 5}):
        with pytest.raises(ValueError, match=r"is not a checkpoint of this run .* remove it"):
            load_checkpoint(folder, make_state(make_config(**other), device))


@pytest.mark.parametrize("damage", ["zeroed", "shorter", "missing", "counts", "no counts"])
def test_damage_is_told_and_proven(make_config: Make, tmp_path: Path, damage: str, device: torch.device) -> None:
    """The advice to remove a checkpoint comes with what is wrong in it."""
    config = make_config()
    folder = save_checkpoint(tmp_path, trained_state(config, 1, device), keep=1)
    shard, counts = folder / SHARD, folder / "training.json"
    content = shard.read_bytes()
    if damage in ("zeroed", "shorter"):
        shard.write_bytes(bytes(len(content)) if damage == "zeroed" else content[:-1])
    elif damage == "missing":
        shard.unlink()
    else:
        counts.write_text('{"step": -1}' if damage == "counts" else "null")
    told = {"zeroed": "cannot be read", "shorter": f"not {len(content)}", "missing": "is missing", "counts": "step is -1"}
    with pytest.raises(ValueError, match=rf"{told.get(damage, 'training.json')}.*; remove it to go on"):
        load_checkpoint(folder, make_state(config, device))


@pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), MemoryError(), KeyError("a fault of ours")])
def test_what_proves_no_damage_advises_no_removal(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, device: torch.device
) -> None:
    """A lost connection, too little memory and a fault of the program leave load_checkpoint as what they are."""
    config = make_config()
    folder, state = save_checkpoint(tmp_path, trained_state(config, 1, device), keep=1), make_state(config, device)

    def failing(*given: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "load_tensors", failing)
    with pytest.raises(type(error)) as raised:
        load_checkpoint(folder, state)
    assert raised.value is error


def test_a_checkpoint_that_may_not_be_read_need_not_be_removed(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    config = make_config()
    folder, state = save_checkpoint(tmp_path, trained_state(config, 1, device), keep=1), make_state(config, device)
    from torch.distributed.checkpoint import hf_storage

    def forbidden(*given: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hf_storage.HuggingFaceStorageReader, "read_data", forbidden)
    with pytest.raises(OSError, match=r"could not be read \(Permission denied\); give the same command") as raised:
        load_checkpoint(folder, state)
    assert "remove" not in str(raised.value)


def test_another_config_in_the_folder_is_refused(make_config: Make) -> None:
    """The message names the key and both values, and every file stays as it was."""
    config = make_config()
    train(config)
    before = files_of(Path(config.out))
    for changed, named in (
        ({"optimizer__lr": 0.5}, "optimizer.lr is 0.003 there and 0.5 now"),
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"optimizer__schedule": "cosine"}, "optimizer.schedule is constant there and cosine now"),
        ({"model__width": 32}, "model.width is 16 there and 32 now"),
        ({"model__group_size": None}, "model.group_size is 2 there and None now"),
    ):
        with pytest.raises(ValueError, match=re.escape(named)):
            train(make_config(**changed))
        assert files_of(Path(config.out)) == before


@pytest.mark.parametrize(
    ("schedule", "decay"), [("constant", 0), ("trapezoid", 2)], ids=["constant", "before the trapezoid's end"]
)
def test_a_run_may_be_given_more_steps(
    make_config: Make, tmp_path: Path, schedule: str, decay: int, device: torch.device
) -> None:
    """4 steps of 6 with logs, checkpoints, workers and keeping of another kind, then 9: the bits of 9 in one go."""
    rate = {"optimizer__schedule": schedule, "optimizer__decay_steps": decay}
    first = make_config(steps=4 + decay, log__checkpoint_every=4, **rate)
    if decay:
        straight = trained_state(first, 4, device)
        save_checkpoint(opened(first), straight, keep=9)
    else:
        train(first)
    other = {"log__every": 1, "log__checkpoint_every": 3, "log__keep": 9, "data__workers": 0, "evaluate__count": 9}
    more = train(make_config(steps=9, **rate, **other))
    assert_same_checkpoint(more, train(make_config(steps=9, out=tmp_path / "straight", **rate)))
    assert train(make_config(steps=5, **rate)) == more if not decay else True  # it has made more already


def test_a_cosine_run_may_not_be_given_more_steps(make_config: Make) -> None:
    """Its past steps would have had other rates."""
    train(make_config(optimizer__schedule="cosine"))
    with pytest.raises(ValueError, match="steps is 4 there and 9 now"):
        train(make_config(optimizer__schedule="cosine", steps=9))


def test_a_run_is_known_by_what_it_reads(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other spellings of its paths, a renamed run and data that moved are the same run; other data are not."""
    config = make_config()
    last, data = train(config), Path(config.data.source)
    monkeypatch.chdir(tmp_path)
    assert train(make_config(out="run", data__source=f"{data.name}/")) == Path("run") / last.relative_to(tmp_path / "run")
    data.rename(tmp_path / "moved")
    (tmp_path / "run").rename(tmp_path / "renamed")
    elsewhere = {"out": tmp_path / "renamed", "data__source": tmp_path / "moved"}
    assert train(make_config(**elsewhere)).name == last.name
    shutil.copytree(tmp_path / "moved", data)
    next(data.rglob("0.png")).unlink()
    with pytest.raises(ValueError, match=r"data\.source is .*moved there and .* now, which holds other data"):
        train(make_config(**{**elsewhere, "data__source": data}))


def test_data_that_changed_are_told_of(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    train(config)
    next(Path(config.data.source).rglob("0.png")).unlink()
    train(make_config(steps=5))
    assert "does not hold the data that the run began with" in capfd.readouterr().err


def test_what_is_refused_leaves_no_folder(make_config: Make, tmp_path: Path) -> None:
    """All that can be checked is checked before the folder is touched, so that the right command finds it free."""
    run = tmp_path / "run"
    for wrong in (
        {"init_from": tmp_path / "nowhere"},
        {"data__source": tmp_path / "nowhere"},
        {"model__num_classes": 1},
        {"device": "abacus"},
        {"device": "meta"},
        {"evaluate__every": 2, "evaluate__features": "nonsense"},
        {"evaluate__every": 2, "evaluate__reference": tmp_path / "nowhere.npz"},
        {"batch_size": 4, "accumulate": 5},
    ):
        with pytest.raises(ValueError):
            train(make_config(**wrong))
        assert not run.exists(), wrong
    assert train(make_config()).parent.parent == run


def test_a_folder_without_a_checkpoint_is_no_run(make_config: Make) -> None:
    """What was never trained may be another run now."""
    opened(make_config())
    config = make_config(optimizer__lr=1e-4, steps=2)
    train(config)
    assert json.loads((Path(config.out) / "config.json").read_text()) == config.to_dict()


def test_how_a_run_is_computed_may_change(make_config: Make) -> None:
    """Another accumulation, mesh or device goes on in the folder, and so does a run of before some keys were known."""
    config = make_config(steps=2)
    train(config)
    run = Path(config.out)
    for changed in ({"accumulate": 2}, {"parallel__replicate": 2}, {"compile": "true"}, {"checkpointing": "true"}):
        assert opened(make_config(steps=2, **changed)) == run
    old = {key: value for key, value in config.to_dict().items() if key not in ("accumulate", "skip_limit", "parallel")}
    (run / "config.json").write_text(json.dumps(old))
    (run / "reads.json").unlink()
    assert opened(config) == run


def logged(run: Path, name: str) -> list[tuple[int, float]]:
    """A scalar of tensorboard's, by step."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_log_goes_on_with_the_run(make_config: Make) -> None:
    """The resumed step's row stays, rows of steps that are taken again go, in log.jsonl and in tensorboard."""
    config = make_config(steps=4, log__every=1, log__checkpoint_every=2, log__keep=9)
    run = train(config).parents[1]
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    train(make_config(steps=6, log__every=1))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    found = logged(run, "loss")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in found] == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    assert {"gradient_norm", "images_per_second", "learning_rate", "skipped_steps", "loss_flow"} <= rows[0].keys()


def test_a_log_that_cannot_be_written_ends_nothing(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """Not in log.jsonl, not in tensorboard's folder; it is said once, and the run trains on."""
    config = make_config(steps=4, log__every=1)
    run = opened(config)
    (run / "log.jsonl").mkdir()
    (run / "tensorboard").write_text("in the way")
    assert train(config).name == "step_00000004"
    assert capfd.readouterr().err.count("cannot be written") == 1


def test_a_piped_run_says_a_line_at_its_interval(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    train(make_config(steps=4, log__every=2))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 2
    assert re.fullmatch(r"step 2 of 4  loss \d\.\d{4}  [\d.]+ images/s  [\d:]+ left", lines[0])


@pytest.mark.timeout(400)  # each of two processes imports torch, which takes a minute where many others are at work
def test_any_number_of_workers_reads_the_same_data(make_config: Make, tmp_path: Path) -> None:
    """Made when asked for, by a thread, and by two processes: the same bits in the end."""
    runs = [train(make_config(data__workers=workers, out=tmp_path / str(workers))) for workers in (0, 1, 2)]
    weights = [load_file(run / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])


def test_a_folder_that_is_no_run_is_refused(make_config: Make, tmp_path: Path) -> None:
    """A file, a folder with other things in it, and a config.json of another program; an empty folder will do."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"a": 1}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[1]")
    for name in ("file", "mine", "other", "broken", "list"):
        with pytest.raises(ValueError, match="give another folder with --out"):
            opened(make_config(out=tmp_path / name))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "mine" / "config.json").exists()
    (tmp_path / "empty").mkdir()
    config = make_config(out=tmp_path / "empty")
    assert opened(config) == tmp_path / "empty"
    assert json.loads((tmp_path / "empty" / "config.json").read_text()) == config.to_dict()


def test_a_kill_while_the_run_is_made_does_not_spoil_its_folder(make_config: Make, tmp_path: Path) -> None:
    """Whenever the process dies while it makes the folder, the same command may run again."""
    operation, killed = 0, True
    while killed:
        config = make_config(out=tmp_path / f"run {operation}")
        killed = killed_in(lambda config=config: opened(config), operation)
        assert opened(config) == Path(config.out)
        operation += 1
    assert operation > 2
