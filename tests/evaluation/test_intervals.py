"""Intervals: against closed forms, against leaving rows out one by one, and whether they hold what they promise."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from elit.evaluation.intervals import bootstrap, bootstrap_deviation, normal_interval, over_parts
from elit.evaluation.metrics import (
    frechet_distance,
    frechet_distance_interval,
    kernel_distance,
    kernel_distance_interval,
    kernel_distance_subsets,
    mean_and_covariance,
)
from elit.seeding import generator_for


def normal(count: int, width: int, *key: int | str) -> Tensor:
    return torch.randn(count, width, generator=generator_for("intervals", *key), dtype=torch.float64)


def mean(x: Tensor) -> float:
    return float(x.mean())


def test_bootstrap_of_a_mean_is_its_standard_error() -> None:
    """The 95 % interval of a mean of n values reaches 1.96 deviations over sqrt(n) to either side."""
    x = normal(400, 1, "mean")
    error = statistics.pstdev(x[:, 0].tolist()) / math.sqrt(400)
    value, low, high = bootstrap(mean, x, rounds=4000)
    assert value == pytest.approx(mean(x))
    assert low == pytest.approx(value - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.15 * error)


def test_bootstrap_of_two_sets_draws_each_on_its_own() -> None:
    """The interval of a difference of means has both sets' errors; a wider confidence a wider interval."""
    a, b = normal(300, 1, "a"), 3 * normal(200, 1, "b") + 5
    error = math.sqrt(float(a.var()) / 300 + float(b.var()) / 200)

    def difference(x: Tensor, y: Tensor) -> float:
        return mean(y) - mean(x)

    value, low, high = bootstrap(difference, a, b.numpy(), rounds=2000, confidence=0.8)
    assert high - low == pytest.approx(2 * 1.2816 * error, rel=0.1)
    wider = bootstrap(difference, a, b, rounds=2000, confidence=0.95)
    assert wider.low < low < value < high < wider.high


def test_bootstrap_holds_the_truth_as_often_as_it_promises() -> None:
    """80 % intervals of 200 draws hold the mean in about 160: four standard errors of that count are 23."""
    held = 0
    for i in range(200):
        estimate = bootstrap(mean, normal(40, 1, "cover", i), rounds=200, confidence=0.8, seed=i)
        held += estimate.low <= 0 <= estimate.high
    assert 137 <= held <= 183


def test_bootstrap_is_decided_by_its_seed_and_keeps_rows_whole() -> None:
    pairs = torch.arange(50.0)[:, None] * torch.tensor([1.0, -1.0])
    assert bootstrap(mean, pairs, rounds=10) == (0, 0, 0)
    x = normal(30, 2, "seed")
    assert bootstrap(mean, x, rounds=20, seed=1) == bootstrap(mean, x, rounds=20, seed=1)
    assert bootstrap(mean, x, rounds=20, seed=1) != bootstrap(mean, x, rounds=20, seed=2)


def test_a_deviation_around_the_distance_is_that_of_independent_draws() -> None:
    """The standard error that one of 60 sets of 400 rows gives of itself is the deviation over them, within a third."""
    reference = mean_and_covariance(normal(4000, 6, "reference"))

    def distance(x: Tensor) -> float:
        return frechet_distance(*mean_and_covariance(x), *reference)

    sets = [1.2 * normal(400, 6, "draw", i) + 0.3 for i in range(60)]
    deviation = statistics.stdev([distance(x) for x in sets])
    value, low, high = bootstrap_deviation(distance, sets[0], rounds=200)
    assert value == distance(sets[0]) == pytest.approx((low + high) / 2)
    assert (high - low) / (2 * 1.96) == pytest.approx(deviation, rel=1 / 3)
    wider = bootstrap_deviation(distance, sets[0], rounds=200, confidence=0.99)
    assert wider.high - wider.low == pytest.approx((high - low) * 2.576 / 1.96, rel=1e-3)


@pytest.mark.parametrize(("rows", "width", "others"), [(60, 5, 40), (12, 30, 200), (12, 30, 9), (40, 30, 9)])
def test_the_quick_interval_of_a_distance_is_the_slow_ones(rows: int, width: int, others: int) -> None:
    """With more rows than dimensions and fewer, and a reference whose covariance is singular."""
    reference = mean_and_covariance(normal(others, width, "others"))
    samples = 1.2 * normal(rows, width, "rows") + 0.3

    def distance(x: Tensor) -> float:
        return frechet_distance(*mean_and_covariance(x), *reference)

    slow = bootstrap_deviation(distance, samples, rounds=30, confidence=0.8, seed=4)
    assert frechet_distance_interval(samples, *reference, 30, 0.8, seed=4) == pytest.approx(slow, rel=1e-6)
    half = frechet_distance_interval(samples.float().numpy(), *reference, 30, 0.8, seed=4)
    assert half == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize(
    ("rounds", "confidence", "rows"), [(10**9, 0.9, 3), (1, 0.9, 3), (9, 1.0, 3), (9, 0.0, 3), (9, 0.9, 0)]
)
def test_bootstraps_that_cannot_be(rounds: int, confidence: float, rows: int) -> None:
    with pytest.raises(ValueError, match=r"at least 2 rounds|within 0 and 1|at least one row"):
        bootstrap(mean, torch.zeros(rows, 2), rounds=rounds, confidence=confidence)


