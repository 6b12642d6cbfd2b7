"""One self-contained HTML page: text, tables and pictures within it, no scripts, no links, nothing fetched.

It is a column in the middle of the window. A figure is one or more pieces that stand side by side where there is room and
one below another on a narrow screen, so that none gets too small to read.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypeAlias

from elit.reports.colophon import MARK


@dataclass(frozen=True)
class Table:
    """The names of the columns, and rows of as many cells, with a note below.

    keys: how many columns, from the left, say what a row is of; the others hold its figures.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    keys: int = 1


@dataclass(frozen=True)
class Piece:
    """One image of a figure: its bytes, its size on the page in CSS pixels, and what it shows in words."""

    kind: Literal["png", "gif", "svg+xml"]
    content: bytes
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Figure:
    """Pieces that are looked at together, and what they show."""

    pieces: Sequence[Piece]
    caption: str


PagePart: TypeAlias = str | Table | Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #ffffff; --line: #d5d5dd; --soft: #5c5c68; --shade: #00000030; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6ec; --paper: #17171b; --line: #3a3a44; --soft: #a3a3b0; --shade: #ffffff40; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1rem; }
h1, h2, p, footer { max-width: 48rem; margin-left: auto; margin-right: auto; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-top: 0; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; margin-bottom: 0.5rem; }
.scroll { overflow-x: auto;  /* a shade at its right edge, while there is more */
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / 1.25rem 100% no-repeat scroll; }
table { border-collapse: collapse; margin: 0 auto; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
figure { margin: 2.5rem 0; }
.pieces { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), max-content)); gap: 1.5rem 1rem;
  justify-content: center; justify-items: center; align-items: start; }
img { max-width: 100%; height: auto; }
img.png, img.gif { background: #ffffff; border: 1px solid var(--line); }
figcaption, .note { color: var(--soft); font-size: 0.9rem; max-width: 48rem; margin: 0.75rem auto 0; }
footer { color: var(--soft); font-size: 0.85rem; margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
dd span { display: inline-block; max-width: 100%; }
@media (max-width: 40rem) {
  table { font-size: 0.75rem; }
  th, td { padding: 0.25rem; }
  th, td:first-child { white-space: normal; }
  td:first-child { min-width: 4.5rem; }
  td span { display: block; }
}
"""


def to_html(title: str, parts: Sequence[PagePart], made: Mapping[str, str]) -> str:
    """The whole page; all text is escaped, and pictures are data URIs. made: what stands at its end, by name."""
    body = "\n".join(_part(part) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="{MARK}">\n'
        f'<title>{escape(title)}</title>\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n{_footer(made)}\n</main>\n"
        "</body>\n</html>\n"
    )


def _part(part: PagePart) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Figure):
        pieces = "\n".join(_piece(piece) for piece in part.pieces)
        return (
            f'<figure>\n<div class="pieces">\n{pieces}\n</div>\n<figcaption>{escape(part.caption)}</figcaption>\n</figure>'
        )
    return f"<p>{escape(part)}</p>"


def _piece(piece: Piece) -> str:
    source = f"data:image/{piece.kind};base64,{base64.b64encode(piece.content).decode('ascii')}"
    kind = piece.kind.partition("+")[0]
    return f'<img class="{kind}" src="{source}" width="{piece.width}" height="{piece.height}" alt="{escape(piece.alt)}">'


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_cell(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="scroll"><table>\n<thead>{row(table.columns, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>{note}"
    )


def _cell(text: str) -> str:
    """A cell's text; what stands beside a figure, such as "± 1.5" or an interval, may go below it."""
    for mark in (" ± ", " ("):
        figure, found, beside = text.partition(mark)
        if found:
            return f"{escape(figure)} <span>{escape(found[1:] + beside)}</span>"
    return escape(text)


def _footer(made: Mapping[str, str]) -> str:
    told = "\n".join(f"<dt>{escape(name)}</dt><dd>{_unbroken(value)}</dd>" for name, value in made.items())
    return f"<footer>\n<dl>\n{told}\n</dl>\n</footer>"


def _unbroken(text: str) -> str:
    """A text whose words are not broken at their hyphens while a line has room for them."""
    return " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))
