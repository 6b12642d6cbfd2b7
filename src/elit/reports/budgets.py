"""What each budget costs and gives, for a model of the emoji: pictures, GFLOPs, latency and quality.

Writes budgets.png, tradeoff.png and results.json, and prints the same as a table.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from elit.backbones.dit import DiT
from elit.bundled import Card
from elit.console import output, progress_bar
from elit.data.emoji import Emoji, load_emoji
from elit.data.images import to_float
from elit.elastic.budget import level_of, levels
from elit.evaluation.cost import count_flops, time_forward
from elit.pictures import to_image
from elit.sampling import sample
from elit.weights import write_whole, written_whole

DEMO_LABELS = (
    "country-flag",
    "time",
    "face-smiling",
    "heart",
    "animal-mammal",
    "food-fruit",
    "transport-ground",
    "keycap",
    "arrow",
    "person-role",
    "plant-flower",
    "zodiac",
)
REAL_ROWS = 2
LATENCY_REPEATS = 9


@dataclass(frozen=True)
class BudgetReport:
    """One row per budget, with its samples (rows, columns, 3, H, W) in [-1, 1] and real examples beside them."""

    rows: list[dict[str, Any]]
    labels: list[str]
    samples: Tensor
    real: Tensor


def label_indices(data: Emoji, labels: Sequence[str]) -> list[int]:
    """Indices of subcategories given by name or number. Raises ValueError, naming close ones, for one that is not there."""
    from elit.backbones.presets import suggest

    out = []
    for label in labels:
        if label.isdigit() and int(label) < len(data.label_names):
            out.append(int(label))
        elif label in data.label_names:
            out.append(data.label_names.index(label))
        else:
            known = (
                f"0 to {len(data.label_names) - 1}"
                if label.lstrip("-").isdigit()
                else suggest(label, list(data.label_names))
            )
            raise ValueError(f"there is no label {label!r}; {known}")
    return out


def report_budgets(model: DiT, card: Card, labels: Sequence[str] = DEMO_LABELS, seed: int = 0) -> BudgetReport:
    """Samples every label at every budget, the same noise down a column, and measures what each costs.

    Raises ValueError for a model that was not made for the emoji, or for an unknown label.
    """
    data = load_emoji()
    if (model.config.in_channels, model.config.num_classes, model.input_shape) != (3, len(data.label_names), (32, 32)):
        raise ValueError(
            f"this report needs a model of the {len(data.label_names)} emoji classes at 3 x 32 x 32; the one given has"
            f" {model.config.num_classes} classes and inputs of {model.config.in_channels} x {model.input_shape}"
        )
    chosen = label_indices(data, labels)
    budgets = levels(model.latents)
    samples = []
    with progress_bar() as bar:
        task = bar.add_task("sampling", total=len(budgets) * card.sampling.steps, unit="images", per_step=len(chosen))
        for budget in budgets:

            def advance(step: int, t: float, x: Tensor) -> None:
                bar.advance(task)

            samples.append(
                sample(
                    model,
                    chosen,
                    steps=card.sampling.steps,
                    budget=budget,
                    guidance=card.sampling.guidance,
                    seed=seed,
                    callback_on_step_end=advance,
                ).cpu()
            )
    latency = measure_latency(model, budgets)
    rows = [{**row, "latency_ms": ms} for row, ms in zip(cost_rows(model, budgets), latency, strict=True)]
    return BudgetReport(
        with_quality(rows, card.quality),
        [data.label_names[i] for i in chosen],
        torch.stack(samples),
        real_examples(data, chosen),
    )


def cost_rows(model: DiT, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Budget, latents per group and GFLOPs of one forward."""
    return [
        {"budget": b, "latents_per_group": level_of(b, model.latents), "gflops": count_flops(model, b) / 1e9}
        for b in budgets
    ]


