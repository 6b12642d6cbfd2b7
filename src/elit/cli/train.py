"""`elit train`: a model from a configuration."""

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from elit.cli.parsing import Parser, folder
from elit.console import Table, say, show
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.training.dry_run import Cost

INDENT = 6 * " "


def add_train(command: Parser) -> None:
    command.describe(
        "Trains a model, or goes on with the run that is in --out. Every key of the configuration is an option, such as"
        " --optimizer.lr 1e-3, and overrides the file.",
        "elit train --config configs/emoji-tiny.yaml --dry-run",
        "elit train --config configs/emoji-tiny.yaml --out runs/mine --steps 1000",
    )
    command.format_help = lambda: argparse.ArgumentParser.format_help(command) + "\n" + train_keys() + "\n"  # type: ignore[method-assign]
    command.add_argument("--config", type=folder, help="YAML file; options override it")
    command.add_argument("--dry-run", action="store_true", help="print parameters, FLOPs and memory, and stop")
    command.set_defaults(run=run_train)


def train_keys() -> str:
    """`keys_text` of a run of `elit train`."""
    from elit.training.config import TrainConfig

    return keys_text(TrainConfig)


def keys_text(kind: type[Any]) -> str:
    """Every key of a configuration with its default, and under it what it means, in lines of at most 80 letters."""
    from elit.training.reading import keys_of

    lines = ["keys of the configuration, and their defaults:"]
    for key in keys_of(kind):
        default = key.default if isinstance(key.default, str) else json.dumps(key.default)
        lines += [
            *textwrap.wrap(f"--{key.name} {default}", 80, initial_indent="  ", subsequent_indent=INDENT),
            *textwrap.wrap(key.meaning, 80, initial_indent=INDENT, subsequent_indent=INDENT),
        ]
    return "\n".join(lines)


def run_train(options: argparse.Namespace) -> None:
    from elit.distributed import is_main
    from elit.training.dry_run import dry_run, missing
    from elit.training.loop import train
    from elit.training.reading import load_config

    if options.config is None and not options.rest:
        raise UserError("elit train needs a configuration: give --config FILE, such as --config configs/emoji-tiny.yaml")
    config = load_config(options.config, options.rest)
    if not options.dry_run:
        train(config)
        return
    if is_main():
        show(cost_table(dry_run(config)))
        for sentence in missing(config):
            say(f"{sentence}: the run cannot start before it is")


def cost_table(cost: "Cost") -> Table:
    """The cost, in units that fit it."""
    table = Table(title="What the run would cost", show_header=False)
    table.add_row("parameters", in_units(cost.parameters, 1e3, ("", " k", " M", " B")))
    table.add_row("forward of one image, lowest budget", flops(cost.forward_gflops_lowest))
    table.add_row("forward of one image, highest budget", flops(cost.forward_gflops_highest))
    table.add_row("step of a batch, highest budget", flops(cost.step_gflops_highest))
    table.add_row("step of a batch, on average", flops(cost.step_gflops_mean))
    table.add_row("weights, gradients, moments, EMA", size(cost.state_bytes))
    if cost.ranks > 1:
        table.add_row("processes", f"{cost.ranks}")
        table.add_row("of these, on each process", size(cost.rank_state_bytes))
        table.add_row("weights gathered at a time", size(cost.rank_gathered_bytes))
    table.add_row("activations on each process, highest budget", size(cost.activation_bytes_highest))
    return table


def flops(gflops: float) -> str:
    return in_units(gflops * 1e9, 1e3, (" FLOPs", " kFLOPs", " MFLOPs", " GFLOPs", " TFLOPs", " PFLOPs"))


def size(count: float) -> str:
    return in_units(count, 1024, (" bytes", " KiB", " MiB", " GiB", " TiB"))


def in_units(value: float, step: float, units: tuple[str, ...]) -> str:
    """A number in the largest of the units, each `step` times the one before, that leaves it at 1 or above."""
    place = 0
    while value >= step and place + 1 < len(units):
        value, place = value / step, place + 1
    return f"{value:.0f}{units[0]}" if place == 0 else f"{value:.2f}{units[place]}"
