"""The training loop, for any number of processes: flow matching with one random budget per step."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from elit.backbones.config import DiTConfig
from elit.card import Card
from elit.codec import Codec
from elit.compiler import check_compiler
from elit.data.loader import Data, Stored, read_ahead
from elit.data.opening import check_fit, classes_without_pictures, decoder_of, open_data
from elit.data.stream import StreamedData
from elit.distributed import (
    from_main,
    is_main,
    local_device,
    mesh_size,
    named_rank,
    own_share,
    process_group,
    together,
    world_size,
)
from elit.errors import NumbersError, UserError
from elit.labels import factor_names, labels_in_full
from elit.training.alignment import stored_features
from elit.training.batch import Batch, Draws, draw_batch
from elit.training.checkpoint import Saver, checkpoints, kept, load_checkpoint, quiet, tidy
from elit.training.config import DataConfig, EvaluateConfig, ParallelConfig, RunConfig, TrainConfig
from elit.training.evaluation import Evaluator, RunImages, check_measurable
from elit.training.log import Log, say
from elit.training.parts import Parts, take_apart
from elit.training.run_folder import Reads, check_run, held_run, reads_of
from elit.training.samples import Sampler, save_preview
from elit.training.step import TrainState, make_state, products_of, train_step
from elit.training.stopping import asked_to_stop


class Job(Protocol):
    """What a kind of run does in its own way: of a model of this library, or of a transformer of diffusers."""

    @property
    def config(self) -> RunConfig: ...
    def look_around(self, device: torch.device) -> "Found":
        """Looks for what the run needs, in this process alone, and writes nothing.

        Raises UserError for what is missing or does not fit.
        """

    def take_apart(self, device: torch.device, found: "Found") -> Parts:
        """What each part of the run is told."""

    def looks(self, run: "Run", folder: Path, log: Log) -> Callable[[bool], None]:
        """What looks at the run after a step: previews and the like, where they are due. Told whether it was the last."""

    def saver(self, run: "Run", folder: Path) -> Saver:
        """What writes its checkpoints."""


def train(config: TrainConfig) -> Path:
    """`carry_out`, of a model of this library."""
    return carry_out(OwnJob(config))


def carry_out(job: Job) -> Path:
    """Trains until `config.steps`, going on from the run's last checkpoint where there is one; returns the last one.

    Every process of a torchrun calls this. On SIGTERM, SIGHUP, SIGUSR1 or, once it steps, SIGINT to any of them all save at
    the same step and return. Raises UserError for data, a folder or a number of processes that does not fit the
    configuration, before the folder is touched; OSError for a checkpoint that cannot be written; NumbersError after
    `config.skip_limit` steps in a row whose loss or gradient was not finite, or where no step was; and LostRankError where
    another process died. The last whole checkpoint is kept in every case.
    """
    config = job.config
    device = local_device(config.device)
    check_shares(config.parallel, config.batch_size, config.accumulate)
    with asked_to_stop() as stop, process_group(timedelta(seconds=config.parallel.timeout), device), quiet():
        if config.dtype == "bf16" and products_of(config.dtype, device).dtype == torch.float32:
            say("this processor has no bfloat16 products: the run computes in float32, which is faster here, and more exact")
        if config.compile:
            together(lambda: check_compiler(device))
        found = together(lambda: job.look_around(device))
        parts = job.take_apart(device, found)
        state = make_state(parts.start, found.stored, fresh=not found.goes_on)
        run = Run(parts, found, state, stop)
        if isinstance(job, OwnJob) and job.config.evaluate.every:
            run.evaluator = make_evaluator(job.config.evaluate, config.data.source, Path(config.out), run)
        with held_run(config, found.reads) as folder:
            if found.notice is not None:
                say(found.notice)
            return train_in(folder, job, run)


@dataclass(frozen=True)
class Found:
    """What a run needs and finds before its folder is touched.

    codec: None for latents without one. stored: the shape of the features that alignment reads, where it reads any. reads:
    what the run is known by. goes_on: whether its folder holds a checkpoint. notice: what its user should know, if anything.
    """

    data: Data
    codec: Codec | None
    stored: Stored | None
    reads: Reads
    goes_on: bool
    notice: str | None


def found_for(config: RunConfig, data: Data, reads: Reads, device: torch.device, stored: Stored | None = None) -> Found:
    """What a run finds, its folder among it. Raises UserError for another run's folder, and a codec that does not fit."""
    run, codec = Path(config.out), decoder_of(data, config.data.codec, device)
    return Found(data, codec, stored, reads, goes_on=bool(checkpoints(run)), notice=check_run(run, config, reads))


