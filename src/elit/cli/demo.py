"""`elit demo`: the bundled model at every budget."""

import argparse
from pathlib import Path

from elit.cli.parsing import Commands, finish, parse_budgets, split_labels


def add_demo(commands: Commands) -> None:
    command = commands.add_parser("demo", help="sample the bundled model at every budget, and show cost and quality")
    command.add_argument("--out", default="demo", help="folder for budgets.png, tradeoff.png and results.json")
    command.add_argument("--model", help="another model folder, such as a checkpoint of `elit train` on the emoji")
    command.add_argument("--labels", help="comma-separated subcategories, by name or number, instead of the dozen shown")
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    command.add_argument(
        "--quality",
        metavar="BUDGETS",
        help="measure quality now at these comma-separated budgets, such as 1/16,1 (minutes each)",
    )
    command.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER
    from elit.evaluation.quality import measure
    from elit.reports.budgets import report_budgets
    from elit.reports.subject import load_subject, require_emoji

    budgets = None if options.quality is None else parse_budgets(options.quality)
    subject = load_subject(Path(options.model or FOLDER), split_labels(options.labels), options.seed)
    require_emoji(subject)
    quality = subject.card.quality
    if budgets is not None:
        quality = measure(subject.model, budgets, [options.seed], subject.card.recipe)
    finish(report_budgets(subject, quality), Path(options.out))
