"""`elit results`: the quality of a model, written into its card."""

import argparse
from dataclasses import replace
from pathlib import Path

from elit.cli.parsing import Commands, parse_budgets
from elit.console import console, output


def add_results(commands: Commands) -> None:
    command = commands.add_parser(
        "results", help="measure a model's quality per budget and write it into its card; resumable"
    )
    command.add_argument("--model", help="a model folder; the bundled one if none is given")
    command.add_argument("--budgets", default="1/16,1/8,1/4,1/2,3/4,1", help="comma-separated fractions")
    command.add_argument("--seeds", type=int, default=3, help="how many sampling seeds")
    command.add_argument("--work", default="runs/results", help="folder that keeps what is finished")
    command.set_defaults(run=run_results)


def run_results(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER, load_card, save_card
    from elit.reports.budgets import budget_table, cost_rows, with_quality
    from elit.reports.quality import measure
    from elit.reports.report import terminal_table
    from elit.weights import load_model

    folder = Path(options.model) if options.model else FOLDER
    model, card = load_model(folder), load_card(folder)
    budgets = parse_budgets(options.budgets)
    quality = measure(model, budgets, range(options.seeds), card.sampling, Path(options.work))
    save_card(replace(card, quality=quality), folder)
    output.print(terminal_table(budget_table(with_quality(cost_rows(model, budgets), quality), quality)))
    console.print(f"written to {folder / 'card.json'}")
