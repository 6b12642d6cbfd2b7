"""Pictures of reports: labelled grids of images, and panels of curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from elit.pictures import tile

CELL, GAP, DPI = 96, 6, 150  # pixels of an image's side, about, and between images; dots per inch
LETTER = 8.5  # pixels of a letter's width at the labels' size, about
FONT = 7


class Row(NamedTuple):
    """A row of a grid: its name, and images (columns, C, H, W)."""

    name: str
    images: Tensor


def visible(images_NCHW: Tensor) -> Tensor:
    """RGB in [-1, 1] of images with any channels: RGB as it is, else the first three, brought into range by one scale."""
    channels = images_NCHW.shape[1]
    if channels == 3:
        return images_NCHW
    some = images_NCHW[:, [min(i, channels - 1) for i in range(3)]]
    return some / some.abs().max().clamp(min=1)


def draw_grid(rows: Sequence[Row], columns: Sequence[str], file: Path) -> None:
    """The rows of images, each pixel enlarged by a whole number, with names on the left and on top."""
    from matplotlib.figure import Figure

    images = visible(torch.cat([row.images for row in rows]))
    height, width = images.shape[-2:]
    scale = max(1, CELL // max(height, width))
    sheet = tile(images, len(columns), scale, GAP)
    left = 24 + LETTER * max(len(line) for row in rows for line in row.name.split("\n"))
    top, bottom = 24 + 0.6 * LETTER * max(len(name) for name in columns), 12
    right = max(12, 0.9 * LETTER * len(columns[-1]) - width * scale / 2)  # where the last name leans out
    total = (left + sheet.width + right, top + sheet.height + bottom)
    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI)
    ax = figure.add_axes((left / total[0], bottom / total[1], sheet.width / total[0], sheet.height / total[1]))
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=FONT)
    across, down = width * scale + GAP, height * scale + GAP
    ax.set_xticks([(i + 0.4) * across for i in range(len(columns))], columns, rotation=30, ha="left")
    ax.set_yticks([i * down + (down - GAP) / 2 for i in range(len(rows))], [row.name for row in rows])
    figure.savefig(file, format="png")


class Point(NamedTuple):
    """A point of a curve with its spread."""

    x: float
    y: float
    below: float = 0.0
    above: float = 0.0


@dataclass(frozen=True)
class Panel:
    """Curves by name over one axis. `level`: a height to mark, with its name. `from_zero`: the axis starts there."""

    title: str
    x_label: str
    curves: dict[str, list[Point]]
    level: tuple[str, float] | None = None
    from_zero: bool = True


def draw_panels(panels: Sequence[Panel], file: Path) -> None:
    """The panels that have points, side by side; a legend below where there are several curves."""
    from matplotlib.figure import Figure

    panels = [panel for panel in panels if any(panel.curves.values())]
    figure = Figure(figsize=(max(4.5, 3.3 * len(panels)), 3.8), dpi=130, layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, (name, points) in enumerate(panel.curves.items()):
            x, y, below, above = (list(column) for column in zip(*points, strict=True)) if points else ([], [], [], [])
            style = {"marker": "osD^vP*X"[i % 8], "markersize": max(4, 7 - i), "linestyle": ("-", "--", ":")[i % 3]}
            ax.errorbar(x, y, yerr=[below, above], capsize=3, label=name, **style)  # where curves meet, all can be seen
        if panel.level is not None:
            name, height = panel.level
            ax.axhline(height, color="grey", linestyle="--", linewidth=1)
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            ax.annotate(name, (0.98, height), fontsize=8, color="grey", **place)
        ax.set_title(panel.title, fontsize=10)
        ax.set_xlabel(panel.x_label)
        if panel.from_zero:
            ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        ax.grid(alpha=0.3)
    if len(panels[0].curves) > 1:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(len(names), 2 * len(panels)), fontsize=9, frameon=False
        )
    figure.savefig(file, format="png")


def heat(maps_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as colour pictures (B, 3, *size) in [-1, 1], dark to bright, each on its own scale from lowest to highest."""
    from matplotlib import colormaps

    low, high = maps_BHW.amin((1, 2), keepdim=True), maps_BHW.amax((1, 2), keepdim=True)
    colours = torch.from_numpy(colormaps["viridis"](((maps_BHW - low) / (high - low).clamp(min=1e-12)).numpy()))
    pixels = colours[..., :3].permute(0, 3, 1, 2).float() * 2 - 1
    return torch.nn.functional.interpolate(pixels, size, mode="nearest")
