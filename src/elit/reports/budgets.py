"""What each budget costs and gives, for any model: pictures, GFLOPs, latency and, for a model of known data, quality."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from elit.card import Quality
from elit.console import progress_bar
from elit.cost import flops_by_level, time_forward
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.quality import Judge, measure
from elit.pictures import Row
from elit.reports.drawing import ClipSheet, ImageSheet, Panel, Panels, Point
from elit.reports.page import Table
from elit.reports.report import Part, Picture, Report
from elit.reports.samples import budget_name, draw_all
from elit.reports.scores import (
    QUALITY_COLUMNS,
    Scores,
    gflops_text,
    quality_cells,
    quality_note,
    quality_panels,
    without_empty,
)
from elit.reports.subject import Subject

REAL_ROWS = 2
LATENCY_REPEATS = 9
MEASURED = (1 / 16, 1 / 4, 1.0)  # where a card holds no quality


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward of one image: the median and the quartiles of several."""

    median: float
    first: float
    third: float

    def told(self) -> dict[str, float]:
        """As results.json and cards hold it."""
        return {"latency_ms": self.median, "latency_ms_q1": self.first, "latency_ms_q3": self.third}


@dataclass(frozen=True)
class BudgetRow:
    """A budget: its level, the GFLOPs and the time of a forward of one image, and what its samples are worth."""

    budget: float
    latents_per_group: int
    gflops: float
    latency: Latency | None = None
    scores: Scores = field(default_factory=dict)

    def told(self) -> dict[str, float]:
        """As results.json holds it."""
        cost = {"budget": self.budget, "latents_per_group": self.latents_per_group, "gflops": self.gflops}
        return {**cost, **(self.latency.told() if self.latency else {}), **self.scores}


def report_budgets(subject: Subject, quality: Quality | None = None) -> Report:
    """Samples every label at every budget, the same noise down a column, and measures what each costs.

    `quality`: what `evaluation.quality.measure` gives, or a card holds; None where it is not known.
    """
    model = subject.model
    budgets = model.levels.fractions()
    recipes = [replace(subject.recipe, budget=budget) for budget in budgets]
    samples = subject.shown(draw_all(model, recipes, subject.told))
    timed = measure_latency(model, budgets)
    rows = [replace(row, latency=ms) for row, ms in zip(budget_rows(model, budgets, quality), timed, strict=True)]
    images = [
        Row(f"{budget_name(row.budget, model)}\n{gflops_text(row.gflops)} GFLOPs", some)
        for row, some in zip(rows, samples, strict=True)
    ]
    if subject.data is not None:
        images = [*(Row("real", some) for some in subject.real_examples(REAL_ROWS)), *images]
    panels = Panels([*quality_over_cost(rows, quality), *cost_panels(rows)])
    shown = "A row for each budget, with the GFLOPs of one forward; every column starts from the same noise."
    parts: list[Part] = [
        subject.describe(),
        *subject.notes(),
        sheet_of(images, subject.label_names, shown),
        cost_table(rows, model),
        *([] if quality is None else [quality_table(rows, quality, model)]),
        Picture("tradeoff.png", tradeoff_caption(quality), panels),
    ]
    results = {**subject.results(), "budgets": [row.told() for row in rows], "quality": quality}
    return Report("One set of weights, many budgets", parts, results)


def sheet_of(rows: Sequence[Row], columns: Sequence[str], shown: str) -> Picture:
    """Images, or clips that move, of every budget."""
    if rows[0].images.ndim == 5:
        return Picture("budgets.gif", shown, ClipSheet(rows, columns))
    return Picture("budgets.png", shown, ImageSheet(rows, columns))


def quality_of(subject: Subject, budgets: Sequence[float] | None, count: int, work: Path) -> Quality | None:
    """The quality to report: measured at `budgets` where they are given, else the card's, else measured at a few.

    None where it cannot be known: another model's data, or neither a card's figures for this sampling nor a count.
    """
    card = subject.card
    if subject.data is None:
        if budgets is not None:
            raise UserError(
                f"quality is measured for models of the emoji alone, which {subject.name} is not; omit --quality"
            )
        return None
    if budgets is None and card.quality is not None and card.quality.get("sampling") == card.sampling.told():
        return card.quality
    if count == 0:
        return None
    wanted = list(budgets or dict.fromkeys(subject.model.levels.of(b) / subject.model.latents for b in MEASURED))
    return measure(Judge(count, subject.exam), subject.model, wanted, [subject.seed], card.recipe, work)


