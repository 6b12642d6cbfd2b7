"""Training of models of several stages: what a step draws, its loss, going on to the bit, previews, and the card."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_config import batch_loss, draw_batch, load_data, make_state, train_step
from PIL import Image
from safetensors.torch import load_file

import elit
from elit.backbones.table import build_model
from elit.card import SamplingDefaults, load_card
from elit.cli import main
from elit.codec import PixelCodec
from elit.flow import FlowPath, TimeLaw
from elit.pyramid import Pyramid, PyramidFlow
from elit.training.budgets import mean_flops
from elit.training.config import BudgetConfig, FlowConfig, TrainConfig
from elit.training.flows import global_times, share_above
from elit.training.loop import train
from elit.training.samples import Sampler, save_preview
from elit.training.step import products_of

CPU = torch.device("cpu")
STAGED = {"architecture": "DFM", "device": "cpu"}
Make = Callable[..., TrainConfig]


def test_a_step_draws_one_number_of_stages_for_all_and_any_share_is_a_slice(make_config: Make) -> None:
    config = make_config(**STAGED, flow__stage_weights=[0.5, 0.5], seed=3)
    data, seen = load_data(config), []
    for step in range(12):
        whole = draw_batch(config, data, step)
        part = draw_batch(config, data, step, range(1, 3))
        assert torch.equal(part.flow.x_t, whole.flow.x_t[1:3]) and torch.equal(part.flow.t, whole.flow.t[1:3])
        assert part.flow.active == whole.flow.active
        assert whole.flow.x_t.shape == (4, 15, 4, 4) and whole.flow.t.shape == (4, 2)
        if whole.flow.active == 1:
            assert (whole.flow.t[:, 1] == 1).all() and not whole.flow.x_t[:, 3:].any()
        else:
            assert (whole.flow.t[:, 1] < 1).all() and whole.flow.x_t[:, 3:].abs().min() > 0
        halves = whole.split(2)
        assert [half.flow.active for half in halves] == [whole.flow.active] * 2
        seen.append(whole.flow.active)
    assert {1, 2} == set(seen)


@pytest.mark.parametrize("elastic", [2, None])
def test_the_loss_of_a_step_is_the_flow_of_its_stages(make_config: Make, elastic: int | None) -> None:
    """Of the images at the batch's rows, and parts of a batch weigh as much as it all."""
    config = make_config(**STAGED, model__group_size=elastic, accumulate=2, seed=1, flow__stage_weights=[0, 1])
    data, state = load_data(config), make_state(config, CPU)
    for parameter in state.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    batch = draw_batch(config, data, 0)
    v = state.model(batch.flow.x_t, batch.flow.t, batch.labels, batch.budget).detach()
    parts = Pyramid(3, 2)
    expected = sum(
        ((a - b) ** 2).mean() for a, b in zip(parts.unpack(v.double()), parts.unpack(batch.flow.velocity), strict=True)
    )
    assert batch_loss(config, state, batch, CPU)[0].item() == pytest.approx(float(expected), rel=1e-5)
    assert float(train_step(config, state, batch, CPU).loss) == pytest.approx(float(expected), rel=1e-5)


def test_a_run_that_stopped_goes_on_to_the_bit(make_config: Make, tmp_path: Path) -> None:
    """Half, then the rest: the weights of a run never stopped. Other stages are another run."""
    whole = train(make_config(**STAGED, out=tmp_path / "whole", steps=6))
    train(make_config(**STAGED, out=tmp_path / "cut", steps=3))
    rest = train(make_config(**STAGED, out=tmp_path / "cut", steps=6))
    first, second = (load_file(place / "model.safetensors") for place in (whole, rest))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(elit.UserError, match=r"flow.stage_weights is None there and \[0.5, 0.5\] now"):
        train(make_config(**STAGED, out=tmp_path / "cut", steps=6, flow__stage_weights=[0.5, 0.5]))
    with pytest.raises(elit.UserError, match="architecture is DFM there and DiT now"):
        train(make_config(out=tmp_path / "cut", device="cpu", steps=6))


