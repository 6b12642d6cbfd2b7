"""What benchmarks/gpu.py found: marks held against it, and both as the tables of docs/gpu.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

Row = dict[str, Any]
Found = dict[str, Any]  # "machine" to what it is, every part to its rows

TITLES = {
    "works": "It works",
    "training": "Training, bfloat16, compiled by block",
    "loading": "The training loop with prepared latents",
    "sampling": "Sampling, one call of the model",
    "hosts": "Hosts at 1024 x 1024, one call, compiled by repeated block",
    "bundled": "The recipe of the bundled model",
}
HIDDEN = ("why",)  # columns of the file that no table shows


@dataclass(frozen=True)
class Mark:
    """A bound on a figure.

    most: whether it is the largest that will do, and not the smallest. value: of the figure; None where it is missing.
    """

    says: str
    bound: float
    most: bool
    value: Callable[[Found], float | None]

    def verdict(self, found: Found) -> tuple[str, str]:
        """The figure, and whether the mark is reached."""
        value = self.value(found)
        if value is None:
            return "", "not measured"
        return f"{value:.3g}", "reached" if (value <= self.bound if self.most else value >= self.bound) else "NOT reached"


def figures(found: Found, part: str, column: str, **where: object) -> list[float]:
    """A column of the rows of a part that say this."""
    rows: Sequence[Row] = found.get(part, ())
    return [row[column] for row in rows if column in row and where.items() <= row.items()]


def trained(column: str, run: str, pixels: int) -> Callable[[Found], float | None]:
    """A column of XL/2's training."""
    return lambda found: max(figures(found, "training", column, size="XL/2", run=run, pixels=pixels), default=None)


def costliest_call(batch: int, how: str) -> Callable[[Found], float | None]:
    """The largest of time over FLOPs at any budget."""
    return lambda found: max(figures(found, "sampling", "time / FLOPs", batch=batch, how=how, kind="budget"), default=None)


def cheap_guidance(found: Found) -> float | None:
    """The time of cheap CFG as a share of CFG's."""
    cheap, whole = (figures(found, "sampling", "ms", batch=64, how="compiled", run=run) for run in ("cheap CFG", "CFG"))
    return cheap[0] / whole[0] if cheap and whole else None


def loop_overhead(found: Found) -> float | None:
    return max(figures(found, "loading", "overhead", model="ELIT-SiT-XL/2"), default=None)


MARKS = (
    Mark(
        "dense SiT-XL/2, 256 px: images/s in training, 30 % of an H100's peak", 417, False, trained("images/s", "dense", 256)
    ),
    Mark("the same: the goal", 500, False, trained("images/s", "dense", 256)),
    *(
        mark
        for pixels in (256, 512)
        for mark in (
            Mark(f"ELIT, {pixels} px: images/s at the full budget of dense", 0.95, False, trained("of dense", "1", pixels)),
            Mark(f"ELIT, {pixels} px: time / FLOPs of a step at 1/4", 1.10, True, trained("time / FLOPs", "1/4", pixels)),
            Mark(
                f"ELIT, {pixels} px: images/s of drawn budgets of dense", 1.35, False, trained("of dense", "drawn", pixels)
            ),
        )
    ),
    Mark("the loop's time over the bare step's, less 1", 0.03, True, loop_overhead),
    Mark("sampling, batch 64, compiled: time / FLOPs at any budget", 1.10, True, costliest_call(64, "compiled")),
    Mark("sampling, batch 1, CUDA graphs: the same", 1.30, True, costliest_call(1, "graph")),
    Mark("cheap CFG's time of CFG's, batch 64, compiled", 0.72, True, cheap_guidance),
)


def marks_rows(found: Found) -> list[Row]:
    """Every mark, what was measured, and whether it is reached."""
    rows = []
    for mark in MARKS:
        value, verdict = mark.verdict(found)
        bound = f"at {'most' if mark.most else 'least'} {mark.bound:g}"
        rows.append({"mark": mark.says, "bound": bound, "measured": value, "verdict": verdict})
    return rows


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The columns of some rows, and their values in words."""
    columns = list(dict.fromkeys(column for row in rows for column in row if column not in HIDDEN))
    return columns, [[in_words(row.get(column)) for column in columns] for row in rows]


def in_words(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "NO", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def terminal_table(title: str, rows: Sequence[Row]) -> Table:
    """Rows as a table for people."""
    columns, lines = cells(rows)
    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a table of Markdown."""
    columns, lines = cells(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))


def page(found: Found) -> str:
    """The machine, the marks and the table of every part that was run."""
    machine = ", ".join(f"{name}: {value}" for name, value in found["machine"].items())
    parts = [f"### {title}\n\n{markdown_table(found[part])}" for part, title in TITLES.items() if found.get(part)]
    return "\n\n".join([f"Measured on {machine}.", markdown_table(marks_rows(found)), *parts])
