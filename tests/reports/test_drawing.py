"""Pictures show what they are given: whole pixels, every channel count, maps from dark to bright."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit.reports.drawing import CELL, Panel, Point, Row, draw_grid, draw_panels, heat, visible
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


def test_every_pixel_of_a_grid_is_enlarged_by_a_whole_number(tmp_path: Path) -> None:
    red, blue = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, -1, 1])
    rows = [Row("first", colour(red, blue)), Row("second", colour(blue, red))]
    draw_grid(rows, ["left", "right"], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    for wanted in ((255, 0, 0), (0, 0, 255)):
        assert (np.abs(pixels - wanted).sum(-1) == 0).sum() == 2 * CELL * CELL // 2
    reds = np.argwhere((pixels == (255, 0, 0)).all(-1))
    half = CELL // 2
    assert np.abs(reds[: CELL * half].mean(0) - reds[-CELL * half :].mean(0)).min() > half, "on the diagonal"


def colour(*of_columns: torch.Tensor) -> torch.Tensor:
    """Images of 2 x 4 pixels, one colour each."""
    return torch.stack([values.view(3, 1, 1).expand(3, 2, 4) for values in of_columns])


def test_maps_go_from_dark_to_bright_each_on_its_own_scale() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[0.0, 10.0], [20.0, 30.0]]])
    out = heat(maps, (4, 6))
    assert out.shape == (2, 3, 4, 6) and out.abs().max() <= 1
    torch.testing.assert_close(out[0], out[1])
    brightness = out[0].mean(0)
    assert brightness[0, 0] < brightness[0, 5] < brightness[3, 0] < brightness[3, 5]
    assert torch.isfinite(heat(torch.ones(1, 2, 2), (2, 2))).all()


def test_panels_without_points_are_left_out(tmp_path: Path) -> None:
    full = Panel("full", "x", {"a": [Point(0, 1, 0.5, 0.25), Point(1, 2)], "b": []}, level=("here", 1.5))
    empty = Panel("empty", "x", {"a": [], "b": []})
    draw_panels([full, full, empty], tmp_path / "some.png")
    draw_panels([full, full], tmp_path / "all.png")
    assert (tmp_path / "some.png").read_bytes() == (tmp_path / "all.png").read_bytes()


def test_spread_indices_differ_and_cover() -> None:
    assert spread(4, 12) == [0, 3, 6, 9]
    assert spread(12, 5) == [0, 1, 2, 3, 4]
