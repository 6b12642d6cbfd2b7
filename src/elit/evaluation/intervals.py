"""How sure a figure is: resampled rows, and disjoint parts. Any function of sets of rows will do.

A bootstrapped set holds about 63 % of the different rows. What counts different rows is therefore biased by it: the Fréchet
distance rises (the covariance of fewer different samples), so take `bootstrap_deviation` around the figure itself, the
spread over sampling seeds, or `over_parts`. Neighbours at distance zero would spoil precision, recall, density and coverage:
these are means over rows whose balls are best kept, so `bootstrap` the values of `metrics.precision_recall_rows` and
`density_coverage_rows`, as those of any mean, such as a category accuracy. For KID there is the jackknife of
`metrics.kernel_distance_interval`.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from elit.errors import UserError
from elit.seeding import generator_for

MOST_ROUNDS = 100_000

Array: TypeAlias = Tensor | np.ndarray


def to_tensor(x: Array) -> Tensor:
    """A tensor of the same values; an array that is read-only or runs backwards, which torch cannot share, is copied."""
    return torch.from_numpy(np.require(x, requirements=["C", "W"])) if isinstance(x, np.ndarray) else torch.as_tensor(x)


class Estimate(NamedTuple):
    """A value and an interval that should hold the true one with the confidence asked for."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., float],
    *sets: Array,
    rounds: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """statistic(*sets) with its percentile bootstrap interval (Efron, 1979).

    Every round draws as many rows of each set, with replacement and each set on its own, as it has; rows that belong
    together must be columns of one set. Raises UserError for no rows, fewer than 2 rounds, or a confidence out of (0, 1).
    """
    if not 0 < confidence < 1:
        raise UserError(f"a confidence is within 0 and 1, and not {confidence:g}")
    values = _resampled(statistic, sets, rounds, seed)
    tail = (1 - confidence) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Estimate(float(statistic(*map(to_tensor, sets))), float(low), float(high))


def bootstrap_deviation(
    statistic: Callable[..., float], *sets: Array, rounds: int = 200, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """statistic(*sets) with the normal interval around it whose standard error is the deviation of the resampled values.

    For what a bootstrap shifts but spreads rightly, as it does the Fréchet distance. Rows, rounds and errors are as of
    `bootstrap`.
    """
    error = float(_resampled(statistic, sets, rounds, seed).std())
    return normal_interval(float(statistic(*map(to_tensor, sets))), error, confidence)


def _resampled(statistic: Callable[..., float], sets: Sequence[Array], rounds: int, seed: int) -> Tensor:
    """(rounds,) float64 of the statistic of resampled sets."""
    check_rounds(rounds)
    tensors = [to_tensor(rows) for rows in sets]
    if not tensors or min(map(len, tensors)) < 1:
        raise UserError("a bootstrap needs sets of at least one row each")
    generator = generator_for("bootstrap", seed)
    values = []
    for _ in range(rounds):
        drawn = [rows[torch.randint(len(rows), (len(rows),), generator=generator)] for rows in tensors]
        values.append(float(statistic(*drawn)))
    return torch.tensor(values, dtype=torch.float64)


def draws(count: int, rounds: int, seed: int = 0) -> Iterator[Tensor]:
    """The rows (count,) that every round of a bootstrap of one set of `count` rows draws."""
    check_rounds(rounds)
    generator = generator_for("bootstrap", seed)
    for _ in range(rounds):
        yield torch.randint(count, (count,), generator=generator)


def check_rounds(rounds: int) -> None:
    """Raises UserError for a count of rounds that cannot be."""
    if not 2 <= rounds <= MOST_ROUNDS:
        raise UserError(f"a bootstrap needs at least 2 rounds, and at most {MOST_ROUNDS:,}, not {rounds:,}; give 200")


def over_parts(statistic: Callable[[Tensor], float], rows: Array, parts: int = 5, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation (N - 1) of statistic(part) over disjoint parts of equal size, drawn at random.

    Both are those of a figure on N / parts rows: its deviation is about sqrt(parts) times that on all rows, and its bias,
    where it falls as 1 / N as the Fréchet distance's does, `parts` times. Rows over, fewer than `parts`, are left out.
    Raises UserError for fewer than 2 parts, or parts of fewer than 2 rows.
    """
    tensor = to_tensor(rows)
    size = len(tensor) // max(parts, 1)
    if parts < 2 or size < 2:
        raise UserError(f"{len(tensor)} rows cannot be cut into {parts} parts; give 2 parts or more, of 2 rows or more")
    order = torch.randperm(len(tensor), generator=generator_for("parts", seed))[: parts * size]
    values = [float(statistic(tensor[part])) for part in order.split(size)]
    return statistics.fmean(values), statistics.stdev(values)


def normal_interval(value: float, error: float, confidence: float) -> Estimate:
    """The interval of a normal law with standard error `error` around the value."""
    if not 0 < confidence < 1 or not math.isfinite(error):
        raise UserError(f"no interval of confidence {confidence:g} for a standard error of {error:g}")
    reach = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Estimate(value, value - reach, value + reach)
