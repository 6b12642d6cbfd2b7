"""`elit report`: pictures, figures and one page on what a model does."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from elit.cli.parsing import (
    MOST_SEED,
    MOST_SEEDS,
    Commands,
    Parser,
    finish,
    folder,
    option,
    parse_budgets,
    parse_numbers,
    place,
    whole,
)
from elit.cli.sample import add_prompts, vocabulary_of
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.reports.report import Report
    from elit.reports.subject import Subject

MOST_SAMPLES = 949  # half of the real pictures
MOST_VALUES = 32  # scales, times or budgets of a report


@option
def samples(text: str) -> int:
    """The number of samples that quality is measured on: none, or at least two."""
    count = whole(0, MOST_SAMPLES)(text)
    if count == 1:
        raise UserError(f"quality is measured on 2 to {MOST_SAMPLES} samples, not 1; give --count 0 to leave it out")
    return count


def add_report(command: Parser) -> None:
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    command.describe(
        "Writes pictures, figures and one page on what a model does. What takes long goes on where it was stopped.",
        "elit report budgets --labels heart/noto,keycap/twemoji",
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
            "--count", type=samples, default=128, help="samples that quality is measured on; 0 to leave it out"
        )
        kind.add_argument("--codec", type=place, help="for latent models: an autoencoder by folder or hub id, or ema or mse")
    attention.set_defaults(codec=None)
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
        f"elit report {name} --labels heart/noto,keycap/twemoji",
        f"elit report {name} --model my-model",
    )
    kind.add_argument("--model", type=place, help="a model or run folder, or a hub id; the bundled model if none is given")
    kind.add_argument("--labels", help="comma-separated names, numbers or ranges; a dozen if none are given")
    add_prompts(kind)
    kind.add_argument("--seed", type=whole(0, MOST_SEED), default=0, help="of the noise")
    kind.add_argument("--steps", type=whole(1, 100_000), help="of the sampler, instead of those in the model's card")
    kind.add_argument(
        "--out", type=folder, default=f"report-{name}", help="folder for the pictures, results.json and report.html"
    )
    kind.set_defaults(run=run_report, make=run)
    return kind


def run_report(options: argparse.Namespace) -> None:
    from elit.hub import find_model
    from elit.reports.report import check_folder
    from elit.reports.subject import load_subject

    check_folder(options.out)
    source = find_model(options.model)
    name = options.model or "bundled"
    asked = (options.labels, options.seed, options.steps, name, options.codec, options.texts or ())
    subject = load_subject(source, *asked, vocabulary_of(options))
    if options.kind == "attention" and subject.model.made_of() is not None:
        raise UserError("Read's attention is told by models of this library alone; elit report budgets shows this one")
    if subject.model.samples.of_clips and options.kind != "budgets":
        raise UserError(
            f"elit report {options.kind} is of pictures, and the model makes clips; elit report budgets shows them"
        )
    report = options.make(options, subject)
    finish(report, options.out, options.typed, next(subject.model.parameters()).device)


def run_report_results(options: argparse.Namespace) -> None:
    from elit.reports.report import check_folder
    from elit.reports.results import report_results

    check_folder(options.out)
    finish(report_results(options.files), options.out, options.typed)


def run_report_budgets(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.budgets import quality_of, report_budgets

    budgets = None if options.quality is None else few(parse_budgets(options.quality), "--quality")
    return report_budgets(subject, quality_of(subject, budgets, options.count, work_of(options)))


def run_report_guidance(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.guidance import report_guidance

    scales, (weak, *_) = few(parse_numbers(options.scales), "--scales"), parse_budgets(options.weak_budget)
    return report_guidance(subject, scales, weak, options.count, seeds_of(options), work_of(options))


def run_report_attention(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.attention import report_attention

    return report_attention(subject, few(parse_numbers(options.times), "--times"), subject.card.path)


def run_report_schedule(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.schedule import report_schedule

    times, budgets = few(parse_numbers(options.times), "--times"), few(parse_budgets(options.budgets), "--budgets")
    return report_schedule(subject, times, budgets, options.count, seeds_of(options), work_of(options))


def few(values: list[float], name: str) -> list[float]:
    """The values of an option, each once. Raises UserError for more of them than a report can show."""
    values = list(dict.fromkeys(values))
    if len(values) > MOST_VALUES:
        raise UserError(f"{name} lists {len(values)} values, more than the {MOST_VALUES} that a report shows; list fewer")
    return values


def work_of(options: argparse.Namespace) -> Path:
    """Where a report keeps the figures that are finished."""
    return options.out / "work"


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + options.seeds)
