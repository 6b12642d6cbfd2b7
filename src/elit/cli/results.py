"""`elit results`: the quality of a model, written into its card and into a table."""

import argparse
from dataclasses import replace
from pathlib import Path

from elit.cli.parsing import Commands, parse_budgets
from elit.console import console, output
from elit.errors import UserError


def add_results(commands: Commands) -> None:
    command = commands.add_parser(
        "results", help="measure a model's quality per budget and write it into its card; resumable"
    )
    command.add_argument("--model", help="a model folder; the bundled one if none is given")
    command.add_argument("--dense", metavar="FOLDER", help="a dense model of the emoji, to be measured beside it")
    command.add_argument("--budgets", default="1/16,1/8,1/4,1/2,3/4,1", help="comma-separated fractions")
    command.add_argument("--seeds", type=int, default=3, help="how many sampling seeds")
    command.add_argument("--count", type=int, help="samples per budget and seed, instead of the 949 that there can be")
    command.add_argument("--work", default="runs/results", help="folder that keeps what is finished, and the pictures")
    command.add_argument("--readme", metavar="FILE", help="a Markdown file whose table is written anew")
    command.add_argument("--from-card", action="store_true", help="measure nothing; show, and write, what the card holds")
    command.set_defaults(run=run_results)


def run_results(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER
    from elit.card import load_card, save_card
    from elit.files import written_whole
    from elit.pictures import save_png
    from elit.reports.drawing import draw_panels
    from elit.reports.scorecard import measure_results, results_block, results_panels, write_block
    from elit.reports.subject import known_data
    from elit.weights import load_model

    if options.seeds < 1 or (options.count is not None and options.count < 4):
        raise UserError(f"{options.seeds} seeds of {options.count} samples are too few; give 1 seed and 4 samples, or more")
    folder, work = Path(options.model or FOLDER), Path(options.work)
    model, card = load_model(folder), load_card(folder)
    if not options.from_card:
        if known_data(model) is None:
            raise UserError(f"{folder} holds no model of the 99 emoji classes at 3 x 32 x 32; use elit evaluate for others")
        dense = None if options.dense is None else Path(options.dense)
        budgets, seeds = parse_budgets(options.budgets), range(options.seeds)
        results = measure_results(model, card, budgets, seeds, work, dense, options.count)
        card = replace(card, quality=results.quality)
        save_card(card, folder)
        save_png(results.pairs, work / "pairs.png")
        with written_whole(work / "quality.png") as file:
            draw_panels(results_panels(model, results.quality), file)
        console.print(f"written to {folder / 'card.json'}; what was drawn, quality.png and pairs.png are in {work}")
    block = results_block(model, card)
    output.print(block, markup=False, soft_wrap=True)
    if options.readme is not None:
        write_block(Path(options.readme), block)
        console.print(f"the table is in {options.readme}")
