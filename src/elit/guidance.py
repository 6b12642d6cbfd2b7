"""Guidance: CFG, cheap CFG and autoguidance are three values of one dataclass (section 3.4 of the paper).

`bind` makes a velocity of a model, a condition and a budget; `guided` composes a strong and a weak one.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from elit.condition import Condition
from elit.elastic.levels import Budget
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import OverTime
from elit.errors import UserError
from elit.samplers import Velocity
from elit.words import shown

APART = 4  # images; as many on a CPU run faster in two passes, whose activations stay in the caches, than in one of 2 B


@dataclass(frozen=True)
class Guidance:
    """v = v_weak + scale (v_cond - v_weak) while t is in `interval`; outside, and for scale 1, v_cond alone.

    | name         | weak_label | weak_budget              |
    |--------------|------------|--------------------------|
    | CFG          | "null"     | None: the main budget    |
    | cheap CFG    | "null"     | low, such as 1/16        |
    | autoguidance | "same"     | low                      |

    Raises UserError for autoguidance without a weak budget (both paths would be the same), and for values out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    weak_budget: float | None = None
    weak_label: Literal["null", "same"] = "null"

    def __post_init__(self) -> None:
        try:
            self._check()
        except TypeError as error:
            raise UserError(
                f"guidance is made of numbers, as Guidance(scale=2.0, weak_budget=1/16), not {shown(vars(self))}"
            ) from error

    def _check(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance interval {self.interval} is not low <= high within [0, 1]")
        if not abs(self.scale) < float("inf"):
            raise UserError(f"guidance scale {self.scale} is not a finite number")
        if self.weak_label not in ("null", "same"):
            raise UserError(f"guidance weak_label {self.weak_label!r} is neither 'null' nor 'same'")
        if self.weak_budget is not None and not 0 < self.weak_budget <= 1:
            raise UserError(f"guidance weak_budget {self.weak_budget} is not in (0, 1]")
        if self.weak_label == "same" and self.weak_budget is None:
            raise UserError("autoguidance (weak_label='same') compares two budgets: give weak_budget, such as 1/16")

    def active(self, t: float) -> bool:
        """Whether the weak path is needed at time t."""
        return self.scale != 1 and self.interval[0] <= t <= self.interval[1]


@dataclass(frozen=True)
class Bound:
    """velocity(x, t) of a model for a condition at a budget, as samplers take it; float32, whatever the model's dtype."""

    model: ElasticModel
    condition: Condition
    budget: Budget | OverTime = None

    def at(self, t: float) -> Budget:
        """The budget at time t."""
        return self.budget.at(t) if isinstance(self.budget, OverTime) else self.budget

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.model(x.float(), _times(x, t), self.condition, self.at(t)).float()


def bind(model: ElasticModel, condition: Condition, budget: Budget | OverTime = None) -> Bound:
    """The velocity of a model for a condition at a budget: a fraction, one per sample, or anything with `.at(t)`."""
    return Bound(model, condition, budget)


def guided(strong: Bound, weak: Bound, guidance: Guidance) -> Velocity:
    """v_weak + scale (v_strong - v_weak) where the guidance is active, combined in float32; v_strong elsewhere.

    Where both are of one model at one level, few samples, and any on a GPU, run as one batch of 2 B; otherwise one path
    runs after the other.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        if not guidance.active(t):
            return strong(x, t)
        if (level := _common_level(strong, weak, x, t)) is not None:
            condition = strong.condition.joined(weak.condition)
            twice, budget = x.float().repeat(2, *[1] * (x.ndim - 1)), level / strong.model.latents
            both = strong.model(twice, _times(x, t).repeat(2), condition, budget)
            v_strong, v_weak = both.float().chunk(2)
        else:
            v_strong, v_weak = strong(x, t), weak(x, t)
        return v_weak + guidance.scale * (v_strong - v_weak)

    return velocity


def guided_velocity(model: ElasticModel, condition: Condition, budget: Budget | OverTime, guidance: Guidance) -> Velocity:
    """The guided velocity of one model, whose weak path differs in its label or its budget. Raises UserError for a weak
    budget asked of a dense model.
    """
    if guidance.weak_budget is not None and model.core is None:
        raise UserError(f"guidance weak_budget {guidance.weak_budget} was asked of a dense model, which has one budget")
    weak_condition = condition.null() if guidance.weak_label == "null" else condition
    weak_budget = budget if guidance.weak_budget is None else guidance.weak_budget
    return guided(bind(model, condition, budget), bind(model, weak_condition, weak_budget), guidance)


def _common_level(strong: Bound, weak: Bound, x: Tensor, t: float) -> int | None:
    """The level of both paths where they run as one batch of 2 B: of one model, at one level, and quicker so."""
    if strong.model is not weak.model or not (x.is_cuda or len(x) < APART):
        return None
    level = strong.model.levels.resolve(strong.at(t), len(x))
    return level if isinstance(level, int) and level == weak.model.levels.resolve(weak.at(t), len(x)) else None


def _times(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float32, device=x.device)