def test_parts_are_disjoint_equal_and_all() -> None:
    seen: list[int] = []

    def note(part: Tensor) -> float:
        seen.extend(part[:, 0].tolist())
        return float(len(part))

    assert over_parts(note, np.arange(23)[:, None], parts=5) == (4, 0)
    assert len(seen) == len(set(seen)) == 20
    x = normal(10, 1, "parts")
    values: list[float] = []
    average, deviation = over_parts(lambda part: values.append(mean(part)) or values[-1], x, parts=2)  # type: ignore[func-returns-value]
    assert (average, deviation) == pytest.approx((mean(x), abs(values[0] - values[1]) / math.sqrt(2)))
    with pytest.raises(ValueError, match="23 rows cannot be cut into 12 parts"):
        over_parts(note, torch.zeros(23, 1), parts=12)


def test_normal_interval_is_of_the_normal_law() -> None:
    assert normal_interval(3, 2, 0.95) == pytest.approx((3, 3 - 3.919928, 3 + 3.919928), abs=1e-6)
    with pytest.raises(ValueError, match="confidence 2"):
        normal_interval(0, 1, 2)


def test_kernel_interval_is_the_jackknife_row_by_row() -> None:
    """Every row of either set left out in turn, the whole distance computed anew."""
    a, b = normal(9, 3, "ja"), normal(6, 3, "jb") + 0.5
    variance = 0.0
    for x, distance in ((a, lambda rest: kernel_distance(rest, b)), (b, lambda rest: kernel_distance(a, rest))):
        without = [distance(torch.cat([x[:i], x[i + 1 :]])) for i in range(len(x))]
        centre = statistics.fmean(without)
        variance += (len(x) - 1) / len(x) * sum((value - centre) ** 2 for value in without)
    value, low, high = kernel_distance_interval(a, b, confidence=0.6826894921370859)
    assert value == pytest.approx(kernel_distance(a, b), rel=1e-12)
    assert (high - value, value - low) == pytest.approx((math.sqrt(variance),) * 2, rel=1e-9)
    with pytest.raises(ValueError, match="at least 3 samples"):
        kernel_distance_interval(a[:2], b)


def test_kernel_interval_tells_how_the_distance_varies() -> None:
    """Its half width is the deviation over draws of both sets, which are far apart here."""
    draws = [(normal(60, 4, "va", i), normal(80, 4, "vb", i) * 1.5 + 0.7) for i in range(60)]
    deviation = statistics.stdev(kernel_distance(*pair) for pair in draws)
    halves = [(e.high - e.low) / 2 for e in (kernel_distance_interval(*pair, confidence=0.6826895) for pair in draws)]
    assert statistics.fmean(halves) == pytest.approx(deviation, rel=0.25)


def test_kernel_subsets_are_drawn_anew_without_repeats() -> None:
    """Of all rows, every subset is the whole set; of fewer, the mean is that of the whole, and it varies more."""
    a, b = normal(40, 3, "sa"), normal(40, 3, "sb") + 0.5
    whole = kernel_distance(a, b)
    assert kernel_distance_subsets(a, b, subsets=3, size=40) == pytest.approx((whole, 0), rel=1e-9, abs=1e-9)
    (first, _), (both, apart) = (kernel_distance_subsets(a, b, subsets, 20, seed=3) for subsets in (1, 2))
    assert apart == pytest.approx(abs(both - first), rel=1e-9), "half the difference of two: the deviation over N"
    many, deviation = kernel_distance_subsets(a, b, subsets=400, size=20)
    assert many == pytest.approx(whole, abs=4 * deviation / math.sqrt(400))
    assert deviation > kernel_distance_subsets(a, b, subsets=400, size=35)[1] > 0
    assert kernel_distance_subsets(a, b, 5, 20, seed=1) == kernel_distance_subsets(a.numpy(), b.numpy(), 5, 20, seed=1)
    with pytest.raises(ValueError, match="2 subsets of 41 rows cannot be drawn of 40 and 40"):
        kernel_distance_subsets(a, b, 2, 41)


def test_the_docstring_is_right_that_a_bootstrap_biases_the_frechet_distance() -> None:
    """Resampling the samples raises it beyond the value itself: the percentile interval does not even hold that."""
    real, samples = normal(300, 20, "real"), normal(60, 20, "few")
    moments = mean_and_covariance(real)
    estimate = bootstrap(lambda x: frechet_distance(*moments, *mean_and_covariance(x)), samples, rounds=100)
    assert estimate.low > estimate.value
