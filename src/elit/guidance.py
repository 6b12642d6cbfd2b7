"""Guidance: CFG, cheap CFG and autoguidance are three values of one dataclass (section 3.4 of the paper)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from elit.backbones.dit import Budget, DiT
from elit.elastic.budget import Schedule, resolve
from elit.samplers import Velocity

APART = 4  # images; as many on a CPU run faster in two passes, whose activations stay in the caches, than in one of 2 B


@dataclass(frozen=True)
class Guidance:
    """v = v_weak + scale (v_cond - v_weak) while t is in `interval`; outside, and for scale 1, v_cond alone.

    | name         | weak_label | weak_budget              |
    |--------------|------------|--------------------------|
    | CFG          | "null"     | None: the main budget    |
    | cheap CFG    | "null"     | low, such as 1/16        |
    | autoguidance | "same"     | low                      |

    Raises ValueError for autoguidance without a weak budget (both paths would be the same), and for values out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    weak_budget: float | None = None
    weak_label: Literal["null", "same"] = "null"

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval {self.interval} is not low <= high within [0, 1]")
        if not abs(self.scale) < float("inf"):
            raise ValueError(f"guidance scale {self.scale} is not a finite number")
        if self.weak_label not in ("null", "same"):
            raise ValueError(f"guidance weak_label {self.weak_label!r} is neither 'null' nor 'same'")
        if self.weak_budget is not None and not 0 < self.weak_budget <= 1:
            raise ValueError(f"guidance weak_budget {self.weak_budget} is not in (0, 1]")
        if self.weak_label == "same" and self.weak_budget is None:
            raise ValueError("autoguidance (weak_label='same') compares two budgets: give weak_budget, such as 1/16")

    def active(self, t: float) -> bool:
        """Whether the weak path is needed at time t."""
        return self.scale != 1 and self.interval[0] <= t <= self.interval[1]


def guided_velocity(model: DiT, labels: Tensor, budget: Budget | Schedule, guidance: Guidance) -> Velocity:
    """velocity(x, t) of the model for `labels` (B,), as the samplers take it.

    Where the weak path runs at the main budget, few images, and any on a GPU, run as one batch of 2 B with their weak
    twins; otherwise one path runs after the other.
    """
    if guidance.weak_budget is not None and model.core is None:
        raise ValueError(f"guidance weak_budget {guidance.weak_budget} was asked of a dense model, which has one budget")
    weak_labels = torch.full_like(labels, model.null_class) if guidance.weak_label == "null" else labels

    def velocity(x: Tensor, t: float) -> Tensor:
        main = budget.at(t) if isinstance(budget, Schedule) else budget
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        x = x.float()
        if not guidance.active(t):
            return model(x, times, labels, main)
        level = resolve(main, model.latents, len(x))
        weak = level if guidance.weak_budget is None else resolve(guidance.weak_budget, model.latents, len(x))
        if weak == level and isinstance(level, int) and (x.is_cuda or len(x) < APART):
            both = model(x.repeat(2, 1, 1, 1), times.repeat(2), torch.cat([labels, weak_labels]), level / model.latents)
            v_cond, v_weak = both.chunk(2)
        else:
            v_cond = model(x, times, labels, main)
            v_weak = model(x, times, weak_labels, main if guidance.weak_budget is None else guidance.weak_budget)
        return v_weak + guidance.scale * (v_cond - v_weak)

    return velocity
