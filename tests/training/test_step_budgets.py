"""The budgets of training steps: drawn once per step, or by the time of every sample; and what they cost on average."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_config import batch_loss, draw_batch, load_data, make_state

from elit import DiT, UserError, count_flops
from elit.backbones.table import build_model
from elit.elastic.levels import Chosen
from elit.flow import FlowPath, TimeLaw
from elit.training.budgets import mean_flops, mixed_level, mixed_levels, run_flops, schedule_levels, step_budget
from elit.training.config import BudgetConfig, FlowConfig, TrainConfig
from randomised import randomised
from ranks import difference_of_two

Make = Callable[..., TrainConfig]
HALF = "1/2@t>0.5,1"


def test_a_schedule_gives_every_sample_the_budget_of_its_time(make_dit: Callable[..., DiT]) -> None:
    """Above the time the piece's, below and at it what holds otherwise; a dense model has none."""
    model = make_dit().config
    t = torch.tensor([0.1, 0.5, 0.51, 0.9, 1.0])
    budget = step_budget(BudgetConfig(schedule="1/4@t>0.8,1/2@t>0.5,1"), model, 0, 0, t, range(len(t)))
    assert isinstance(budget, torch.Tensor) and budget.tolist() == [1, 1, 0.5, 0.25, 0.25]
    assert step_budget(BudgetConfig(schedule="1/2"), model, 0, 0, t, range(len(t))).tolist() == [0.5] * 5
    assert schedule_levels(BudgetConfig(schedule="1/4@t>0.8,1/2@t>0.5,1"), model) == (1, 2, 4)
    assert schedule_levels(BudgetConfig(), model) == ()
    assert step_budget(BudgetConfig(schedule=HALF), make_dit(group_size=None).config, 0, 0, t, range(len(t))) is None


def test_a_batch_runs_every_sample_at_its_own_budget(make_config: Make, device: torch.device) -> None:
    """The loss is the mean of the samples' own losses, each alone at half the latents or at all; parts of a batch too."""
    config = make_config(budget__schedule=HALF, batch_size=8, flow__time_law="uniform")
    state, batch = make_state(config, device), draw_batch(config, load_data(config), 0)
    randomised(state.model)
    assert {0.5, 1.0} == set(batch.budget.tolist())
    alone = [batch.split(8)[i] for i in range(8)]
    for one, budget, t in zip(alone, batch.budget, batch.flow.t, strict=True):
        assert one.budget.tolist() == [budget.item()] == [0.5 if t > 0.5 else 1.0]
    expected = sum(
        (state.model(one.flow.x_t, one.flow.t, one.labels, one.budget.item()) - one.flow.velocity).square().mean().item()
        for one in alone
    )
    assert batch_loss(config, state, batch, device)[0].item() == pytest.approx(expected / 8, rel=1e-5)


def test_a_schedule_that_cannot_be_read_is_refused(make_config: Make) -> None:
    with pytest.raises(ValueError, match=r"write it as 1/4@t>0\.5"):
        make_config(budget__schedule="1/4@noise,1")


def test_a_mixture_runs_a_share_at_two_levels_of_the_step(make_dit: Callable[..., DiT]) -> None:
    """All else at the highest; the two are of the lower and the upper half; shares of processes are slices of the whole."""
    model, config = make_dit(group_size=4, input_size=16).config, BudgetConfig(2 / 16, 14 / 16, mixed=0.25)
    t, seen = torch.zeros(16), set()
    for step in range(200):
        whole = step_budget(config, model, 3, step, t, range(16))
        assert isinstance(whole, torch.Tensor)
        levels = [round(16 * budget) for budget in whole.tolist()]
        below = [level for level in levels if level != 14]
        assert [place for place, level in enumerate(levels) if level != 14] == [3, 7, 11, 15]
        assert 2 <= below[0] <= 7 and 8 <= below[1] <= 13 and below[2:] == below[:2]
        seen |= set(below)
        shares = [range(first, last) for first, last in ((0, 3), (3, 8), (8, 12), (12, 16))]
        parts = [step_budget(config, model, 3, step, t[: len(share)], share) for share in shares]
        assert torch.equal(torch.cat(parts), whole)  # type: ignore[arg-type]
    assert seen == set(range(2, 14))
    assert schedule_levels(config, model) == tuple(range(2, 15))
    assert any(mixed_levels(config, model, 3, step) != mixed_levels(config, model, 4, step) for step in range(9))
    single = BudgetConfig(0.75, 1.0, mixed=0.5)  # one level below the highest is in both halves
    assert mixed_levels(single, make_dit().config, 0, 0) == (3, 3)
    assert sum(mixed_level(0.29, place, (1, 2)) is not None for place in range(100)) == 29  # 100 * 0.29 is below 29


