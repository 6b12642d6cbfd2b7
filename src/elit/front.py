"""What budget, steps and cache together buy: points measured on a model, and the best of them within a cost."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import MaxLen, MinLen

from elit.cache_fit import Steps, cached
from elit.cost import count_flops
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.guidance import Guidance
from elit.recipe import Recipe, steps_text
from elit.records import Count, Fraction, NotNegative, Positive, record
from elit.target import calibrated, cost_in


@record
class Point:
    """One way to sample: a budget, steps and, unless null, a cache's threshold; the GFLOPs of an image; and the distance of
    its samples from real pictures, lower being better, with the spread over the seeds."""

    budget: Fraction
    steps: Steps
    cache: Positive | None
    gflops: Positive
    distance: NotNegative
    spread: NotNegative = 0.0

    def told(self) -> str:
        """For people."""
        reuse = "" if self.cache is None else f", cache {self.cache:g}"
        return f"budget {self.budget:.4g}, {steps_text(self.steps)}{reuse}"


@record
class Front:
    """Points of one model, all with the same sampler and guidance.

    measure: what the distance is. samples, seeds: that each point was measured on. guidance_scale: of classifier-free
    guidance at the main budget.
    """

    measure: str
    samples: Count
    seeds: tuple[int, ...]
    guidance_scale: float
    points: Annotated[tuple[Point, ...], MinLen(1), MaxLen(4096)]


def best_points(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both cost and distance, the cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.gflops, point.distance)):
        if not best or point.distance < best[-1].distance:
            best.append(point)
    return best


def wants_front(text: str, front: Front | None, steps: object, cache: object, guidance: Guidance) -> bool:
    """Whether a budget's text is a cost that is met by a choice among all three: the card has a front, which was measured
    with this guidance, and neither steps nor a cache are given."""
    if front is None or steps is not None or cache is not None or cost_in(text) is None:
        return False
    return guidance == Guidance(front.guidance_scale)


def within(text: str, front: Front, model: ElasticModel, recipe: Recipe, folder: Path, weights: str) -> tuple[Recipe, Point]:
    """The recipe of the best point whose whole sampling costs at most that: "80gflops" an image, or "150ms" a tile.

    folder, weights: of the model, for the calibration of its cache. Points whose cache was not calibrated are passed over.
    Raises UserError where even the cheapest point costs more.
    """
    cost = cost_in(text)
    assert cost is not None
    allowed, unit = cost
    price = _milliseconds(model, recipe.tile) if unit == "ms" else lambda recipe: recipe.gflops(model)
    priced = []
    for point in best_points(front.points):
        made = replace(recipe, budget=point.budget, steps=point.steps)
        try:
            made = made if point.cache is None else cached(made, point.cache, folder, weights)
        except UserError:
            continue
        priced.append((price(made), point, made))
    fitting = [(point, made) for paid, point, made in priced if paid <= allowed]
    if not fitting:
        least = min((paid for paid, _, _ in priced), default=float("inf"))
        raise UserError(
            f"{allowed:.6g} {unit} is less than the cheapest measured way to make an image takes, {least:.3g} {unit};"
            " ask for more, or give --steps, and the cost is that of one forward"
        )
    point, made = min(fitting, key=lambda pair: pair[0].distance)
    return made, point


def _milliseconds(model: ElasticModel, batch: int) -> Callable[[Recipe], float]:
    """What a sampling of a batch takes, by the measured time of a forward at its budget; a reused one takes its share of
    the FLOPs."""
    timed = calibrated(model, batch)

    def price(recipe: Recipe) -> float:
        total = 0.0
        for (budget, reuse), count in Counter(recipe.forwards(model)).items():
            share = count_flops(model, budget, blocks=False) / count_flops(model, budget) if reuse else 1.0
            total += count * share * float(np.interp(budget, list(timed), list(timed.values())))
        return total

    return price
