"""`elit demo`: the bundled model at every budget."""

import argparse

from elit.cli.parsing import MOST_SEED, Parser, finish, folder, parse_budgets, place, whole


def add_demo(command: Parser) -> None:
    command.describe(
        "Samples the bundled model at each of its sixteen budgets from the same noise, measures what each costs here, and"
        " writes pictures, figures and a page that shows them side by side. Takes about a minute on two cores.",
        "elit demo",
        "elit demo --labels heart/noto,time/twemoji --seed 3 --out demo-mine",
    )
    command.add_argument("--out", type=folder, default="demo", help="folder for budgets.png, tradeoff.png and results.json")
    command.add_argument("--model", type=place, help="another model of the emoji, such as a checkpoint of elit train")
    command.add_argument("--labels", help="comma-separated names, numbers or ranges, instead of the dozen shown")
    command.add_argument("--seed", type=whole(0, MOST_SEED), default=0, help="of the noise")
    command.add_argument(
        "--quality",
        metavar="BUDGETS",
        help="measure quality now at these comma-separated budgets, such as 1/16,1 (minutes each)",
    )
    command.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> None:
    from elit.evaluation.quality import Judge, measure
    from elit.hub import find_model
    from elit.reports.budgets import report_budgets
    from elit.reports.report import check_folder
    from elit.reports.subject import load_subject, require_known

    budgets = None if options.quality is None else parse_budgets(options.quality)
    source = find_model(options.model)
    subject = load_subject(source, options.labels, options.seed, name=options.model or "bundled")
    require_known(subject)
    check_folder(options.out)
    quality = subject.card.quality
    if budgets is not None:
        quality = measure(Judge(exam=subject.exam), subject.model, budgets, [options.seed], subject.card.recipe)
    finish(report_budgets(subject, quality), options.out, options.typed, next(subject.model.parameters()).device)