def test_mean_flops_of_a_mixture(make_dit: Callable[..., DiT]) -> None:
    """Half of the samples at the highest level, a quarter in the mean of each half of the others, counted step by step."""
    model, config = make_dit(group_size=(2, 4), input_size=8), BudgetConfig(1 / 8, 1.0, mixed=0.5)
    lower, upper = ([count_flops(model, k / 8) for k in half] for half in (range(1, 5), range(5, 8)))
    brute = 0.5 * count_flops(model) + 0.25 * sum(lower) / 4 + 0.25 * sum(upper) / 3
    flops = run_flops(model, config, FlowConfig())
    assert flops.mean == pytest.approx(brute, rel=1e-12)
    assert (flops.lowest, flops.highest) == (lower[0], count_flops(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget__schedule": HALF}, r"mixed 0\.5 and budget\.schedule .* are two ways; leave one out"),
        ({"model__group_size": None}, r"mixed 0\.5 has nothing to mix, for a dense model has one budget; set it to 0"),
        ({"budget__lowest": 1.0}, r"nothing to mix, for lowest and highest are one level"),
    ],
)
def test_a_mixture_of_nothing_is_refused(make_config: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(budget__mixed=0.5, **changes)


@pytest.mark.parametrize(
    ("lowest", "highest", "sees"), [(1 / 8, 1.0, False), (0.25, 0.75, True), (0.5, 5 / 8, False), (0.25, 0.25, True)]
)
def test_mean_flops_are_the_mean_over_the_levels(
    make_dit: Callable[..., DiT], lowest: float, highest: float, sees: bool
) -> None:
    """Counted at three levels, the mean is that of counting at every one."""
    model = make_dit(group_size=(2, 4), input_size=8, write_sees_dropped=sees)
    levels = range(round(8 * lowest), round(8 * highest) + 1)
    brute = sum(count_flops(model, k / 8) for k in levels) / len(levels)
    assert mean_flops(model, BudgetConfig(lowest, highest), FlowConfig()) == pytest.approx(brute, rel=1e-12)


def test_mean_flops_of_a_schedule(make_dit: Callable[..., DiT]) -> None:
    """Each budget's FLOPs, weighted by how often the law of times asks for it."""
    model = make_dit()
    full, half, quarter = (count_flops(model, budget) for budget in (1, 0.5, 0.25))
    config = BudgetConfig(schedule="1/2@t>0.2,1/4@t>0.7,1")
    uniform = mean_flops(model, config, FlowConfig(time_law="uniform"))
    assert uniform == pytest.approx(0.3 * quarter + 0.5 * half + 0.2 * full)
    for path in ("linear", "cosine"):
        noisier = mean_flops(model, BudgetConfig(schedule=HALF), FlowConfig(path=path))
        assert noisier == pytest.approx((half + full) / 2)
    dense = make_dit(group_size=None)
    assert mean_flops(dense, config, FlowConfig()) == count_flops(dense)


@pytest.mark.parametrize("law", TimeLaw)
@pytest.mark.parametrize("path", FlowPath)
def test_share_above_is_that_of_the_draws(law: TimeLaw, path: FlowPath) -> None:
    """Of 100,000 drawn times, within four deviations; all are above 0, none above 1."""
    t = law.draw(100_000, path, torch.Generator().manual_seed(0))
    for time in (0.0, 0.1, 0.5, 0.77, 1.0):
        share = law.share_above(time, path)
        deviation = math.sqrt(share * (1 - share) / 100_000)
        assert (t > time).double().mean().item() == pytest.approx(share, abs=4 * deviation + 1e-9)


def test_processes_with_samples_of_different_levels_train_alike(make_config: Make, tmp_path: Path) -> None:
    """Where one process has samples of both levels and the other of one, they still gather the same weights at once."""
    options = {"steps": 4, "batch_size": 4, "budget__schedule": HALF, "log__every": 0, "seed": 1}
    alone = make_config(out=tmp_path / "alone", **options)
    batches = [draw_batch(alone, load_data(alone), step).split(2) for step in range(4)]
    assert any(a.budget.unique().numel() != b.budget.unique().numel() for a, b in batches)
    two = make_config(out=tmp_path / "two", **options, parallel__timeout=60)
    assert difference_of_two(alone, two, tmp_path / "log") < 1e-4


def test_random_dropping_keeps_any_latents_the_same_for_a_whole_batch(make_config: Make, device: torch.device) -> None:
    """As many as the drawn level has, the same in every part of the batch and again in a resumed run; it trains."""
    config = make_config(budget__dropping="random", batch_size=4)
    data, state = load_data(config), make_state(config, device)
    batches = [draw_batch(config, data, step) for step in range(12)]
    levels = config.model.levels
    for step, batch in enumerate(batches):
        assert isinstance(batch.budget, Chosen) and batch.split(2)[1].budget == batch.budget
        assert len(batch.budget.latents) == levels.of(levels.draw(config.seed, step, 0.0625, 1.0))
        assert draw_batch(config, data, step).budget == batch.budget
    assert any(batch.budget.latents != tuple(range(len(batch.budget.latents))) for batch in batches)
    loss, _ = batch_loss(config, state, batches[0], device)
    loss.backward()
    assert loss.isfinite()
    plain = make_config(batch_size=4)
    model = build_model(plain.model)
    assert mean_flops(model, config.budget, config.flow) == mean_flops(model, plain.budget, plain.flow)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"budget__mixed": 0.5}, "a level drawn once per step"),
        ({"budget__schedule": HALF}, "a level drawn once per step"),
        ({"model__group_size": None}, "needs an elastic model whose levels go one by one"),
    ],
)
def test_random_dropping_where_it_has_no_meaning_is_refused(make_config: Make, values: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=f"budget.dropping random .*{why}"):
        make_config(budget__dropping="random", **values)
