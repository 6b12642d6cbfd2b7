"""The page of all claims, written from what was measured: a figure, the comparisons and a verdict each."""

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from elit.claims.claim import Arm, Claim, Comparison, Drawn, Given, HeldOut, Scale, Side
from elit.claims.difference import Difference, Verdict, conclusion, difference
from elit.claims.queue import SEEN_TIMES, Measured, Queue, told
from elit.claims.table import CLAIMS, RUNS, SCALES
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.files import told as written
from elit.files import write_whole
from elit.pictures import Row, save_png
from elit.reports.drawing import ImageSheet, Panel, Panels, Point, heat
from elit.target import parse_budget

MARK = "<!-- written by elit claims page: nothing here is typed by hand -->"
CELL = 128  # pixels of a map


@dataclass(frozen=True)
class Outcome:
    """A comparison with its difference, None where it is not measured yet, and the arms that were the best of each side."""

    comparison: Comparison
    difference: Difference | None
    best: tuple[str, str] = ("", "")

    @property
    def verdict(self) -> Verdict:
        if self.difference is None:
            return Verdict.OPEN
        return self.difference.verdict(self.comparison.margin)


def outcomes(queue: Queue, claim: Claim) -> list[Outcome]:
    """Every comparison of a claim, from what is measured."""
    return [outcome(queue, one) for one in claim.comparisons]


def outcome(queue: Queue, comparison: Comparison) -> Outcome:
    """A comparison over the seeds that all of its arms have."""
    sides = (comparison.a, comparison.b)
    found = {arm: queue.results(arm) for side in sides if not isinstance(side, Given) for arm in side}
    seeds = min(map(len, found.values()))
    if seeds == 0:
        return Outcome(comparison, None)
    pictures = len(next(iter(found.values()))[0].values)

    def best(side: Side) -> tuple[Tensor, str]:
        """The values (R, N) of the arm of the lowest mean."""
        if isinstance(side, Given):
            return torch.full((seeds, pictures), side.value, dtype=torch.float64), f"{side.value:g}"
        values = {arm: torch.tensor([one.values for one in found[arm][:seeds]], dtype=torch.float64) for arm in side}
        arm = min(side, key=lambda arm: float(values[arm].mean()))
        return values[arm], told(arm)

    (a, a_name), (b, b_name) = map(best, sides)
    return Outcome(comparison, difference(a, b), (a_name, b_name))


def verdict(found: Sequence[Outcome]) -> Verdict:
    """Of a claim."""
    return conclusion([one.verdict for one in found if one.comparison.decides])


