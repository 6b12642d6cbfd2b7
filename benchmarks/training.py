"""What the training loop costs beside the bare step of the model.

    python benchmarks/training.py

Steps/s of the loop (drawing the data, EMA, the checks, logging) and of forward, backward, clipping and optimisers alone on
the same batches, drawn beforehand; interleaved. Then what drawing a batch and averaging the weights take by themselves.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from elit.data.loader import read_ahead
from elit.distributed import local_device
from elit.training.batch import Batch, draw_batch
from elit.training.checkpoint import Saver
from elit.training.config import LogConfig, TrainConfig
from elit.training.log import Log
from elit.training.loop import load_data, take_steps
from elit.training.parts import Parts, take_apart
from elit.training.reading import load_config
from elit.training.step import TrainState, batch_loss, make_state
from timing import Variant, interleave, machine, open_report, spread


def bare_steps(parts: Parts, state: TrainState, batches: list[Batch]) -> None:
    """What no loop can leave out."""
    for batch in batches:
        batch_loss(parts.rules.products, state, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), parts.rules.optimizer.clip)
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def ready_state(parts: Parts) -> TrainState:
    state = make_state(parts.start)
    if parts.course.compile:
        state.model.compile_blocks()
    state.model.train()
    return state


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The median time of one call."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1000 * spread(seconds).median


def loop_beside_bare(config: TrainConfig, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of so many steps by the loop and bare ones, on batches of the same budgets, in interleaved rounds."""
    config = replace(config, steps=10**9, log=LogConfig(every=config.log.every, checkpoint_every=0, preview_every=0))
    device = local_device(config.device)
    parts, data = take_apart(config, device), load_data(config.data, config.model)
    batches = [draw_batch(parts.draws, data, step) for step in range(steps)]  # the same budgets in every round
    bare, looped = ready_state(parts), ready_state(parts)

    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), 1)

        def loop(_: object) -> None:
            looped.step = 0
            with Log(config.log, Path(folder), config.steps, config.batch_size, 0) as log:
                ahead = read_ahead(partial(draw_batch, parts.draws, data), range(steps), config.data.workers)
                take_steps(parts, looped, ahead, log, saver, threading.Event(), look=lambda last: None)
            wait_for(device)

        def bare_ones(_: object) -> None:
            bare_steps(parts, bare, batches)
            wait_for(device)

        return interleave({"loop": Variant(loop), "bare": Variant(bare_ones)}, rounds, "training")


def wait_for(device: torch.device) -> None:
    """Waits for what a GPU still does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji-tiny.yaml")
    parser.add_argument("--steps", type=int, default=20, help="of one round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps, not compiled: whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args, overrides = parser.parse_known_args()
    if args.quick:
        args.steps, args.rounds, overrides = 2, 2, [*overrides, "--compile", "false", "--batch_size", "4"]
    torch.set_num_threads(args.threads)
    config = load_config(args.config, overrides)
    seconds = loop_beside_bare(config, args.steps, args.rounds)
    parts, data = take_apart(config, local_device(config.device)), load_data(config.data, config.model)
    state = ready_state(parts)
    ratio = spread([a / b - 1 for a, b in zip(seconds["loop"], seconds["bare"], strict=True)])
    rate = {name: spread([args.steps / value for value in values]) for name, values in seconds.items()}
    drawing = milliseconds(lambda: draw_batch(parts.draws, data, 0), 20)
    averaging = milliseconds(lambda: state.update_ema(config.optimizer.ema_decay, torch.tensor(True)), 20)

    out = open_report()
    title = (
        f"{args.config}: batch {config.batch_size}, {config.dtype}, {args.rounds} rounds of {args.steps} steps (quartiles)"
    )
    table = Table(title=title)
    for column in ("loop, steps/s", "bare, steps/s", "overhead", "drawing, ms", "averaging, ms"):
        table.add_column(column, justify="right")
    overhead = f"{ratio.show(100, 1)} %"
    table.add_row(rate["loop"].show(), rate["bare"].show(), overhead, f"{drawing:.2f}", f"{averaging:.2f}")
    out.print(table)
    if args.json:
        figures = {"machine": machine(), "seconds": seconds, "drawing_ms": drawing, "averaging_ms": averaging}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
