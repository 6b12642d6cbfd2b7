"""Whether one thing is lower than another: paired differences, their interval, and the verdict that follows.

Every seed is a training of its own, and meets the same pictures and the same noise. Seeds and pictures are both a sample of
what there could be, so the error of the mean difference has a part of each (they are crossed random effects).

Shapes: R seeds, N pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

CONFIDENCE = 0.95
INTERVALS = 500  # of the integral of Student's density
LONGEST = 1e6  # a quantile that is looked for


class Verdict(StrEnum):
    """What a comparison or a claim comes to."""

    TRUE = "true here"
    FALSE = "not true here"
    OPEN = "not decided"


@dataclass(frozen=True)
class Difference:
    """How much a lies above b, as a share of b, and the interval that holds it with 95 % confidence.

    seeds, pictures: how many it rests on.
    """

    share: float
    low: float
    high: float
    seeds: int
    pictures: int

    def verdict(self, margin: float) -> Verdict:
        """Whether a lies above b by less than `margin`. One seed tells nothing of trainings, and decides nothing."""
        if self.seeds < 2 or self.low <= margin <= self.high:
            return Verdict.OPEN
        return Verdict.TRUE if self.high < margin else Verdict.FALSE


def difference(a_RN: Tensor, b_RN: Tensor) -> Difference:
    """Of the values (R, N) of a and b, seed by seed and picture by picture; float64, two pictures or more.

    The variance of the mean difference is that of the seeds' means / R plus that of the pictures' means / N, which counts
    what is left over twice and so errs to the wide side; degrees of freedom as Welch and Satterthwaite have them.
    """
    seeds, pictures = a_RN.shape
    scale = float(b_RN.mean())
    apart_RN = (a_RN - b_RN) / scale
    parts = [(float(apart_RN.mean(0).var()) / pictures, pictures - 1)]
    if seeds > 1:
        parts.append((float(apart_RN.mean(1).var()) / seeds, seeds - 1))
    variance, mean = sum(part for part, _ in parts), float(apart_RN.mean())
    if variance == 0:
        return Difference(mean, mean, mean, seeds, pictures)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)
    return Difference(mean, mean - reach, mean + reach, seeds, pictures)


def student_quantile(chance: float, freedom: float) -> float:
    """The value that Student's t with so many degrees of freedom is below with this chance, at least 1/2; by bisection."""
    low, high = 0.0, LONGEST
    while high - low > 1e-9 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if student_below(middle, freedom) < chance else (low, middle)
    return (low + high) / 2


def student_below(t: float, freedom: float) -> float:
    """The chance that Student's t is below t >= 0: an integral over the angle atan(t / sqrt(freedom)), by Simpson's rule."""
    reach = math.atan(t / math.sqrt(freedom))
    angles = torch.linspace(0, reach, INTERVALS + 1, dtype=torch.float64)
    weights = torch.full_like(angles, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    area = float((weights * angles.cos().pow(freedom - 1)).sum()) * reach / INTERVALS / 3
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi) / 2
    return 0.5 + math.exp(log_scale) * area


def conclusion(decisive: Sequence[Verdict]) -> Verdict:
    """Of a claim: true where all that decides is, not true where any of it is not, and open otherwise."""
    if Verdict.FALSE in decisive:
        return Verdict.FALSE
    return Verdict.TRUE if decisive and all(one is Verdict.TRUE for one in decisive) else Verdict.OPEN
