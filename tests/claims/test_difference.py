"""The interval of a paired difference against sums written out, Student's law against scipy's, and the verdicts."""

import itertools
import statistics

import pytest
import torch
from scipy.stats import t

from elit.claims.difference import Difference, Verdict, conclusion, difference, student_quantile
from elit.seeding import generator_for


@pytest.mark.parametrize("freedom", [1, 1.4, 2, 7.5, 95, 400])
def test_students_quantile_is_scipys(freedom: float) -> None:
    for chance in (0.6, 0.9, 0.975, 0.995):
        assert student_quantile(chance, freedom) == pytest.approx(t.ppf(chance, freedom), rel=1e-6)


def by_hand(a: list[list[float]], b: list[list[float]]) -> tuple[float, float, float]:
    """Share, low and high, from the definitions."""
    seeds, pictures = len(a), len(a[0])
    scale = statistics.fmean(itertools.chain(*b))
    apart = [[(x - y) / scale for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
    mean = statistics.fmean(itertools.chain(*apart))
    of_pictures = statistics.variance([statistics.fmean(column) for column in zip(*apart, strict=True)]) / pictures
    of_seeds = statistics.variance([statistics.fmean(row) for row in apart]) / seeds
    freedom = (of_pictures + of_seeds) ** 2 / (of_pictures**2 / (pictures - 1) + of_seeds**2 / (seeds - 1))
    reach = t.ppf(0.975, freedom) * (of_pictures + of_seeds) ** 0.5
    return mean, mean - reach, mean + reach


def test_a_difference_has_the_error_of_seeds_and_of_pictures() -> None:
    generator = generator_for("difference")
    b = 1 + torch.rand(3, 6, generator=generator, dtype=torch.float64)
    a = b * 0.9 + 0.1 * torch.randn(3, 6, generator=generator, dtype=torch.float64)
    found = difference(a, b)
    assert (found.share, found.low, found.high) == pytest.approx(by_hand(a.tolist(), b.tolist()), rel=1e-6)
    assert (found.seeds, found.pictures) == (3, 6)


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    """Over 200 worlds in which seeds, pictures and what is left each have an effect; it errs to the wide side."""
    generator, held = generator_for("coverage"), 0
    for _ in range(200):
        seed, picture, rest = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 1), (1, 40), (3, 40))
        )
        b = torch.full((3, 40), 2.0, dtype=torch.float64)
        found = difference(b + 0.1 + 0.05 * seed + 0.3 * picture + 0.2 * rest, b)
        held += found.low <= 0.05 <= found.high
    assert 0.93 <= held / 200 <= 1.0


def test_pairs_that_differ_by_the_same_are_sure() -> None:
    b = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64)
    assert difference(b + 0.5, b) == Difference(0.25, 0.25, 0.25, 2, 2)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (-0.2, -0.1, 0.0, Verdict.TRUE),
        (0.1, 0.2, 0.0, Verdict.FALSE),
        (-0.1, 0.1, 0.0, Verdict.OPEN),
        (-0.1, 0.04, 0.05, Verdict.TRUE),
        (0.0, 0.06, 0.05, Verdict.OPEN),
        (0.06, 0.09, 0.05, Verdict.FALSE),
        (0.0, 0.0, 0.0, Verdict.OPEN),
    ],
)
def test_a_verdict_wants_all_of_the_interval_on_one_side(low: float, high: float, margin: float, expected: Verdict) -> None:
    assert Difference((low + high) / 2, low, high, 3, 9).verdict(margin) is expected
    assert Difference((low + high) / 2, low, high, 1, 9).verdict(margin) is Verdict.OPEN


def test_a_claim_is_true_where_all_is_and_falls_with_one() -> None:
    """Against the rule said over every combination."""
    for some in itertools.chain.from_iterable(itertools.product(Verdict, repeat=n) for n in range(4)):
        if any(one is Verdict.FALSE for one in some):
            expected = Verdict.FALSE
        elif len(some) == sum(one is Verdict.TRUE for one in some) > 0:
            expected = Verdict.TRUE
        else:
            expected = Verdict.OPEN
        assert conclusion(some) is expected
