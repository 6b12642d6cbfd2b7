"""One self-contained HTML page: text, tables and pictures within it, no scripts and no links."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias


@dataclass(frozen=True)
class Sheet:
    """A table: the names of its columns, and rows of as many cells, with a note below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture: the bytes of a PNG, and what it shows."""

    png: bytes
    caption: str


PagePart: TypeAlias = str | Sheet | Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #ffffff; --line: #d5d5dd; --soft: #5c5c68; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ec; --paper: #17171b; --line: #3a3a44; --soft: #a3a3b0; } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
p { max-width: 48rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
figure { margin: 2rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); }
figcaption, .note { color: var(--soft); font-size: 0.9rem; max-width: 48rem; }
"""


def to_html(title: str, parts: Sequence[PagePart]) -> str:
    """The whole page; all text is escaped, and pictures are data URIs."""
    body = "\n".join(_part(part) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _part(part: PagePart) -> str:
    if isinstance(part, Sheet):
        return _table(part)
    if isinstance(part, Figure):
        source = f"data:image/png;base64,{base64.b64encode(part.png).decode('ascii')}"
        caption = escape(part.caption)
        return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    return f"<p>{escape(part)}</p>"


def _table(sheet: Sheet) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in sheet.rows)
    note = f'\n<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return (
        f'<h2>{escape(sheet.title)}</h2>\n<div class="scroll"><table>\n<thead>{row(sheet.columns, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>{note}"
    )
