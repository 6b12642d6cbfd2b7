"""Checkpoints of a run: whole or absent, written beside the training, and enough to go on exactly where it stopped.

RUN/config.json                    the run's configuration
RUN/.lock                          held by the run's first process
RUN/checkpoints/step_00001000/     a model folder of the EMA weights (config.json, model.safetensors, card.json), with
    shard-*.safetensors            the raw weights and the optimisers' moments, float32, a file per rank that wrote, and
    training.json                  the steps done, skipped and held, the loss scale, and the sizes of the files

torch.distributed.checkpoint writes and reads the tensors as safetensors, for any number of ranks on either side; nothing
is pickled. Every random number of a run is a function of (seed, step), so there is no generator to save.
"""

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from elit.card import Card, save_card
from elit.distributed import (
    background_group,
    barrier,
    gathered,
    is_main,
    lost_rank,
    tells_of_lost_rank,
    together,
    world_size,
)
from elit.errors import UserError
from elit.files import remove_folder, write_whole
from elit.training.config import TrainConfig
from elit.training.finetune import held_parameters
from elit.training.optimizer import MOMENTS, set_updates
from elit.training.reading import flat
from elit.training.step import TrainState
from elit.weights import CONFIG_FILE, WEIGHTS_FILE, config_to_dict

STATE_FILE, LOCK_FILE = "training.json", ".lock"
# How a run is computed and not what: may change between one start of it and the next.
HOW = ("accumulate", "device", "compile", "checkpointing", "skip_limit", "parallel.", "data.workers", "evaluate.")


def open_run(config: TrainConfig) -> Path:
    """The run's folder, made or found. Raises UserError where it holds a run of another configuration."""
    run = Path(config.out)
    file = run / "config.json"
    if run.is_file() or (run.is_dir() and any(p.suffix != ".part" for p in run.iterdir()) and not file.is_file()):
        raise UserError(f"{run} exists and is not a training run; give another folder with --out")
    if file.is_file():
        try:
            old = flat(json.loads(file.read_text(encoding="utf8")))
        except (json.JSONDecodeError, AttributeError) as error:
            raise UserError(f"{file} is not a run's configuration ({error}); give another folder with --out") from error
        if "steps" in old:  # a run of before a key was known had its default
            old = flat(TrainConfig().to_dict()) | old
        new = flat(config.to_dict())
        differing = [
            f"{key} is {old.get(key)} there and {new.get(key)} now"
            for key in new | old
            if old.get(key) != new.get(key) and not key.startswith(HOW)
        ]
        if differing:
            raise UserError(
                f"{run} holds a run of another config ({'; '.join(differing[:3])}); give another folder with --out"
            )
        return run
    run.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(config.to_dict(), indent=2) + "\n")
    return run


def check_shared(run: Path, seconds: float = 20.0) -> None:
    """Raises UserError where a run's folder, which the first process made, does not come in sight of this one."""
    end = time.monotonic() + seconds
    while not (run / "config.json").is_file():
        if time.monotonic() > end:
            raise UserError(f"{run} of the first process is not seen by all; give an --out on storage that they share")
        time.sleep(0.2)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps other runs out of the folder while inside; the system lets go of it when the process ends in any way.

    Raises UserError where another process is training there.
    """
    held = together(lambda: take_lock(run) if is_main() else None)
    try:
        yield
    finally:
        if held is not None:
            held.close()


def take_lock(run: Path) -> IO[str] | None:
    """The run's lock, open; None on systems that have none."""
    try:
        import fcntl
    except ImportError:
        return None
    file = (run / LOCK_FILE).open("a+", encoding="utf8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system that has no locks
            file.close()
            return None
        file.seek(0)
        by = file.read().strip()
        file.close()
        raise UserError(
            f"another process is training in {run}{f' ({by})' if by else ''}; wait for it, stop it, or give another --out"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / STATE_FILE).is_file())


def remove_unfinished(run: Path) -> None:
    """Removes what a kill left half-written or half-removed; such folders have hidden names and are never read."""
    for folder in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(folder)


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """The raw weights and the moments by the names they have in a checkpoint."""
    tensors = {f"model.{name}": p.detach() for name, p in state.trained()}
    optimizer_of = state.optimizer_of
    for name, p in state.trained():
        for key in MOMENTS[type(optimizer_of[p])]:
            tensors[f"optimizer.{key}.{name}"] = optimizer_of[p].state[p][key]
    return tensors


def counters(state: TrainState) -> dict[str, Any]:
    """What training.json holds beside the sizes of the files."""
    values: dict[str, Any] = {"step": state.step, "skipped": state.skipped, "skipped_in_row": state.skipped_in_row}
    values["held"] = state.held
    return values | {"scaler": state.scaler.state_dict()}


