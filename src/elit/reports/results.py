"""What `elit evaluate` measured: a table, and the distances over budget and GFLOPs, of any number of results files."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from elit.errors import UserError
from elit.reports.drawing import Panel, Point, draw_panels
from elit.reports.page import Sheet
from elit.reports.report import Part, Picture, Report

BESIDE = (" low", " high", " deviation")  # ends of the names of what is shown beside a figure
FIGURES = 4  # in one table
SETTINGS = (
    *("samples", "model", "count", "labels", "sampler", "steps", "guidance", "weak_budget", "weak_label", "interval"),
    *("codec", "precision", "features", "fingerprint", "dtype", "reference_hash"),
)


def read_results(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of `results.jsonl` files, each with its `file`; of rows measured again, the last.

    Raises UserError for a file that is not there, or a line that is not a row.
    """
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no results file {file}; elit evaluate writes one, such as evaluations/results.jsonl")
        for number, line in enumerate(file.read_text(encoding="utf8").splitlines(), start=1):
            try:
                row = json.loads(line)
                metrics = {str(name): float(value) for name, value in row["metrics"].items()}
                row = {**row, "file": str(file), "metrics": metrics, "count": int(row["count"])}
                identity = [str(file), *group_of(row), str(row.get("budget")), str(row.get("seed")), *metrics]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"line {number} of {file} is no row of results ({error!r}); remove the line") from error
            rows[json.dumps(identity)] = row
    if not rows:
        raise UserError(f"{', '.join(map(str, files))} holds no results")
    return list(rows.values())


def group_of(row: dict[str, Any]) -> list[str]:
    """What rows have in common that differ by budget and seed alone."""
    return [str(row.get(name)) for name in SETTINGS]


def figures_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the figures in rows, without what stands beside them."""
    return [name for name in dict.fromkeys(name for row in rows for name in row["metrics"]) if not name.endswith(BESIDE)]


def by_budget(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows that differ by the seed alone, together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.get("file"), *group_of(row), row.get("budget"), *row["metrics"]]), []).append(row)
    return list(groups.values())


def results_sheets(rows: Sequence[dict[str, Any]]) -> list[Sheet]:
    """A line for each set, or for each budget of a model over its seeds; a table for every four figures.

    The last says below what the figures stand on.
    """
    names = figures_of(rows)
    groups = by_budget(rows)
    models = any("budget" in row for row in rows)
    sheets = []
    for start in range(0, len(names), FIGURES):
        some = names[start : start + FIGURES]
        lines = [[*identity(group, models), *(figure(group, name) for name in some)] for group in groups]
        columns = ["samples", *(("budget", "GFLOPs", "seeds") if models else ()), "n", *some]
        sheets.append(Sheet("Beside the reference", columns, lines))
    stands = dict.fromkeys(f"{row['features']}, {row['dtype']}, beside {row['reference']}" for row in rows)
    note = f"n: samples. {'GFLOPs: of one forward. ' if models else ''}Features: {'; '.join(stands)}."
    if any(len(group) > 1 for group in groups):
        note += " ±: standard deviation over the seeds."
    return [*sheets[:-1], replace(sheets[-1], note=note)]


def identity(group: Sequence[dict[str, Any]], models: bool) -> list[str]:
    """The first cells of a line; models: with those that only samples of models have."""
    first = group[0]
    budget = "" if "budget" not in first else f"{first['budget']:g}"
    gflops = "" if "gflops" not in first else f"{first['gflops']:.2f}"
    return [Path(first["samples"]).name, *((budget, gflops, str(len(group))) if models else ()), f"{first['count']:,}"]


def figure(group: Sequence[dict[str, Any]], name: str) -> str:
    """The mean over the seeds with its deviation; of one seed with the figure's own interval, where it has one."""
    values = [row["metrics"][name] for row in group if name in row["metrics"]]
    if not values:
        return ""
    mean, metrics = statistics.fmean(values), group[0]["metrics"]
    digits = 3 if abs(mean) < 10 else 2
    text = f"{mean:.{digits}f}"
    if len(values) > 1:
        return f"{text} ± {statistics.stdev(values):.{digits}f}"
    if f"{name} low" in metrics:
        return f"{text} ({metrics[f'{name} low']:.{digits}f} to {metrics[f'{name} high']:.{digits}f})"
    if f"{name} deviation" in metrics:
        return f"{text} ± {metrics[f'{name} deviation']:.{digits}f}"
    return text


def report_results(files: Sequence[Path]) -> Report:
    """The table of results files, and every distance in them over budget and GFLOPs, a curve for each model and setting."""
    rows = read_results(files)
    parts: list[Part] = ["Measured by elit evaluate.", *results_sheets(rows)]
    panels = results_panels(rows)
    if panels:
        caption = "Every figure over the budget, and over the GFLOPs of one forward. Bars: least and most over the seeds."
        parts.append(Picture("results.png", caption, partial(draw_panels, panels)))
    return Report("What was measured", parts, {"rows": rows})


def results_panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """For each figure a panel over the budget and one over GFLOPs."""
    drawn = [row for row in rows if "budget" in row and "gflops" in row]
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in drawn:
        curves.setdefault(json.dumps([row["file"], *group_of(row)]), []).append(row)
    names = curve_names(list(curves.values()))
    panels = []
    for metric in figures_of(drawn):
        for axis, label in (("budget", "budget"), ("gflops", "GFLOPs of one forward")):
            points = {name: curve_points(group, metric, axis) for name, group in zip(names, curves.values(), strict=True)}
            panels.append(Panel(metric, label, {name: some for name, some in points.items() if some}))
    return panels


def curve_points(group: Sequence[dict[str, Any]], metric: str, axis: str) -> list[Point]:
    """Mean, least and most over the seeds, at each budget."""
    values: dict[float, list[float]] = {}
    for row in group:
        if metric in row["metrics"]:
            values.setdefault(row[axis], []).append(row["metrics"][metric])
    points = []
    for x, some in sorted(values.items()):
        mean = statistics.fmean(some)
        points.append(Point(x, mean, mean - min(some), max(some) - mean))
    return points


def curve_names(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """A name for each curve: its samples, and those settings in which the curves differ."""
    keys = [key for key in ("file", *SETTINGS) if key != "samples"]
    differing = [key for key in keys if len({str(group[0].get(key)) for group in groups}) > 1]
    return [", ".join([str(g[0]["samples"]), *(f"{key} {g[0].get(key)}" for key in differing)]) for g in groups]
