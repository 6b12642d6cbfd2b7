"""The page holds everything within itself, says what it was given, and runs nothing."""

import base64
import json
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from elit.reports.page import Figure, Sheet, to_html
from elit.reports.report import Picture, Report, write_report, written_files

NASTY = "<script>alert(1)</script> & \"quotes\" 'too'"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page, with a check that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.values.setdefault(name, []).append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_all_text_is_escaped_and_comes_out_as_it_went_in() -> None:
    parts = [NASTY, Sheet(NASTY, (NASTY,), ((NASTY,), (NASTY,)), NASTY), Figure(b"png", NASTY)]
    page = Page(to_html(NASTY, parts))
    assert "script" not in page.tags
    # <title>, <h1>, paragraph, table title, head, two cells, note, figcaption
    assert "".join(page.text).count(NASTY) == 9
    assert page.values["alt"] == [NASTY]


def test_the_page_is_self_contained() -> None:
    page = Page(to_html("title", ["text", Sheet("table", ("a", "b"), (("1", "2"),)), Figure(b"\x89PNG", "caption")]))
    assert not {"script", "link", "iframe", "a"} & set(page.tags) and "href" not in page.values
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.values["src"]] == [b"\x89PNG"]
    style = to_html("title", []).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "prefers-color-scheme: dark" in style


def test_a_report_is_written_whole_and_its_tables_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Image.new("RGB", (3, 2), "red")
    report = Report(
        "a title",
        ["a paragraph", Sheet("a table", ("name",), (("[bold]",),)), Picture("a.png", "red", partial(save, image))],
        {"answer": 42},
    )
    write_report(report, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {p.name for p in folder.iterdir()} == set(written_files(report).split(", ")), "nothing half-written is left"
    assert json.loads((folder / "results.json").read_text()) == {"answer": 42}
    page = Page((folder / "report.html").read_text(encoding="utf8"))
    assert base64.b64decode(page.values["src"][0].split(",")[1]) == (folder / "a.png").read_bytes()
    assert "[bold]" in capsys.readouterr().out, "cells are text, not markup"


def save(image: Image.Image, file: Path) -> None:
    image.save(file, format="PNG")
