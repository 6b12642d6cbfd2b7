"""The training loop, for any number of processes: flow matching with one random budget per step."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from elit.card import Card
from elit.codec import Codec
from elit.console import console, progress_bar
from elit.data.loader import Data, read_ahead
from elit.data.opening import check_fit, decoder_of, open_data
from elit.data.stream import StreamedData
from elit.distributed import (
    anywhere,
    barrier,
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
from elit.training.checkpoint import Saver, check_shared, checkpoints, load_checkpoint, locked, open_run, remove_unfinished
from elit.training.config import TrainConfig
from elit.training.dry_run import dry_run
from elit.training.evaluation import Evaluator
from elit.training.step import TrainState, autocast, averaged_weights, make_state, model_of, train_step
from elit.words import spread

PREVIEWED = 12  # classes, in a preview

__all__ = ["Batch", "draw_batch", "dry_run", "load_data", "make_state", "save_preview", "train", "train_step"]


def train(config: TrainConfig) -> Path:
    """Trains until `config.steps`, going on from the run's last checkpoint where there is one; returns the last one.

    Every process of a torchrun calls this. On SIGTERM to any of them all save at the same step and return. Raises
    ValueError for data, a folder or a number of processes that does not fit the configuration; OSError for a checkpoint
    that cannot be written; NumbersError after `config.skip_limit` steps in a row whose loss or gradient was not
    finite; and LostRankError where another process died. The last whole checkpoint is kept in every case.
    """
    device = local_device(config.device)
    if config.dtype == "bf16" and not fast_bfloat16(device):
        say("this processor has no bfloat16 products: the run computes in float32, which is faster here, and exacter")
    check_shares(config)
    with asked_to_stop() as stop, process_group(timedelta(seconds=config.parallel.timeout), device):
        data = together(lambda: load_data(config))
        run = Path(config.out)
        together(lambda: open_run(config) if is_main() else run)
        together(lambda: check_shared(run))
        with locked(run):
            return train_in(run, config, data, device, stop)


def check_shares(config: TrainConfig) -> None:
    """Raises UserError where the processes do not form the mesh asked for, or some would have no sample."""
    mesh_size(config.parallel.replicate, config.parallel.shard)
    if config.batch_size < world_size() * config.accumulate:
        raise UserError(
            f"batch_size {config.batch_size} leaves parts of no sample for {world_size()} processes x accumulate"
            f" {config.accumulate}; raise batch_size, or lower accumulate or the number of processes"
        )


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, as schedulers send it before they take the machine away."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def train_in(run: Path, config: TrainConfig, data: Data, device: torch.device, stop: threading.Event) -> Path:
    """`train`, in a run's folder that is ours."""
    state = together(lambda: make_state(config, device, stored_features(config.alignment, data)))
    if is_main():
        remove_unfinished(run)
    barrier()
    last = from_main(lambda: next(iter(checkpoints(run)[-1:]), None))
    if last is not None:
        together(lambda: load_checkpoint(last, state))
        inexact = "" if data.exact else "; its data is a stream, which begins anew: this is not the run it would have been"
        say(f"going on from {last}{inexact}")
    if isinstance(data, StreamedData):
        data.begin(config.seed, state.step)
    if config.compile:
        state.model.compile_blocks()
    state.model.train()
    card = Card(
        path=FlowPath(config.flow.path), label_names=data.label_names, encoding=data.encoding, label_counts=data.label_counts
    )
    saver = Saver(run, config.log.keep, card)
    share = own_share(config.batch_size)
    steps = range(state.step, config.steps)
    batches = read_ahead(partial(draw_own, config, data, share), steps, config.data.workers)
    codec = together(lambda: decoder_of(data, config.data.codec, device))
    if config.log.preview_every and codec is None:
        say("no previews are drawn, for the data are latents; give data.codec, which decodes them")
    evaluator = Evaluator(config, data, device, codec) if config.evaluate.every else None
    with Log(config, run, state.step) as log, closing(batches):

        def look(last: bool) -> None:
            if codec and config.log.preview_every and (last or state.step % config.log.preview_every == 0):
                save_preview(config, state, codec, device, run / "previews" / f"step_{state.step:08d}.png", data.label_names)
            if evaluator and (last or state.step % config.evaluate.every == 0):
                log.distances(state, evaluator.distances(state))

        stopped = take_steps(config, state, batches, device, log, saver, stop, look)
    saver.wait()
    return tell_end(config, run, state, stopped)


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
    for batch in batches:
        loss = train_step(config, state, batch, device)
        stopped, failed = anywhere([stop.is_set(), saver.failed])
        if failed:
            break  # `saver.wait` tells why
        check_finite(config, state, saver)
        log.step(state, loss)
        last = stopped or state.step == config.steps
        due = config.log.checkpoint_every and state.step % config.log.checkpoint_every == 0
        if last or (due and not state.skipped_in_row):
            saver.save(state)
        if not stopped:
            look(last)
        if last:
            return stopped
    return False


