"""Measured quality as people read it: cells of tables, notes below them, and panels of curves.

Scores are numbers by the names of FIGURES, and each with "_std" where it was measured over several seeds (see
`evaluation.quality.summary`); none where nothing was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from elit.card import Quality
from elit.evaluation.quality import MeasuredOn
from elit.reports.drawing import Panel, Point
from elit.reports.page import Table

Scores: TypeAlias = Mapping[str, float]

FIGURES = {  # name: the column of a table, digits
    "frechet": ("Fréchet", 1),
    "frechet_squeezenet": ("SqueezeNet", 0),
    "kernel": ("KID x 1000", 1),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "accuracy": ("category", 3),
}
QUALITY_COLUMNS = tuple(column for column, _ in FIGURES.values())
PANELS = (
    ("frechet", "Fréchet distance (lower is better)"),
    ("frechet_squeezenet", "Fréchet distance, SqueezeNet"),
    ("kernel", "KID x 1000 (lower is better)"),
    ("accuracy", "share in the asked category"),
)


def figure_text(scores: Scores, name: str, digits: int) -> str:
    """A figure with its spread, or "-" where it was not measured."""
    if name not in scores:
        return "-"
    spread = f" ± {scores[f'{name}_std']:.{digits}f}" if f"{name}_std" in scores else ""
    return f"{scores[name]:.{digits}f}{spread}"


def numbers(row: Mapping[str, object]) -> dict[str, float]:
    """Those of a row's values that are numbers."""
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def gflops_text(gflops: float) -> str:
    """GFLOPs as tables show them: two decimals, or two digits of a tiny model's."""
    return f"{gflops:.2f}" if gflops >= 0.1 else f"{gflops:.2g}"


def quality_cells(scores: Scores) -> list[str]:
    """The cells under QUALITY_COLUMNS."""
    return [figure_text(scores, name, digits) for name, (_, digits) in FIGURES.items()]


def without_empty(table: Table) -> Table:
    """A table without the columns that nothing was measured for."""
    kept = [i for i in range(len(table.columns)) if any(row[i] not in ("-", "") for row in table.rows)]
    columns, rows = [table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=columns, rows=rows)


def quality_note(quality: MeasuredOn | Quality) -> str:
    """How the figures were measured, and how to read them."""
    seeds = len(quality["seeds"])
    return (
        f"Quality: {quality['samples']} samples per row{f' and seed, {seeds} seeds' if seeds > 1 else ''}, against as many"
        f" real pictures ({quality['features']}). There are fewer samples than dimensions, so read the Fréchet distances"
        f" beside KID, which is unbiased at any count.{' ±: standard deviation over the seeds.' if seeds > 1 else ''}"
        " Category: the share of samples that a linear probe finds in the category that was asked for."
    )


def quality_panels(
    curves: Mapping[str, Sequence[tuple[float, Scores]]], x_label: str, quality: MeasuredOn | Quality | None = None
) -> list[Panel]:
    """The figures over some axis for the (x, scores) of each curve, with the deviation over seeds.

    With `quality` the axes start at zero and the real pictures' level is marked, of figures that were measured on them;
    without, they show differences best.
    """
    panels = []
    for name, title in PANELS:
        level = ("real pictures", quality["real"][name]) if quality is not None and name in quality["real"] else None
        points = {
            curve: [Point(x, scores[name], *[scores.get(f"{name}_std", 0.0)] * 2) for x, scores in rows if name in scores]
            for curve, rows in curves.items()
        }
        panels.append(Panel(title, x_label, points, level, from_zero=quality is not None))
    return panels
