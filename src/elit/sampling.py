"""`sample`: from labels to images in one call."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elit.condition import Condition, Labels
from elit.elastic.levels import Budget
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import OverTime
from elit.errors import UserError
from elit.flow import FlowPath
from elit.guidance import Guidance, guided_velocity
from elit.pyramid import Pyramid, Stage, sampled_stages, steps_by_stage
from elit.samplers import (
    Callback,
    Course,
    euler,
    euler_course,
    euler_maruyama_course,
    even_times,
    follow,
    heun,
    heun_course,
    sde_times,
)
from elit.seeding import generator_for
from elit.step_cache import StepCache
from elit.words import shown

ODE = {"euler": euler, "heun": heun}
COURSES = {"euler": euler_course, "heun": heun_course}
SAMPLERS = (*ODE, "euler_maruyama")
MOST_STEPS = 10_000


@torch.no_grad()
def sample(
    model: ElasticModel,
    labels: Tensor | Sequence[int] | Condition,
    sampler: str = "euler",
    steps: int | Sequence[int] = 50,
    budget: Budget | OverTime = None,
    guidance: Guidance = Guidance(),
    seed: int = 0,
    noise: Tensor | None = None,
    sde_noise: Tensor | None = None,
    path: FlowPath | str = FlowPath.LINEAR,
    callback_on_step_end: Callback | None = None,
    thresholds: Sequence[float] | None = None,
    stages: int | None = None,
    cache: StepCache | None = None,
    shift: float = 1.0,
) -> Tensor:
    """Images (B, C, H, W) float32, one for each label, from noise to data.

    Args:
        labels: B class indices; the null class, `model.null_class`, samples without a label. Or what else the model is told,
            such as `Prompts`.
        sampler: "euler", "heun" or "euler_maruyama"; steps: at least 1 (2 for euler_maruyama). Of a model of several
            stages one number for each, or their sum, of which every stage but the first gets a fifth.
        budget: None (full), a fraction, one per image, or a `Schedule`, or anything with `.at(t)`, over the steps.
        noise: (B, C, H, W) to start from, (B, *model.input.shape) for a pyramid; otherwise image i's comes from (seed, i)
            alone.
        sde_noise: (steps - 1, B, C, H, W) for euler_maruyama; otherwise from (seed, i) too.
        path: of the flow that the model was trained on, linear or cosine.
        callback_on_step_end: see `elit.samplers`; the state of a model of several stages is a packed pyramid.
        thresholds: of such a model, the times at which its stages make room for the next (see `elit.pyramid`).
        stages: how many of them are sampled, the coarsest first; None for all.
        cache: when a step may reuse an earlier one (see `elit.step_cache`).
        shift: moves the times of the steps, t to shift t / (1 + (shift - 1) t): above 1 more of them are near the noise.
            Of a model of one stage.

    Raises UserError for a label, budget, sampler, count of steps, threshold, shift or shape that cannot be.
    """
    _check(model, sampler, steps, guidance, seed, callback_on_step_end)
    check_shift(shift, model.stages)
    if cache is not None and not isinstance(cache, StepCache):
        raise UserError(f"cache is a StepCache, such as elit.StepCache(0.1), not {shown(cache)}")
    device = next(model.parameters()).device
    told = labels if isinstance(labels, Condition) else Labels(whole_labels(labels, model.null_class), model.null_class)
    condition = told.to(device)
    if model.stages > 1 or not isinstance(steps, int) or thresholds is not None or stages is not None:
        _flow(path)
        x, parts = _start_noise(model, len(condition), seed, noise), staged_steps(model, sampler, steps, thresholds, stages)
        return _sample_stages(model, condition, x, sampler, parts, budget, guidance, cache, callback_on_step_end)
    course = start(model, len(condition), sampler, steps, seed, noise, sde_noise, path, shift)
    times = step_times(sampler, steps, shift)
    velocity = guided_velocity(model, condition, budget, guidance, cache=cache, times=times)
    return follow(course, velocity, callback_on_step_end).float()


def start(
    model: ElasticModel,
    count: int,
    sampler: str,
    steps: int,
    seed: int,
    noise: Tensor | None = None,
    sde_noise: Tensor | None = None,
    path: FlowPath | str = FlowPath.LINEAR,
    shift: float = 1.0,
) -> Course:
    """The course that `sample` follows to `count` images of a model of one stage; arguments and errors are its own."""
    if model.stages > 1:
        raise UserError(
            f"a model of {model.stages} stages is sampled whole, by elit.sample or elit sample, not step by step"
        )
    flow, x = _flow(path), _start_noise(model, count, seed, noise)
    if sampler in COURSES:
        return COURSES[sampler](x, step_times(sampler, steps, shift))
    if sde_noise is None:
        sde_noise = image_noise(seed, (count, steps - 1, *x.shape[1:]), "sde").transpose(0, 1)
    if not isinstance(sde_noise, Tensor) or sde_noise.shape != (steps - 1, *x.shape):
        given = tuple(sde_noise.shape) if isinstance(sde_noise, Tensor) else shown(sde_noise)
        raise UserError(f"sde_noise is a tensor {(steps - 1, *x.shape)} for these steps and labels, not {given}")
    _check_finite("sde_noise", sde_noise)
    return euler_maruyama_course(x, step_times(sampler, steps, shift), sde_noise, flow)


def step_times(sampler: str, steps: int, shift: float = 1.0) -> list[float]:
    """The times that a sampler of this name steps through where there is one stage."""
    return (sde_times if sampler == "euler_maruyama" else even_times)(steps, shift)


def _start_noise(model: ElasticModel, count: int, seed: int, noise: Tensor | None) -> Tensor:
    """The noise that is given, checked, or that of the seed; on the model's device."""
    shape = (count, *model.input.shape)
    noise = image_noise(seed, shape) if noise is None else noise  # noise given in another size asks for that size
    if not isinstance(noise, Tensor) or noise.ndim != len(shape) or noise.shape[:2] != shape[:2]:
        given = tuple(noise.shape) if isinstance(noise, Tensor) else shown(noise)
        raise UserError(f"noise is a tensor {shape} for this model and these labels, not {given}")
    _check_finite("noise", noise)
    return noise.to(next(model.parameters()).device)


