"""Checkpoints of a run: whole or absent, written beside the training, and enough to go on exactly where it stopped.

RUN/checkpoints/step_00001000/     a model folder of the EMA weights (config.json, model.safetensors, card.json), with
    shard-*.safetensors            the raw weights and the optimisers' moments, float32, a file per rank that wrote, and
    training.json                  the steps done, skipped and held, the loss scale, and the sizes of the files

torch.distributed.checkpoint writes and reads the tensors as safetensors, for any number of ranks on either side; nothing
is pickled. Every random number of a run is a function of (seed, step), so there is no generator to save.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from elit.backbones.config import DiTConfig
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
from elit.files import read_bytes, remove_folder, replace_folder, write_whole
from elit.records import JSON_BYTES, Whole, read_json, record
from elit.training.finetune import held_parameters
from elit.training.optimizer import MOMENTS, set_updates
from elit.training.step import TrainState
from elit.weights import CONFIG_FILE, WEIGHTS_FILE, config_to_dict

STATE_FILE = "training.json"


@record
class Counters:
    """What training.json holds: steps done, skipped, skipped in a row at the end, held; the loss scale; sizes of files."""

    step: Whole
    skipped: Whole = 0
    skipped_in_row: Whole = 0
    held: Whole = 0
    scaler: dict[str, int | float] = field(default_factory=dict)
    files: dict[str, Whole] = field(default_factory=dict)


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / STATE_FILE).is_file())


def kept(run: Path) -> str:
    """Says which checkpoint of a run is the last whole one."""
    found = checkpoints(run)
    return f"the last whole checkpoint is {found[-1]}" if found else "there is no whole checkpoint yet"


def tidy(run: Path) -> None:
    """Gives a checkpoint that a kill left set aside its name again, and removes what it left half-written or half-removed.

    Such folders have hidden names and are never read. Whoever calls holds the run's lock.
    """
    folder = run / "checkpoints"
    for aside in sorted(folder.glob(".step_*.old")):
        name = folder / aside.name[1:].partition(".")[0]
        if not name.exists():
            aside.rename(name)
    for left in folder.glob(".step_*"):
        shutil.rmtree(left)


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out DCP's remark, made in a thread of its own, that one process saves for itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """The raw weights and the moments by the names they have in a checkpoint."""
    tensors = {f"model.{name}": p.detach() for name, p in state.trained()}
    optimizer_of = state.optimizer_of
    for name, p in state.trained():
        for key in MOMENTS[type(optimizer_of[p])]:
            tensors[f"optimizer.{key}.{name}"] = optimizer_of[p].state[p][key]
    return tensors


def counters(state: TrainState) -> Counters:
    """Those of a state, without the sizes of files."""
    return Counters(state.step, state.skipped, state.skipped_in_row, state.held, state.scaler.state_dict())


class Saver:
    """Writes checkpoints in the background, one at a time. Made, and asked to save or wait, by every rank alike.

    timeout: after which another rank that does not answer counts as lost. describe: writes what is known of the model beside
    its averaged weights; where it is not given, config.json and the card.
    """

    def __init__(
        self,
        run: Path,
        keep: int,
        card: Card | None = None,
        timeout: timedelta = timedelta(minutes=10),
        describe: Callable[[Path], None] | None = None,
    ) -> None:
        self.run, self.keep, self.card, self.describe = run, keep, card or Card(), describe
        self.group = background_group(timeout)
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
        describe = self.describe or partial(self.write_model, state.model.config)
        values = counters(state)

        def finish() -> None:
            save_file(ema, part / WEIGHTS_FILE)
            (part / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that their owner alone can read
            describe(part)
            sizes = {file.name: file.stat().st_size for file in sorted(part.glob("*.safetensors"))}
            write_whole(part / STATE_FILE, json.dumps({**asdict(values), "files": sizes}) + "\n")
            for file in [*part.iterdir(), part]:
                sync(file)
            replace_folder(part, self.folder)
            for old in checkpoints(self.run)[: -self.keep]:
                remove_folder(old)

        barrier()
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

    def write_model(self, config: DiTConfig, part: Path) -> None:
        """Describes a model of this library."""
        write_whole(part / CONFIG_FILE, json.dumps(config_to_dict(config), indent=2) + "\n")
        save_card(self.card, part)

    def wait(self) -> None:
        """Returns when the last checkpoint is whole.

        Raises OSError, on every rank, where it could not be written, and LostRankError where a rank died meanwhile.
        """
        pending, self.pending = self.pending, None
        error = None if pending is None else pending.exception()
        if error is None:
            return
        if tells_of_lost_rank(error):
            raise lost_rank(error) from error
        if is_main():
            tidy(self.run)
        barrier()
        if not isinstance(cause(error), OSError | SafetensorError):
            raise cause(error) from error
        raise OSError(
            f"{self.folder} could not be written ({reason(error)}); {kept(self.run)}: make room, and give the same command"
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


def save_checkpoint(run: Path, state: TrainState, keep: int, card: Card | None = None) -> Path:
    """Writes a checkpoint beside its place, renames it there, and removes all but the last `keep`; returns when done."""
    saver = Saver(run, keep, card)
    with quiet():
        folder = saver.save(state)
        saver.wait()
    return folder


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restores a state from a checkpoint, exactly, whatever the number of ranks that wrote it. Every rank calls this.

    Checkpoints of before there were shards, with one training.safetensors, are read too. Raises UserError, with the advice
    to remove it, for a checkpoint that is proven to be damaged or another model's; OSError for what cannot be read.
    """
    tensors = state_tensors(state) | state.ema
    found = together(lambda: read_counters(folder, tensors))
    load_tensors(folder, tensors)
    state.step = found.step
    state.set_counts(found.skipped, found.skipped_in_row, found.held)
    if state.scaler.is_enabled() and found.scaler:
        state.scaler.load_state_dict(found.scaler)
    updates, optimizer_of = found.step - found.skipped, state.optimizer_of
    for optimizer in state.optimizers:
        set_updates(optimizer, updates)
    for p in held_parameters(state.model) if found.held else ():
        set_updates(optimizer_of[p], updates - found.held, [p])


