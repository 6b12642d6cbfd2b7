"""Many requests through one model, a step at a time: at every step new ones join, finished ones leave, and each has its
own time, label, guidance and budget.

A request is a course of a sampler (see `elit.samplers`), which asks for velocities. Those of all that take part are answered
by one call of the model, with a time and a level for each row. Images are those of `elit.sample` with the same arguments,
within the float tolerance that another batch makes; those of a request that is `alone` are the same to the bit.

Shapes: R rows of a call, n images of a request.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elit.backbones.config import DiTConfig
from elit.condition import Condition, Labels
from elit.cost import time_forward
from elit.elastic.grouping import ungroup
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.guidance import beyond, bind, guided_velocity, weak_condition
from elit.read_attention import captured_reads
from elit.recipe import Recipe
from elit.samplers import Ask, Course, Reached
from elit.sampling import check_steps, start, whole_labels
from elit.serving.jobs import Costs

LOOKED_AT = 0.5  # the time at which Read's attention is shown


@dataclass(frozen=True)
class Order:
    """What is to be drawn: the recipe, whose budget is not looked at, and a label for each image, or what else it is told.

    alone: no call is shared with others. attention: Read's weights are noted at the step nearest to `LOOKED_AT`.
    """

    recipe: Recipe
    labels: tuple[int, ...] | Condition
    alone: bool = False
    attention: bool = False


class Rows(NamedTuple):
    """Rows of a call of the model."""

    x: Tensor  # (R, C, H, W) float32
    t: Tensor  # (R,)
    told: Condition  # of R
    levels: list[int]  # of R, latents per group


@dataclass
class Running:
    """A request under way.

    told: of the images, on the device. asks_left, guided_left: calls that it still makes, and how many of them have a weak
    row. granted: the level at every time that was asked for, in order. seen: (tokens,) Read's attention to each token of
    each image, once it was noted.
    """

    order: Order
    told: Condition
    course: Course
    ask: Ask
    times: list[float]
    granted: dict[float, int] = field(default_factory=dict)
    calls: int = 0
    seen: Tensor | None = None

    @property
    def asks_left(self) -> int:
        return len(self.times) - self.calls

    @property
    def guided_left(self) -> int:
        return sum(self.order.recipe.guidance.active(t) for t in self.times[self.calls :])

    @property
    def looks(self) -> bool:
        """Whether Read's attention is noted at this step."""
        nearest = min(self.times, key=lambda t: abs(t - LOOKED_AT))
        return self.order.attention and self.seen is None and self.ask.t == nearest


class Progress(NamedTuple):
    """What a request has come to: steps made, its state (n, C, H, W), and whether that is the end."""

    step: int
    x: Tensor
    ended: bool


