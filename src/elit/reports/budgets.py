"""What each budget costs and gives, for any model: pictures, GFLOPs, latency and, for a model of the emoji, quality."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from elit.console import progress_bar
from elit.cost import flops_by_level, time_forward
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.quality import measure
from elit.reports.drawing import Panel, Point, Row, draw_grid, draw_panels
from elit.reports.page import Sheet
from elit.reports.report import Part, Picture, Report
from elit.reports.samples import draw_all
from elit.reports.scores import QUALITY_COLUMNS, figure_text, quality_cells, quality_note, quality_panels, quality_sheet
from elit.reports.subject import Subject

REAL_ROWS = 2
LATENCY_REPEATS = 9
MEASURED = (1 / 16, 1 / 4, 1.0)  # where a card holds no quality


def report_budgets(subject: Subject, quality: dict[str, Any] | None = None) -> Report:
    """Samples every label at every budget, the same noise down a column, and measures what each costs.

    `quality`: what `evaluation.quality.measure` gives, or a card holds; None where it is not known.
    """
    model = subject.model
    budgets = model.levels.fractions()
    recipes = [replace(subject.recipe, budget=budget) for budget in budgets]
    samples = draw_all(model, recipes, subject.labels)
    latency = measure_latency(model, budgets)
    rows = with_quality([{**a, **b} for a, b in zip(cost_rows(model, budgets), latency, strict=True)], quality)
    images = [Row(budget_text(row), some) for row, some in zip(rows, samples, strict=True)]
    if subject.data is not None:
        images = [*(Row("real", some) for some in subject.real_examples(REAL_ROWS)), *images]
    parts: list[Part] = [
        subject.describe(),
        *subject.notes(),
        budget_table(rows, quality),
        Picture(
            "budgets.png",
            "A row for each budget; every column starts from the same noise. Beside: GFLOPs and milliseconds of a forward.",
            partial(draw_grid, images, subject.label_names),
        ),
        Picture(
            "tradeoff.png",
            f"Cost and quality over the budget. Latency: median and quartiles of {LATENCY_REPEATS} interleaved repeats.",
            partial(draw_panels, tradeoff_panels(rows, quality)),
        ),
    ]
    results = {**subject.results(), "budgets": rows, "quality": quality}
    return Report("One set of weights, many budgets", parts, results)


def quality_of(subject: Subject, budgets: Sequence[float] | None, count: int, work: Path) -> dict[str, Any] | None:
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
    if budgets is None and card.quality is not None and card.quality.get("sampling") == asdict(card.sampling):
        return card.quality
    if count == 0:
        return None
    wanted = list(budgets or dict.fromkeys(subject.model.levels.of(b) / subject.model.latents for b in MEASURED))
    return measure(subject.model, wanted, [subject.seed], card.recipe, work, count)


def budget_text(row: dict[str, Any]) -> str:
    """The name of a budget's row of images."""
    of = round(row["latents_per_group"] / row["budget"])
    return f"{row['latents_per_group']}/{of}\n{row['gflops']:.2f} GFLOPs, {row['latency_ms']:.1f} ms"


def cost_rows(model: ElasticModel, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Budget, latents per group and GFLOPs of one forward."""
    levels, costs = [model.levels.of(budget) for budget in budgets], flops_by_level(model)
    return [
        {"budget": budget, "latents_per_group": level, "gflops": costs[level] / 1e9}
        for budget, level in zip(budgets, levels, strict=True)
    ]


def with_quality(rows: Sequence[dict[str, Any]], quality: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows with the measured figures beside them where there are some of that budget."""
    known = {round(row["budget"], 6): row for row in (quality or {}).get("budgets", [])}
    return [{**row, **known.get(round(row["budget"], 6), {})} for row in rows]


@torch.no_grad()
def measure_latency(model: ElasticModel, budgets: Sequence[float], batch: int = 1) -> list[dict[str, float]]:
    """Milliseconds of one forward at each budget: median and quartiles of interleaved repeats."""
    device = next(model.parameters()).device
    x = torch.zeros(batch, *model.input.shape, device=device)
    t, y = torch.zeros(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    seconds: list[list[float]] = [[] for _ in budgets]
    with progress_bar() as bar:
        for _ in bar.track(range(LATENCY_REPEATS), description="timing"):
            for i, budget in enumerate(budgets):
                seconds[i] += time_forward(partial(model, x, t, y, budget), repeats=1, warm_up=0 if seconds[i] else 2)
    return [quartiles([1000 * s for s in times]) for times in seconds]


def quartiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile of repeated timings."""
    first, median, third = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return {"latency_ms": median, "latency_ms_q1": first, "latency_ms_q3": third}


def budget_table(rows: Sequence[dict[str, Any]], quality: dict[str, Any] | None) -> Sheet:
    """Cost and quality of each budget."""
    columns = ("budget", "GFLOPs", "ms (quartiles)", *QUALITY_COLUMNS)
    cells = []
    for row in rows:
        k, of = row["latents_per_group"], round(row["latents_per_group"] / row["budget"])
        between = f" ({row['latency_ms_q1']:.1f}-{row['latency_ms_q3']:.1f})" if "latency_ms" in row else ""
        cost = (f"{k}/{of}", f"{row['gflops']:.2f}", figure_text(row, "latency_ms", 1) + between)
        cells.append([*cost, *quality_cells(row)])
    note = "Latency: one forward, batch 1, in milliseconds."
    if quality is not None:
        cells.append(["real", "", "", *quality_cells(quality["real"])])
        note = f"{quality_note(quality)} {note}"
    return quality_sheet("One set of weights, many budgets", columns, cells, note)


def tradeoff_panels(rows: Sequence[dict[str, Any]], quality: dict[str, Any] | None) -> list[Panel]:
    """Quality, GFLOPs and latency against the budget."""
    gflops = [Point(row["budget"], row["gflops"]) for row in rows]
    latency = [
        Point(
            row["budget"],
            row["latency_ms"],
            row["latency_ms"] - row["latency_ms_q1"],
            row["latency_ms_q3"] - row["latency_ms"],
        )
        for row in rows
    ]
    costs = [("GFLOPs of one forward", gflops), ("latency of one forward (ms)", latency)]
    panels = [Panel(title, "budget", {"": points}) for title, points in costs]
    return [*panels, *quality_panels({"": rows}, "budget", "budget", quality)]
