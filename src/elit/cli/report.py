"""`elit report`: pictures, figures and one page on what a model does."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from elit.cli.parsing import (
    MOST,
    MOST_SEED,
    MOST_SEEDS,
    Commands,
    Parser,
    finish,
    folder,
    parse_budgets,
    parse_numbers,
    place,
    split_labels,
    whole,
)
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.reports.report import Report
    from elit.reports.subject import Subject


def add_report(command: Parser) -> None:
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    command.describe(
        "Writes pictures, figures and one page on what a model does. What takes long goes on where it was stopped.",
        "elit report budgets --labels heart,zodiac",
        "elit report guidance --model my-model --scales 1,2,4",
        "elit report results evaluations/results.jsonl",
        takes="KIND",
    )
    budgets = add_kind(kinds, "budgets", "images, GFLOPs, latency and quality at every budget", run_report_budgets)
    budgets.add_argument(
        "--quality",
        metavar="BUDGETS",
        help="measure quality now at these budgets, such as 1/16,1, and not as the card has it",
    )
    guidance = add_kind(kinds, "guidance", "CFG, cheap CFG and autoguidance over scales", run_report_guidance)
    guidance.add_argument("--scales", default="1,1.5,2,3,4", help="comma-separated")
    guidance.add_argument("--weak-budget", default="1/16", help="of the weak path of cheap CFG and autoguidance")
    attention = add_kind(kinds, "attention", "what Read attends to, beside the loss of every patch", run_report_attention)
    attention.add_argument("--times", default="0.25,0.5,0.75", help="comma-separated; 1 is noise")
    schedule = add_kind(kinds, "schedule", "whether fewer latents at high noise are free", run_report_schedule)
    schedule.add_argument("--times", default="0.3,0.5,0.7", help="comma-separated; where a schedule changes, 1 is noise")
    schedule.add_argument("--budgets", default="1/4,1/16", help="comma-separated; the low budgets of the schedules")
    results = kinds.add_parser("results", help="what elit evaluate measured: distances over budget and GFLOPs")
    results.describe(
        "Draws what elit evaluate measured: each figure over the budget and over GFLOPs.",
        "elit report results evaluations/results.jsonl",
        takes="FILE...",
    )
    results.add_argument("files", nargs="+", type=folder, metavar="FILE", help="such as evaluations/results.jsonl")
    results.add_argument(
        "--out", type=folder, default="report-results", help="folder for the picture, results.json and report.html"
    )
    results.set_defaults(run=run_report_results)
    for kind in (budgets, guidance, schedule):
        kind.add_argument(
            "--count", type=whole(0, MOST), default=128, help="samples that quality is measured on; 0 to leave it out"
        )
    for kind, seeds in ((guidance, 1), (schedule, 2)):
        kind.add_argument(
            "--seeds",
            type=whole(1, MOST_SEEDS),
            default=seeds,
            help="how many seeds, from --seed on, quality is measured over",
        )


def add_kind(
    kinds: Commands, name: str, text: str, run: Callable[[argparse.Namespace, "Subject"], "Report"]
) -> argparse.ArgumentParser:
    """A kind of report, with the options that all have; `run` makes the report of a subject."""
    kind = kinds.add_parser(name, help=text)
    kind.describe(
        f"Shows {text}, on a page with pictures and tables.",
        f"elit report {name} --labels heart,zodiac",
        f"elit report {name} --model my-model",
    )
    kind.add_argument("--model", type=place, help="a model folder, such as a checkpoint; the bundled model if none is given")
    kind.add_argument("--labels", help="comma-separated, by number or, for models of the emoji, by name")
    kind.add_argument("--seed", type=whole(0, MOST_SEED), default=0, help="of the noise")
    kind.add_argument("--steps", type=whole(1, 100_000), help="of the sampler, instead of those in the model's card")
    kind.add_argument(
        "--out", type=folder, default=f"report-{name}", help="folder for the pictures, results.json and report.html"
    )
    kind.set_defaults(run=run_report, make=run)
    return kind


def run_report(options: argparse.Namespace) -> None:
    from elit.bundled import FOLDER
    from elit.reports.subject import load_subject

    if getattr(options, "count", 0) == 1:
        raise UserError(f"quality is measured on 2 samples or more, not {options.count}; give --count 0 to leave it out")
    subject = load_subject(Path(options.model or FOLDER), split_labels(options.labels), options.seed, options.steps)
    finish(options.make(options, subject), options.out)


def run_report_results(options: argparse.Namespace) -> None:
    from elit.reports.results import report_results

    finish(report_results(options.files), options.out)


def run_report_budgets(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.budgets import quality_of, report_budgets

    budgets = None if options.quality is None else parse_budgets(options.quality)
    return report_budgets(subject, quality_of(subject, budgets, options.count, work_of(options)))


def run_report_guidance(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.guidance import report_guidance

    scales, (weak, *_) = parse_numbers(options.scales), parse_budgets(options.weak_budget)
    return report_guidance(subject, scales, weak, options.count, seeds_of(options), work_of(options))


def run_report_attention(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.attention import report_attention

    return report_attention(subject, parse_numbers(options.times), subject.card.path)


def run_report_schedule(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.schedule import report_schedule

    times, budgets = parse_numbers(options.times), parse_budgets(options.budgets)
    return report_schedule(subject, times, budgets, options.count, seeds_of(options), work_of(options))


def work_of(options: argparse.Namespace) -> Path:
    """Where a report keeps the figures that are finished."""
    return options.out / "work"


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + options.seeds)
