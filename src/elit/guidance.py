"""Guidance: CFG, cheap CFG and autoguidance are three values of one dataclass (section 3.4 of the paper).

`bind` makes a velocity of a model, a condition and a budget; `guided` composes a strong and a weak one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from elit.condition import Condition, Labels
from elit.elastic.levels import Budget
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import OverTime
from elit.errors import UserError
from elit.pyramid import Stage
from elit.samplers import Velocity
from elit.step_cache import Clocks, Memory, StepCache, TimeChange, Together
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

    Where labels have several factors, weak_label may also be one of them, counted from 1, which alone is left open.

    Raises UserError for autoguidance without a weak budget (both paths would be the same), and for values out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    weak_budget: float | None = None
    weak_label: Literal["null", "same"] | int = "null"

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
        if self.weak_label not in ("null", "same") and (type(self.weak_label) is not int or self.weak_label < 1):
            raise UserError(f"guidance weak_label {self.weak_label!r} is neither 'null' nor 'same', nor a factor, from 1 on")
        if self.weak_budget is not None and not 0 < self.weak_budget <= 1:
            raise UserError(f"guidance weak_budget {self.weak_budget} is not in (0, 1]")
        if self.weak_label == "same" and self.weak_budget is None:
            raise UserError("autoguidance (weak_label='same') compares two budgets: give weak_budget, such as 1/16")

    def active(self, t: float) -> bool:
        """Whether the weak path is needed at time t."""
        return self.scale != 1 and self.interval[0] <= t <= self.interval[1]

    def weight(self, t: float) -> float:
        """What the difference of the paths counts at time t: the scale, or 1 where the weak path is not needed."""
        return self.scale if self.active(t) else 1.0


@dataclass(frozen=True)
class Bound:
    """velocity(x, t) of a model for a condition at a budget, as samplers take it; float32, whatever the model's dtype.

    stage: of a pyramid, the part of its ODE that is sampled; None where there are no stages. memory: what this path may
    reuse of earlier calls; None where every call runs.
    """

    model: ElasticModel
    condition: Condition
    budget: Budget | OverTime = None
    stage: Stage | None = None
    memory: Memory | None = None

    def at(self, t: float) -> Budget:
        """The budget at time t."""
        return self.budget.at(t) if isinstance(self.budget, OverTime) else self.budget

    def times(self, x: Tensor, t: float) -> Tensor:
        """The model's times at the sampler's t: (B,), or of a pyramid (B, S)."""
        return torch.tensor(self.clocks(t), dtype=torch.float32, device=x.device).expand(
            len(x), *[-1] * (self.stage is not None)
        )

    def clocks(self, t: float) -> Clocks:
        """The model's time at the sampler's t, or that of every stage."""
        return t if self.stage is None else self.stage.clocks(t)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.decide(x, t)
        return self.velocity(x, t)

    def decide(self, x: Tensor, t: float) -> bool:
        """Whether the call at t reuses an earlier one; it must be made next."""
        return self.memory is not None and self.memory.decide(self.clocks(t), self.model.levels.resolve(self.at(t), len(x)))

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The call that was decided on."""
        inputs = (self.seen(x), self.times(x, t), self.condition, self.at(t))
        return self.paced(self.model(*inputs) if self.memory is None else self.model(*inputs, self.memory.around))

    def seen(self, x: Tensor) -> Tensor:
        """What the model is given of the state."""
        return x.float() if self.stage is None else self.stage.seen(x.float())

    def paced(self, velocity: Tensor) -> Tensor:
        """The model's velocity over the sampler's time: that of a stage times the speed of its clock."""
        v = velocity.float()
        return v if self.stage is None else v * self.stage.pyramid.spread(self.stage.speeds(), v)


def bind(
    model: ElasticModel,
    condition: Condition,
    budget: Budget | OverTime = None,
    stage: Stage | None = None,
    memory: Memory | None = None,
) -> Bound:
    """The velocity of a model for a condition at a budget: a fraction, one per sample, or anything with `.at(t)`.

    memory: what its calls may reuse of earlier ones; no other path has it.
    """
    return Bound(model, condition, budget, stage, memory)