class Engine:
    """The requests that run on one model."""

    def __init__(self, model: ElasticModel, most_rows: int) -> None:
        self.model, self.most_rows, self.out_of_memory = model.eval(), most_rows, 0
        self.levels, self.elastic = model.levels, model.core is not None  # kept, for to find them walks the blocks
        self.running: dict[int, Running] = {}
        self.device = next(model.parameters()).device
        self.tells_attention = isinstance(model.config, DiTConfig)

    def join(self, number: int, order: Order) -> Running:
        """Takes a request in. Raises UserError for labels, samplers and steps that cannot be, and for attention of a model
        that does not tell it.
        """
        recipe = order.recipe
        if self.model.stages > 1 or not isinstance(recipe.steps, int):
            raise UserError("models of several stages are not served yet; sample them with elit sample")
        check_steps(recipe.sampler, recipe.steps)
        if order.attention and not self.tells_attention:
            raise UserError("Read's attention is told by models of this library alone; leave attention out")
        told = self.told(order).to(self.device)
        if recipe.guidance.weak_budget is not None and not self.elastic:
            raise UserError("a weak budget was asked of a dense model, which has one budget; leave it out")
        course = start(
            self.model, len(told), recipe.sampler, recipe.steps, recipe.seed, path=recipe.path, shift=recipe.shift
        )
        ask = course.send(None)
        assert isinstance(ask, Ask)
        self.running[number] = Running(order, told, course, ask, recipe.asked(recipe.parts(self.model)[0][1]))
        return self.running[number]

    def leave(self, number: int) -> None:
        """Drops a request, if it is here."""
        self.running.pop(number, None)

    @torch.no_grad()
    def step(self, turns: Mapping[int, int]) -> dict[int, Progress]:
        """Answers what the requests of these numbers ask for, at these levels (latents per group).

        A time that a sampler asks for twice keeps its level. Returns those that have made a step; what has ended has left.
        """
        taking = {number: self.running[number] for number in turns}
        for number, one in taking.items():
            one.granted.setdefault(one.ask.t, turns[number])
        shared = [one for one in taking.values() if not one.order.alone]
        velocities = dict(zip(map(id, shared), self.shared_velocities(shared), strict=True))
        out = {}
        for number, one in taking.items():
            v = self.alone_velocity(one) if one.order.alone else velocities[id(one)]
            if (progress := self.advance(one, v)) is not None:
                out[number] = progress
                if progress.ended:
                    self.leave(number)
        return out

    def advance(self, one: Running, v: Tensor) -> Progress | None:
        """Sends a velocity; where that ends a step, what has come of it."""
        one.calls += 1
        event = one.course.send(v)
        if isinstance(event, Ask):
            one.ask = event
            return None
        assert isinstance(event, Reached)
        try:
            following = one.course.send(None)
        except StopIteration as end:
            return Progress(event.step + 1, end.value.float(), True)
        assert isinstance(following, Ask)
        one.ask = following
        return Progress(event.step + 1, event.x.float(), False)

    def alone_velocity(self, one: Running) -> Tensor:
        """The velocity as `elit.sample` computes it."""
        (x, t), told, guidance = one.ask, one.told, one.order.recipe.guidance
        budget = one.granted[t] / self.levels.latents
        if one.looks and self.model.core is not None and self.model.latents > 1:
            with captured_reads(self.model.core) as found:
                bind(self.model, told, budget)(x, t)
            weights_BGKS = torch.stack(found).mean(0).float()
            grid, window = self.model.config.grid, self.model.core.window
            one.seen = ungroup(weights_BGKS.sum(2)[..., None], grid, window)[..., 0].cpu()
        return guided_velocity(self.model, told, budget, guidance)(x, t)

    def shared_velocities(self, those: Sequence[Running]) -> list[Tensor]:
        """The velocities of many, each (n, C, H, W), of one call with all their rows; weak rows come last."""
        guided = [one.order.recipe.guidance.active(one.ask.t) for one in those]
        parts = [self.rows(one, weak=False) for one in those]
        parts += [self.rows(one, weak=True) for one, active in zip(those, guided, strict=True) if active]
        if not parts:
            return []
        answers = iter(self.call(parts).split([len(part.x) for part in parts]))
        strong = [next(answers) for _ in those]
        return [
            beyond(v, next(answers), one.order.recipe.guidance.scale) if active else v
            for one, v, active in zip(those, strong, guided, strict=True)
        ]

    def told(self, order: Order) -> Condition:
        """What the model is told of each image. Raises UserError for labels that it has not."""
        if isinstance(order.labels, tuple):
            return Labels(whole_labels(list(order.labels), self.model.null_class), self.model.null_class)
        return order.labels

    def rows(self, one: Running, weak: bool) -> Rows:
        """The strong or the weak rows of a request's next call."""
        (x, t), told, guidance = one.ask, one.told, one.order.recipe.guidance
        level = one.granted[t]
        if weak:
            told = weak_condition(self.model, told, guidance.weak_label)
            level = level if guidance.weak_budget is None else self.levels.of(guidance.weak_budget)
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return Rows(x.float(), times, told, [level] * len(x))

    def call(self, parts: Sequence[Rows]) -> Tensor:
        """The model's answers to all rows, in calls of at most `most_rows`, of which rows of one level come together.

        Where memory runs out, calls are made smaller, for good.
        """
        x, t = (torch.cat(columns) for columns in list(zip(*parts, strict=True))[:2])
        told = functools.reduce(lambda one, other: one.joined(other), [part.told for part in parts])
        levels = [level for part in parts for level in part.levels]
        order = sorted(range(len(levels)), key=levels.__getitem__)
        answers: list[Tensor] = []
        while (first := sum(map(len, answers))) < len(order):
            chosen = order[first : first + self.most_rows]
            budgets = [levels[i] / self.levels.latents for i in chosen]
            rows = torch.tensor(chosen, device=x.device)
            try:
                budget = budgets if self.elastic else None
                answers.append(self.model(x[rows], t[rows], told.rows(rows), budget).float())
            except (MemoryError, RuntimeError) as error:
                if not is_memory(error) or len(chosen) == 1:
                    raise
                self.most_rows, self.out_of_memory = len(chosen) // 2, self.out_of_memory + 1
        return torch.cat(answers)[torch.tensor(order, device=x.device).argsort()]


def is_memory(error: Exception) -> bool:
    """Whether memory ran out: on CPUs torch has no type for that, only its allocator's name in the text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


@torch.no_grad()
def measure_costs(model: ElasticModel, most_rows: int, repeats: int = 3) -> Costs:
    """The costs of calls on the model's device, from batches of one and of several rows at three levels."""
    levels = [float(i) for i in {0, (len(model.levels.counts()) - 1) // 2, len(model.levels.counts()) - 1}]
    levels.sort()
    several = max(2, min(most_rows, 4))
    took = {}
    for rows in (1, several):
        x, t, y = model.example(rows)
        for i in levels:
            budget = model.levels.fractions()[int(i)] if model.core else None
            seconds = time_forward(lambda b=budget, x=x, t=t, y=y: model(x, t, y, b), x.device, repeats)  # type: ignore[misc]
            took[rows, i] = 1000 * min(seconds)
    row = np.array([max((took[several, i] - took[1, i]) / (several - 1), took[1, i] / 100) for i in levels])
    call = max(0.0, float(np.median([took[1, i] - ms for i, ms in zip(levels, row, strict=True)])))
    every = np.maximum.accumulate(np.interp(range(len(model.levels.counts())), levels, row))
    return Costs(call, tuple(every.tolist()))


def now_ms() -> float:
    """Milliseconds on the clock of the policy."""
    return 1000 * time.monotonic()
