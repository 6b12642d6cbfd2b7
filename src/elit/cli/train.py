"""`elit train`: a model from a configuration."""

import argparse
import json
import textwrap

from elit.cli.parsing import Parser, folder
from elit.console import Table, show
from elit.errors import UserError

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
    """Every key of the configuration with its default, and under it what it means, in lines of at most 80 letters."""
    from elit.training.config import TrainConfig
    from elit.training.reading import keys_of

    lines = ["keys of the configuration, and their defaults:"]
    for key in keys_of(TrainConfig):
        default = key.default if isinstance(key.default, str) else json.dumps(key.default)
        lines += [
            f"  --{key.name} {default}",
            *textwrap.wrap(key.meaning, 80, initial_indent=INDENT, subsequent_indent=INDENT),
        ]
    return "\n".join(lines)


def run_train(options: argparse.Namespace) -> None:
    from elit.distributed import is_main
    from elit.training.loop import dry_run, train
    from elit.training.reading import load_config

    if options.config is None and not options.rest:
        raise UserError("elit train needs a configuration: give --config FILE, such as --config configs/emoji-tiny.yaml")
    config = load_config(options.config, options.rest)
    if not options.dry_run:
        train(config)
        return
    if is_main():
        show(cost_table(dry_run(config)))


def cost_table(cost: dict[str, float]) -> Table:
    table = Table(title="What the run would cost", show_header=False)
    table.add_row("parameters", f"{cost['parameters'] / 1e6:.2f} M")
    table.add_row("forward of one image, lowest budget", f"{cost['forward_gflops_lowest']:.2f} GFLOPs")
    table.add_row("forward of one image, highest budget", f"{cost['forward_gflops_highest']:.2f} GFLOPs")
    table.add_row("step of a batch, highest budget", f"{cost['step_gflops_highest'] / 1e3:.2f} TFLOPs")
    table.add_row("step of a batch, on average", f"{cost['step_gflops_mean'] / 1e3:.2f} TFLOPs")
    table.add_row("weights, gradients, moments, EMA", f"{cost['state_bytes'] / 2**20:.0f} MiB")
    if cost["ranks"] > 1:
        table.add_row("processes", f"{cost['ranks']:.0f}")
        table.add_row("of these, on each process", f"{cost['rank_state_bytes'] / 2**20:.0f} MiB")
        table.add_row("weights gathered at a time", f"{cost['rank_gathered_bytes'] / 2**20:.0f} MiB")
    table.add_row("activations on each process, highest budget", f"{cost['activation_bytes_highest'] / 2**20:.0f} MiB")
    return table
