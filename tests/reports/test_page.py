"""The page holds everything within itself, says what it was given, and runs nothing."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import elit
from elit.console import output
from elit.errors import UserError
from elit.files import WriteError
from elit.pictures import Row
from elit.reports.colophon import Colophon, write_colophon
from elit.reports.drawing import ImageSheet
from elit.reports.page import Figure, Piece, Table, to_html
from elit.reports.report import (
    FIGURES,
    PAGE,
    Picture,
    Report,
    check_folder,
    fitting,
    print_table,
    write_report,
    written_files,
)

NASTY = "<script>alert(1)</script> & \"quotes\" 'too'"
VOID = {"meta", "img", "br"}
MADE = {"Command": "elit report budgets --labels 'a b'"}


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


def piece(content: bytes = b"png", alt: str = "what it shows") -> Piece:
    return Piece("png", content, 30, 20, alt)


def test_all_text_is_escaped_and_comes_out_as_it_went_in() -> None:
    parts = [NASTY, Table(NASTY, (NASTY,), ((NASTY,), (NASTY,)), NASTY), Figure([piece(alt=NASTY)], NASTY)]
    page = Page(to_html(NASTY, parts, {NASTY: NASTY}))
    assert "script" not in page.tags
    # <title>, <h1>, paragraph, table title, head, two cells, note, figcaption, and two in the colophon
    assert "".join(page.text).count(NASTY) == 11
    assert page.values["alt"] == [NASTY]


def test_the_page_is_self_contained() -> None:
    parts = ["text", Table("table", ("a", "b"), (("1", "2"),)), Figure([piece(b"\x89PNG"), piece(b"more")], "caption")]
    page = Page(to_html("title", parts, MADE))
    assert not {"script", "link", "iframe", "a"} & set(page.tags) and "href" not in page.values
    contents = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.values["src"]]
    assert contents == [b"\x89PNG", b"more"]
    style = to_html("title", [], MADE).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_every_image_has_its_size_and_words_for_those_who_do_not_see_it() -> None:
    page = Page(to_html("title", [Figure([piece(), piece(alt="another")], "caption")], MADE))
    assert page.values["alt"] == ["what it shows", "another"] and page.values["width"] == ["30", "30"]


def test_the_page_ends_with_how_it_was_made() -> None:
    colophon = write_colophon("elit report budgets --labels 'a b'")
    assert colophon.elit == elit.__version__ and colophon.torch == torch.__version__
    assert "thread" in colophon.hardware and colophon.date.endswith("UTC")


def example(results: dict[str, object] | None = None) -> Report:
    red = ImageSheet([Row("red", torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1))], ["column"])
    parts = ["a paragraph", Table("a table", ("name",), (("[bold]",),)), Picture("budgets.png", "all red", red)]
    return Report("a title", parts, {"answer": 42} if results is None else results)


@pytest.fixture
def colophon() -> Colophon:
    return write_colophon("elit report budgets --labels 'a b'")


def test_a_report_is_written_whole(tmp_path: Path, colophon: Colophon) -> None:
    folder = tmp_path / "new" / "folder"
    write_report(example(), folder, colophon)
    assert {p.name for p in folder.iterdir()} == set(written_files(example()).split(", ")), "nothing half-written is left"
    results = json.loads((folder / FIGURES).read_text())
    assert results["answer"] == 42 and results["made"]["command"] == colophon.command
    text = "".join(Page((folder / PAGE).read_text(encoding="utf8")).text)
    for told in (
        colophon.command,
        f"elit {elit.__version__}",
        f"torch {torch.__version__}",
        colophon.hardware,
        colophon.date,
    ):
        assert told in text
    with Image.open(folder / "budgets.png") as image:
        assert image.convert("RGB").getpixel((image.width // 2, image.height // 4)) == (255, 0, 0)


def test_a_report_replaces_what_a_report_wrote_and_nothing_else(tmp_path: Path, colophon: Colophon) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_report(example(), tmp_path, colophon)
    write_report(example({"answer": 43}), tmp_path, colophon)
    assert json.loads((tmp_path / FIGURES).read_text())["answer"] == 43
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for name in ("budgets.png", FIGURES, PAGE, "attention.png"):
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        (tmp_path / name).write_text("somebody's own")
        with pytest.raises(UserError, match=f"{name} is no report's"):
            check_folder(tmp_path)
        with pytest.raises(UserError, match="is no report's"):
            write_report(example({"answer": 44}), tmp_path, colophon)
        assert (tmp_path / name).read_text() == "somebody's own"
        (tmp_path / name).unlink()
        for file, content in before.items():
            file.write_bytes(content)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/report could not be written"):
        check_folder(tmp_path / "file" / "report")


WIDE = Table(
    "wide", ["budget", *(f"a column {i}" for i in range(9))], [["1/16", *(f"{i}00.0 ± 1.0" for i in range(9))]], "note"
)


def test_tables_fit_their_width_and_lose_nothing() -> None:
    for width in (50, 80, 120):
        parts = fitting(WIDE, width)
        assert all(sum(max(len(a), len(b)) + 2 for a, b in zip(p.columns, p.rows[0], strict=True)) <= width for p in parts)
        assert all(p.columns[0] == "budget" for p in parts), "each says what its rows are of"
        assert [name for p in parts for name in p.columns[1:]] == list(WIDE.columns[1:])
    assert len(fitting(WIDE, None)) == 1
    assert len(fitting(WIDE, 5)) == 9, "one column each, where nothing fits"


def test_tables_are_printed_as_text_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("a table", ("name",), (("[bold]",),), "see [/x]"))
    print_table(WIDE)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["[bold]"] in lines and ["see", "[/x]"] in lines
    assert any(line[:2] == ["1/16", "000.0"] for line in lines)
    if not output.is_terminal:
        assert any(line.count("±") == 9 for line in lines), "in one line where it is piped"