def summary(queue: Queue, claims: Sequence[Claim]) -> str:
    """The verdict of each claim and what it rests on, in lines of at most 80 letters."""
    lines = []
    for claim in claims:
        found = outcomes(queue, claim)
        lines.append(f"{claim.name}: {verdict(found)}")
        for one in found:
            text = f"{one.comparison.says}{'' if one.comparison.decides else ' (beside)'}: {interval(one)}, {one.verdict}"
            lines.append(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def interval(found: Outcome) -> str:
    """A difference as people read it."""
    if found.difference is None:
        return "not run yet"
    d = found.difference
    return f"{100 * d.share:+.1f} % ({100 * d.low:+.1f} to {100 * d.high:+.1f})"


def write_page(queue: Queue, page: Path) -> list[Path]:
    """Writes the page, and its figures into a folder of its name beside it. Returns what was written.

    Raises UserError where another page is in the way, and where nothing was measured.
    """
    if page.exists() and MARK not in page.read_text(encoding="utf8")[:4096]:
        raise UserError(f"{page} is not a page of claims, and would be replaced; move it, or give another --page")
    tried = [claim for claim in CLAIMS if is_tried(queue, claim)]
    if not tried:
        raise UserError(f"nothing in {queue.out} is measured yet; run elit claims run --out {queue.out}")
    figures = page.with_suffix("")
    with written(figures):
        figures.mkdir(parents=True, exist_ok=True)
    made = []
    for claim in tried:
        file = figures / f"{claim.name}.png"
        draw(queue, claim, file)
        made.append(file)
    write_whole(page, page_text(queue, tried, figures.name))
    return [page, *made]


def is_tried(queue: Queue, claim: Claim) -> bool:
    """Whether all that decides a claim is measured, of one seed at least."""
    return all(one.difference is not None for one in outcomes(queue, claim) if one.comparison.decides)


def page_text(queue: Queue, tried: Sequence[Claim], figures: str) -> str:
    """The page in Markdown."""
    lines = [MARK, "# The paper's claims at desk scale", "", *introduction(queue), "", "| claim | verdict |", "|---|---|"]
    for claim in CLAIMS:
        linked = f"[{claim.title}](#{anchor(claim.title)})" if claim in tried else claim.title
        lines.append(f"| {linked} | {verdict(outcomes(queue, claim)) if claim in tried else 'not run yet'} |")
    for claim in tried:
        lines += ["", *section(queue, claim, figures)]
    return "\n".join([*lines, "", *trainings(queue)]) + "\n"


def introduction(queue: Queue) -> list[str]:
    """What all claims have in common."""
    scale = queue.scale
    data = "the embedded emoji, 32 x 32" if queue.data == "emoji" else f"`{queue.data}`"
    return [
        "Each claim of the paper is a small record in `src/elit/claims/table.py`: what is trained, what is compared, and"
        " what would count as true. One queue trains what they share once, measures it, and goes on where it was stopped:",
        "",
        "```bash",
        "elit claims list",
        "```",
        "",
        "```text",
        f"elit claims run{scale_option(scale)} --out runs/claims",
        "elit claims page --out runs/claims --page docs/claims.md",
        "```",
        "",
        f"Data: {data}; {scale.pictures} held-out pictures, of which none was trained on. Models: width {scale.width}, depth"
        f" {scale.depth}, patch {scale.patch}, the paper's interface but where another is named, windows of 4 x 4 tokens;"
        f" Muon at a constant rate, averaged weights, batch {scale.batch}. A training of one unit has the FLOPs of"
        f" {scale.steps:,} dense steps. That is {small(scale.steps)}: what is said here is said of models of this size"
        " alone.",
        "",
        "Losses are the flow's, on the same pictures, noise and times for every model. Samples are judged by their kernel"
        f" distance (SqueezeNet's features, unscaled) to training pictures, {scale.samples} for each arm from the same"
        " noise. A difference is a share of the second thing compared; its interval holds it with 95 % confidence, over"
        " seeds (each a training of its own) and pictures alike. **True here**: all of it is on the claim's side. **Not"
        " true here**: all of it is on the other. **Not decided**: it is on both.",
    ]


def scale_option(scale: Scale) -> str:
    """The option that asks for a scale, whatever its number of seeds; nothing where it has no name."""
    return next((f" --scale {name}" for name, one in SCALES.items() if replace(one, seeds=scale.seeds) == scale), "")


def small(steps: int) -> str:
    return "very little training" if steps < 1000 else "little training"


def section(queue: Queue, claim: Claim, figures: str) -> list[str]:
    """A claim: what is said, what was run, the figure, the comparisons, and what was measured."""
    found = outcomes(queue, claim)
    rows = [
        f"| {one.comparison.says}{'' if one.comparison.decides else ' (beside)'} | {interval(one)} | {basis(one)} |"
        f" {one.verdict} |"
        for one in found
    ]
    best = [f"{one.best[0]}, against {one.best[1]}" for one in found if several(one.comparison)]
    return [
        f"## {claim.title}",
        "",
        f"**Claimed.** {claim.paper}",
        "",
        f"**Run here.** {claim.here}",
        "",
        f"**Verdict: {verdict(found)}.**",
        "",
        f"![{claim.title}]({figures}/{claim.name}.png)",
        "",
        *["| what would make it true | difference (95 % interval) | n | verdict |", "|---|---|---|---|", *rows],
        *(["", f"The best were: {'; '.join(best)}."] if best else []),
        "",
        *measured_table(queue, claim),
    ]


def several(comparison: Comparison) -> bool:
    """Whether a side is the best of some arms."""
    return any(not isinstance(side, Given) and len(side) > 1 for side in (comparison.a, comparison.b))


def basis(found: Outcome) -> str:
    """What a difference rests on."""
    d = found.difference
    return "" if d is None else f"{d.seeds} seed{'s' * (d.seeds > 1)} x {d.pictures}"


def measured_table(queue: Queue, claim: Claim) -> list[str]:
    """Every arm of a claim: its mean over the seeds and their spread, and what it costs."""
    arms = [(arm, queue.results(arm)) for arm in claim.arms()]
    drawn = any(isinstance(arm, Drawn) for arm, _ in arms)
    head = ["measured", value_name(arms[0][0]), "training, TFLOPs", "GFLOPs of an image" if drawn else "GFLOPs of a forward"]
    lines = ["| " + " | ".join([*head, *(["steps", "Fréchet"] if drawn else [])]) + " |"]
    lines.append("|---" * (len(head) + 2 * drawn) + "|")
    for arm, results in arms:
        if results:
            first = results[0]
            cells = [told(arm), spread_text(results), f"{first.training_tflops:.3g}", f"{first.gflops:.3g}"]
            if drawn:
                cells += [str(first.sampler_steps), f"{statistics.fmean(one.frechet or 0.0 for one in results):,.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread_text(results: Sequence[Measured]) -> str:
    """The mean over the seeds with their standard deviation."""
    means = [statistics.fmean(one.values) for one in results]
    digits = 1 if max(map(abs, means)) >= 10 else 4
    deviation = f" ± {statistics.stdev(means):,.{digits}f}" if len(means) > 1 else ""
    return f"{statistics.fmean(means):,.{digits}f}{deviation}"


def value_name(arm: Arm) -> str:
    if isinstance(arm, HeldOut):
        return "held-out loss"
    return "kernel distance" if isinstance(arm, Drawn) else "share of attention"


def trainings(queue: Queue) -> list[str]:
    """What was trained, and on which machines."""
    results = {arm: queue.results(arm) for claim in CLAIMS for arm in claim.arms()}
    runs = [run for run in RUNS if any(arm.model.run == run and found for arm, found in results.items())]
    seeds = {run: max(len(found) for arm, found in results.items() if arm.model.run == run) for run in runs}
    machines = sorted({one.machine for found in results.values() for one in found})
    rows = [
        f"| {run} | {queue.steps(run):,} | {queue.steps(run) * queue.step_gflops(run) / 1000:.3g} | {seeds[run]} |"
        f" {' '.join(f'`{key}`' for key in keys_of(run))} |"
        for run in runs
    ]
    return [
        "## What was trained",
        "",
        *["| training | steps | TFLOPs | seeds | keys |", "|---|---|---|---|---|", *rows],
        "",
        f"Machine: {'; '.join(machines)}. A ± in a table is the standard deviation over the seeds. Every curve's bars are"
        " that, too.",
    ]


def keys_of(run: str) -> list[str]:
    """The keys of a run, as the configuration has them."""
    return [key.removeprefix("--") for key in RUNS[run].keys]


def anchor(title: str) -> str:
    """The name of a heading within its page, as GitHub makes it."""
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_").replace(" ", "-")


def draw(queue: Queue, claim: Claim, file: Path) -> None:
    """Writes the figure of a claim as PNG: its curves, or Read's maps."""
    if not claim.curves:
        sheet = maps_of(queue, claim)
        save_png(sheet.draw(range(len(sheet.columns)), CELL), file, made_by=MARK)
        return
    name = value_name(claim.arms()[0])
    curves = {}
    for curve, arms in claim.curves.items():
        results = [(arm, queue.results(arm)) for arm in arms]
        curves[curve] = sorted(point(claim.x, arm, found) for arm, found in results if found)
    Panels([Panel(name, claim.x, curves, from_zero=False)]).save(file)


def point(x: str, arm: Arm, results: Sequence[Measured]) -> Point:
    """An arm's place in a figure: its mean over the seeds, and their standard deviation."""
    means = [statistics.fmean(one.values) for one in results]
    deviation = statistics.stdev(means) if len(means) > 1 else 0.0
    return Point(place(x, arm, results[0]), statistics.fmean(means), deviation, deviation)


def place(x: str, arm: Arm, first: Measured) -> float:
    """Where an arm stands on an axis of this name."""
    if x == "TFLOPs of training":
        return first.training_tflops
    if x == "GFLOPs of an image":
        return first.gflops
    if x == "guidance scale":
        assert isinstance(arm, Drawn)
        return arm.scale
    assert x == "budget" and isinstance(arm, HeldOut)
    budget = parse_budget(arm.budget)
    assert not isinstance(budget, Schedule)
    return budget


def maps_of(queue: Queue, claim: Claim) -> ImageSheet:
    """Read's maps, a row for each seed and a column for each time; a white line is drawn around the picture."""
    arm = next(arm for arm in claim.arms() if value_name(arm) == "share of attention")
    rows = []
    for seed, found in enumerate(queue.results(arm)):
        maps_TN = torch.tensor(found.maps)
        side = round(maps_TN.shape[1] ** 0.5)
        rows.append(Row(f"seed {seed}", framed(heat(maps_TN.unflatten(1, (side, side)), (CELL, CELL)))))
    return ImageSheet(rows, [f"t = {time:g}" for time in SEEN_TIMES])


def framed(maps_T3HW: Tensor) -> Tensor:
    """Maps with a white line around the middle half of each side, where the picture is."""
    first, last = CELL // 4, CELL - CELL // 4 - 1
    for line in (first, last):
        maps_T3HW[:, :, line, first : last + 1] = 1
        maps_T3HW[:, :, first : last + 1, line] = 1
    return maps_T3HW
