"""Calibrations of a cache, kept beside a model: fitted on it by `elit calibrate-cache`, and known by its fingerprint."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MaxLen, MinLen
from torch import Tensor

from elit.condition import Labels
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import write_whole
from elit.guidance import Bound, bind
from elit.recipe import Recipe
from elit.records import Count, NotNegative, Positive, Share, Shift, read_json, record
from elit.sampling import ODE, image_noise
from elit.step_cache import StepCache, TimeChange, check_threshold, fit_polynomial
from elit.weights import CACHE_FILE, fingerprint

Steps = Count | Annotated[tuple[Count, ...], MinLen(2), MaxLen(8)]


@record
class Trial:
    """What a threshold did when it was tried: the share of calls that were reused, how many times as quick sampling was,
    and how far the images were from those without a cache, as a root mean square relative to theirs."""

    threshold: Positive
    reused: Share
    speedup: Positive
    difference: NotNegative


@record
class Fit:
    """A polynomial fitted on a model, by `elit calibrate-cache`.

    model: the weights' fingerprint. steps, sampler, shift, thresholds: of the sampling that it was fitted on. coefficients:
    the constant first. error: root mean square of what it misses of the velocities' relative changes.
    """

    model: str
    steps: Steps
    sampler: str
    coefficients: Annotated[tuple[float, ...], MinLen(1), MaxLen(16)]
    error: NotNegative
    trials: tuple[Trial, ...] = ()
    shift: Shift = 1.0
    thresholds: tuple[float, ...] | None = None

    def cache(self, threshold: float) -> StepCache:
        """The cache of this fit at a threshold."""
        return StepCache(threshold, self.coefficients)

    def near(self, threshold: float) -> Trial | None:
        """What was tried at just this threshold."""
        return next((trial for trial in self.trials if math.isclose(trial.threshold, threshold)), None)


@record
class Fits:
    """What cache.json holds: a fit for each number of steps and sampler."""

    fits: tuple[Fit, ...] = field(default_factory=tuple)


Times = tuple[Steps, str, float, tuple[float, ...] | None]


def times_of(sampling: Fit | Recipe) -> Times:
    """What decides the times of a sampling's steps: how many, by which sampler, and how they are moved."""
    steps = sampling.steps if isinstance(sampling.steps, int) else tuple(sampling.steps)
    return steps, sampling.sampler, sampling.shift, sampling.thresholds


def cached(recipe: Recipe, threshold: float, folder: Path, model: str) -> Recipe:
    """A recipe with a cache by the fit of a model folder; `model` and errors are those of `load_fit`."""
    check_threshold(threshold)
    fit = load_fit(folder, model, recipe)
    return replace(recipe, cache=fit.cache(threshold))


def told(recipe: Recipe, folder: Path, model: ElasticModel) -> str:
    """What the cache of a recipe saves, and what it did when it was calibrated, if it was tried then."""
    assert recipe.cache is not None
    reused, calls = recipe.reused(model)
    cost, plain = recipe.gflops(model), replace(recipe, cache=None).gflops(model)
    text = f"cache: {reused} of {calls} calls reuse an earlier one, {cost:.3g} GFLOPs an image instead of {plain:.3g}"
    fits = [fit for fit in read_json(folder / CACHE_FILE, Fits).fits if fit.cache(recipe.cache.threshold) == recipe.cache]
    trial = fits[0].near(recipe.cache.threshold) if fits else None
    if trial is None:
        return f"{text}; what that costs in quality was not tried at {recipe.cache.threshold:g}"
    return f"{text}; when tried, {trial.speedup:.2f} times as quick, images {trial.difference:.1%} away"


def load_fit(folder: Path, model: str, recipe: Recipe) -> Fit:
    """The fit of a model folder for a sampling; `model` is the fingerprint of its weights as they are stored.

    Raises UserError, with the command that helps, where there is none, or only for steps at other times or other weights.
    """
    remedy = f"run elit calibrate-cache --model {folder} {_options(recipe)}"
    file = folder / CACHE_FILE
    if not file.is_file():
        raise UserError(f"{folder} has no calibration of a cache; {remedy}")
    fits = read_json(file, Fits).fits
    if fits and all(fit.model != model for fit in fits):
        raise UserError(f"{file} is a calibration of another model; {remedy}")
    for fit in fits:
        if times_of(fit) == times_of(recipe):
            return fit
    known = " or ".join(map(_options, fits)) or "nothing"
    raise UserError(f"{file} is calibrated for {known}, not {_options(recipe)}; {remedy}")


