"""Drawings of reports: sheets of images, and panels of curves; each as one PNG, and in pieces that a page can lay out."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from elit.files import written_whole
from elit.media import gif, save_clip
from elit.pictures import CELL, Row, moving_sheet, save_png, sheet
from elit.reports.colophon import MARK
from elit.reports.page import Piece
from elit.words import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 4  # columns of a sheet in one piece, at most: so many are legible on a telephone
SHARP = 2  # pixels of a page's images in a CSS pixel
PANELS_ACROSS = 3  # in a PNG
DPI, CSS_DPI = 150, 96
PANEL_INCHES = (4.1, 3.1)  # of a panel without a legend
LINE_INCHES, LEGEND_LETTERS = 0.16, 54  # height of a line of a legend, and its letters at most
LIGHT = {"ink": "#1b1b1f", "paper": "#ffffff", "line": "#d4d4dc", "soft": "#5c5c68"}
DARK = {"ink": "#e6e6ec", "paper": "#17171b", "line": "#3a3a44", "soft": "#a3a3b0"}
CURVES = ("#1769b5", "#c8520a", "#1f8a4c", "#9a3fb0", "#8a6a00", "#b3234e", "#0f7f8c", "#55555e")  # on white
CURVES_DARK = ("#64aef5", "#ff9d5c", "#5fcf8e", "#d68aea", "#d9b84a", "#ff7f9f", "#57c9d6", "#b9b9c4")
MARKERS, LINES = "osD^vP*X", ("-", "--", ":")


class Drawing(Protocol):
    """Something to look at."""

    def save(self, file: Path) -> None:
        """Writes all of it as one PNG, whole or not at all."""

    def pieces(self) -> list[Piece]:
        """The same as images that a page lays out beside or below each other."""


@dataclass(frozen=True)
class ImageSheet:
    """Rows of images, of any number of channels, under the names of the columns.

    together: the columns that stand in each piece of a page; some four in each where none are given.
    """

    rows: Sequence[Row]
    columns: Sequence[str]
    together: Sequence[Sequence[int]] = ()

    def draw(self, columns: Sequence[int], cell: int) -> Image.Image:
        images = visible(torch.cat([row.images for row in self.rows]))
        images = images.unflatten(0, (len(self.rows), len(self.columns)))[:, list(columns)].flatten(0, 1)
        return sheet(images, [self.columns[i] for i in columns], [row.name for row in self.rows], cell=cell)

    def save(self, file: Path) -> None:
        save_png(self.draw(range(len(self.columns)), CELL), file, made_by=MARK)

    def pieces(self) -> list[Piece]:
        made = []
        for columns in self.together or parts_of(len(self.columns), ACROSS):
            image, stream = self.draw(columns, SHARP * CELL), io.BytesIO()
            image.save(stream, format="PNG", optimize=True)
            named = ", ".join(one_line(self.columns[i]) for i in columns)
            alt = f"Images of {named}; from top to bottom: {', '.join(one_line(row.name) for row in self.rows)}."
            made.append(Piece("png", stream.getvalue(), image.width // SHARP, image.height // SHARP, alt))
        return made


@dataclass(frozen=True)
class ClipSheet:
    """Rows of clips (columns, C, T, H, W) under the names of the columns: a sheet of images for each frame."""

    rows: Sequence[Row]
    columns: Sequence[str]

    def draw(self, columns: Sequence[int], cell: int) -> list[Image.Image]:
        """The frames of some of its columns."""
        clips = visible(torch.cat([row.images for row in self.rows])).unflatten(0, (len(self.rows), len(self.columns)))
        named = [self.columns[i] for i in columns]
        return moving_sheet(clips[:, list(columns)].flatten(0, 1), named, self.names, cell=cell)

    def save(self, file: Path) -> None:
        """Writes all of it as one GIF, whole or not at all."""
        save_clip(self.draw(range(len(self.columns)), CELL), file, made_by=MARK)

    def pieces(self) -> list[Piece]:
        made = []
        for columns in parts_of(len(self.columns), ACROSS):
            frames = self.draw(columns, CELL)
            named, rows = (", ".join(map(one_line, names)) for names in ([self.columns[i] for i in columns], self.names))
            made.append(Piece("gif", gif(frames), *frames[0].size, f"Clips of {named}; from top to bottom: {rows}."))
        return made

    @property
    def names(self) -> list[str]:
        """Of its rows."""
        return [row.name for row in self.rows]


def parts_of(count: int, most: int) -> list[range]:
    """range(count) in as few parts as hold at most so many, all of about one size."""
    parts = -(-count // most)
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def visible(images_NCHW: Tensor) -> Tensor:
    """RGB in [-1, 1] of images, or clips, of any channels: RGB as it is, else the first three, in range by one scale."""
    channels = images_NCHW.shape[1]
    if channels == 3:
        return images_NCHW
    some = images_NCHW[:, [min(i, channels - 1) for i in range(3)]]
    return some / some.abs().max().clamp(min=1)


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
    curves: Mapping[str, Sequence[Point]]
    level: tuple[str, float] | None = None
    from_zero: bool = True

    def drawn(self) -> list[tuple[list[str], Sequence[Point]]]:
        """The curves that have points, each with its name; those that coincide are one, with all their names."""
        found: dict[tuple[Point, ...], list[str]] = {}
        for name, points in self.curves.items():
            if points:
                found.setdefault(tuple(points), []).append(name)
        return [(names, points) for points, names in found.items()]

    def legend(self) -> list[str]:
        """The names of the curves that are drawn, in lines; none where a single curve needs none."""
        drawn = self.drawn()
        return [textwrap.fill(" and ".join(names), LEGEND_LETTERS) for names, _ in drawn] if len(drawn) > 1 else []

    @property
    def inches(self) -> tuple[float, float]:
        """Of the panel with its legend below."""
        width, height = PANEL_INCHES
        return width, height + LINE_INCHES * sum(name.count("\n") + 1 for name in self.legend())


@dataclass(frozen=True)
class Panels:
    """Panels that are looked at together; those without a point are left out. A curve looks the same in all of them."""

    panels: Sequence[Panel]

    @property
    def shown(self) -> list[Panel]:
        return [panel for panel in self.panels if panel.drawn()]

    @property
    def names(self) -> list[str]:
        """Of all curves; a curve's place among them decides its look."""
        return list(dict.fromkeys(name for panel in self.shown for name in panel.curves))

    def save(self, file: Path) -> None:
        from matplotlib.figure import Figure

        shown = self.shown
        across = min(len(shown), PANELS_ACROSS)
        down = -(-len(shown) // across)
        height = max(panel.inches[1] for panel in shown)
        figure = Figure((across * PANEL_INCHES[0], down * height), dpi=DPI, layout="constrained")
        places = figure.subplots(down, across, squeeze=False).flatten()
        for ax, panel in zip(places, shown, strict=False):
            self._draw(ax, panel)
        figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
        for ax in places[len(shown) :]:
            ax.remove()
        with written_whole(file) as part:
            figure.savefig(part, format="png", metadata={"Software": MARK})

    def pieces(self) -> list[Piece]:
        made = []
        for panel in self.shown:
            width, height = (round(CSS_DPI * side) for side in panel.inches)
            made.append(Piece("svg+xml", self._svg(panel), width, height, described(panel)))
        return made

    def _svg(self, panel: Panel) -> bytes:
        """A panel as SVG, in light colours or dark ones as the reader's screen asks for."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        figure, stream = Figure(panel.inches, layout="constrained"), io.StringIO()
        self._draw(figure.subplots(), panel)
        with rc_context({"svg.hashsalt": MARK}):
            figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return adaptive(stream.getvalue()).encode()

    def _draw(self, ax: "Axes", panel: Panel) -> None:
        """The curves, each with its own look; a legend below where there are several."""
        drawn = panel.drawn()
        for (names, points), label in zip(drawn, panel.legend() or [""], strict=True):
            i = self.names.index(names[0])
            x, y, below, above = (list(column) for column in zip(*points, strict=True))
            ax.errorbar(
                x,
                y,
                yerr=[below, above],
                capsize=3,
                label=label,
                color=CURVES[i % 8],
                marker=MARKERS[i % 8],
                markersize=5,
                linestyle=LINES[i % 3],
                linewidth=1.5,
            )
        if panel.from_zero:
            ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        if panel.level is not None:
            mark_level(ax, *panel.level)
        dress(ax, panel)
        if len(drawn) > 1:
            place, ink = (0.5, -0.18), LIGHT["ink"]
            ax.legend(loc="upper center", bbox_to_anchor=place, fontsize=8.5, frameon=False, labelcolor=ink)


def mark_level(ax: "Axes", name: str, height: float) -> None:
    """A dashed line at a height with its name above it; where it would lie on the axis, the axis gives it room below."""
    low, high = ax.get_ylim()
    high = max(high, 1.1 * height)
    if abs(height - low) < 0.06 * (high - low):
        low = height - 0.08 * (high - low)
    ax.set_ylim(low, high)
    ax.axhline(height, color=LIGHT["soft"], linestyle="--", linewidth=1)
    ax.annotate(
        name,
        (0.98, height),
        (0, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=LIGHT["soft"],
    )


def dress(ax: "Axes", panel: Panel) -> None:
    """Titles, grid and colours, which `adaptive` knows by their values."""
    ax.figure.set_facecolor(LIGHT["paper"])
    ax.set_facecolor(LIGHT["paper"])
    ax.set_title(panel.title, fontsize=11, color=LIGHT["ink"])
    ax.set_xlabel(panel.x_label, fontsize=10, color=LIGHT["ink"])
    ax.tick_params(colors=LIGHT["ink"], labelsize=9)
    ax.ticklabel_format(useOffset=False)  # whole numbers at the ticks, none to be added to them
    ax.grid(color=LIGHT["line"], linewidth=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(LIGHT["ink"])


def adaptive(svg: str) -> str:
    """An SVG in the colours of LIGHT and CURVES with those for dark screens beside them; all by name, in its own style."""
    pairs = {name: (LIGHT[name], DARK[name]) for name in LIGHT}
    pairs |= {f"curve{i}": both for i, both in enumerate(zip(CURVES, CURVES_DARK, strict=True))}
    for name, (light, _) in pairs.items():
        svg = svg.replace(light, f"var(--{name})")
    light, dark = (" ".join(f"--{name}: {both[i]};" for name, both in pairs.items()) for i in range(2))
    style = f"svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    root = svg[svg.index("<svg") :]
    start = root.index(">") + 1
    return f"{root[:start]}<style>{style}</style>{root[start:]}"


def described(panel: Panel) -> str:
    """A panel in words, for those who do not see it: each curve from its first point to its last."""
    said = []
    for names, points in panel.drawn():
        first, last = points[0], points[-1]
        name = " and ".join(names)
        said.append(f"{name + ': ' if name else ''}{first.y:.4g} at {first.x:.4g} to {last.y:.4g} at {last.x:.4g}")
    if panel.level is not None:
        said.append(f"{panel.level[0]}: {panel.level[1]:.4g}")
    return f"{panel.title}, over {panel.x_label}. {'; '.join(said)}."


def heat(maps_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as colour pictures (B, 3, *size) in [-1, 1], dark to bright, each on its own scale from lowest to highest."""
    from matplotlib import colormaps

    low, high = maps_BHW.amin((1, 2), keepdim=True), maps_BHW.amax((1, 2), keepdim=True)
    colours = torch.from_numpy(colormaps["viridis"](((maps_BHW - low) / (high - low).clamp(min=1e-12)).numpy()))
    pixels = colours[..., :3].permute(0, 3, 1, 2).float() * 2 - 1
    return torch.nn.functional.interpolate(pixels, size, mode="nearest")