def with_quality(rows: Sequence[dict[str, Any]], quality: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows with the card's figures beside them where it has that budget."""
    known = {round(row["budget"], 6): row for row in (quality or {}).get("budgets", [])}
    return [{**row, **known.get(round(row["budget"], 6), {})} for row in rows]


def real_examples(data: Emoji, labels: Sequence[int]) -> Tensor:
    """(REAL_ROWS, columns, 3, H, W) pictures of each label, the first ones where there are fewer."""
    columns = []
    for label in labels:
        found = (data.labels == label).nonzero()[:, 0]
        columns.append(to_float(data.images[found[[i * len(found) // REAL_ROWS for i in range(REAL_ROWS)]]]))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def measure_latency(model: DiT, budgets: Sequence[float], batch: int = 1) -> list[float]:
    """Milliseconds of one forward at each budget: the median of interleaved repeats."""
    device = next(model.parameters()).device
    x = torch.zeros(batch, model.config.in_channels, *model.input_shape, device=device)
    t, y = torch.zeros(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    seconds: list[list[float]] = [[] for _ in budgets]
    with progress_bar() as bar:
        for _ in bar.track(range(LATENCY_REPEATS), description="timing"):
            for i, budget in enumerate(budgets):
                seconds[i] += time_forward(partial(model, x, t, y, budget), repeats=1, warm_up=0 if seconds[i] else 2)
    return [1000 * statistics.median(times) for times in seconds]


def write_report(report: BudgetReport, folder: Path, quality: dict[str, Any] | None) -> None:
    """Writes the pictures and results.json into `folder`, and prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "budgets.png") as file:
        draw_grid(report, file)
    with written_whole(folder / "tradeoff.png") as file:
        draw_tradeoff(report.rows, quality, file)
    values = {"labels": report.labels, "budgets": report.rows, "quality": quality}
    write_whole(folder / "results.json", json.dumps(values, indent=2) + "\n")
    output.print(budget_table(report.rows, quality))


def budget_table(rows: Sequence[dict[str, Any]], quality: dict[str, Any] | None) -> Table:
    """Cost and quality of each budget, as people read it on a terminal."""
    table = Table(title="One set of weights, many budgets")
    for name in ("budget", "latents per group", "GFLOPs", "latency (ms)", "Fréchet", "KID x 1000", "in category"):
        table.add_column(name, justify="right")

    def figure(row: dict[str, Any], name: str, digits: int) -> str:
        if name not in row:
            return "-"
        spread = f" ± {row[f'{name}_std']:.{digits}f}" if f"{name}_std" in row else ""
        return f"{row[name]:.{digits}f}{spread}"

    for row in rows:
        k, of = row["latents_per_group"], round(row["latents_per_group"] / row["budget"])
        table.add_row(
            f"{k}/{of}",
            str(k),
            f"{row['gflops']:.2f}",
            figure(row, "latency_ms", 1),
            figure(row, "frechet", 1),
            figure(row, "kernel", 1),
            figure(row, "accuracy", 3),
        )
    if quality is not None:
        real = quality["real"]
        table.add_row("real", "", "", "", *(figure(real, n, d) for n, d in (("frechet", 1), ("kernel", 1), ("accuracy", 3))))
        table.caption = (
            f"Quality: {quality['samples']} samples per budget and seed, seeds {len(quality['seeds'])}, against as many real"
            f" pictures ({quality['features']}); fewer samples than the 1,280 dimensions, so read the Fréchet distance"
            " beside KID, which is unbiased at any count. Latency: one forward, batch 1."
        )
    return table


def draw_grid(report: BudgetReport, file: Path) -> None:
    """Real examples on top, then a row per budget, with names, GFLOPs and milliseconds beside."""
    from matplotlib.figure import Figure

    count, columns = len(report.rows), len(report.labels)
    rows = REAL_ROWS + count
    width, height = 0.62 * columns + 2.2, 0.62 * rows + 0.9  # inches; names stand on the left and on top
    figure = Figure(figsize=(width, height), dpi=150)
    place = {"left": 1.75 / width, "right": 1 - 0.4 / width, "top": 1 - 0.85 / height, "bottom": 0.05 / height}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06, **place})
    pictures = torch.cat([report.real, report.samples])
    for i in range(rows):
        for j in range(columns):
            ax = axes[i, j]
            ax.imshow(to_image(pictures[i, j]), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
    for j, name in enumerate(report.labels):
        axes[0, j].set_title(name, fontsize=7, rotation=30, ha="left", va="bottom", x=0.2)
    for i in range(REAL_ROWS):
        axes[i, 0].set_ylabel("real", rotation=0, ha="right", va="center", fontsize=8)
    for i, row in enumerate(report.rows):
        k, of = row["latents_per_group"], round(row["latents_per_group"] / row["budget"])
        text = f"{k}/{of}\n{row['gflops']:.2f} GFLOPs, {row['latency_ms']:.1f} ms"
        axes[REAL_ROWS + i, 0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=6.5)
    figure.savefig(file, format="png")


def draw_tradeoff(rows: Sequence[dict[str, Any]], quality: dict[str, Any] | None, file: Path) -> None:
    """Quality, GFLOPs and latency against the budget, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(1, 4)
    measured = [row for row in rows if "frechet" in row]
    curves = (
        ("GFLOPs of one forward", "gflops", rows),
        ("latency of one forward (ms)", "latency_ms", rows),
        ("Fréchet distance (lower is better)", "frechet", measured),
        ("share in the asked category", "accuracy", measured),
    )
    for ax, (title, name, some) in zip(panels, curves, strict=True):
        budgets = [row["budget"] for row in some]
        spread = [row.get(f"{name}_std", 0.0) for row in some]
        ax.errorbar(budgets, [row[name] for row in some], yerr=spread, marker="o", markersize=4, capsize=3)
        if quality is not None and name in quality["real"]:
            ax.axhline(quality["real"][name], color="grey", linestyle="--", linewidth=1)
            ax.annotate(
                "real pictures",
                (0.98, quality["real"][name]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
                color="grey",
            )
        if not some:
            ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes, color="grey")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("budget")
        ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        ax.grid(alpha=0.3)
    figure.savefig(file, format="png")
