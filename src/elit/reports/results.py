"""What `elit evaluate` measured: a table, and the distances over budget and GFLOPs, of any number of results files."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from elit.evaluation.results import SETTINGS, ResultRow, group_of, read_results
from elit.reports.drawing import Panel, Panels, Point
from elit.reports.page import Table
from elit.reports.report import Part, Picture, Report
from elit.reports.scores import gflops_text

BESIDE = (" low", " high", " deviation")  # ends of the names of what is shown beside a figure
HASHES = ("model", "fingerprint", "reference_hash")  # settings that say nothing to people
AXES = ("budget", "GFLOPs of one forward")


def figures_of(rows: Sequence[ResultRow]) -> list[str]:
    """The names of the figures in rows, without what stands beside them."""
    return [name for name in dict.fromkeys(name for row in rows for name in row.metrics) if not name.endswith(BESIDE)]


def by_budget(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """The rows that differ by the seed alone, together."""
    groups: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((*group_of(row), row.budget, *row.metrics), []).append(row)
    return list(groups.values())


def results_table(rows: Sequence[ResultRow]) -> Table:
    """A line for each set, or for each budget of a model over its seeds; below, what the figures stand on."""
    names, groups = figures_of(rows), by_budget(rows)
    models = any(row.budget is not None for row in rows)
    called = sample_names([group[0] for group in groups])
    lines = [
        [one, *identity(group, models), *(figure(group, name) for name in names)]
        for one, group in zip(called, groups, strict=True)
    ]
    columns = ["samples", *(("budget", "GFLOPs", "seeds") if models else ()), "n", *names]
    stands = dict.fromkeys(f"{row.features}, {row.dtype}, beside {row.reference}" for row in rows)
    note = f"n: samples. {'GFLOPs: of one forward. ' if models else ''}Features: {'; '.join(stands)}."
    if any(len(group) > 1 for group in groups):
        note += " ±: standard deviation over the seeds."
    return Table("Beside the reference", columns, lines, note, keys=2 if models else 1)


def identity(group: Sequence[ResultRow], models: bool) -> list[str]:
    """The cells of a line between the samples' name and the figures; models: with those that only models' samples have."""
    first = group[0]
    budget = "" if first.budget is None else f"{first.budget:g}"
    gflops = "" if first.gflops is None else gflops_text(first.gflops)
    return [*((budget, gflops, str(len(group))) if models else ()), f"{first.count:,}"]


def figure(group: Sequence[ResultRow], name: str) -> str:
    """The mean over the seeds with its deviation; of one seed with the figure's own interval, where it has one."""
    values = [row.metrics[name] for row in group if name in row.metrics]
    if not values:
        return ""
    mean, metrics = statistics.fmean(values), group[0].metrics
    digits = 3 if abs(mean) < 10 else 2
    text = f"{mean:.{digits}f}"
    if len(values) > 1:
        return f"{text} ± {statistics.stdev(values):.{digits}f}"
    if f"{name} low" in metrics and f"{name} high" in metrics:
        return f"{text} ({metrics[f'{name} low']:.{digits}f} to {metrics[f'{name} high']:.{digits}f})"
    if f"{name} deviation" in metrics:
        return f"{text} ± {metrics[f'{name} deviation']:.{digits}f}"
    return text


def report_results(files: Sequence[Path]) -> Report:
    """The table of results files, and every distance in them over budget and GFLOPs, a curve for each model and setting."""
    rows = read_results(files)
    parts: list[Part] = ["Measured by elit evaluate.", results_table(rows)]
    panels = Panels(results_panels(rows))
    if panels.shown:
        caption = "Every figure over the budget, and over the GFLOPs of one forward."
        if any(len(group) > 1 for group in by_budget(rows)):
            caption += " Bars: least and most over the seeds."
        parts.append(Picture("results.png", caption, panels))
    return Report("What was measured", parts, {"rows": [row.told() for row in rows]})


def results_panels(rows: Sequence[ResultRow]) -> list[Panel]:
    """For each figure a panel over the budget and one over GFLOPs."""
    drawn = [row for row in rows if row.budget is not None and row.gflops is not None]
    curves: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in drawn:
        curves.setdefault(group_of(row), []).append(row)
    names = curve_names(list(curves.values()))
    panels = []
    for metric in figures_of(drawn):
        for axis in AXES:
            points = {name: curve_points(group, metric, axis) for name, group in zip(names, curves.values(), strict=True)}
            panels.append(Panel(metric, axis, {name: some for name, some in points.items() if some}))
    return panels


def curve_points(group: Sequence[ResultRow], metric: str, axis: str) -> list[Point]:
    """Mean, least and most over the seeds, at each budget."""
    values: dict[float, list[float]] = {}
    for row in group:
        x = row.budget if axis == AXES[0] else row.gflops
        if metric in row.metrics and x is not None:
            values.setdefault(x, []).append(row.metrics[metric])
    points = []
    for x, some in sorted(values.items()):
        mean = statistics.fmean(some)
        points.append(Point(x, mean, mean - min(some), max(some) - mean))
    return points


def curve_names(groups: Sequence[Sequence[ResultRow]]) -> list[str]:
    """A name for each curve: its samples, and those settings in which the curves differ.

    Paths are without what they have in common. Hashes are told only where nothing else tells the curves apart.
    """
    firsts = [group[0] for group in groups]
    samples = sample_names(firsts)
    files = apart([row.file or "" for row in firsts])
    differing = [key for key in SETTINGS if len({str(getattr(row, key)) for row in firsts}) > 1]
    words = [key for key in differing if key not in ("samples", "file", *HASHES)]
    names = []
    for row, sample, file in zip(firsts, samples, files, strict=True):
        told = [sample, *([f"file {file}"] if "file" in differing else ()), *(f"{key} {getattr(row, key)}" for key in words)]
        names.append(", ".join(told))
    if len(set(names)) == len(names):
        return names
    hashes = [key for key in differing if key in HASHES]
    return [
        ", ".join([name, *(f"{key} {getattr(r, key)}" for key in hashes)]) for name, r in zip(names, firsts, strict=True)
    ]


def sample_names(rows: Sequence[ResultRow]) -> list[str]:
    """What the samples of each row are called, or the end of their path that tells them apart."""
    found = iter(apart([row.samples for row in rows if not row.called]))
    return [row.called or next(found) for row in rows]


def apart(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them have in common; of equal ones the last part."""
    parts = [Path(path).parts or ("",) for path in paths]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({part[common] for part in parts}) == 1:
        common += 1
    return [str(Path(*part[common:])) for part in parts]