def check_finite(config: TrainConfig, state: TrainState, saver: Saver) -> None:
    """Raises NumbersError where too many steps in a row were skipped; all ranks count the same."""
    if state.skipped_in_row < config.skip_limit:
        return
    saver.wait()
    found = checkpoints(saver.run)
    good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
    raise NumbersError(
        f"the loss or its gradient was not finite in the last {state.skipped_in_row} steps, up to step {state.step};"
        f" lower optimizer.lr and start again in another folder; {good}"
    )


def tell_end(config: TrainConfig, run: Path, state: TrainState, stopped: bool) -> Path:
    final = from_main(lambda: checkpoints(run)[-1])
    if stopped and state.step < config.steps:
        say(f"stopped at step {state.step} as asked; it is in {final}, and the same command goes on from there")
        return final
    if state.skipped:
        say(f"{state.skipped} steps were skipped, their loss or gradient not being finite")
    say(f"the trained model is in {final}")
    if config.log.preview_every:
        say(f"previews, one row per budget, are in {run / 'previews'}")
    return final


def say(text: str) -> None:
    """A notice, by one process."""
    if is_main():
        console.print(text, soft_wrap=True)


class Log:
    """The progress bar, and scalars for tensorboard, of the first process."""

    def __init__(self, config: TrainConfig, run: Path, first: int) -> None:
        self.config, self.run, self.first, self.started = config, run, first, time.perf_counter()

    def __enter__(self) -> "Log":
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.first)
        self.bar = progress_bar(lines=False)
        self.bar.disable = self.bar.disable or not is_main()
        self.bar.start()
        size, steps = self.config.batch_size, self.config.steps
        self.task = self.bar.add_task("training", total=steps, completed=self.first, unit="images", per_step=size)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if is_main():
            self.writer.close()

    def step(self, state: TrainState, loss: torch.Tensor) -> None:
        """To be told of every step; `loss` is read when it is shown."""
        every = self.config.log.every
        if is_main() and every and state.step % every == 0:
            rate = (state.step - self.first) * self.config.batch_size / (time.perf_counter() - self.started)
            self.report(state, loss.item(), rate)
            self.first, self.started = state.step, time.perf_counter()
        self.bar.update(self.task, completed=state.step)

    def distances(self, state: TrainState, distances: dict[str, float]) -> None:
        """Writes Fréchet distances by name to tensorboard and to the terminal."""
        if not is_main():
            return
        for name, value in distances.items():
            self.writer.add_scalar(name, value, state.step)
        told = ", ".join(f"{name} {value:.2f}" for name, value in distances.items())
        console.print(f"step {state.step}: {told}", soft_wrap=True)

    def report(self, state: TrainState, loss: float, rate: float) -> None:
        scalars = {
            "loss": loss,
            "gradient_norm": state.gradient_norm,
            "images_per_second": rate,
            "learning_rate": state.optimizers[-1].param_groups[0]["lr"],
            "skipped_steps": state.skipped,
            **{f"loss_{name}": part.item() for name, part in state.summands.items()},
        }
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, state.step)
        self.bar.update(self.task, description=f"training, loss {loss:.4f}")
        if not console.is_terminal and state.step % 500 == 0:
            console.print(f"step {state.step}  loss {loss:.4f}  {rate:.1f} images/s")


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
    config: TrainConfig, state: TrainState, codec: Codec, device: torch.device, file: Path, names: Sequence[str] = ()
) -> None:
    """Samples of the EMA weights: a row per budget, the same noise and labels down a column. All ranks call this.

    names: of the classes, as far as they are known; the others are shown by number.
    """
    weights = averaged_weights(state, wanted=is_main())
    if not is_main():
        return
    model = model_of(state, weights, device)
    labels = spread(PREVIEWED, config.model.num_classes)
    budgets = config.log.preview_budgets if config.model.window is not None else (1.0,)
    with autocast(config, device):
        rows = [sample(model, labels, steps=20, budget=budget, path=config.flow.path) for budget in budgets]
    images = torch.cat([codec.decode(row).cpu() for row in rows])
    file.parent.mkdir(exist_ok=True)
    columns = [names[i] if i < len(names) else str(i) for i in labels]
    save_png(sheet(images, columns, [f"budget {budget:g}" for budget in budgets]), file)
