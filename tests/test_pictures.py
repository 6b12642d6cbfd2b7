"""Sheets of images for people: every pixel enlarged by a whole number, and names that can be read beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from elit.pictures import CELL, REPEATED, font, mosaic, save_png, sheet, wrapped

RED, BLUE, WHITE = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, -1, 1]), torch.ones(3)


def colour(*of_images: torch.Tensor) -> torch.Tensor:
    """Images of 2 x 4 pixels, one colour each."""
    return torch.stack([values.view(3, 1, 1).expand(3, 2, 4) for values in of_images])


def where(image: Image.Image, wanted: tuple[int, int, int]) -> NDArray[np.intp]:
    """The (row, column) of every pixel of that colour."""
    return np.argwhere((np.asarray(image) == wanted).all(-1))


def dark(image: Image.Image) -> NDArray[np.intp]:
    """The (row, column) of every pixel of letters."""
    return np.argwhere(np.asarray(image).max(-1) < 100)


def test_every_pixel_of_a_sheet_is_enlarged_by_a_whole_number() -> None:
    image = sheet(colour(RED, BLUE, BLUE, RED), ["left", "right"], ["first", "second"])
    reds, blues = where(image, (255, 0, 0)), where(image, (0, 0, 255))
    half = CELL // 2
    assert len(reds) == len(blues) == 2 * CELL * half
    assert np.abs(reds[: CELL * half].mean(0) - reds[-CELL * half :].mean(0)).min() > half, "on the diagonal"


def test_names_stand_below_the_columns_and_left_of_the_rows() -> None:
    plain = sheet(colour(WHITE, WHITE), ["", ""])
    assert not len(dark(plain))
    below = dark(sheet(colour(WHITE, WHITE), ["Apply", ""]))
    assert below[:, 0].min() > CELL // 2 and below[:, 1].max() < CELL + 10, "below the first image"
    assert below[:, 0].max() - below[:, 0].min() >= 9, "letters of a height that can be read"
    left = dark(sheet(colour(WHITE, WHITE), ["", ""], ["row"]))
    image = sheet(colour(RED, RED), ["", ""], ["row"])
    assert left[:, 1].max() < where(image, (255, 0, 0))[:, 1].min(), "left of the first image"


def test_every_image_can_have_its_own_caption() -> None:
    image = sheet(colour(*[WHITE] * 3), ["", ""], captions=["a", "", "c"])
    rows, columns = dark(image).T
    half = image.height // 2
    assert {(bool(y > half), bool(x > image.width // 2)) for y, x in zip(rows, columns, strict=True)} == {
        (False, False),
        (True, False),
    }


def test_tall_sheets_have_their_names_above_too() -> None:
    def height(rows: int) -> int:
        return sheet(colour(*[WHITE] * rows), ["name"]).height

    per_row = height(3) - height(2)
    assert height(REPEATED) - height(REPEATED - 1) > per_row


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("heart", ["heart"]),
        ("transport-ground", ["transport-", "ground"]),
        ("a few short words", ["a few short", "words"]),
        ("two\nlines", ["two", "lines"]),
        ("animal-mammal/twemoji", ["animal-", "mammal/", "twemoji"]),
        ("", []),
    ],
)
def test_long_names_are_broken_at_spaces_hyphens_and_slashes(name: str, lines: list[str]) -> None:
    assert wrapped(name, font(15), CELL) == lines


def test_names_without_an_end_are_cut() -> None:
    lines = wrapped("m" * 500, font(15), CELL)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(font(15).getlength(line) < CELL + 10 for line in lines)


def test_large_images_keep_their_size() -> None:
    assert sheet(torch.zeros(1, 3, 200, 100), [""]).height >= 200
    assert mosaic(torch.zeros(3, 3, 5, 4), columns=2, scale=2, gap=1).size == (2 * 8 + 1, 2 * 10 + 1)


def test_a_png_can_name_its_maker(tmp_path: Path) -> None:
    save_png(mosaic(torch.zeros(1, 3, 2, 2), 1), tmp_path / "a.png", made_by="somebody")
    assert b"somebody" in (tmp_path / "a.png").read_bytes()[:200]
