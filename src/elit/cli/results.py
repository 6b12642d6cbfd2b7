"""`elit results`: the quality of a model, written into its card and into a table."""

import argparse
from dataclasses import replace

from elit.cli.parsing import MOST, MOST_SEEDS, Parser, folder, parse_budgets, place, whole
from elit.console import say, show
from elit.errors import UserError


def add_results(command: Parser) -> None:
    command.describe(
        "Measures what an emoji model is worth at several budgets, and writes it into the model's card and, if asked, as"
        " a table into a Markdown file. Takes most of an hour on two cores; the same command goes on where it was stopped.",
        "elit results --from-card",
        "elit results --model my-model --work runs/my-results",
    )
    command.add_argument("--model", type=place, help="a model folder; the bundled one if none is given")
    command.add_argument(
        "--dense", type=folder, metavar="FOLDER", help="a dense model of the emoji, to be measured beside it"
    )
    command.add_argument(
        "--training", type=folder, metavar="DATA", help="the prepared pictures of its training, to count copies of them"
    )
    command.add_argument("--budgets", default="1/16,1/8,1/4,1/2,3/4,1", help="comma-separated fractions")
    command.add_argument("--seeds", type=whole(1, MOST_SEEDS), default=3, help="how many sampling seeds")
    command.add_argument(
        "--count", type=whole(4, MOST), help="samples per budget and seed, instead of half of the real pictures"
    )
    command.add_argument(
        "--work", type=folder, default="runs/results", help="folder that keeps what is finished, and the pictures"
    )
    command.add_argument("--readme", type=folder, metavar="FILE", help="a Markdown file whose table is written anew")
    command.add_argument("--from-card", action="store_true", help="measure nothing; show, and write, what the card holds")
    command.set_defaults(run=run_results)


def run_results(options: argparse.Namespace) -> None:
    from elit.card import load_card, save_card
    from elit.data.dataset import PreparedData
    from elit.evaluation.exam import exam_of
    from elit.hub import find_model
    from elit.pictures import save_png
    from elit.reports.drawing import Panels
    from elit.reports.scorecard import measure_results, results_block, results_panels, write_block
    from elit.weights import load_model

    source, work = find_model(options.model), options.work
    model, card = load_model(source), load_card(source)
    if not options.from_card:
        if exam_of(model, card) is None:
            raise UserError(f"{source} holds no model of the emoji, at 32 or 64 pixels; use elit evaluate for others")
        dense = None if options.dense is None else find_model(options.dense)
        training = None if options.training is None else PreparedData(options.training)
        budgets, seeds = parse_budgets(options.budgets), range(options.seeds)
        results = measure_results(model, card, budgets, seeds, work, dense, options.count, training)
        card = replace(card, quality=results.quality)
        save_card(card, source)
        if results.pairs is not None:
            save_png(results.pairs, work / "pairs.png")
        Panels(results_panels(model, results.quality)).save(work / "quality.png")
        say(f"written to {source / 'card.json'}; what was drawn and its pictures are in {work}")
    block = results_block(model, card)
    show(block)
    if options.readme is not None:
        write_block(options.readme, block)
        say(f"the table is in {options.readme}")