def read_counters(folder: Path, tensors: dict[str, Tensor]) -> Counters:
    """What training.json says. Raises UserError where the folder is proven to hold no whole checkpoint of the tensors."""
    read_bytes(folder / STATE_FILE, JSON_BYTES)  # what cannot be read proves nothing, and is told as such
    try:
        found = read_json(folder / STATE_FILE, Counters)
        if not found.step >= found.skipped >= found.skipped_in_row or found.held > found.step - found.skipped:
            raise UserError(f"{STATE_FILE} counts {found.skipped} skipped and {found.held} held of {found.step} steps")
        check_tensors(folder, found.files, tensors)
    except UserError as error:
        raise UserError(
            f"{folder} is not a checkpoint of this run ({error}); remove it to go on from the one before"
        ) from error
    return found


def check_tensors(folder: Path, files: dict[str, int], tensors: dict[str, Tensor]) -> None:
    """Raises UserError where a checkpoint's files are not of these sizes, or do not hold the whole of the tensors."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for name, size in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{name} is missing")
        if (folder / name).stat().st_size != size:
            raise UserError(f"{name} has {(folder / name).stat().st_size} bytes, not {size}")
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # headers that are none
        raise UserError(f"its tensors cannot be read: {reason(error)}") from error
    for name, tensor in tensors.items():
        there = stored.get(name)
        if not isinstance(there, TensorStorageMetadata):
            raise UserError(f"it has no {name}")
        if there.size != tensor.shape:
            raise UserError(f"{name} is {tuple(there.size)} there and {tuple(tensor.shape)} here")
        if sum(chunk.sizes.numel() for chunk in there.chunks) != tensor.numel():
            raise UserError(f"parts of {name} are missing")


def load_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fills tensors, which may be sharded, from a checkpoint that holds them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with torch.no_grad(), quiet():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
    except CheckpointException as error:
        first = cause(error)
        if isinstance(first, OSError):
            raise OSError(f"{folder} could not be read ({reason(error)}); give the same command again") from error
        raise first from error
