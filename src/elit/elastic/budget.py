"""Budgets: the share of each group's latents that the core processes.

A budget is a fraction in (0, 1]; a level is the count k of latents, 1 <= k <= J, that it stands for. This file holds the
only rule from one to the other, the draw that training makes, and schedules over the steps of a sampler.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-6  # so that float32(k / 36) is level k
Level = int | tuple[int, ...]  # one for the whole batch, or one per sample


def levels(latents: int) -> list[float]:
    """The valid budgets of a group of J latents: k/J for k = 1 .. J."""
    return [k / latents for k in range(1, latents + 1)]


def level_of(budget: float, latents: int) -> int:
    """The level of a budget, which is a ceiling: the largest k with k/J <= budget (within 1e-6), and at least 1.

    Raises ValueError, listing the valid levels, for a budget outside (0, 1] or not a number.
    """
    if isinstance(budget, bool) or not 0 < budget <= 1:
        listed = ", ".join(f"{k}/{latents}" for k in range(1, latents + 1))
        raise ValueError(f"budget {budget} is not in (0, 1]; the valid levels are {listed}")
    return max(1, min(latents, math.floor((budget + TOLERANCE) * latents)))


def resolve(budget: "float | Sequence[float] | Tensor | None", latents: int, batch: int) -> Level:
    """The level of a whole batch, or one level per sample.

    `budget`: None (full), a fraction, or B fractions (a tensor or a sequence). Equal fractions give a single level.
    """
    if budget is None:
        return latents
    if isinstance(budget, Tensor):
        budget = budget.tolist()
    if not isinstance(budget, Sequence):
        return level_of(budget, latents)
    if len(budget) != batch:
        raise ValueError(f"{len(budget)} budgets were given for a batch of {batch}; give one, or one per sample")
    per_sample = tuple(level_of(fraction, latents) for fraction in budget)
    return per_sample[0] if len(set(per_sample)) == 1 else per_sample


def draw_budget(seed: int, step: int, lowest: float, highest: float, latents: int) -> float:
    """The budget of one training step: k uniform over [k_min, k_max] (section 3.3 of the paper), from (seed, step) alone.

    All samples, groups and ranks of the step share it, and a resumed run draws it again.
    """
    k_min, k_max = level_of(lowest, latents), level_of(highest, latents)
    if k_min > k_max:
        raise ValueError(f"the lowest budget, {lowest}, is above the highest, {highest}")
    return random.Random(f"elit budget {seed} {step}").randint(k_min, k_max) / latents


@dataclass(frozen=True)
class Schedule:
    """A budget for every time of a sampler: `pieces` are (time, budget), the budget holding for t above that time.

    `Schedule(((0.5, 0.25),), 1.0)` runs a quarter of the latents while t > 0.5, in the noisier half, and all below.
    Where several pieces hold, the one with the highest time does.
    """

    pieces: tuple[tuple[float, float], ...] = ()
    otherwise: float = 1.0

    def __post_init__(self) -> None:
        for time, _ in self.pieces:
            if not 0 <= time <= 1:
                raise ValueError(f"a schedule's time is in [0, 1], with 1 = noise, not {time}")
        for budget in (self.otherwise, *(budget for _, budget in self.pieces)):
            if not 0 < budget <= 1:
                raise ValueError(f"budget {budget} is not in (0, 1]")

    def at(self, t: float) -> float:
        """The budget at time t, 1 = noise."""
        holding = [piece for piece in self.pieces if t > piece[0]]
        return max(holding)[1] if holding else self.otherwise


def parse_fraction(text: str) -> float:
    """ "1/16" or "0.25" to a number in (0, 1]. Raises ValueError for anything else."""
    top, _, bottom = text.strip().partition("/")
    try:
        value = float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text.strip()!r} is not a budget; write fractions such as 1/16 or 0.5") from None
    if not 0 < value <= 1:
        raise ValueError(f"budget {text.strip()} is not in (0, 1]; write fractions such as 1/16 or 0.5")
    return value


def parse_budget(text: str) -> float | Schedule:
    """A fraction, or a schedule such as "1/4@t>0.5,1": a quarter while t > 0.5, the full budget otherwise.

    Raises ValueError for what is neither.
    """
    *pieces, otherwise = text.split(",")
    if "@" in otherwise:
        raise ValueError(f"the schedule {text!r} does not say what holds otherwise; end it with a budget, as in 1/4@t>0.5,1")
    if not pieces:
        return parse_fraction(otherwise)
    return Schedule(tuple(_parse_piece(piece) for piece in pieces), parse_fraction(otherwise))


def _parse_piece(piece: str) -> tuple[float, float]:
    budget, _, condition = piece.strip().partition("@")
    time = condition.replace(" ", "").removeprefix("t>")
    try:
        return float(time), parse_fraction(budget)
    except ValueError as error:
        if time and "budget" in str(error):
            raise
        raise ValueError(f"{piece.strip()!r} is not a piece of a schedule; write it as 1/4@t>0.5") from None
