"""Which budget a training step runs, and what that costs on average: one draw per step, or a schedule over the noise."""

import torch
from torch import Tensor

from elit.backbones.config import DiTConfig
from elit.cost import count_flops, flops_by_level
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.flow import TimeLaw
from elit.target import parse_budget
from elit.training.config import BudgetConfig, FlowConfig
from elit.training.flows import make_flow, share_above


def training_schedule(config: BudgetConfig) -> Schedule | None:
    """The schedule over the noise, or None where the budget is drawn once per step."""
    if config.schedule is None:
        return None
    parsed = parse_budget(config.schedule)
    return parsed if isinstance(parsed, Schedule) else Schedule(otherwise=parsed)


def step_budget(config: BudgetConfig, model: DiTConfig, seed: int, step: int, t_B: Tensor) -> float | Tensor | None:
    """One budget for the step, drawn from (seed, step), or (B,) budgets by the samples' times; None in a dense model."""
    if model.window is None:
        return None
    schedule = training_schedule(config)
    if schedule is None:
        return model.levels.draw(seed, step, config.lowest, config.highest)
    return torch.tensor([schedule.at(t) for t in t_B.tolist()])


def schedule_levels(config: BudgetConfig, model: DiTConfig) -> tuple[int, ...]:
    """Every level that a schedule may ask for, lowest first; none without one."""
    schedule = training_schedule(config)
    if schedule is None or model.window is None:
        return ()
    budgets = (schedule.otherwise, *(budget for _, budget in schedule.pieces))
    return tuple(sorted({model.levels.of(budget) for budget in budgets}))


def mean_flops(model: ElasticModel, budget: BudgetConfig, flow: FlowConfig) -> float:
    """FLOPs of a training forward of one image: the mean over the drawn levels, or over the schedule's times."""
    if model.config.window is None:
        return count_flops(model)
    schedule = training_schedule(budget)
    if schedule is None:
        low, high = (model.levels.of(fraction) for fraction in (budget.lowest, budget.highest))
        return mean_over_levels(model, low, high)
    learned, law = make_flow(flow, model.config), TimeLaw(flow.time_law)
    pieces, mean, above = sorted(schedule.pieces, reverse=True), 0.0, 0.0
    for time, fraction in (*pieces, (0.0, schedule.otherwise)):
        share = share_above(learned, law, time)
        mean, above = mean + (share - above) * count_flops(model, fraction), share
    return mean


def mean_over_levels(model: ElasticModel, low: int, high: int) -> float:
    """The mean FLOPs of a forward at levels low .. high."""
    if low == high:
        return count_flops(model, low / model.latents)
    drawn = [flops for level, flops in flops_by_level(model).items() if low <= level <= high]
    return sum(drawn) / len(drawn)
