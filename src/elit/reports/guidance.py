"""Classifier-free guidance, cheap CFG and autoguidance over scales: images, cost and quality, and the best scale of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from elit.errors import UserError
from elit.evaluation.quality import Judge, MeasuredOn, measured
from elit.guidance import Guidance
from elit.pictures import Row
from elit.reports.drawing import ImageSheet, Panel, Panels, Point
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

KINDS = ("CFG", "cheap CFG", "autoguidance")


@dataclass(frozen=True)
class GuidanceRow:
    """A kind of guidance at a scale: the GFLOPs of a sampler's step of one image, and what its samples are worth."""

    kind: str
    scale: float
    gflops_per_step: float
    scores: Scores = field(default_factory=dict)

    def told(self) -> dict[str, object]:
        """As results.json holds it."""
        return {"kind": self.kind, "scale": self.scale, "gflops_per_step": self.gflops_per_step, **self.scores}


@dataclass(frozen=True)
class Best:
    """The row of a kind's lowest Fréchet distance.

    at_an_end: its scale is the highest of those tried, or the lowest other than 1, so that a better one may lie beyond.
    """

    row: GuidanceRow
    at_an_end: bool


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
    images = subject.shown(draw_all(model, recipes, subject.told))
    rows = [
        GuidanceRow(kind, scale, recipe.gflops_per_step(model)) for (kind, scale), recipe in zip(cells, recipes, strict=True)
    ]
    quality = None
    if subject.data is not None and count:
        found, quality = measured(Judge(count, subject.exam), model, recipes, seeds, work)
        rows = [replace(row, scores=scores) for row, scores in zip(rows, found, strict=True)]
    best = best_scales(rows)
    parts: list[Part] = [
        subject.describe(),
        *subject.notes(),
        explained(kinds, budget_name(weak, model)),
        guidance_table(rows, best, quality),
        Picture("guidance.png", panels_caption(rows), Panels(panels(rows))),
        *(sheet_of(kind, rows, images, subject.label_names) for kind in kinds),
    ]
    told = {kind: {**found.row.told(), "at_an_end": found.at_an_end} for kind, found in best.items()}
    results = {**subject.results(), "weak_budget": weak, "cells": [row.told() for row in rows], "best": told}
    return Report("Guidance: CFG, cheap CFG and autoguidance", parts, {**results, "quality": quality})


def explained(kinds: Sequence[str], weak: str) -> str:
    """What the kinds of this report are."""
    if len(kinds) == 1:
        return "The weak path of CFG has no label. At scale 1 there is no weak path."
    return (
        f"The weak path of CFG has no label; that of cheap CFG has none and runs at {weak}; that of autoguidance keeps the"
        " label and runs at that budget. At scale 1 there is no weak path."
    )


def best_scales(rows: Sequence[GuidanceRow]) -> dict[str, Best]:
    """The best row of each kind; none of a kind that was not measured."""
    best = {}
    for kind, of_kind in by_kind(rows).items():
        scored = [row for row in of_kind if "frechet" in row.scores]
        if scored:
            row = min(scored, key=lambda row: row.scores["frechet"])
            best[kind] = Best(row, row.scale == scored[-1].scale or (row.scale == scored[0].scale != 1))
    return best


def by_kind(rows: Sequence[GuidanceRow]) -> dict[str, list[GuidanceRow]]:
    """The rows of each kind, in their order."""
    return {kind: [row for row in rows if row.kind == kind] for kind in dict.fromkeys(row.kind for row in rows)}


def guidance_table(rows: Sequence[GuidanceRow], best: Mapping[str, Best], quality: MeasuredOn | None) -> Table:
    """A line per kind and scale, the best of each kind marked."""
    columns = ("guidance at scale", "GFLOPs a step", *QUALITY_COLUMNS)
    cells = [
        [
            f"{row.kind} {row.scale:g}{' (best)' if row.kind in best and best[row.kind].row is row else ''}",
            gflops_text(row.gflops_per_step),
            *quality_cells(row.scores),
        ]
        for row in rows
    ]
    note = "GFLOPs a step: both forwards of one image."
    if quality is None:
        note += " Quality is not measured."
    else:
        cells.append(["real", "", *quality_cells(quality["real"])])
        ends = [kind for kind, found in best.items() if found.at_an_end]
        wider = f" For {', '.join(ends)} it is at an end of the scales: try more with --scales." if ends else ""
        note += f" Best: the scale of the lowest Fréchet distance of each kind.{wider} {quality_note(quality)}"
    return without_empty(Table("Guidance over scales", columns, cells, note))


def panels(rows: Sequence[GuidanceRow]) -> list[Panel]:
    """Quality over the scale and over the cost of a step, and that cost over the scale; a curve for each kind."""
    kinds = by_kind(rows)
    over_scale = {kind: [(row.scale, row.scores) for row in some] for kind, some in kinds.items()}
    over_cost = {kind: [(row.gflops_per_step, row.scores) for row in some] for kind, some in kinds.items()}
    cost = {kind: [Point(row.scale, row.gflops_per_step) for row in some] for kind, some in kinds.items()}
    return [
        *quality_panels(over_scale, "scale"),
        *quality_panels(over_cost, "GFLOPs of a step"),
        Panel("GFLOPs of a step", "scale", cost),
    ]


def panels_caption(rows: Sequence[GuidanceRow]) -> str:
    """What the panels of this report show."""
    if not any(row.scores for row in rows):
        return "The cost of a sampler's step over the scale."
    return "Quality over the scale and over what a sampler's step costs, and that cost over the scale."


def sheet_of(kind: str, rows: Sequence[GuidanceRow], images: Sequence[Tensor], names: Sequence[str]) -> Picture:
    """The images of a kind, a row for each scale."""
    shown = [Row(f"scale {row.scale:g}", some) for row, some in zip(rows, images, strict=True) if row.kind == kind]
    caption = f"{kind}: a row for each scale. Every column starts from the same noise, in the other pictures too."
    return Picture(f"{kind.lower().replace(' ', '-')}.png", caption, ImageSheet(shown, names))
