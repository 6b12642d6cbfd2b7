"""A budget from what a forward may cost: a fraction, a schedule, GFLOPs or milliseconds.

Milliseconds are calibrated: a forward is timed at up to nine levels, once per model, device, dtype, batch size, threads
and version of torch, and kept in the user's cache folder for a week.
"""

import hashlib
import json
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

from elit.backbones.dit import DiT
from elit.elastic.budget import Schedule, levels, parse_budget
from elit.evaluation.cost import count_flops, time_forward
from elit.weights import write_whole

FRESH_SECONDS = 7 * 24 * 3600
TIMED_LEVELS, REPEATS = 9, 5


class Budget:
    """The largest budget that a cost allows."""

    @staticmethod
    def parse(text: str, model: DiT, batch_size: int = 1) -> float | Schedule:
        """ "1/4", "1/4@t>0.5,1", "80gflops" (one forward of one image) or "150ms" (one forward of a batch).

        Raises ValueError for another text, and for a cost that even the lowest level exceeds.
        """
        amount = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(gflops|ms)\s*", text, re.IGNORECASE)
        if amount is None:
            return parse_budget(text)
        try:
            value = float(amount[1])
        except ValueError:
            raise ValueError(f"{text!r} is not a cost; write it as 80gflops or 150ms") from None
        if amount[2].lower() == "gflops":
            return Budget.for_flops(model, value * 1e9)
        return Budget.for_latency(model, value, batch_size)

    @staticmethod
    def for_flops(model: DiT, flops: float) -> float:
        """The largest level whose forward, of one image, takes at most so many FLOPs."""
        return _largest(model, lambda budget: count_flops(model, budget) / 1e9, flops / 1e9, "GFLOPs")

    @staticmethod
    def for_latency(model: DiT, milliseconds: float, batch_size: int = 1) -> float:
        """The largest level whose forward, of a batch, takes at most so many milliseconds on the model's device.

        Guidance at the main budget takes about twice that a step. Between timed levels the time is interpolated.
        """
        timed = calibrated(model, batch_size)
        return _largest(
            model, lambda budget: float(np.interp(budget, list(timed), list(timed.values()))), milliseconds, "ms"
        )


def _largest(model: DiT, cost: Callable[[float], float], allowed: float, unit: str) -> float:
    """By bisection: a cost grows with its budget."""
    budgets = levels(model.latents)
    count = bisect_right(budgets, allowed, key=cost)
    if count == 0:
        raise ValueError(
            f"{allowed:.6g} {unit} is less than the lowest budget takes, {cost(budgets[0]):.3g} {unit}"
            f" (the full one takes {cost(1.0):.3g} {unit}); ask for more"
        )
    return budgets[count - 1]


def calibrated(model: DiT, batch_size: int) -> dict[float, float]:
    """Milliseconds of a forward at some levels, by budget: from the cache, or measured now and kept there."""
    file = cache_folder() / f"{_fingerprint(model, batch_size)}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf8"))
        if 0 <= time.time() - kept["at"] < FRESH_SECONDS:
            return {float(budget): float(ms) for budget, ms in kept["milliseconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none, or not ours: measured anew
    timed = forward_milliseconds(model, batch_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"at": time.time(), "milliseconds": timed}) + "\n")
    return timed


def cache_folder() -> Path:
    """Where calibrations are kept: $XDG_CACHE_HOME/elit/latency, or ~/.cache/elit/latency."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elit" / "latency"


def _fingerprint(model: DiT, batch_size: int) -> str:
    """What a forward's time depends on; not the weights' values."""
    parameter = next(model.parameters())
    device = (
        torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else platform.processor() or platform.machine()
    )
    parts = [asdict(model.config), parameter.device.type, device, str(parameter.dtype), batch_size]
    parts += [torch.get_num_threads(), torch.__version__, platform.node()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@torch.no_grad()
def forward_milliseconds(model: DiT, batch_size: int) -> dict[float, float]:
    """The median of interleaved forwards at up to nine levels, the lowest and the full one among them."""
    parameter = next(model.parameters())
    x = torch.zeros(batch_size, model.config.in_channels, *model.input_shape, device=parameter.device)
    t, y = torch.zeros(batch_size, device=x.device), torch.zeros(batch_size, dtype=torch.long, device=x.device)
    count = min(TIMED_LEVELS, model.latents)
    chosen = sorted({1 + round(i * (model.latents - 1) / max(count - 1, 1)) for i in range(count)})
    seconds: dict[float, list[float]] = {k / model.latents: [] for k in chosen}
    for budget in seconds:
        model(x, t, y, budget)
    for _ in range(REPEATS):
        for budget, found in seconds.items():
            found += time_forward(lambda b=budget: model(x, t, y, b), repeats=1, warm_up=0)  # type: ignore[misc]
    return {budget: 1000 * statistics.median(found) for budget, found in seconds.items()}
