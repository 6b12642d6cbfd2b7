"""The held-out loss against its sum, picture by picture in float64, and its errors against their definitions."""

import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from elit import DiT, UserError
from elit.data.images import LabelledImages
from elit.elastic.schedule import Schedule
from elit.evaluation.heldout import Loss, heldout_loss
from elit.flow import FlowPath
from elit.sampling import image_noise
from elit.weights import save_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data() -> LabelledImages:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return LabelledImages(images, torch.tensor([0, 3, -1, 6, 2]), tuple("abcdefg"))


ANGLES = {
    FlowPath.LINEAR: (lambda t: (1 - t, t), lambda t: (-1, 1)),
    FlowPath.COSINE: (
        lambda t: (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)),
        lambda t: (-math.pi / 2 * math.sin(t * math.pi / 2), math.pi / 2 * math.cos(t * math.pi / 2)),
    ),
}  # of data and noise, in x_t and in its velocity


@pytest.mark.parametrize("path", FlowPath)
def test_it_is_the_mean_squared_error_at_fixed_points(tiny: DiT, data: LabelledImages, path: FlowPath) -> None:
    """Of four of five pictures, two at a time, at two budgets; a picture without a label is told none."""
    told: list[int] = []
    at, change = ANGLES[path]
    found = heldout_loss(tiny, data, 4, (0.25, 1.0), times=(0.2, 0.9), path=path, batch=2, done=told.append)
    assert sum(told) == 4 * 2 * 2
    for loss, budget in zip(found, (0.25, 1.0), strict=True):
        for place, row in enumerate((0, 1, 2, 3)):
            x = data.images[row].double() / 127.5 - 1
            noise = image_noise(0, (1, 3, 8, 8), "held out noise", place)[0].double()
            label = int(data.labels[row])
            expected = []
            for t in (0.2, 0.9):
                x_t = (at(t)[0] * x + at(t)[1] * noise).float()[None]
                velocity = tiny(x_t, torch.tensor([t]), torch.tensor([7 if label < 0 else label]), budget)[0].double()
                expected.append((velocity - (change(t)[0] * x + change(t)[1] * noise)).square().mean().item())
            assert loss.of_each[place].item() == pytest.approx(statistics.mean(expected), rel=1e-5)


def test_a_schedule_is_its_budgets_each_at_its_times(tiny: DiT, data: LabelledImages) -> None:
    schedule = Schedule(((0.5, 0.25),), 1.0)
    found = heldout_loss(tiny, data, 4, (schedule,), times=(0.2, 0.6, 0.9))[0].of_each
    low = heldout_loss(tiny, data, 4, (1.0,), times=(0.2,))[0].of_each
    high = heldout_loss(tiny, data, 4, (0.25,), times=(0.6, 0.9))[0].of_each
    torch.testing.assert_close(found, (low + 2 * high) / 3)


def test_pictures_are_spread_over_the_data_and_the_same_for_any_batch(tiny: DiT, data: LabelledImages) -> None:
    whole, parts = (heldout_loss(tiny, data, 2, (1.0,), batch=batch)[0].of_each for batch in (2, 1))
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=0)
    first = heldout_loss(tiny, data, 5, (1.0,))[0].of_each[0]
    assert whole[0] == pytest.approx(first.item(), rel=1e-6)
    spread = LabelledImages(data.images[[0, 2]], data.labels[[0, 2]], data.label_names)  # the first of each half
    assert torch.equal(whole, heldout_loss(tiny, spread, 2, (1.0,), times=(0.1, 0.3, 0.5, 0.7, 0.85, 0.95))[0].of_each)


def test_what_is_drawn_of_a_picture_is_drawn_by_its_place(tiny: DiT, data: LabelledImages) -> None:
    """As crops and mirrors are: the same for any batch, and another for each picture."""
    seen: list[float] = []

    class Drawn(LabelledImages):
        def read(self, rows: torch.Tensor, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
            seen.extend(float(torch.rand(1, generator=generator)) for generator in generators)
            return super().read(rows, generators)

    for batch in (3, 1):
        heldout_loss(tiny, Drawn(data.images, data.labels, data.label_names), 3, (1.0,), times=(0.5,), batch=batch)
    assert seen[:3] == seen[3:] and len(set(seen)) == 3


def test_errors_are_of_the_mean_and_paired() -> None:
    a, b = Loss(torch.tensor([1.0, 2.0, 4.0, 5.0])), Loss(torch.tensor([0.9, 1.8, 3.7, 4.8]))
    assert a.mean == 3 and a.error == pytest.approx(statistics.stdev([1, 2, 4, 5]) / 2)
    apart = [0.1, 0.2, 0.3, 0.2]
    assert a.above(b) == pytest.approx((0.2 / 2.8, statistics.stdev(apart) / 2 / 2.8), rel=1e-5)


@pytest.mark.parametrize("count", [1, 6])
def test_a_count_that_is_not_there_is_refused(tiny: DiT, data: LabelledImages, count: int) -> None:
    with pytest.raises(UserError, match=f"{count} held-out pictures were asked for; give 2 to 5"):
        heldout_loss(tiny, data, count, (1.0,))


def test_the_table_has_a_row_for_every_model_and_budget(
    model_folder: Path, make_dit: Callable[..., DiT], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script compares each with the first, a dense model's one budget too."""
    spec = importlib.util.spec_from_file_location("heldout_benchmark", ROOT / "benchmarks" / "heldout.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    dense = tmp_path / "dense"
    dense.mkdir()
    save_weights(make_dit(group_size=None), dense)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 10, 200)).save(pictures / f"{i}.png")
    found = script.main([str(dense), str(model_folder), "--data", str(pictures), "--count", "3"])
    assert [budget for name, budget in found if name == str(model_folder)] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]
    assert [budget for name, budget in found if name == str(dense)] == [1.0]
    shown = capsys.readouterr().out
    assert "0.0 ± 0.0" in shown and "4/16" in shown