def staged_steps(
    model: ElasticModel,
    sampler: str,
    steps: int | Sequence[int],
    thresholds: Sequence[float] | None = None,
    count: int | None = None,
) -> list[tuple[Stage, list[float]]]:
    """Each part of the ODE of a model of several stages, with its global times.

    Raises UserError for a model of one stage, for a sampler that has no stages, and as `elit.pyramid` does.
    """
    if model.stages == 1:
        raise UserError("steps for each stage, thresholds and stages are for models of several stages, and this has one")
    if sampler not in ODE:
        raise UserError(f"{sampler} samples a model of one stage, and this has {model.stages}; give euler or heun")
    parts = sampled_stages(Pyramid(model.samples.channels, model.stages), thresholds, count)
    counts = steps_by_stage(steps, model.stages)
    return [(part, part.times(n)) for part, n in zip(parts, counts, strict=False)]


def _sample_stages(
    model: ElasticModel,
    condition: Condition,
    x: Tensor,
    sampler: str,
    parts: Sequence[tuple[Stage, list[float]]],
    budget: Budget | OverTime,
    guidance: Guidance,
    cache: StepCache | None,
    callback_on_step_end: Callback | None,
) -> Tensor:
    """One ODE, a part after another, for its speeds jump between them. Stages that are not sampled are left out."""
    done = 0
    for stage, times in parts:
        velocity = guided_velocity(model, condition, budget, guidance, stage, cache, times)
        x = ODE[sampler](velocity, x, times, _counting_on(callback_on_step_end, done))
        done += len(times) - 1
    last = parts[-1][0]
    return last.pyramid.recompose(last.seen(x)).float()


def _counting_on(callback: Callback | None, done: int) -> Callback | None:
    """A callback that counts its steps on from those that are done."""
    return None if callback is None else lambda step, t, x: callback(done + step, t, x)


def _check(
    model: object, sampler: object, steps: object, guidance: object, seed: object, callback_on_step_end: object
) -> None:
    """Raises UserError that names the argument which is of a wrong kind or out of range."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model is one that create_model or load_model makes, not {shown(model)}")
    check_steps(sampler, steps)
    if not isinstance(guidance, Guidance):
        raise UserError(f"guidance is a Guidance, such as Guidance(scale=2.0), not {shown(guidance)}")
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise UserError(f"seed is a whole number, not {shown(seed)}")
    if callback_on_step_end is not None and not callable(callback_on_step_end):
        raise UserError(f"callback_on_step_end is a function of (step, t, x), not {shown(callback_on_step_end)}")


def check_steps(sampler: object, steps: object) -> None:
    """Raises UserError for a sampler that is not there, and for a number of steps that it cannot make."""
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {shown(sampler)}; known: {', '.join(SAMPLERS)}")
    for count in steps if isinstance(steps, list | tuple) else [steps]:
        fewest = 2 if sampler == "euler_maruyama" else 1
        if isinstance(count, bool) or not isinstance(count, int) or not fewest <= count <= MOST_STEPS:
            raise UserError(
                f"steps of {sampler} are a whole number of {fewest} to {MOST_STEPS:,}; {shown(count)} steps are too few or"
                " too many, or no whole number"
            )


def check_shift(shift: object, stages: int = 1) -> None:
    """Raises UserError for a shift of the times that is none, and for one of a model of several stages."""
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < math.inf:
        raise UserError(f"shift is a number above 0, such as 3.0, not {shown(shift)}")
    if shift != 1 and stages > 1:
        raise UserError(f"shift {shift:g} is for a model of one stage, and this has {stages}; leave it out")


def _flow(path: FlowPath | str) -> FlowPath:
    """The flow of a name. Raises UserError for another."""
    try:
        return FlowPath(path)
    except ValueError:
        raise UserError(f"unknown path {shown(path)}; known: {', '.join(FlowPath)}") from None


def _check_finite(name: str, noise: Tensor) -> None:
    """Raises UserError for noise that would make pictures of nothing."""
    if not noise.is_floating_point() or not bool(noise.isfinite().all()):
        raise UserError(f"{name} holds NaN, infinite values, or no floating-point numbers at all")


def whole_labels(labels: Tensor | Sequence[int], null_class: int) -> Tensor:
    """Labels as one int64 tensor (B,). Raises UserError for what is no whole number from 0 to the null class."""
    try:
        y = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"labels are one list of whole numbers, not {shown(labels)}") from error
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1 or not len(y):
        raise UserError(f"labels are one list of whole numbers, not {shown(labels)}")
    if bool(((y < 0) | (y > null_class)).any()):
        raise UserError(f"labels are one list of 0 to {null_class - 1}, and {null_class} for none, not {y.tolist()}")
    return y.long()


def image_noise(seed: int, shape: Sequence[int], kind: str = "noise", first: int = 0) -> Tensor:
    """Standard normal (B, ...): image i's from (seed, first + i) alone, whatever the batch."""
    return torch.stack([torch.randn(*shape[1:], generator=generator_for(kind, seed, first + i)) for i in range(shape[0])])