def guided(strong: Bound, weak: Bound, guidance: Guidance) -> Velocity:
    """v_weak + scale (v_strong - v_weak) where the guidance is active, combined in float32; v_strong elsewhere.

    In a pyramid the interval holds for the own time of every stage that runs. Where both are of one model at one level,
    few samples, and any on a GPU, run as one batch of 2 B; otherwise one path runs after the other.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        weights = guidance_weights(guidance, t, strong.stage)
        if all(weight == 1 for weight in weights):
            return strong(x, t)
        alike = strong.decide(x, t) == weak.decide(x, t)
        if alike and (level := _common_level(strong, weak, x, t)) is not None:
            condition, seen, times = strong.condition.joined(weak.condition), strong.seen(x), strong.times(x, t)
            inputs = (torch.cat([seen, seen]), torch.cat([times, times]), condition, level / strong.model.latents)
            memories = () if strong.memory is None or weak.memory is None else (Together(strong.memory, weak.memory).around,)
            v_strong, v_weak = map(strong.paced, strong.model(*inputs, *memories).chunk(2))
        else:
            v_strong, v_weak = strong.velocity(x, t), weak.velocity(x, t)
        weight = weights[0] if strong.stage is None else strong.stage.pyramid.spread(weights, v_strong)
        return beyond(v_strong, v_weak, weight)

    return velocity


def beyond(v_strong: Tensor, v_weak: Tensor, weight: float | Tensor) -> Tensor:
    """v_weak + weight (v_strong - v_weak)."""
    return v_weak + weight * (v_strong - v_weak)


def guidance_weights(guidance: Guidance, t: float, stage: Stage | None = None) -> list[float]:
    """What the difference of the paths counts at the sampler's time t: one number, or of a pyramid one for each stage.

    A stage is guided by its own time; one that waits is not.
    """
    if stage is None:
        return [guidance.weight(t)]
    clocks = stage.clocks(t)
    return [guidance.weight(clock) if i <= stage.number else 1.0 for i, clock in enumerate(clocks)]


def guided_velocity(
    model: ElasticModel,
    condition: Condition,
    budget: Budget | OverTime,
    guidance: Guidance,
    stage: Stage | None = None,
    cache: StepCache | None = None,
    times: Sequence[float] = (),
) -> Velocity:
    """The guided velocity of one model, whose weak path differs in its label or its budget. Raises UserError for a weak
    budget asked of a dense model.

    cache: when calls may reuse earlier ones. times: those that the sampler steps through, for a cache is quicker when it
    knows them.
    """
    if guidance.weak_budget is not None and model.core is None:
        raise UserError(f"guidance weak_budget {guidance.weak_budget} was asked of a dense model, which has one budget")
    weak = weak_condition(model, condition, guidance.weak_label)
    weak_budget = budget if guidance.weak_budget is None else guidance.weak_budget
    memories = path_memories(model, cache, times, stage)
    strong, other = (
        bind(model, told, share, stage, memory)
        for told, share, memory in zip((condition, weak), (budget, weak_budget), memories, strict=True)
    )
    return guided(strong, other, guidance)


def path_memories(
    model: ElasticModel, cache: StepCache | None, times: Sequence[float], stage: Stage | None = None
) -> tuple[Memory | None, Memory | None]:
    """What each of two paths remembers; nothing without a cache. times: those that the sampler steps through."""
    if cache is None:
        return None, None
    changes = TimeChange(model, [t if stage is None else stage.clocks(t) for t in times])
    return Memory(cache, changes), Memory(cache, changes)


def weak_condition(model: ElasticModel, condition: Condition, weak_label: str | int) -> Condition:
    """What the weak path is told. Raises UserError for a factor that the model's labels have not."""
    if not isinstance(weak_label, int):
        return condition.null() if weak_label == "null" else condition
    if not isinstance(condition, Labels) or not 1 <= weak_label <= len(model.label_sizes) or len(model.label_sizes) == 1:
        raise UserError(
            f"guidance weak_label {weak_label} was asked of a model whose labels have {len(model.label_sizes)} factors;"
            " give null, same, or one of several factors, counted from 1"
        )
    return condition.opened(model.label_sizes, weak_label - 1)


def _common_level(strong: Bound, weak: Bound, x: Tensor, t: float) -> int | None:
    """The level of both paths where they run as one batch of 2 B: of one model, at one level, and quicker so."""
    if strong.model is not weak.model or not (x.is_cuda or len(x) < APART):
        return None
    level = strong.model.levels.resolve(strong.at(t), len(x))
    return level if isinstance(level, int) and level == weak.model.levels.resolve(weak.at(t), len(x)) else None
