"""Whether fewer latents at high noise are free: schedules over the sampler's time beside constant budgets.

The paper leaves schedules to future work. Every schedule has a mirror, which spends its few latents at low noise instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.evaluation.quality import Judge, MeasuredOn, measured
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

CONSTANT, HIGH, LOW = "constant", "few at high noise", "few at low noise"


@dataclass(frozen=True)
class Plan:
    """A budget over the sampler's time: constant, or `low` while t > time (HIGH) or t <= time (LOW) and full elsewhere."""

    kind: str
    low: float
    time: float | None = None

    @property
    def budget(self) -> float | Schedule:
        if self.time is None:
            return self.low
        return Schedule(((self.time, self.low),), 1.0) if self.kind == HIGH else Schedule(((self.time, 1.0),), self.low)

    def name(self, model: ElasticModel) -> str:
        """Such as "4/16 while t > 0.5"."""
        low = budget_name(self.low, model)
        return low if self.time is None else f"{low} while t {'>' if self.kind == HIGH else '≤'} {self.time:g}"


@dataclass(frozen=True)
class ScheduleRow:
    """A plan by name: the mean GFLOPs of a step of one image, how far its images are from the full budget's, and scores."""

    name: str
    plan: Plan
    gflops_per_step: float
    rms: float = 0.0
    scores: Scores = field(default_factory=dict)

    def told(self) -> dict[str, object]:
        """As results.json holds it."""
        plan = {"name": self.name, "kind": self.plan.kind, "budget": self.plan.low, "time": self.plan.time}
        return {**plan, "gflops_per_step": self.gflops_per_step, "rms": self.rms, **self.scores}


def plans(model: ElasticModel, times: Sequence[float], budgets: Sequence[float]) -> list[Plan]:
    """The full budget first, then each lower one throughout, at high noise and at low noise.

    Raises UserError for a dense model, for times outside (0, 1), and where no budget is below the full one.
    """
    if model.core is None:
        raise UserError("this model is dense, and has one budget: a schedule needs an elastic model")
    for time in times:
        if not 0 < time < 1:
            raise UserError(f"time {time:g} is not between 0 and 1; write times such as 0.3,0.5,0.7, with 1 = noise")
    levels = sorted({model.levels.of(budget) for budget in budgets} - {model.latents}, reverse=True)
    if not levels:
        raise UserError("none of the budgets is below the full one; write fractions such as 1/4,1/16")
    lows = [level / model.latents for level in levels]
    constants = [Plan(CONSTANT, budget) for budget in (1.0, *lows)]
    return constants + [Plan(kind, low, time) for kind in (HIGH, LOW) for low in lows for time in sorted(set(times))]


def report_schedule(
    subject: Subject, times: Sequence[float], budgets: Sequence[float], count: int, seeds: Sequence[int], work: Path
) -> Report:
    """Constant budgets, schedules and their mirrors: cost, quality, and distance to the full budget's images.

    Quality is that of `count` samples for each of `seeds`, kept in `work` as it is finished; none for a count of 0, or
    where the data are not known. Raises UserError as `plans` does.
    """
    model, tried = subject.model, plans(subject.model, times, budgets)
    recipes = [replace(subject.recipe, budget=plan.budget) for plan in tried]
    images = draw_all(model, recipes, subject.told)
    rows = [
        ScheduleRow(plan.name(model), plan, recipe.gflops_per_step(model), rms(some, images[0]))
        for plan, recipe, some in zip(tried, recipes, images, strict=True)
    ]
    quality = None
    if subject.data is not None and count:
        found, quality = measured(Judge(count, subject.exam), model, recipes, seeds, work)
        rows = [replace(row, scores=scores) for row, scores in zip(rows, found, strict=True)]
    sentence = verdict(rows, len(seeds))
    shown = [Row(row.name.replace(" while", "\nwhile"), some) for row, some in zip(rows, subject.shown(images), strict=True)]
    caption = "The images of every row of the table; every column starts from the same noise."
    parts: list[Part] = [
        subject.describe(),
        *subject.notes(),
        "t = 1 is noise and t = 0 is data; where nothing is said, the full budget runs.",
        sentence,
        schedule_table(rows, quality),
        Picture("schedule.png", panels_caption(rows), Panels(panels(rows))),
        Picture("images.png", caption, ImageSheet(shown, subject.label_names)),
    ]
    results = {**subject.results(), "rows": [row.told() for row in rows], "verdict": sentence, "quality": quality}
    return Report("Schedules: are fewer latents at high noise free?", parts, results, sentence)