def budget_rows(model: ElasticModel, budgets: Sequence[float], quality: Quality | None) -> list[BudgetRow]:
    """The GFLOPs of each budget, and its scores where `quality` has some of that budget; no latency."""
    known = {} if quality is None else {round(row["budget"], 6): row for row in quality["budgets"]}
    costs = flops_by_level(model)
    return [
        BudgetRow(
            budget,
            (level := model.levels.of(budget)),
            costs[level] / 1e9,
            scores={name: value for name, value in known.get(round(budget, 6), {}).items() if name != "budget"},
        )
        for budget in budgets
    ]


@torch.no_grad()
def measure_latency(model: ElasticModel, budgets: Sequence[float]) -> list[Latency]:
    """The time of a forward at batch 1 at each budget.

    The repeats are interleaved, every budget once a round, so that what else the machine does meets all of them alike.
    """
    x, t, y = model.example()
    seconds: list[list[float]] = [[] for _ in budgets]
    for budget in budgets:  # the first forward of a shape is slower
        model(x, t, y, budget)
    with progress_bar() as bar:
        task = bar.add_task("timing", total=LATENCY_REPEATS * len(budgets), unit="forwards")
        for _ in range(LATENCY_REPEATS):
            for found, budget in zip(seconds, budgets, strict=True):
                found += time_forward(lambda b=budget: model(x, t, y, b), x.device, repeats=1, warm_up=0)  # type: ignore[misc]
                bar.advance(task)
    return [quartiles([1000 * s for s in found]) for found in seconds]


def quartiles(milliseconds: Sequence[float]) -> Latency:
    """The median, and the first and the third quartile."""
    first, median, third = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Latency(median, first, third)


def cost_table(rows: Sequence[BudgetRow], model: ElasticModel) -> Table:
    """What a forward of one image costs at each budget."""
    columns = ("budget", "GFLOPs", "of full", "ms", "first quartile", "third quartile")
    full = rows[-1].gflops
    cells = [
        [
            budget_name(row.budget, model),
            gflops_text(row.gflops),
            f"{row.gflops / full:.0%}",
            *((f"{row.latency.median:.1f}", f"{row.latency.first:.1f}", f"{row.latency.third:.1f}") if row.latency else ()),
        ]
        for row in rows
    ]
    note = f"One forward of one image. Milliseconds: the median and the quartiles of {LATENCY_REPEATS} interleaved repeats."
    return Table("What a budget costs", columns, cells, note)


def quality_table(rows: Sequence[BudgetRow], quality: Quality, model: ElasticModel) -> Table:
    """What the samples of each budget that was measured are worth, and what real pictures score."""
    cells = [[budget_name(row.budget, model), *quality_cells(row.scores)] for row in rows if row.scores]
    cells.append(["real", *quality_cells(quality["real"])])
    note = quality_note(quality)
    return without_empty(Table("What a budget gives", ("budget", *QUALITY_COLUMNS), cells, note))


def quality_over_cost(rows: Sequence[BudgetRow], quality: Quality | None) -> list[Panel]:
    """Quality over the budget, and over the GFLOPs that it costs."""
    over_budget, over_gflops = (
        {"": [(x, row.scores) for x, row in zip(xs, rows, strict=True)]}
        for xs in ([row.budget for row in rows], [row.gflops for row in rows])
    )
    return [
        *quality_panels(over_budget, "budget", quality),
        *quality_panels(over_gflops, "GFLOPs of one forward", quality),
    ]


def cost_panels(rows: Sequence[BudgetRow]) -> list[Panel]:
    """GFLOPs and, where it was measured, latency over the budget."""
    gflops = [Point(row.budget, row.gflops) for row in rows]
    latency = [
        Point(row.budget, ms.median, ms.median - ms.first, ms.third - ms.median) for row in rows if (ms := row.latency)
    ]
    costs = [("GFLOPs of one forward", gflops), ("latency of one forward (ms)", latency)]
    return [Panel(title, "budget", {"": points}) for title, points in costs]


def tradeoff_caption(quality: Quality | None) -> str:
    """What the panels of this report show."""
    cost = f"GFLOPs and latency over the budget; bars: the quartiles of {LATENCY_REPEATS} repeats."
    if quality is None:
        return cost
    bars = " (bars: the deviation over the seeds)" if len(quality["seeds"]) > 1 else ""
    return f"Quality over the budget and over what it costs{bars}; {cost}"
