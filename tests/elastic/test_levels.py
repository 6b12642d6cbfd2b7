"""Budgets: fractions to levels, the draw of a training step, and schedules over a sampler's times."""

import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from elit.elastic.levels import Levels, PerSample
from elit.elastic.schedule import Schedule
from elit.target import parse_budget

TOLERANCE = Fraction(1, 10**6)
BAD = [0, 0.0, -0.25, -1, 1.0001, 2, math.inf, -math.inf, math.nan, True, False]


def level_by_search(budget: float, latents: int) -> int:
    """The largest k with k/J <= budget + 1e-6, tried one by one in exact arithmetic; at least 1."""
    fitting = [k for k in range(1, latents + 1) if Fraction(k, latents) <= Fraction(budget) + TOLERANCE]
    return max(fitting, default=1)


def float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


@given(budget=st.floats(0, 1, exclude_min=True), latents=st.integers(1, 80))
def test_level_is_the_largest_within_the_budget(budget, latents):
    """A budget is a ceiling, held to a search through all levels."""
    edges = [abs(Fraction(budget) + TOLERANCE - Fraction(k, latents)) for k in range(1, latents + 1)]
    assume(min(edges) > 1e-12)  # where a float cannot tell the two sides apart
    assert Levels(latents).of(budget) == level_by_search(budget, latents)


@pytest.mark.parametrize("latents", [*range(1, 130), 256, 1000, 4096])
def test_every_level_is_reached_by_its_own_fraction(latents):
    """k/J is level k in float64 and as rounded to float32, up or down; a hair less is the level below."""
    for k in range(1, latents + 1):
        assert Levels(latents).of(k / latents) == k
        assert Levels(latents).of(float32(k / latents)) == k
        assert Levels(latents).of(k / latents - 1e-5) == max(1, k - 1) if k / latents > 1e-5 else True


def test_levels_lists_the_valid_budgets():
    """k/J in order, and each its own level."""
    assert Levels(4).fractions() == [0.25, 0.5, 0.75, 1.0]
    assert [Levels(36).of(budget) for budget in Levels(36).fractions()] == list(range(1, 37))


def test_a_budget_below_the_first_level_keeps_one_latent():
    assert Levels(16).of(1e-9) == 1
    assert Levels(16).of(1 / 17) == 1


@pytest.mark.parametrize("budget", BAD)
def test_a_bad_budget_is_refused_with_the_valid_levels(budget):
    """The error lists every level, from one sample's budget as from the batch's."""
    listed = "1/6, 2/6, 3/6, 4/6, 5/6, 6/6"
    with pytest.raises(ValueError, match=listed):
        Levels(6).of(budget)
    with pytest.raises(ValueError, match=listed):
        Levels(6).resolve(budget, 3)
    with pytest.raises(ValueError, match=listed):
        Levels(6).resolve([1.0, budget, 0.5], 3)


def test_resolve_gives_one_level_where_all_agree():
    """None is full; equal fractions, or fractions of one level, need no sorting of the batch."""
    assert Levels(16).resolve(None, 3) == 16
    assert Levels(16).resolve(0.5, 3) == 8
    assert Levels(16).resolve(1, 3) == 16
    assert Levels(16).resolve([0.5, 0.51, 0.5], 3) == 8
    assert Levels(16).resolve(torch.tensor(0.25), 3) == 4
    assert Levels(16).resolve(torch.tensor([0.25, 0.25]), 2) == 4


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, lambda b: torch.tensor(b, dtype=torch.float64)])
def test_resolve_keeps_the_order_of_the_samples(make):
    """Lists, tuples and tensors of either precision: one level per sample, in their order."""
    wanted = (36, 1, 7, 35, 7)
    assert Levels(36).resolve(make([k / 36 for k in wanted]), 5) == PerSample(wanted)


@pytest.mark.parametrize("budgets", [[0.5], [0.5, 1.0], [0.5] * 4, []])
def test_resolve_wants_one_budget_per_sample(budgets):
    """Equal fractions too: a list of the wrong length is a mistake, whatever it holds."""
    with pytest.raises(ValueError, match=f"{len(budgets)} budgets .* batch of 3"):
        Levels(16).resolve(budgets, 3)
    with pytest.raises(ValueError, match=f"{len(budgets)} budgets .* batch of 3"):
        Levels(16).resolve(torch.tensor(budgets), 3)


def drawn_levels(seeds, steps, lowest=0.0625, highest=1.0, latents=16) -> list[int]:
    """Levels of the draws; each must be exactly a valid budget."""
    draws = [Levels(latents).draw(seed, step, lowest, highest) for seed in seeds for step in steps]
    assert set(draws) <= set(Levels(latents).fractions())
    return [round(draw * latents) for draw in draws]


