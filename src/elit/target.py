"""A budget from what a forward may cost: a fraction, a schedule, GFLOPs or milliseconds.

Milliseconds are calibrated: a forward is timed at up to nine levels, once per model, device, dtype, batch size, threads
and version of torch, and kept in the user's cache folder for a week.
"""

import hashlib
import json
import math
import os
import platform
import re
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from elit.console import say
from elit.cost import flops_by_level, time_forward
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.files import told, write_whole
from elit.records import Positive, read_json, record
from elit.words import one_line, shown

FRESH_SECONDS = 7 * 24 * 3600
TIMED_LEVELS, REPEATS = 9, 5


class Budget:
    """The largest budget that a cost allows."""

    @staticmethod
    def parse(text: str, model: ElasticModel, batch_size: int = 1) -> float | Schedule:
        """ "1/4", "1/4@t>0.5,1", "80gflops" (one forward of one image) or "150ms" (one forward of a batch).

        Of a model of several stages also "1/4,1", a budget for each stage.

        Raises UserError for another text, and for a cost that even the lowest level exceeds.
        """
        cost = cost_in(text)
        if cost is None and "," in text and "@" not in text:
            return Schedule.by_stage([parse_fraction(part) for part in text.split(",")], model.stages)
        if cost is None:
            return parse_budget(text)
        value, unit = cost
        return Budget.for_flops(model, value * 1e9) if unit == "gflops" else Budget.for_latency(model, value, batch_size)

    @staticmethod
    def for_flops(model: ElasticModel, flops: float) -> float:
        """The largest level whose forward, of one image, takes at most so many FLOPs. Raises UserError for too few."""
        _check_cost("flops", flops)
        costs = flops_by_level(model)
        return _largest(model, lambda budget: costs[model.levels.of(budget)] / 1e9, flops / 1e9, "GFLOPs")

    @staticmethod
    def for_latency(model: ElasticModel, milliseconds: float, batch_size: int = 1) -> float:
        """The largest level whose forward, of a batch, takes at most so many milliseconds on the model's device.

        Guidance at the main budget takes about twice that a step. Between timed levels the time is interpolated.
        Raises UserError for too few.
        """
        _check_cost("milliseconds", milliseconds)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is a whole number of at least 1, not {shown(batch_size)}")
        timed = calibrated(model, batch_size)
        return _largest(
            model, lambda budget: float(np.interp(budget, list(timed), list(timed.values()))), milliseconds, "ms"
        )


def cost_in(text: str) -> tuple[float, str] | None:
    """The number and the unit, "gflops" or "ms", of a text such as 80gflops; None of a text that is no cost.

    Raises UserError for a unit without a number.
    """
    amount = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(gflops|ms)\s*", text, re.IGNORECASE)
    if amount is None:
        return None
    try:
        return float(amount[1]), amount[2].lower()
    except ValueError:
        raise UserError(f"{text!r} is not a cost; write it as 80gflops or 150ms") from None


def _check_cost(name: str, value: object) -> None:
    """Raises UserError, naming the argument, for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} is a finite number, such as 80e9 FLOPs or 150 milliseconds, not {shown(value)}")


def _largest(model: ElasticModel, cost: Callable[[float], float], allowed: float, unit: str) -> float:
    """By bisection: a cost grows with its budget."""
    budgets = model.levels.fractions()
    count = bisect_right(budgets, allowed, key=cost)
    if count == 0:
        raise UserError(
            f"{allowed:.6g} {unit} is less than the lowest budget takes, {cost(budgets[0]):.3g} {unit}"
            f" (the full one takes {cost(1.0):.3g} {unit}); ask for more"
        )
    return budgets[count - 1]


@record
class Calibration:
    """What a calibration's file holds: when it was made, in seconds since 1970, and milliseconds by budget."""

    at: float
    milliseconds: dict[str, Positive]

    @property
    def by_budget(self) -> dict[float, float]:
        """Milliseconds by budget, lowest first. Raises ValueError where a key is no budget."""
        return dict(sorted((parse_fraction(budget), ms) for budget, ms in self.milliseconds.items()))


