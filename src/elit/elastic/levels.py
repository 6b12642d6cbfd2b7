"""Levels: how many latents of each group the core processes, and the budgets, fractions of them, that ask for it.

A budget is a fraction in (0, 1]; a level is the count k of latents, 1 <= k <= J, that it stands for. This file holds the
only rule from one to the other, and the draw that training makes.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from elit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6  # so that float32(k / 36) is level k


@dataclass(frozen=True)
class PerSample:
    """A level for every sample of a batch.

    always: levels that run even for no sample at all, where processes must make the same calls whatever their samples.
    """

    levels: tuple[int, ...]
    always: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """Latents of every group by their numbers, in place of the first k: what dropping without an order leaves."""

    latents: tuple[int, ...]


Level = int | PerSample | Chosen  # one for the whole batch, one per sample, or which latents
Budget = Union[float, Sequence[float], "Tensor", PerSample, Chosen, None]  # what a model's forward takes


@dataclass(frozen=True)
class Levels:
    """The levels that a model has: step, 2 step, ... up to all `latents` of a group. A dense model has the one, of one."""

    latents: int
    step: int = 1

    def counts(self) -> range:
        """Every level, lowest first."""
        return range(self.step, self.latents + 1, self.step)

    def fractions(self) -> list[float]:
        """Every valid budget, lowest first: k/J for every level k."""
        return [k / self.latents for k in self.counts()]

    def of(self, budget: float) -> int:
        """The level of a budget, which is a ceiling: the largest k with k/J <= budget (within 1e-6), at least the lowest.

        Raises UserError, listing the valid levels, for a budget outside (0, 1] or not a number.
        """
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
            listed = ", ".join(self.name(k) for k in self.counts())
            raise UserError(f"budget {budget} is not in (0, 1]; the valid levels are {listed}")
        steps = math.floor((budget + TOLERANCE) * self.latents / self.step)
        return max(1, min(self.latents // self.step, steps)) * self.step

    def name(self, level: int) -> str:
        """A level as people read it, such as 4/16."""
        return f"{level}/{self.latents}"

    def resolve(self, budget: Budget, batch: int) -> Level:
        """The level of a whole batch, or one level per sample.

        `budget`: None (full), a fraction, or B fractions (a tensor or a sequence). Equal fractions give a single level.
        """
        if budget is None:
            return self.latents
        if isinstance(budget, PerSample):
            if len(budget.levels) != batch:
                raise UserError(f"{len(budget.levels)} levels were given for a batch of {batch}; give one per sample")
            return budget
        if isinstance(budget, Chosen):
            return self.checked(budget)
        if isinstance(budget, int | float):
            return self.of(budget)
        if hasattr(budget, "tolist"):
            budget = budget.tolist()
        if isinstance(budget, str) or not isinstance(budget, Sequence):
            return self.of(budget)
        if len(budget) != batch:
            raise UserError(f"{len(budget)} budgets were given for a batch of {batch}; give one, or one per sample")
        per_sample = tuple(self.of(fraction) for fraction in budget)
        return per_sample[0] if len(set(per_sample)) == 1 else PerSample(per_sample)

    def checked(self, chosen: Chosen) -> Chosen:
        """Those latents. Raises UserError where none is chosen, one twice, one that is not there, or levels go in steps."""
        numbers = set(chosen.latents)
        if self.step > 1 or not numbers or len(numbers) < len(chosen.latents) or not numbers <= set(range(self.latents)):
            raise UserError(
                f"latents {list(chosen.latents)} cannot be chosen; give different ones from 0 to {self.latents - 1}, of a"
                " model whose levels go one by one"
            )
        return chosen

    def draw_chosen(self, seed: int, step: int, lowest: float, highest: float) -> Chosen:
        """As many latents as `draw` says, but any of them: a uniform choice, from (seed, step) too."""
        count = self.of(self.draw(seed, step, lowest, highest))
        drawn = random.Random(f"elit latents {seed} {step}").sample(range(self.latents), count)
        return self.checked(Chosen(tuple(sorted(drawn))))

    def draw(self, seed: int, step: int, lowest: float, highest: float) -> float:
        """The budget of one training step: k uniform over [k_min, k_max] (section 3.3 of the paper), from (seed, step).

        All samples, groups and ranks of the step share it, and a resumed run draws it again.
        """
        k_min, k_max = self.of(lowest), self.of(highest)
        if k_min > k_max:
            raise UserError(f"the lowest budget, {lowest}, is above the highest, {highest}")
        drawn = random.Random(f"elit budget {seed} {step}").randint(k_min // self.step, k_max // self.step)
        return drawn * self.step / self.latents
