"""Budgets over a sampler's time: anything with `.at(t)`, the budget at time t (1 = noise)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from elit.errors import UserError


@runtime_checkable
class OverTime(Protocol):
    """A budget that follows the sampler's time t, from 1 (noise) to 0 (data)."""

    def at(self, t: float) -> float:
        """The budget, a fraction in (0, 1], at time t."""


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
                raise UserError(f"a schedule's time is in [0, 1], with 1 = noise, not {time}")
        for budget in (self.otherwise, *(budget for _, budget in self.pieces)):
            if not 0 < budget <= 1:
                raise UserError(f"budget {budget} is not in (0, 1]")

    @classmethod
    def by_stage(cls, budgets: Sequence[float], stages: int) -> "Schedule":
        """A budget for each stage of a model that has so many (see `elit.pyramid`), whose global time they share evenly.

        Raises UserError where there are more budgets or fewer.
        """
        if len(budgets) != stages:
            listed = ", ".join(f"{budget:g}" for budget in budgets)
            raise UserError(
                f"{len(budgets)} budgets ({listed}) were given for {stages} stage{'s' * (stages > 1)}; give one for each"
            )
        pieces = tuple((1 - (i + 1) / stages, budget) for i, budget in enumerate(budgets[:-1]))
        return cls(pieces, budgets[-1])

    def at(self, t: float) -> float:
        """The budget at time t, 1 = noise."""
        holding = [piece for piece in self.pieces if t > piece[0]]
        return max(holding)[1] if holding else self.otherwise
