"""Drawings show what they are given: every channel count, maps from dark to bright, each curve once."""

import xml.etree.ElementTree as ET
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from elit.pictures import Row
from elit.reports.drawing import ACROSS, ImageSheet, Panel, Panels, Point, heat, parts_of, visible
from elit.words import spread


def test_rgb_is_shown_as_it_is() -> None:
    images = 3 * torch.randn(2, 3, 4, 4)
    assert visible(images) is images


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 1, 1)), (4, (0, 1, 2)), (16, (0, 1, 2))])
def test_other_channels_are_shown_in_range_on_one_scale(channels: int, shown: tuple[int, ...]) -> None:
    images = 5 * torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    out = visible(images)
    assert out.shape == (2, 3, 4, 4) and out.abs().max() == 1
    torch.testing.assert_close(out * images[:, list(shown)].abs().max(), images[:, list(shown)])


def test_a_sheet_is_cut_into_pieces_that_a_telephone_can_show() -> None:
    """Each with the names of its own columns, and all rows."""
    names = [f"label{i}" for i in range(2 * ACROSS + 1)]
    drawing = ImageSheet([Row(name, torch.zeros(len(names), 4, 8, 8)) for name in ("1/4", "4/4")], names)
    pieces = drawing.pieces()
    assert len(pieces) == 3
    for piece, columns in zip(pieces, parts_of(len(names), ACROSS), strict=True):
        assert all((names[i] in piece.alt) == (i in columns) for i in range(len(names))) and "1/4, 4/4" in piece.alt
        with Image.open(BytesIO(piece.content)) as image:
            assert (image.width // 2, image.height // 2) == (piece.width, piece.height), "two pixels in one of the page"
        assert piece.width < 600


def test_pieces_hold_the_columns_that_belong_together() -> None:
    images = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    pieces = ImageSheet([Row("", images)], ["a", "b", "c"], [[0, 1], [0, 2]]).pieces()
    assert [piece.alt.split(";")[0] for piece in pieces] == ["Images of a, b", "Images of a, c"]
    assert pieces[0].content != pieces[1].content


def test_parts_are_of_about_one_size() -> None:
    assert [list(part) for part in parts_of(5, 4)] == [[0, 1], [2, 3, 4]]
    assert [len(part) for part in parts_of(12, 4)] == [4, 4, 4]


def test_maps_go_from_dark_to_bright_each_on_its_own_scale() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[0.0, 10.0], [20.0, 30.0]]])
    out = heat(maps, (4, 6))
    assert out.shape == (2, 3, 4, 6) and out.abs().max() <= 1
    torch.testing.assert_close(out[0], out[1])
    brightness = out[0].mean(0)
    assert brightness[0, 0] < brightness[0, 5] < brightness[3, 0] < brightness[3, 5]
    assert torch.isfinite(heat(torch.ones(1, 2, 2), (2, 2))).all()


FULL = Panel("full", "x", {"a": [Point(0, 1, 0.5, 0.25), Point(1, 2)], "b": []}, level=("here", 1.5))
EMPTY = Panel("empty", "x", {"a": [], "b": []})


def test_panels_without_points_are_left_out(tmp_path: Path) -> None:
    Panels([FULL, FULL, EMPTY]).save(tmp_path / "some.png")
    Panels([FULL, FULL]).save(tmp_path / "all.png")
    assert (tmp_path / "some.png").read_bytes() == (tmp_path / "all.png").read_bytes()
    assert [piece.alt.split(",")[0] for piece in Panels([FULL, EMPTY]).pieces()] == ["full"]


def test_panels_stand_three_in_a_row_at_most(tmp_path: Path) -> None:
    for count in (3, 4):
        Panels([FULL] * count).save(tmp_path / f"{count}.png")
    with Image.open(tmp_path / "3.png") as three, Image.open(tmp_path / "4.png") as four:
        assert four.width == three.width and four.height == 2 * three.height


def test_curves_that_coincide_are_drawn_once_with_both_names() -> None:
    same = [Point(1, 1), Point(2, 2)]
    panel = Panel("cost", "scale", {"CFG": [Point(1, 3)], "cheap CFG": same, "autoguidance": list(same), "none": []})
    assert panel.drawn() == [(["CFG"], (Point(1, 3),)), (["cheap CFG", "autoguidance"], tuple(same))]
    (piece,) = Panels([panel]).pieces()
    assert "cheap CFG and autoguidance: 1 at 1 to 2 at 2" in piece.alt


def test_a_level_at_the_bottom_stands_off_the_axis() -> None:
    from matplotlib.figure import Figure

    for height, from_zero in ((0.3, True), (100.0, False)):
        panel = Panel("KID", "budget", {"": [Point(0, 200), Point(1, 100)]}, ("real pictures", height), from_zero)
        ax = Figure().subplots()
        Panels([panel])._draw(ax, panel)
        low, high = ax.get_ylim()
        assert (height - low) / (high - low) > 0.05


def test_a_panel_is_an_svg_of_its_own_that_follows_the_readers_colours() -> None:
    (piece,) = Panels([FULL]).pieces()
    text = piece.content.decode()
    root = ET.fromstring(text)
    assert root.tag.endswith("svg") and piece.kind == "svg+xml"
    assert "prefers-color-scheme: dark" in text and "var(--ink)" in text and "var(--curve0)" in text
    assert "http" not in text.replace("http://www.w3.org/", ""), "names of vocabularies alone"
    assert Panels([FULL]).pieces()[0].content == piece.content, "the same every time"
    assert piece.alt == "full, over x. a: 1 at 0 to 2 at 1; here: 1.5."


def test_spread_indices_differ_and_cover() -> None:
    assert spread(4, 12) == [0, 3, 6, 9]
    assert spread(12, 5) == [0, 1, 2, 3, 4]


def test_ticks_are_whole_numbers() -> None:
    """Where all values are near 155 the axis says 155, and not 5 with 150 to be added."""
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.subplots()
    panel = Panel("KID", "GFLOPs", {"": [Point(0.00342, 155.01), Point(0.00343, 155.02)]}, from_zero=False)
    Panels([panel])._draw(ax, panel)
    figure.draw_without_rendering()
    assert not ax.yaxis.get_offset_text().get_text().startswith(("+", "1e2+"))
    assert all(tick.get_text().startswith("155") for tick in ax.get_yticklabels())