@dataclass(frozen=True)
class OwnJob:
    """A run of a model of this library."""

    config: TrainConfig

    def look_around(self, device: torch.device) -> Found:
        config, data = self.config, load_data(self.config.data, self.config.model)
        stored = stored_features(config.alignment, data)
        return found_for(config, data, reads_of(config.data.source, data, config.init_from), device, stored)

    def take_apart(self, device: torch.device, found: Found) -> Parts:
        return take_apart(self.config, device)

    def looks(self, run: "Run", folder: Path, log: Log) -> Callable[[bool], None]:
        return look_of(run, folder, log)

    def saver(self, run: "Run", folder: Path) -> Saver:
        course, data = run.parts.course, run.found.data
        card = Card(
            course.sampling,
            path=course.path,
            label_names=data.label_names,
            encoding=data.encoding,
            label_counts=data.label_counts,
        )
        return Saver(folder, course.log.keep, card, course.timeout)


def check_shares(parallel: ParallelConfig, batch_size: int, accumulate: int) -> None:
    """Raises UserError where the processes do not form the mesh asked for, or some would have no sample."""
    mesh_size(parallel.replicate, parallel.shard)
    if batch_size < world_size() * accumulate:
        raise UserError(
            f"batch_size {batch_size} leaves parts of no sample for {world_size()} processes x accumulate"
            f" {accumulate}; raise batch_size, or lower accumulate or the number of processes"
        )


@dataclass
class Run:
    """A run under way: what decides it, what it found, what it changes, and whether it was asked to stop."""

    parts: Parts
    found: Found
    state: TrainState
    stop: threading.Event
    evaluator: Evaluator | None = None

    @property
    def num_classes(self) -> int:
        return math.prod(size + 1 for size in self.parts.draws.model.label_sizes) - 1

    def empty(self) -> list[int]:
        """The model's classes that the data hold no samples of."""
        return classes_without_pictures(self.found.data, self.num_classes)

    def sampler(self, codec: Codec) -> Sampler:
        """How the averaged weights are sampled."""
        parts, course, empty = self.parts, self.parts.course, set(self.empty())
        labels = labels_in_full(self.found.data.label_names) or range(self.num_classes)
        classes = tuple(label for label in labels if label not in empty)
        elastic = parts.draws.model.window is not None
        return Sampler(course.path, course.sampling, codec, classes, elastic, parts.start.products)


def make_evaluator(wanted: EvaluateConfig, source: str, folder: Path, run: Run) -> Evaluator:
    """What measures a run on its way. Raises UserError for what cannot be measured. `source`: how the data are named."""
    data = run.found.data
    codec = check_measurable(wanted.reference, data, run.found.codec)
    images = RunImages(source, data, run.parts.course.seed, codec)
    return Evaluator(wanted, run.sampler(codec), run.num_classes, images, folder)


def train_in(folder: Path, job: Job, run: Run) -> Path:
    """`carry_out`, in a run's folder that is ours, with all that it needs."""
    together(lambda: tidy(folder) if is_main() else None)
    last = from_main(lambda: next(iter(checkpoints(folder)[-1:]), None))
    data, state, course = run.found.data, run.state, run.parts.course
    if last is not None:
        load_checkpoint(last, state)
        inexact = "" if data.exact else "; its data is a stream, which begins anew: this is not the run it would have been"
        say(f"going on from {last}{inexact}")
    if isinstance(data, StreamedData):
        data.begin(course.seed, state.step)
    if course.compile:
        state.model.compile_blocks()
    state.model.train()
    empty = run.empty()
    if empty:
        say(describe_empty(empty, run.num_classes, run.found.data.label_names))
    saver = job.saver(run, folder)
    steps, batch_size = range(state.step, course.steps), run.parts.draws.batch_size
    batches = read_ahead(partial(draw_own, run.parts.draws, data, own_share(batch_size)), steps, course.workers)
    if course.log.preview_every and run.found.codec is None:
        say("no previews are drawn, for the data are latents; give data.codec, which decodes them")
    with Log(course.log, folder, course.steps, batch_size, state.step) as log, closing(batches):
        try:
            with asked_to_stop(("SIGINT",), run.stop):
                stopped = take_steps(run.parts, state, batches, log, saver, run.stop, job.looks(run, folder, log))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped at once; {kept(folder)}, and the same command goes on from there") from None
    saver.wait()
    return tell_end(course.steps, folder, state, stopped)


def look_of(run: Run, folder: Path, log: Log) -> Callable[[bool], None]:
    """What looks at a run after a step: previews and distances, where they are due. Told whether it was the last step."""
    state, course, codec = run.state, run.parts.course, run.found.codec
    sampler = None if codec is None else run.sampler(codec)

    def look(last: bool) -> None:
        if sampler and course.log.preview_every and (last or state.step % course.log.preview_every == 0):
            file, names = folder / "previews" / f"step_{state.step:08d}", run.found.data.label_names
            log.attempt(lambda: save_preview(sampler, course.log.preview_budgets, names, state, file))
        if run.evaluator and (last or state.step % course.evaluate_every == 0):
            log.distances(state, run.evaluator.distances(state))

    return look


