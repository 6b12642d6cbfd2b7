"""The training loop, for any number of processes: flow matching with one random budget per step."""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

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
from elit.flow import FlowPath
from elit.pictures import save_png, sheet
from elit.precision import fast_bfloat16
from elit.sampling import sample
from elit.training.alignment import stored_features
from elit.training.batch import Batch, draw_batch
from elit.training.checkpoint import Saver, checkpoints, kept, load_checkpoint, quiet, tidy
from elit.training.config import TrainConfig
from elit.training.dry_run import dry_run
from elit.training.evaluation import Evaluator
from elit.training.log import Log, say
from elit.training.run_folder import Reads, check_run, held_run, reads_of
from elit.training.step import TrainState, autocast, averaged_weights, make_state, model_of, train_step
from elit.training.stopping import asked_to_stop
from elit.words import spread

PREVIEWED = 12  # classes, in a preview

__all__ = ["Batch", "draw_batch", "dry_run", "load_data", "make_state", "save_preview", "train", "train_step"]


def train(config: TrainConfig) -> Path:
    """Trains until `config.steps`, going on from the run's last checkpoint where there is one; returns the last one.

    Every process of a torchrun calls this. On SIGTERM, SIGHUP, SIGUSR1 or, once it steps, SIGINT to any of them all save at
    the same step and return. Raises UserError for data, a folder or a number of processes that does not fit the
    configuration, before the folder is touched; OSError for a checkpoint that cannot be written; NumbersError after
    `config.skip_limit` steps in a row whose loss or gradient was not finite, or where no step was; and LostRankError where
    another process died. The last whole checkpoint is kept in every case.
    """
    device = local_device(config.device)
    check_shares(config)
    with asked_to_stop() as stop, process_group(timedelta(seconds=config.parallel.timeout), device), quiet():
        if config.dtype == "bf16" and not fast_bfloat16(device):
            say("this processor has no bfloat16 products: the run computes in float32, which is faster here, and exacter")
        found = together(lambda: look_around(config, device))
        state = make_state(config, device, found.stored, start=not found.goes_on)
        evaluator = Evaluator(config, found.data, device, found.codec) if config.evaluate.every else None
        with held_run(config, found.reads) as run:
            if found.notice is not None:
                say(found.notice)
            return train_in(run, config, found.data, found.codec, state, evaluator, device, stop)


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


def look_around(config: TrainConfig, device: torch.device) -> Found:
    """Looks for it in this process alone, and writes nothing. Raises UserError for what is missing or does not fit."""
    if config.compile:
        check_compiler(device)
    data, run = load_data(config), Path(config.out)
    codec, stored = decoder_of(data, config.data.codec, device), stored_features(config.alignment, data)
    reads = reads_of(config, data)
    return Found(data, codec, stored, reads, goes_on=bool(checkpoints(run)), notice=check_run(run, config, reads))


def check_shares(config: TrainConfig) -> None:
    """Raises UserError where the processes do not form the mesh asked for, or some would have no sample."""
    mesh_size(config.parallel.replicate, config.parallel.shard)
    if config.batch_size < world_size() * config.accumulate:
        raise UserError(
            f"batch_size {config.batch_size} leaves parts of no sample for {world_size()} processes x accumulate"
            f" {config.accumulate}; raise batch_size, or lower accumulate or the number of processes"
        )


def train_in(
    run: Path,
    config: TrainConfig,
    data: Data,
    codec: Codec | None,
    state: TrainState,
    evaluator: Evaluator | None,
    device: torch.device,
    stop: threading.Event,
) -> Path:
    """`train`, in a run's folder that is ours, with all that it needs."""
    together(lambda: tidy(run) if is_main() else None)
    last = from_main(lambda: next(iter(checkpoints(run)[-1:]), None))
    if last is not None:
        load_checkpoint(last, state)
        inexact = "" if data.exact else "; its data is a stream, which begins anew: this is not the run it would have been"
        say(f"going on from {last}{inexact}")
    if isinstance(data, StreamedData):
        data.begin(config.seed, state.step)
    if config.compile:
        state.model.compile_blocks()
    state.model.train()
    empty = classes_without_pictures(data, config.model.num_classes)
    if empty:
        say(describe_empty(empty, config.model.num_classes))
    card = Card(
        path=FlowPath(config.flow.path), label_names=data.label_names, encoding=data.encoding, label_counts=data.label_counts
    )
    saver = Saver(run, config.log.keep, card, timedelta(seconds=config.parallel.timeout))
    steps = range(state.step, config.steps)
    batches = read_ahead(partial(draw_own, config, data, own_share(config.batch_size)), steps, config.data.workers)
    if config.log.preview_every and codec is None:
        say("no previews are drawn, for the data are latents; give data.codec, which decodes them")
    classes = [label for label in range(config.model.num_classes) if label not in set(empty)]
    with Log(config.log, run, config.steps, config.batch_size, state.step) as log, closing(batches):

        def look(last: bool) -> None:
            if codec and config.log.preview_every and (last or state.step % config.log.preview_every == 0):
                file = run / "previews" / f"step_{state.step:08d}.png"
                names = data.label_names
                log.attempt(lambda: save_preview(config, state, codec, device, file, names, classes))
            if evaluator and (last or state.step % config.evaluate.every == 0):
                log.distances(state, evaluator.distances(state))

        try:
            with asked_to_stop(("SIGINT",), stop):
                stopped = take_steps(config, state, batches, device, log, saver, stop, look)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped at once; {kept(run)}, and the same command goes on from there") from None
    saver.wait()
    return tell_end(config, run, state, stopped)


