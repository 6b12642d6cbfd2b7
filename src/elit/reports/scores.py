"""Measured quality as people read it: cells of tables, notes below them, and panels of curves.

A row is a dict that holds the figures of FIGURES where they were measured, and each with "_std" where that was over
several seeds (see `evaluation.quality`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from elit.reports.drawing import Panel, Point
from elit.reports.page import Sheet

FIGURES = {  # name: the column of a table, digits
    "frechet": ("Fréchet", 1),
    "kernel": ("KID x 1000", 1),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "accuracy": ("category", 3),
}
QUALITY_COLUMNS = tuple(column for column, _ in FIGURES.values())
PANELS = (
    ("frechet", "Fréchet distance (lower is better)"),
    ("kernel", "KID x 1000 (lower is better)"),
    ("accuracy", "share in the asked category"),
)


def figure_text(row: Mapping[str, Any], name: str, digits: int) -> str:
    """A figure with its spread, or "-" where it was not measured."""
    if name not in row:
        return "-"
    spread = f" ± {row[f'{name}_std']:.{digits}f}" if f"{name}_std" in row else ""
    return f"{row[name]:.{digits}f}{spread}"


def quality_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row under QUALITY_COLUMNS."""
    return [figure_text(row, name, digits) for name, (_, digits) in FIGURES.items()]


def quality_sheet(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Sheet:
    """A table without the columns that nothing was measured for."""
    kept = [i for i in range(len(columns)) if any(row[i] not in ("-", "") for row in rows)]
    return Sheet(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows], note)


def quality_note(quality: Mapping[str, Any]) -> str:
    """How the figures were measured, and how to read them."""
    return (
        f"Quality: {quality['samples']} samples per row and seed, {len(quality['seeds'])} seed(s), against as many real"
        f" pictures ({quality['features']}); fewer samples than the 1,280 dimensions, so read the Fréchet distance"
        " beside KID, which is unbiased at any count."
    )


def quality_panels(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], x: str, x_label: str, quality: Mapping[str, Any] | None = None
) -> list[Panel]:
    """The three figures over `x` for the rows of each curve, with the deviation over seeds.

    With `quality` the axes start at zero and the real pictures' level is marked; without, they show differences best.
    """
    panels = []
    for name, title in PANELS:
        level = None if quality is None else ("real pictures", quality["real"][name])
        points = {
            curve: [Point(row[x], row[name], *[row.get(f"{name}_std", 0.0)] * 2) for row in rows if name in row]
            for curve, rows in curves.items()
        }
        panels.append(Panel(title, x_label, points, level, from_zero=quality is not None))
    return panels
