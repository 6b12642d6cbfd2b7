"""A report: text, tables and pictures in their order, and the figures behind them; written to a folder, and printed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from elit.console import show
from elit.files import write_whole, written_whole
from elit.reports.page import Figure, PagePart, Sheet, to_html


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page: `draw(file)` makes it."""

    name: str
    caption: str
    draw: Callable[[Path], None]


Part: TypeAlias = str | Sheet | Picture


@dataclass(frozen=True)
class Report:
    """`parts` are paragraphs, tables and pictures; `results` is what results.json holds."""

    title: str
    parts: Sequence[Part]
    results: dict[str, Any]


def write_report(report: Report, folder: Path) -> None:
    """Writes the pictures, results.json and report.html into `folder`, each whole, and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[PagePart] = []
    for part in report.parts:
        if isinstance(part, Picture):
            with written_whole(folder / part.name) as file:
                part.draw(file)
            parts.append(Figure((folder / part.name).read_bytes(), part.caption))
        else:
            parts.append(part)
    write_whole(folder / "results.json", json.dumps(report.results, indent=2) + "\n")
    write_whole(folder / "report.html", to_html(report.title, parts))
    for part in report.parts:
        if isinstance(part, Sheet):
            show(terminal_table(part))


def terminal_table(sheet: Sheet) -> Table:
    """A table as people read it on a terminal."""
    table = Table(
        title=sheet.title, caption=Text(sheet.note) if sheet.note else None, box=SIMPLE_HEAD, collapse_padding=True
    )
    for i, name in enumerate(sheet.columns):
        table.add_column(Text(name), justify="right", no_wrap=i == 0)
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def written_files(report: Report) -> str:
    """The names of the files that `write_report` writes, as a sentence lists them."""
    return ", ".join([*(part.name for part in report.parts if isinstance(part, Picture)), "results.json", "report.html"])