def describe_empty(empty: list[int], num_classes: int) -> str:
    """The warning that some classes will not be learned."""
    listed = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
    return (
        f"warning: of the {num_classes} classes of model.num_classes, the data hold no samples of {listed}: samples of these"
        f" will mean nothing; set model.num_classes {num_classes - len(empty)}, or give them pictures"
    )


def draw_own(config: TrainConfig, data: Data, share: range, step: int) -> Batch:
    """`draw_batch`, whose errors name the process where there are several: the others have read something else."""
    with named_rank():
        return draw_batch(config, data, step, share)


def take_steps(
    config: TrainConfig,
    state: TrainState,
    batches: Iterable[Batch],
    device: torch.device,
    log: "Log",
    saver: Saver,
    stop: threading.Event,
    look: Callable[[bool], None],
) -> bool:
    """A step per batch, with what is due after it, until they end, a rank is asked to stop, or a checkpoint fails.

    look: previews and the like, told whether this was the last step.

    Returns whether it was asked to stop.
    """
    late = Late()
    for batch in batches:
        taken = train_step(config, state, batch, device, [stop.is_set(), saver.failed])
        skipped, stopping, failed = late.read(torch.cat([state.counts[1:2].float(), taken.raised]))
        if failed:
            break  # `saver.wait` tells why
        if skipped >= config.skip_limit:
            not_finite(int(skipped), state, saver)
        log.step(state, taken)
        last = bool(stopping) or state.step == config.steps
        if last and state.skipped == state.step:
            not_finite(state.skipped, state, saver)
        due = config.log.checkpoint_every and state.step % config.log.checkpoint_every == 0
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


def tell_end(config: TrainConfig, run: Path, state: TrainState, stopped: bool) -> Path:
    """Says where the trained model is, or the checkpoint to go on from, and returns it."""
    final = from_main(lambda: checkpoints(run)[-1])
    if stopped and state.step < config.steps:
        say(f"stopped at step {state.step} as asked; it is in {final}, and the same command goes on from there")
        return final
    if state.skipped:
        say(f"{state.skipped} steps were skipped, their loss or gradient not being finite")
    if state.step > config.steps:
        say(f"the run has made {state.step} steps already, and steps is {config.steps}")
    say(f"the trained model is in {final}")
    if (run / "previews").is_dir():
        say(f"previews, one row per budget, are in {run / 'previews'}")
    return final


def load_data(config: TrainConfig) -> Data:
    """The run's data, checked against its model."""
    data = open_data(config.data.source, config.data.size)
    if not data.exact and config.data.workers > 1:
        raise UserError(f"a stream is read by one thread, not by {config.data.workers} processes; set data.workers 1")
    model = config.model
    shape = (model.in_channels, model.grid.height * model.patch_size, model.grid.width * model.patch_size)
    check_fit(data, shape, model.num_classes, any_size=model.rope)
    return data


@torch.no_grad()
def save_preview(
    config: TrainConfig,
    state: TrainState,
    codec: Codec,
    device: torch.device,
    file: Path,
    names: Sequence[str] = (),
    classes: Sequence[int] | None = None,
) -> None:
    """Samples of the EMA weights: a row per budget, the same noise and labels down a column. All ranks call this.

    names: of the classes, as far as they are known; the others are shown by number. classes: that are shown, all if None.
    """
    weights = averaged_weights(state, wanted=is_main())
    if not is_main():
        return
    model = model_of(state, weights, device)
    classes = classes or range(config.model.num_classes)
    labels = [classes[i] for i in spread(PREVIEWED, len(classes))]
    budgets = config.log.preview_budgets if config.model.window is not None else (1.0,)
    with autocast(config, device):
        rows = [sample(model, labels, steps=20, budget=budget, path=config.flow.path) for budget in budgets]
    images = torch.cat([codec.decode(row).cpu() for row in rows])
    file.parent.mkdir(exist_ok=True)
    columns = [names[i] if i < len(names) else str(i) for i in labels]
    save_png(sheet(images, columns, [f"budget {budget:g}" for budget in budgets]), file)
