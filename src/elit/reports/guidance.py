"""Classifier-free guidance, cheap CFG and autoguidance over scales: images, cost and quality, and the best scale of each."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from elit.errors import UserError
from elit.evaluation.quality import measured_rows
from elit.guidance import Guidance
from elit.reports.drawing import Panel, Point, Row, draw_grid, draw_panels
from elit.reports.page import Sheet
from elit.reports.report import Part, Picture, Report
from elit.reports.samples import budget_name, draw_all
from elit.reports.scores import QUALITY_COLUMNS, quality_cells, quality_note, quality_panels, quality_sheet
from elit.reports.subject import Subject

KINDS = ("CFG", "cheap CFG", "autoguidance")


def guidance_of(kind: str, scale: float, weak_budget: float) -> Guidance:
    """The guidance of a kind at a scale; at scale 1 all kinds are one, without a weak path."""
    if scale == 1:
        return Guidance()
    return {
        "CFG": Guidance(scale),
        "cheap CFG": Guidance(scale, weak_budget=weak_budget),
        "autoguidance": Guidance(scale, weak_budget=weak_budget, weak_label="same"),
    }[kind]


def report_guidance(
    subject: Subject, scales: Sequence[float], weak_budget: float, count: int, seeds: Sequence[int], work: Path
) -> Report:
    """Every kind at every scale, at the full budget: images from the same noise, GFLOPs of a step, and quality.

    `weak_budget`: of the weak path of cheap CFG and autoguidance, which a dense model does without. Quality is that of
    `count` samples for each of `seeds`, kept in `work` as it is finished; none for a count of 0, or where the data are not
    known. Raises UserError for a scale that is not finite, and for a weak budget that is the full one.
    """
    model = subject.model
    kinds = KINDS[:1] if model.core is None else KINDS
    weak = model.levels.of(weak_budget) / model.latents
    if model.core is not None and weak == 1:
        raise UserError(f"a weak budget of {weak_budget:g} is the full one, and no weaker; give a lower, such as 1/16")
    cells = [(kind, scale) for kind in kinds for scale in sorted(set(scales))]
    recipes = [replace(subject.recipe, guidance=guidance_of(kind, scale, weak)) for kind, scale in cells]
    images = draw_all(model, recipes, subject.labels)
    rows: list[dict[str, Any]] = [
        {"kind": kind, "scale": scale, "gflops_per_step": recipe.gflops_per_step(model)}
        for (kind, scale), recipe in zip(cells, recipes, strict=True)
    ]
    quality = None
    if subject.data is not None and count:
        rows, quality = measured_rows(rows, model, recipes, seeds, work, count)
    best = best_scales(rows)
    parts: list[Part] = [
        subject.describe(),
        *subject.notes(),
        f"The weak path of CFG has no label; that of cheap CFG has none and runs at {budget_name(weak, model)}; that of"
        " autoguidance keeps the label and runs at that budget. At scale 1 there is no weak path.",
        guidance_table(rows, best, quality),
        Picture("guidance.png", "Quality, and the cost of a step, over the scale.", partial(draw_panels, panels(rows))),
        *(grid_of(kind, rows, images, subject.label_names) for kind in kinds),
    ]
    results = {**subject.results(), "weak_budget": weak, "cells": rows, "best": best, "quality": quality}
    return Report("Guidance: CFG, cheap CFG and autoguidance", parts, results)


def best_scales(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The row of lowest Fréchet distance of each kind, empty if not measured.

    `at_an_end`: it is the highest of the scales, or the lowest other than 1, so that a better one may lie beyond.
    """
    best = {}
    for kind, of_kind in by_kind(rows).items():
        measured = [row for row in of_kind if "frechet" in row]
        if measured:
            row = min(measured, key=lambda row: row["frechet"])
            end = row["scale"] == measured[-1]["scale"] or (row["scale"] == measured[0]["scale"] != 1)
            best[kind] = {**row, "at_an_end": end}
    return best


def by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each kind, in their order."""
    return {kind: [row for row in rows if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)}


def guidance_table(rows: Sequence[dict[str, Any]], best: dict[str, dict[str, Any]], quality: dict[str, Any] | None) -> Sheet:
    """A line per kind and scale, the best of each kind marked."""
    columns = ("guidance", "scale", "GFLOPs a step", *QUALITY_COLUMNS, "")
    cells = [
        [
            row["kind"],
            f"{row['scale']:g}",
            f"{row['gflops_per_step']:.2f}",
            *quality_cells(row),
            "best" if best.get(row["kind"], {}).get("scale") == row["scale"] else "",
        ]
        for row in rows
    ]
    note = "GFLOPs a step: both forwards of one image. Quality is not measured."
    if quality is not None:
        cells.append(["real", "", "", *quality_cells(quality["real"]), ""])
        ends = [kind for kind, row in best.items() if row["at_an_end"]]
        wider = f" For {', '.join(ends)} it is at an end of the scales: try more with --scales." if ends else ""
        note = (
            "GFLOPs a step: both forwards of one image. Best: the scale of the lowest Fréchet distance of each"
            f" kind.{wider} {quality_note(quality)}"
        )
    return quality_sheet("Guidance over scales", columns, cells, note)


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """Quality and the cost of a step, a curve for each kind."""
    curves = by_kind(rows)
    cost = {kind: [Point(row["scale"], row["gflops_per_step"]) for row in some] for kind, some in curves.items()}
    return [*quality_panels(curves, "scale", "scale"), Panel("GFLOPs of a step", "scale", cost)]


def grid_of(kind: str, rows: Sequence[dict[str, Any]], images: Sequence[Tensor], names: Sequence[str]) -> Picture:
    """The images of a kind, a row for each scale."""
    grid = [Row(f"scale {row['scale']:g}", some) for row, some in zip(rows, images, strict=True) if row["kind"] == kind]
    caption = f"{kind}: a row for each scale. Every column starts from the same noise, in the other pictures too."
    return Picture(f"{kind.lower().replace(' ', '-')}.png", caption, partial(draw_grid, grid, names))