def _options(sampling: Fit | Recipe) -> str:
    """The times of a sampling as the command line takes them."""
    steps, sampler, shift, thresholds = times_of(sampling)
    written = ",".join(map(str, steps)) if isinstance(steps, tuple) else str(steps)
    out = f"--steps {written} --sampler {sampler}"
    out += "" if shift == 1 else f" --shift {shift:g}"
    return out if thresholds is None else f"{out} --stage-thresholds {','.join(f'{t:g}' for t in thresholds)}"


def save_fit(folder: Path, fit: Fit) -> Path:
    """Writes a fit beside the model, in place of one for the same sampling; those of other weights are left out."""
    file = folder / CACHE_FILE
    before = read_json(file, Fits).fits if file.is_file() else ()
    kept = [one for one in before if one.model == fit.model and times_of(one) != times_of(fit)]
    write_whole(file, json.dumps(asdict(Fits((*kept, fit))), indent=2) + "\n")
    return file


def calibrate(
    model: ElasticModel,
    recipe: Recipe,
    labels: Sequence[int],
    thresholds: Sequence[float] = (),
    done: Callable[[], None] | None = None,
) -> Fit:
    """The fit of a model for the recipe's steps and sampler, on images of these labels at the full budget.

    Between each two calls that follow one another the relative L1 change of the timestep embedding is noted, and that of
    the velocity, as a mean over the images. Then every threshold is tried with the recipe as it is. `done` is called after
    each of these samplings. Raises UserError for fewer than 3 steps, and for a sampler that is none of an ODE.
    """
    if recipe.sampler not in ODE:
        raise UserError(f"a cache is calibrated with {' or '.join(ODE)}, not {recipe.sampler}; give another --sampler")
    changes, velocities = noted_changes(model, recipe, labels)
    coefficients, error = fit_polynomial(changes, velocities)
    if done is not None:
        done()
    steps, sampler, shift, moved = times_of(recipe)
    fit = Fit(fingerprint(model), steps, sampler, coefficients, error, shift=shift, thresholds=moved)
    return replace(fit, trials=tuple(tried(model, recipe, labels, fit, thresholds, done)))


@torch.no_grad()
def noted_changes(model: ElasticModel, recipe: Recipe, labels: Sequence[int]) -> tuple[list[float], list[float]]:
    """The relative changes of embedding and velocity from call to call, without guidance, stage after stage."""
    device = next(model.parameters()).device
    condition = Labels(torch.tensor(labels, device=device), model.null_class)
    x = image_noise(recipe.seed, (len(labels), *model.input.shape)).to(device)
    between = TimeChange(model)
    changes: list[float] = []
    velocities: list[float] = []
    for stage, times in recipe.parts(model):
        noting = Noting(bind(model, condition, None, stage), between, changes, velocities)
        x = ODE[recipe.sampler](noting, x, times)
    return changes, velocities


class Noting:
    """A velocity that notes how much it, and its timestep embedding, has changed since it was last asked for."""

    def __init__(self, bound: Bound, between: TimeChange, changes: list[float], velocities: list[float]) -> None:
        self.bound, self.between, self.changes, self.velocities = bound, between, changes, velocities
        self.last: tuple[float, Tensor] | None = None

    def __call__(self, x: Tensor, t: float) -> Tensor:
        v = self.bound(x, t)
        if self.last is not None and self.last[0] != t:  # Heun's method asks twice at a time
            before, old = self.last
            self.changes.append(self.between(self.bound.clocks(before), self.bound.clocks(t)))
            axes = tuple(range(1, v.ndim))  # all but the batch's
            self.velocities.append(float(((v - old).abs().mean(axes) / old.abs().mean(axes)).mean()))
        self.last = (t, v)
        return v


def tried(
    model: ElasticModel,
    recipe: Recipe,
    labels: Sequence[int],
    fit: Fit,
    thresholds: Sequence[float],
    done: Callable[[], None] | None,
) -> list[Trial]:
    """What each threshold does to a recipe's images, beside those without a cache."""
    if not thresholds:
        return []
    seconds, images = timed(replace(recipe, cache=None), model, labels)
    trials = []
    for threshold in thresholds:
        quick = replace(recipe, cache=fit.cache(threshold))
        took, drawn = timed(quick, model, labels)
        reused, calls = quick.reused(model)
        apart = float((drawn - images).square().mean().sqrt() / images.square().mean().sqrt())
        trials.append(Trial(threshold, reused / calls, seconds / took, apart))
        if done is not None:
            done()
    return trials


def timed(recipe: Recipe, model: ElasticModel, labels: Sequence[int]) -> tuple[float, Tensor]:
    """The seconds that a sampling takes, and what it draws."""
    start = time.perf_counter()
    images = recipe.draw(model, labels).cpu()  # which waits for a GPU
    return time.perf_counter() - start, images