def calibrated(model: ElasticModel, batch_size: int) -> dict[float, float]:
    """Milliseconds of a forward at some levels, by budget: from the cache, or measured now and kept there.

    Where nothing can be kept there, the console says so and why.
    """
    levels = timed_levels(model)
    try:
        file = cache_folder() / f"{_fingerprint(model, batch_size)}.json"
    except RuntimeError as error:  # a user without a home
        say(f"timings are not kept: {one_line(str(error))}; set XDG_CACHE_HOME", "yellow")
        return forward_milliseconds(model, batch_size)
    try:
        kept = read_json(file, Calibration)
        if 0 <= time.time() - kept.at < FRESH_SECONDS and list(kept.by_budget) == levels:
            return kept.by_budget
    except UserError:
        pass  # none, or not ours: measured anew
    timed = forward_milliseconds(model, batch_size)
    try:
        with told(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"at": time.time(), "milliseconds": timed}) + "\n")
    except OSError as error:
        say(f"timings are not kept, and will be measured again: {error.strerror or error}", "yellow")
    return timed


def timed_levels(model: ElasticModel) -> list[float]:
    """The budgets that are timed, up to nine spread over all: the lowest and the full one among them."""
    fractions = model.levels.fractions()
    count = min(TIMED_LEVELS, len(fractions))
    chosen = {round(i * (len(fractions) - 1) / max(count - 1, 1)) for i in range(count)}
    return [fractions[i] for i in sorted(chosen)]


def cache_folder() -> Path:
    """Where calibrations are kept: $XDG_CACHE_HOME/elit/latency, or ~/.cache/elit/latency."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elit" / "latency"


def _fingerprint(model: ElasticModel, batch_size: int) -> str:
    """What a forward's time depends on; not the weights' values."""
    parameter = next(model.parameters())
    device = (
        torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else platform.processor() or platform.machine()
    )
    parts: list[object] = [model.made_of() or asdict(model.config), model.input.shape, model.tokens]
    parts += [parameter.device.type, device, str(parameter.dtype), batch_size]
    parts += [torch.get_num_threads(), torch.__version__, platform.node()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@torch.no_grad()
def forward_milliseconds(model: ElasticModel, batch_size: int) -> dict[float, float]:
    """The median of interleaved forwards at up to nine levels, the lowest and the full one among them."""
    x, t, y = model.example(batch_size)
    seconds: dict[float, list[float]] = {budget: [] for budget in timed_levels(model)}
    for budget in seconds:
        model(x, t, y, budget)
    for _ in range(REPEATS):
        for budget, found in seconds.items():
            found += time_forward(lambda b=budget: model(x, t, y, b), x.device, repeats=1, warm_up=0)  # type: ignore[misc]
    return {budget: 1000 * statistics.median(found) for budget, found in seconds.items()}


def parse_fraction(text: str) -> float:
    """ "1/16" or "0.25" to a number in (0, 1]. Raises UserError for anything else."""
    top, _, bottom = text.strip().partition("/")
    try:
        value = float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{text.strip()!r} is not a budget; write fractions such as 1/16 or 0.5") from None
    if not 0 < value <= 1:
        raise UserError(f"budget {text.strip()} is not in (0, 1]; write fractions such as 1/16 or 0.5")
    return value


def parse_budget(text: str) -> float | Schedule:
    """A fraction, or a schedule such as "1/4@t>0.5,1": a quarter while t > 0.5, the full budget otherwise.

    Raises UserError for what is neither.
    """
    *pieces, otherwise = text.split(",")
    if "@" in otherwise:
        raise UserError(f"the schedule {text!r} does not say what holds otherwise; end it with a budget, as in 1/4@t>0.5,1")
    if not pieces:
        return parse_fraction(otherwise)
    return Schedule(tuple(_parse_piece(piece) for piece in pieces), parse_fraction(otherwise))


def _parse_piece(piece: str) -> tuple[float, float]:
    budget, _, condition = piece.strip().partition("@")
    time = condition.replace(" ", "").removeprefix("t>")
    try:
        return float(time), parse_fraction(budget)
    except ValueError as error:
        if time and "budget" in str(error):
            raise
        raise UserError(f"{piece.strip()!r} is not a piece of a schedule; write it as 1/4@t>0.5") from None
