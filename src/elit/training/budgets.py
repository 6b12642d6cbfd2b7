"""Which budgets a training step runs, and what that costs on average: one draw per step, a schedule, or a mixture."""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from elit.cost import count_flops, flops_by_level
from elit.elastic.levels import Chosen, Levels
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.flow import TimeLaw
from elit.target import parse_budget
from elit.training.config import BudgetConfig, FlowConfig, Trained
from elit.training.flows import make_flow, share_above


def training_schedule(config: BudgetConfig) -> Schedule | None:
    """The schedule over the noise, or None where the budget is drawn once per step."""
    if config.schedule is None:
        return None
    parsed = parse_budget(config.schedule)
    return parsed if isinstance(parsed, Schedule) else Schedule(otherwise=parsed)


def step_budget(
    config: BudgetConfig, model: Trained, seed: int, step: int, t_B: Tensor, places: range
) -> float | Tensor | Chosen | None:
    """One budget for the step, drawn from (seed, step), or (B,) budgets by the samples' times or places in the whole batch.

    places: of these samples. None in a dense model.
    """
    if model.window is None:
        return None
    if config.mixed:
        lower, upper = mixed_levels(config, model, seed, step)
        levels = [mixed_level(config.mixed, place, (lower, upper)) for place in places]
        return torch.tensor([config.highest if level is None else level / model.levels.latents for level in levels])
    schedule = training_schedule(config)
    if schedule is None and config.dropping == "random":
        return model.levels.draw_chosen(seed, step, config.lowest, config.highest)
    if schedule is None:
        return model.levels.draw(seed, step, config.lowest, config.highest)
    return torch.tensor([schedule.at(t) for t in t_B.tolist()])


def mixed_levels(config: BudgetConfig, model: Trained, seed: int, step: int) -> tuple[int, int]:
    """The two levels below `highest` of a step's mixture: one of the lower half of those there are, one of the upper."""
    drawn = random.Random(f"mixed {seed} {step}")
    lower, upper = _halves(config, model.levels)
    return drawn.choice(lower), drawn.choice(upper)


def _halves(config: BudgetConfig, levels: Levels) -> tuple[list[int], list[int]]:
    """The levels from `lowest` to below `highest` in two halves; the middle one, or a single one, is in the lower."""
    low, high = levels.of(config.lowest), levels.of(config.highest)
    counts = [count for count in levels.counts() if low <= count < high]
    middle = (len(counts) + 1) // 2
    return counts[:middle], counts[middle:] or counts


def mixed_level(mixed: float, place: int, levels: tuple[int, int]) -> int | None:
    """The level of the sample at a place of the batch, None for the highest: spread evenly, the two levels by turns."""
    before = math.floor(place * mixed + 1e-9)
    return levels[before % 2] if math.floor((place + 1) * mixed + 1e-9) > before else None


def schedule_levels(config: BudgetConfig, model: Trained) -> tuple[int, ...]:
    """Every level that the samples of a batch may ask for, where these differ, lowest first; none else."""
    if config.mixed:
        low, high = model.levels.of(config.lowest), model.levels.of(config.highest)
        return tuple(count for count in model.levels.counts() if low <= count <= high)
    schedule = training_schedule(config)
    if schedule is None or model.window is None:
        return ()
    budgets = (schedule.otherwise, *(budget for _, budget in schedule.pieces))
    return tuple(sorted({model.levels.of(budget) for budget in budgets}))


def mean_flops(model: ElasticModel, budget: BudgetConfig, flow: FlowConfig) -> float:
    """FLOPs of a training forward of one image: the mean over the drawn levels, or over the schedule's times."""
    return run_flops(model, budget, flow).mean


@dataclass(frozen=True)
class RunFlops:
    """FLOPs of a forward of one image in a run: at its lowest and highest level, and on average over what it draws."""

    lowest: float
    highest: float
    mean: float


def run_flops(model: ElasticModel, budget: BudgetConfig, flow: FlowConfig) -> RunFlops:
    """Each level's FLOPs are counted once."""
    if model.config.window is None:
        flops = count_flops(model)
        return RunFlops(flops, flops, flops)
    low, high = (model.levels.of(fraction) for fraction in (budget.lowest, budget.highest))
    schedule = training_schedule(budget)
    if budget.mixed:
        by_level = flops_of(model, low, high)
        below = [sum(by_level[count] for count in half) / len(half) for half in _halves(budget, model.levels)]
        mean = (1 - budget.mixed) * by_level[high] + budget.mixed * sum(below) / 2
        return RunFlops(by_level[low], by_level[high], mean)
    if schedule is None:
        drawn = [flops for level, flops in flops_of(model, low, high).items() if low <= level <= high]
        return RunFlops(drawn[0], drawn[-1], sum(drawn) / len(drawn))
    learned, law, by_level = make_flow(flow, model.config), TimeLaw(flow.time_law), flops_by_level(model)
    pieces, mean, above = sorted(schedule.pieces, reverse=True), 0.0, 0.0
    for time, fraction in (*pieces, (0.0, schedule.otherwise)):
        share = share_above(learned, law, time, flow.shift)
        mean, above = mean + (share - above) * by_level[model.levels.of(fraction)], share
    return RunFlops(by_level[low], by_level[high], mean)


def flops_of(model: ElasticModel, low: int, high: int) -> dict[int, int]:
    """The FLOPs of a forward at every level, or at the one that is asked for."""
    return {low: count_flops(model, low / model.latents)} if low == high else flops_by_level(model)