def rms(images: Tensor, full: Tensor) -> float:
    """The root mean square of the pixels' differences, in the images' own unit (RGB spans -1 to 1)."""
    return (images - full).square().mean().sqrt().item()


def verdict(rows: Sequence[ScheduleRow], seeds: int) -> str:
    """Whether fewer latents at high noise are free: a Fréchet distance within one deviation over the seeds of the full's.

    `rows[0]` is the full budget. Nothing is claimed of one seed, nor without measured quality.
    """
    full = rows[0]
    if "frechet" not in full.scores:
        return "Quality was not measured, so whether fewer latents at high noise are free is not known."
    if "frechet_std" not in full.scores:
        return "One seed was run, so the spread between seeds is unknown and nothing is claimed; run more with --seeds."
    distance, spread = full.scores["frechet"], full.scores["frechet_std"]
    cheaper = [row for row in rows if row.gflops_per_step < full.gflops_per_step]  # few steps may see no difference
    free = [row for row in cheaper if row.scores["frechet"] <= distance + spread]
    named = {
        kind: ", ".join(
            f"{row.name} ({1 - row.gflops_per_step / full.gflops_per_step:.0%} cheaper)"
            for row in free
            if row.plan.kind == kind
        )
        for kind in (CONSTANT, HIGH, LOW)
    }
    rule = (
        f"within one standard deviation over {seeds} seeds ({spread:.1f}) of the full budget's Fréchet distance"
        f" ({distance:.1f})"
    )
    if named[HIGH]:
        out = f"Fewer latents at high noise are free here, {rule}: {named[HIGH]}."
    else:
        nearest = min((row for row in rows if row.plan.kind == HIGH), key=lambda row: row.scores["frechet"])
        out = f"Fewer latents at high noise are not free here: the nearest, {nearest.name}, is at"
        out += f" {nearest.scores['frechet']:.1f}, not {rule}."
    out += f" At low noise, free: {named[LOW] or 'none'}. Throughout, free: {named[CONSTANT] or 'none'}."
    if named[CONSTANT]:
        out += " Where a lower budget is free throughout, that a schedule is free says nothing about noise."
    return out


def schedule_table(rows: Sequence[ScheduleRow], quality: MeasuredOn | None) -> Table:
    """A line for each way to spend the budget."""
    columns = ("latents", "GFLOPs a step", "of full", "RMS to full", *QUALITY_COLUMNS)
    cells = [
        [
            row.name,
            gflops_text(row.gflops_per_step),
            f"{row.gflops_per_step / rows[0].gflops_per_step:.0%}",
            f"{row.rms:.3f}",
            *quality_cells(row.scores),
        ]
        for row in rows
    ]
    note = "RMS: the root mean square of the pixels' differences; RGB spans -1 to 1."
    if quality is not None:
        cells.append(["real", "", "", "", *quality_cells(quality["real"])])
        note = f"{note} {quality_note(quality)}"
    return without_empty(Table("Budgets over the sampler's time", columns, cells, note))


def panels(rows: Sequence[ScheduleRow]) -> list[Panel]:
    """Quality and distance over the mean cost: a curve of the constant budgets, and one per kind and low budget."""
    curves: dict[str, list[ScheduleRow]] = {}
    for row in sorted(rows, key=lambda row: row.gflops_per_step):
        name = CONSTANT if row.plan.time is None else f"{row.name.split()[0]} {row.plan.kind.removeprefix('few ')}"
        curves.setdefault(name, []).append(row)
    label = "mean GFLOPs of a step"
    scored = {name: [(row.gflops_per_step, row.scores) for row in some] for name, some in curves.items()}
    distance = {name: [Point(row.gflops_per_step, row.rms) for row in some] for name, some in curves.items()}
    return [*quality_panels(scored, label), Panel("RMS to the full budget's images", label, distance)]


def panels_caption(rows: Sequence[ScheduleRow]) -> str:
    """What the panels of this report show."""
    if not any(row.scores for row in rows):
        return "The distance to the full budget's images over the mean cost of a step. Below and to the left is better."
    return "Quality and distance over the mean cost of a step. Below and to the left is better, but for the share."