@pytest.mark.parametrize(("lowest", "highest", "latents", "ends"), [(1 / 16, 1, 16, (1, 16)), (4 / 64, 0.5, 64, (4, 32))])
def test_draws_are_uniform_between_the_two_ends(lowest, highest, latents, ends):
    """Every level from k_min to k_max and no other, at frequencies that a chi-square test at 0.1 % lets pass."""
    drawn = drawn_levels([0], range(8000), lowest, highest, latents)
    counts = [drawn.count(k) for k in range(ends[0], ends[1] + 1)]
    assert sum(counts) == 8000 and min(counts) > 0
    expected, freedom = 8000 / len(counts), len(counts) - 1
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_square < freedom + 3.1 * math.sqrt(2 * freedom) + 6


def test_neighbouring_seeds_and_steps_draw_independently():
    """Agreement of neighbours is by chance, 1 in 16: no shared stream, no shift by one."""
    first, second = drawn_levels([1], range(4000)), drawn_levels([2], range(4000))
    for a, b in ((first, second), (first[1:], second[:-1]), (first[:-1], second[1:]), (first[1:], first[:-1])):
        agreement = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
        assert 0.045 < agreement < 0.08


def test_a_draw_depends_on_seed_and_step_alone():
    """Not on the global generators, not on what was drawn before; and it leaves the global generators as they were."""
    expected = [Levels(16).draw(3, step, 0.1, 1.0) for step in range(20)]
    random.seed(5)
    torch.manual_seed(5)
    before, torch_before = random.getstate(), torch.get_rng_state()
    again = [Levels(16).draw(3, step, 0.1, 1.0) for step in reversed(range(20))]
    assert again[::-1] == expected
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_a_draw_between_equal_ends_is_that_level():
    assert {Levels(16).draw(0, step, 0.25, 0.25) for step in range(10)} == {0.25}


def test_a_draw_needs_its_ends_in_order_and_in_range():
    """The lowest above the highest, or either no budget at all, is refused."""
    with pytest.raises(ValueError, match=r"lowest budget, 0\.5, is above the highest, 0\.25"):
        Levels(16).draw(0, 0, 0.5, 0.25)
    for lowest, highest in ((0, 1), (0.5, 1.5)):
        with pytest.raises(ValueError, match="1/16"):
            Levels(16).draw(0, 0, lowest, highest)


def test_a_schedule_holds_above_its_times():
    """A piece holds for t strictly above its time; of several, the one with the highest time, in any order."""
    pieces = ((0.5, 0.25), (0.8, 0.0625), (0.2, 0.5))
    for arranged in (pieces, pieces[::-1]):
        schedule = Schedule(arranged, 0.75)
        budgets = [schedule.at(t) for t in (1.0, 0.81, 0.8, 0.51, 0.5, 0.21, 0.2, 0.0)]
        assert budgets == [0.0625, 0.0625, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_a_schedule_of_no_pieces_is_constant():
    assert Schedule().at(0.7) == 1.0
    assert Schedule(otherwise=0.5).at(0.0) == 0.5


@pytest.mark.parametrize("time", [-0.1, 1.1, math.nan])
def test_a_schedule_refuses_a_time_outside_the_flow(time):
    with pytest.raises(ValueError, match="time is in"):
        Schedule(((time, 0.5),))


@pytest.mark.parametrize("budget", [0, -0.5, 1.5, math.nan])
def test_a_schedule_refuses_a_bad_budget_wherever_it_stands(budget):
    with pytest.raises(ValueError, match="budget"):
        Schedule(((0.5, budget),))
    with pytest.raises(ValueError, match="budget"):
        Schedule((), budget)


def test_budgets_as_text() -> None:
    assert [parse_budget(text) for text in ("1/16", "0.25", " 1 ", "3/4")] == [1 / 16, 0.25, 1.0, 0.75]
    schedule = parse_budget("1/2@t>0.5, 1/4@t > 0.8,1")
    assert schedule == Schedule(((0.5, 0.5), (0.8, 0.25)), 1.0)
    assert isinstance(schedule, Schedule)
    assert [schedule.at(t) for t in (0.9, 0.7, 0.5, 0.1)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write fractions"), ("a", "write fractions"), ("1/0", "write fractions"), ("2", "not in"), ("0", "not in"),
        ("nan", "not in"), ("1/2@t>0.5", "otherwise"), ("1/2,1", "piece of a schedule"), ("1/2@0.5>t,1", "piece"),
        ("2@t>0.5,1", "not in"), ("1/2@t>2,1", "time is in"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_budget(text)