class Saver:
    """Writes checkpoints in the background, one at a time. Made, and asked to save or wait, by every rank alike."""

    def __init__(self, run: Path, keep: int, card: Card | None = None) -> None:
        self.run, self.keep, self.card = run, max(keep, 1), card or Card()
        self.group = background_group()
        self.pending: Future[Any] | None = None
        self.folder = run / "checkpoints"

    @property
    def failed(self) -> bool:
        """Whether the checkpoint that is being written cannot be; `wait` tells why."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def save(self, state: TrainState) -> Path:
        """Copies the state and begins to write it, once the checkpoint before is written; returns its folder to be.

        Raises OSError where that one could not be written.
        """
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.wait()
        self.folder = self.run / "checkpoints" / f"step_{state.step:08d}"
        part = self.folder.with_name(f".{self.folder.name}.part")
        if is_main():
            shutil.rmtree(part, ignore_errors=True)
        ema = {}
        for name, tensor in state.ema.items():  # one after another, so that one rank alone needs room for all
            whole = gathered(tensor)
            if is_main():
                ema[name] = whole.detach().to("cpu", copy=True)
        describe = json.dumps(config_to_dict(state.model.config), indent=2) + "\n"
        values = counters(state)

        def finish() -> None:
            save_file(ema, part / WEIGHTS_FILE)
            (part / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that their owner alone can read
            write_whole(part / CONFIG_FILE, describe)
            save_card(self.card, part)
            sizes = {file.name: file.stat().st_size for file in sorted(part.glob("*.safetensors"))}
            write_whole(part / STATE_FILE, json.dumps(values | {"files": sizes}) + "\n")
            for file in [*part.iterdir(), part]:
                sync(file)
            if self.folder.exists():
                remove_folder(self.folder)
            part.rename(self.folder)
            for old in checkpoints(self.run)[: -self.keep]:
                remove_folder(old)

        barrier()
        quiet()
        written = async_save(
            state_tensors(state),
            storage_writer=_writer(part, finish),
            # replicas leave the writing to the first of them: as many files to open as there are shards
            planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
            process_group=self.group,
            no_dist=self.group is None,
        )
        assert isinstance(written, Future)
        self.pending = written
        return self.folder

    def wait(self) -> None:
        """Returns when the last checkpoint is whole.

        Raises OSError, on every rank, where it could not be written, and LostRankError where a rank died meanwhile.
        """
        pending, self.pending = self.pending, None
        error = None if pending is None else pending.exception()
        if error is None:
            return
        if tells_of_lost_rank(cause(error)):
            raise lost_rank(cause(error)) from error
        if is_main():
            remove_unfinished(self.run)
        found = checkpoints(self.run)
        kept = f"the last whole checkpoint is {found[-1]}" if found else "there is no whole checkpoint"
        raise OSError(
            f"{self.folder} could not be written ({reason(error)}); {kept}: make room, and give the same command"
        ) from error


def _writer(part: Path, finish: Callable[[], None]) -> Any:
    """DCP's writer of safetensors, which calls `finish` on one rank when all ranks' files are written."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    class Writer(HuggingFaceStorageWriter):
        def finish(self, metadata: Any, results: Any) -> None:
            finish()

    return Writer(str(part), save_distributed=True)


def sync(place: Path) -> None:
    """Has a file or a folder written to the disk, so that a machine that loses power finds it whole."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cause(error: BaseException) -> BaseException:
    """The first of those that DCP's exception gathers of all ranks; any other error is its own."""
    failures = getattr(error, "failures", None) or {}
    return next((failure[0] for _, failure in sorted(failures.items())), error)


def reason(error: BaseException) -> str:
    """What an error of DCP says in a few words."""
    first = cause(error)
    told = getattr(first, "strerror", None) or " ".join(str(first).split()) or type(first).__name__
    return str(told)[:300]


def quiet() -> None:
    """Leaves out DCP's remark, made in a thread of its own, that one process saves for itself."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def save_checkpoint(run: Path, state: TrainState, keep: int, card: Card | None = None) -> Path:
    """Writes a checkpoint beside its place, renames it there, and removes all but the last `keep`; returns when done."""
    saver = Saver(run, keep, card)
    folder = saver.save(state)
    saver.wait()
    return folder


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restores a state from a checkpoint, exactly, whatever the number of ranks that wrote it.

    Checkpoints of before there were shards, with one training.safetensors, are read too. Raises UserError for a
    truncated or foreign one.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf8"))
        for name, size in values.get("files", {}).items():
            if (folder / name).stat().st_size != size:
                raise UserError(f"{name} is cut short")
        quiet()
        with torch.no_grad():
            reader = HuggingFaceStorageReader(str(folder))
            load(state_tensors(state) | state.ema, storage_reader=reader, no_dist=world_size() == 1)
        state.step = int(values["step"])
        state.skipped, state.skipped_in_row = int(values.get("skipped", 0)), int(values.get("skipped_in_row", 0))
        if state.scaler.is_enabled() and values.get("scaler"):
            state.scaler.load_state_dict(values["scaler"])
        state.held = int(values.get("held", 0))
        updates, optimizer_of = state.step - state.skipped, state.optimizer_of
        for optimizer in state.optimizers:
            set_updates(optimizer, updates)
        for p in held_parameters(state.model) if state.held else ():
            set_updates(optimizer_of[p], updates - state.held, [p])
    except (KeyError, RuntimeError, ValueError, OSError, AttributeError, CheckpointException) as error:
        raise UserError(
            f"{folder} is not a checkpoint of this run ({reason(error)}); remove it to go on from the one before"
        ) from error