def describe_empty(empty: list[int], num_classes: int, names: Sequence[str]) -> str:
    """The warning that some classes will not be learned. names: of the classes, as far as they are known."""
    paired = bool(factor_names(names))
    listed = ", ".join(names[i] if paired else str(i) for i in empty[:8])
    listed += f" and {len(empty) - 8} more" if len(empty) > 8 else ""
    if paired:
        return f"the data hold no samples of {listed}: what such pairs look like is guessed from their parts"
    return (
        f"warning: of the {num_classes} classes of model.num_classes, the data hold no samples of {listed}: samples of these"
        f" will mean nothing; set model.num_classes {num_classes - len(empty)}, or give them pictures"
    )


def draw_own(draws: Draws, data: Data, share: range, step: int) -> Batch:
    """`draw_batch`, whose errors name the process where there are several: the others have read something else."""
    with named_rank():
        return draw_batch(draws, data, step, share)


def take_steps(
    parts: Parts,
    state: TrainState,
    batches: Iterable[Batch],
    log: Log,
    saver: Saver,
    stop: threading.Event,
    look: Callable[[bool], None],
) -> bool:
    """A step per batch, with what is due after it, until they end, a rank is asked to stop, or a checkpoint fails.

    look: previews and the like, told whether this was the last step.

    Returns whether it was asked to stop.
    """
    late, course = Late(), parts.course
    for batch in batches:
        taken = train_step(parts.rules, state, batch, [stop.is_set(), saver.failed])
        skipped, stopping, failed = late.read(torch.cat([state.counts[1:2].float(), taken.raised]))
        if failed:
            break  # `saver.wait` tells why
        if skipped >= course.skip_limit:
            not_finite(int(skipped), state, saver)
        log.step(state, taken)
        last = bool(stopping) or state.step == course.steps
        if last and state.skipped == state.step:
            not_finite(state.skipped, state, saver)
        due = course.log.checkpoint_every and state.step % course.log.checkpoint_every == 0
        if last or (due and not state.skipped_in_row):
            saver.save(state)
        if not stopping:
            look(last)
        if last:
            return bool(stopping)
    return False


class Late:
    """Reads a few values of each step without waiting for a GPU: there, those of the step before; on a CPU, its own.

    Every rank reads the same values at the same step, so all decide alike.
    """

    def __init__(self) -> None:
        self.begun: tuple[Tensor, torch.cuda.Event] | None = None

    def read(self, values: Tensor) -> list[float]:
        """The values of this step or of the one before; zeros where there was none."""
        if values.device.type != "cuda":
            return values.tolist()
        copied, done = torch.empty(values.shape, dtype=values.dtype, pin_memory=True), torch.cuda.Event()
        copied.copy_(values, non_blocking=True)
        done.record()
        before, self.begun = self.begun, (copied, done)
        if before is None:
            return [0.0] * len(values)
        before[1].synchronize()
        return before[0].tolist()


def not_finite(skipped: int, state: TrainState, saver: Saver) -> None:
    """Raises NumbersError: too many steps in a row were skipped, or all of them; all ranks count the same."""
    saver.wait()
    raise NumbersError(
        f"the loss or its gradient was not finite in the last {skipped} steps, up to step {state.step};"
        f" lower optimizer.lr and start again in another folder; {kept(saver.run)}"
    )


def tell_end(steps: int, run: Path, state: TrainState, stopped: bool) -> Path:
    """Says where the trained model is, or the checkpoint to go on from, and returns it."""
    final = from_main(lambda: checkpoints(run)[-1])
    if stopped and state.step < steps:
        say(f"stopped at step {state.step} as asked; it is in {final}, and the same command goes on from there")
        return final
    if state.skipped:
        say(f"{state.skipped} steps were skipped, their loss or gradient not being finite")
    if state.step > steps:
        say(f"the run has made {state.step} steps already, and steps is {steps}")
    say(f"the trained model is in {final}")
    if (run / "previews").is_dir():
        say(f"previews, one row per budget, are in {run / 'previews'}")
    return final


def load_data(wanted: DataConfig, model: DiTConfig) -> Data:
    """A run's data, checked against its model."""
    grid, patch = model.grid, model.patch_size
    frames = (grid.frames,) if grid.frames > 1 else ()
    data = open_data(wanted.source, wanted.size, *frames)
    if not data.exact and wanted.workers > 1:
        raise UserError(f"a stream is read by one thread, not by {wanted.workers} processes; set data.workers 1")
    shape = (model.in_channels, *frames, grid.height * patch, grid.width * patch)
    check_fit(data, shape, model.num_classes, any_size=model.rope)
    return data
