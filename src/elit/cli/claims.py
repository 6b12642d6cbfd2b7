"""`elit claims`: the paper's claims, tried at a small scale."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from elit.cli.parsing import MOST_SEEDS, Commands, Parser, folder, place, whole
from elit.console import Table, say, show
from elit.errors import UserError
from elit.words import suggest

if TYPE_CHECKING:
    from elit.claims.claim import Claim

OUT = "runs/claims"


def add_claims(command: Parser) -> None:
    kinds: Commands = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    command.describe(
        "Tries the paper's claims at a small scale: trains what they share once, compares over seeds, and says of each"
        " whether it is true here, not true here, or not decided.",
        "elit claims list",
        "elit claims run tail-dropping --scale small --out runs/claims",
        "elit claims page --out runs/claims --page docs/claims.md",
        takes="KIND",
    )
    listing = kinds.add_parser("list", help="the claims, by name")
    listing.describe("Lists the claims of the paper that can be tried here, and what each is about.", "elit claims list")
    listing.set_defaults(run=run_list)
    running = kinds.add_parser("run", help="train and measure what some claims need, or all")
    running.describe(
        "Trains and measures what claims need, all of them if none is named. The same command goes on where it was stopped.",
        "elit claims run --scale small",
        "elit claims run one-for-all convergence --data data/emoji-styles",
        takes="[NAME...]",
    )
    running.add_argument("names", nargs="*", metavar="NAME", help="of claims, as elit claims list has them")
    running.add_argument("--scale", default="desk", help="desk, 40 minutes of two cores a claim; or small, glance or tiny")
    running.add_argument("--seeds", type=whole(1, MOST_SEEDS), help="trainings of each kind, instead of the scale's")
    running.add_argument(
        "--data", type=place, default="emoji", help="emoji, or a folder with train and test as elit prepare writes them"
    )
    page = kinds.add_parser("page", help="write the page of all that is measured")
    page.describe(
        "Writes a page in Markdown of all claims that are measured, and its figures into a folder of its name beside it.",
        "elit claims page --out runs/claims --page docs/claims.md",
    )
    page.add_argument("--page", type=folder, default="claims.md", metavar="FILE", help="the page to write")
    for kind, run in ((running, run_run), (page, run_page)):
        kind.add_argument("--out", type=folder, default=OUT, help="folder that keeps trainings and what is measured")
        kind.set_defaults(run=run)


def run_list(options: argparse.Namespace) -> None:
    from elit.claims.table import CLAIMS

    table = Table("name", "claim", title="The paper's claims")
    for claim in CLAIMS:
        table.add_row(claim.name, claim.title)
    show(table)


def run_run(options: argparse.Namespace) -> None:
    from elit.claims.page import summary
    from elit.claims.queue import open_queue
    from elit.claims.table import CLAIMS, SCALES
    from elit.files import locked

    claims = named(options.names) or list(CLAIMS)
    if options.scale not in SCALES:
        raise UserError(f"there is no scale {options.scale!r}; {suggest(options.scale, list(SCALES))}")
    scale = SCALES[options.scale]
    if options.seeds is not None:
        scale = replace(scale, seeds=options.seeds)
    check_data(options.data)
    queue = open_queue(options.out, scale, options.data)
    with locked(options.out, "trying claims"):
        queue.work(claims)
    show(summary(queue, claims))
    say(f"what is measured is in {options.out}; elit claims page --out {options.out} writes the page")


def run_page(options: argparse.Namespace) -> None:
    from elit.claims.page import write_page
    from elit.claims.queue import Queue, read_settings

    settings = read_settings(options.out)
    made = write_page(Queue(options.out, settings.scale, settings.data), options.page)
    say(f"{made[0]} is written, and {len(made) - 1} figures in {made[1].parent}")


def named(names: list[str]) -> "list[Claim]":
    """The claims of some names, each once. Raises UserError, naming close ones, for one that is not there."""
    from elit.claims.table import CLAIMS

    known = {claim.name: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            raise UserError(f"there is no claim {name!r}; {suggest(name, list(known))}")
    return [known[name] for name in dict.fromkeys(names)]


def check_data(data: str) -> None:
    """Raises UserError where the data are not there."""
    if data != "emoji" and not all((Path(data) / split).is_dir() for split in ("train", "test")):
        raise UserError(
            f"--data {data} has no folders train and test; make them with elit prepare emoji-styles --out {data}"
        )
