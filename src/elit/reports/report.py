"""A report: text, tables and pictures in their order, and the figures behind them; written to a folder, and printed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rich.cells import cell_len
from rich.text import Text

from elit.console import output
from elit.errors import UserError
from elit.files import check_writable, open_regular, write_whole
from elit.reports.colophon import MARK, Colophon
from elit.reports.drawing import Drawing
from elit.reports.page import Figure, PagePart, Table, to_html

GAP = 2  # letters between the columns of a printed table
PAGE, FIGURES = "report.html", "results.json"
PICTURES = (
    *("budgets.png", "budgets.gif", "tradeoff.png", "guidance.png", "cfg.png", "cheap-cfg.png", "autoguidance.png"),
    *("attention.png", "latents.png", "schedule.png", "images.png", "results.png"),
)


@dataclass(frozen=True)
class Picture:
    """A drawing, the name of its PNG beside the page, one of PICTURES, and what it shows."""

    name: str
    caption: str
    drawing: Drawing


Part: TypeAlias = str | Table | Picture


@dataclass(frozen=True)
class Report:
    """`parts` are paragraphs, tables and pictures; `results` is what results.json holds, beside the colophon.

    verdict: what comes of it, in a sentence, where there is one; a terminal shows it below the tables.
    """

    title: str
    parts: Sequence[Part]
    results: Mapping[str, object]
    verdict: str = ""

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]


def check_folder(folder: Path) -> None:
    """Tries, before the work, whether a report can be written into a folder, which stays as it is.

    Raises WriteError where it cannot, and UserError where a file of a report's name is there that no report wrote.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    check_writable(folder)
    for place in missing:  # a mistake that is found later leaves no empty folder
        place.rmdir()
    for name in (*PICTURES, FIGURES, PAGE):
        if (folder / name).exists() and not written_by_a_report(folder / name):
            raise UserError(f"{folder / name} is no report's, and would be replaced; move it, or give another --out")


def written_by_a_report(file: Path) -> bool:
    """Whether a file names a report as its maker: of a picture, a page or figures, near the beginning."""
    try:
        with open_regular(file) as stream:
            return MARK.encode() in stream.read(4096)
    except (OSError, UserError):
        return False


def write_report(report: Report, folder: Path, colophon: Colophon) -> None:
    """Writes the pictures, results.json and report.html into `folder`, each whole.

    Other files there are left alone. Raises what `check_folder` does.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[PagePart] = []
    for part in report.parts:
        if isinstance(part, Picture):
            part.drawing.save(folder / part.name)
            parts.append(Figure(part.drawing.pieces(), part.caption))
        else:
            parts.append(part)
    write_whole(folder / FIGURES, json.dumps({"made": asdict(colophon), **report.results}, indent=2) + "\n")
    write_whole(folder / PAGE, to_html(report.title, parts, told(colophon)))


def told(colophon: Colophon) -> dict[str, str]:
    """A colophon as the page shows it."""
    return {
        "Command": colophon.command,
        "Versions": f"elit {colophon.elit}, torch {colophon.torch}, Python {colophon.python}",
        "Hardware": colophon.hardware,
        "Date": colophon.date,
    }


def written_files(report: Report) -> str:
    """The names of the files that `write_report` writes, as a sentence lists them."""
    return ", ".join([*(picture.name for picture in report.pictures), FIGURES, PAGE])


def print_table(table: Table) -> None:
    """Prints a table: of a width that fits the terminal, or of its own where it goes to a file or a pipe.

    Where the columns do not fit, those that do make one table and the others further ones, each with the key columns, so
    that no cell is cut or broken.
    """
    output.print(Text(table.title, style="bold"), soft_wrap=True)
    for part in fitting(table, output.width if output.is_terminal else None):
        for line in lines_of(part):
            output.print(line, soft_wrap=True)
    output.print(Text(table.note), soft_wrap=not output.is_terminal)


def fitting(table: Table, width: int | None) -> list[Table]:
    """The table cut into tables of some of its columns, none wider than so many letters where that is possible."""
    widths = widths_of(table)
    keys, parts, used = list(range(table.keys)), [list(range(table.keys))], 0
    room = sum(widths) if width is None else width - sum(widths[: table.keys])
    for i in range(table.keys, len(widths)):
        if used + widths[i] > room and len(parts[-1]) > len(keys):
            parts.append(list(keys))
            used = 0
        parts[-1].append(i)
        used += widths[i]
    return [
        replace(table, columns=[table.columns[i] for i in part], rows=[[row[i] for i in part] for row in table.rows])
        for part in parts
    ]


def lines_of(table: Table) -> list[Text]:
    """A table as lines of a terminal: an empty one, the names of the columns, a rule, and the rows."""
    widths = widths_of(table)

    def line(cells: Sequence[str]) -> str:
        return "".join(" " * (width - cell_len(cell)) + cell for width, cell in zip(widths, cells, strict=True))

    head = [Text(""), Text(line(table.columns), style="bold"), Text(" " + "─" * (sum(widths) - 1))]
    return [*head, *(Text(line(row)) for row in table.rows), Text("")]


def widths_of(table: Table) -> list[int]:
    """The width of each column, in letters, with the space before it."""
    return [max(cell_len(row[i]) for row in (table.columns, *table.rows)) + GAP for i in range(len(table.columns))]