def test_the_card_and_the_command_line_know_the_stages(make_config: Make, arguments, tmp_path: Path) -> None:
    """From training to a sheet of samples: steps and thresholds of the configuration are those of the model's card."""
    options = arguments(**STAGED, steps=2, flow__stage_thresholds=[0.3], flow__stage_steps=[3, 2], log__preview_every=2)
    assert main(["train", *options]) == 0
    run = tmp_path / "run"
    card = load_card(run / "checkpoints" / "step_00000002")
    assert card.sampling == SamplingDefaults((3, 2), 2.0, (0.3,))
    out = tmp_path / "samples"
    assert main(["sample", "--model", str(run), "--out", str(out), "--count", "1", "--budget", "1/4,1"]) == 0
    assert '"steps": [\n    3,\n    2\n  ]' in next(out.rglob("settings.json")).read_text()
    with Image.open(next((run / "previews").iterdir())) as sheet:
        assert sheet.height > sheet.width  # six rows, of three budgets and two stages, of two classes


def test_a_sheet_has_a_row_for_every_stage(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**STAGED)
    rows: list[str] = []
    monkeypatch.setattr("elit.training.samples.sheet", lambda images, columns, names: rows.extend(names))
    monkeypatch.setattr("elit.training.samples.save_png", lambda image, file: None)
    products = products_of("fp32", CPU)
    sampler = Sampler(FlowPath.LINEAR, SamplingDefaults((4, 1), 2.0, (0.1,)), PixelCodec(), (0, 1), True, products)
    save_preview(sampler, (0.25, 1.0), ("a", "b"), make_state(config, CPU), tmp_path / "s.png")
    assert rows == [f"budget {b}, stage {i} of 2" for b in ("0.25", "1") for i in (1, 2)]


def test_a_model_of_one_architecture_starts_from_no_other(make_config: Make, tmp_path: Path) -> None:
    folder = train(make_config(out=tmp_path / "dit", steps=1, device="cpu"))
    with pytest.raises(elit.UserError, match="is a DiT, from which no DFM can start"):
        train(make_config(**STAGED, init_from=folder, out=tmp_path / "dfm"))


def test_a_dense_model_of_stages_starts_an_elastic_one(make_config: Make, tmp_path: Path) -> None:
    dense = train(make_config(**STAGED, out=tmp_path / "dense", steps=2, model__group_size=None))
    made = train(make_config(**STAGED, out=tmp_path / "elastic", steps=1, init_from=dense, finetune__distill=1.0))
    model = elit.load_model(made)
    assert model.core is not None and model.stages == 2


FLOW = PyramidFlow(Pyramid(1, 3), (0.5, 0.3, 0.2))


@pytest.mark.parametrize("law", TimeLaw)
def test_the_share_of_times_above_is_that_of_the_draws(law: TimeLaw) -> None:
    """By the global time of the sampler: 4000 draws, of all numbers of active stages."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(4000):
        active = FLOW.draw_active(generator)
        found.append(float(global_times(FLOW, FLOW.draw_times(active, law, generator)[None])))
    for time in (0.1, 1 / 3, 0.5, 0.8):
        share = sum(t > time for t in found) / len(found)
        assert share == pytest.approx(share_above(FLOW, law, time), abs=4 * math.sqrt(0.25 / 4000))
    assert global_times(FLOW, torch.tensor([[0.2, 1.0]])).tolist() == pytest.approx([2 / 3])


def test_budgets_of_stages_in_training_cost_what_they_are_drawn_at(make_config: Make) -> None:
    """A quarter while the coarse stage is trained alone, all of it where both are."""
    config = make_config(**STAGED, budget__schedule="1/4@t>0.5,1", flow__stage_weights=[0.75, 0.25])
    model = build_model(config.model)
    low, high = elit.count_flops(model, 0.25), elit.count_flops(model, 1.0)
    assert mean_flops(model, config.budget, config.flow) == pytest.approx(0.75 * low + 0.25 * high)
    assert mean_flops(model, BudgetConfig(0.5, 0.5), FlowConfig()) == elit.count_flops(model, 0.5)
    data = load_data(config)
    for step in range(8):
        batch = draw_batch(config, data, step)
        assert set(torch.as_tensor(batch.budget).tolist()) == {0.25 if batch.flow.active == 1 else 1.0}
