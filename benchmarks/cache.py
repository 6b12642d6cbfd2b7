"""What a cache saves: its overhead, and quality against FLOPs for budgets, steps, caches and their combinations.

python benchmarks/cache.py --overhead                       # a cache that never reuses, beside none; and some that do
python benchmarks/cache.py --model MODEL --out cache-front  # the table and the figure
python benchmarks/cache.py --card MODEL --out cache-front   # and the front, with its calibrations, written beside that model

MODEL is a folder of a model of the emoji. What was measured is kept in the folder --out: after a stop, or where --minutes
were too few for all points, the same command goes on.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from elit.bundled import FOLDER
from elit.cache_fit import Fit, calibrate, load_fit, save_fit
from elit.card import load_card, save_card
from elit.console import Table, output
from elit.cost import cpu_name
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.exam import exam_of
from elit.evaluation.quality import Judge, measure_recipes
from elit.files import write_whole
from elit.front import Front, Point, best_points
from elit.guidance import Guidance
from elit.recipe import Recipe
from elit.step_cache import Memory, StepCache, TimeChange
from elit.weights import fingerprint, load_model
from elit.words import spread

MEASURE = "Fréchet distance of EfficientNet-Lite0 features"


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FOLDER), help="a model of the emoji")
    parser.add_argument("--overhead", action="store_true", help="time a cache that never reuses, and some that do")
    parser.add_argument("--repeats", type=int, default=9, help="of each timing, in turns")
    parser.add_argument("--images", type=int, default=8, help="of each timing, in one call")
    parser.add_argument("--budgets", type=numbers, default=[1.0, 1 / 4, 1 / 16])
    parser.add_argument("--steps", type=lambda text: [int(n) for n in text.split(",")], default=[50, 25, 10])
    parser.add_argument("--thresholds", type=numbers, default=[0.05, 0.1, 0.2])
    parser.add_argument("--scale", type=float, help="of classifier-free guidance; the model's own if not given")
    parser.add_argument("--count", type=int, default=256, help="samples of a point and a seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no new point is begun")
    parser.add_argument("--out", type=Path, default=Path("cache-front"))
    parser.add_argument("--card", type=Path, help="a model folder: measured in place of --model, with the front in its card")
    options = parser.parse_args()
    folder = options.card or Path(options.model)
    model = load_model(folder)
    if options.overhead:
        show_overhead(model, load_card(folder).recipe, options)
    else:
        show_front(options, folder, model)


def fitted(model: ElasticModel, recipe: Recipe, out: Path) -> Fit:
    """The calibration for a sampling, kept in the folder `out`."""
    try:
        return load_fit(out, fingerprint(model), recipe)
    except UserError:  # none yet
        out.mkdir(parents=True, exist_ok=True)
        fit = calibrate(model, recipe, spread(8, model.null_class))
        save_fit(out, fit)
        return fit


def show_overhead(model: ElasticModel, usual: Recipe, options: argparse.Namespace) -> None:
    """Sampling without a cache, with one that never reuses, and with some that do; and the time in the cache's own code.

    Times are the process's own on its processors, taken in turns, which other work on the machine does not lengthen much.
    """
    steps, labels = options.steps[0], spread(options.images, model.null_class)
    plain = replace(usual, steps=steps, guidance=Guidance())
    fit = fitted(model, plain, options.out)
    caches = {"none": None, "never reuses": StepCache(1e-12, fit.coefficients)}
    caches |= {f"threshold {t:g}": fit.cache(t) for t in options.thresholds}
    seconds: dict[str, list[float]] = {name: [] for name in caches}
    drawn = {}
    for turn in range(options.repeats):
        for name in list(caches)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            drawn[name] = replace(plain, cache=caches[name]).draw(model, labels)
            seconds[name].append(time.process_time() - start)
    table = Table("cache", "steps reused", "processor seconds", "of none", "images away by")
    for name, cache in caches.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["none"], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        reused = replace(plain, cache=cache).reused(model)[0]
        apart = (drawn[name] - drawn["none"]).square().mean().sqrt() / drawn["none"].square().mean().sqrt()
        spent, ratio = f"{statistics.median(seconds[name]):.2f}", f"{middle:.3f} ({low:.3f} to {high:.3f})"
        table.add_row(name, f"{reused} of {steps}", spent, ratio, f"{float(apart):.1%}")
    output.print(table)
    output.print(f"{options.images} image(s) in one call, {steps} Euler steps, no guidance, {options.repeats} repeats in"
                 f" turns; {cpu_name()}, {torch.get_num_threads()} thread(s)")  # fmt: skip
    shares = [own_share(model, replace(plain, cache=caches["never reuses"]), labels) for _ in range(options.repeats)]
    output.print(f"in the cache's own code, where it never reuses: {statistics.median(shares):.2%} of the processor's time"
                 f" ({min(shares):.2%} to {max(shares):.2%})")  # fmt: skip


def own_share(model: ElasticModel, recipe: Recipe, labels: list[int]) -> float:
    """The share of a sampling's processor time that is spent in the cache's own code: what was embedded at its beginning,
    its decisions, and what it does around the blocks."""
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            out = function(*arguments)
            spent += time.process_time() - start
            return out

        return call

    def around(memory: Memory, x: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        nonlocal spent
        inside = 0.0

        def blocks(x: torch.Tensor) -> torch.Tensor:
            nonlocal inside
            start = time.process_time()
            out = run(x)
            inside = time.process_time() - start
            return out

        start = time.process_time()
        out = Memory.around(memory, x, blocks)
        spent += time.process_time() - start - inside
        return out

    class Timed(Memory):
        decide = timed(Memory.decide)

    Timed.around = around  # type: ignore[assignment, method-assign]
    with mock.patch("elit.guidance.Memory", Timed), mock.patch("elit.guidance.TimeChange", timed(TimeChange)):
        start = time.process_time()
        recipe.draw(model, labels)
        return spent / (time.process_time() - start)


def show_front(options: argparse.Namespace, folder: Path, model: ElasticModel) -> None:
    """Measures every combination, and writes results.json, front.png and, if asked, the card and calibrations."""
    card = load_card(folder)
    scale = card.recipe.guidance.scale if options.scale is None else options.scale
    usual = replace(card.recipe, guidance=Guidance(scale))
    plain = replace(usual, guidance=Guidance())
    fits = {steps: fitted(model, replace(plain, steps=steps), options.out) for steps in options.steps if steps > 2}
    judge = Judge(options.count, exam_of(model, card))
    measured = measure(options, model, judge, usual, fits)
    points = [one.point for one in measured]
    best = best_points(points)
    front = Front(MEASURE, judge.count, tuple(range(options.seeds)), scale, tuple(points))
    show_points(measured, best)
    title = f"{MEASURE}, {judge.count} samples, {options.seeds} seed{'s' * (options.seeds > 1)}, guidance {scale:g}"
    output.print(title)
    write_whole(options.out / "results.json", json.dumps(asdict(front), indent=2) + "\n")
    draw(points, best, options.out / "front.png", title)
    if options.card is not None:
        for fit in fits.values():
            save_fit(folder, fit)
        save_card(replace(card, front=front), folder)


@dataclass(frozen=True)
class Measured:
    """A point, its distance at every seed, and how many of its calls reuse an earlier one."""

    point: Point
    distances: list[float]
    reused: tuple[int, int]


def measure(
    options: argparse.Namespace, model: ElasticModel, judge: Judge, usual: Recipe, fits: dict[int, Fit]
) -> list[Measured]:
    """Every point whose seeds are all measured, in the order of the options: those that time was left for."""
    kinds = itertools.product(options.budgets, options.steps, [None, *options.thresholds])
    kinds = [kind for kind in kinds if kind[2] is None or kind[1] in fits]
    out, end = [], time.monotonic() + 60 * options.minutes
    for budget, steps, threshold in kinds:
        cache = None if threshold is None else fits[steps].cache(threshold)
        recipe = replace(usual, steps=steps, budget=budget, cache=cache)
        distances: list[float] = []
        for seed in range(options.seeds):
            if time.monotonic() < end:
                (score,) = measure_recipes(judge, model, [recipe], [seed], options.out / "work")
                distances.append(score["frechet"])
        if len(distances) == options.seeds:
            deviation = statistics.stdev(distances) if len(distances) > 1 else 0.0
            point = Point(budget, steps, threshold, recipe.gflops(model), statistics.fmean(distances), deviation)
            out.append(Measured(point, distances, recipe.reused(model)))
    if not out:
        raise SystemExit("no point was measured in so few --minutes; what was begun is kept: give the same command again")
    if len(out) < len(kinds):
        output.print(f"{len(out)} of {len(kinds)} points are measured; give the same command again for the others")
    return out


def show_points(measured: list[Measured], best: list[Point]) -> None:
    """A line for each point, the cheapest first; lost: how much farther a cache's samples are than without it, as a mean
    over the seeds, each with the same noise."""
    plain = {(one.point.budget, one.point.steps): one for one in measured if one.point.cache is None}
    table = Table("", "budget", "steps", "cache", "reused", "GFLOPs an image", "of none", "distance", "lost")
    for one in sorted(measured, key=lambda one: one.point.gflops):
        point, alike = one.point, plain.get((one.point.budget, one.point.steps))
        cells = ["", "", "", ""]
        if point.cache is not None and alike is not None:
            lost = statistics.fmean(a - b for a, b in zip(one.distances, alike.distances, strict=True))
            share = point.gflops / alike.point.gflops
            cells = [f"{point.cache:g}", f"{one.reused[0]} of {one.reused[1]}", f"{share:.2f}", f"{lost:+.1f}"]
        distance = f"{point.distance:.1f} ± {point.spread:.1f}"
        mark = "front" if point in best else ""
        table.add_row(mark, f"{point.budget:.4g}", str(point.steps), *cells[:2], f"{point.gflops:.1f}", cells[2], distance,
                      cells[3])  # fmt: skip
    output.print(table)


def draw(points: list[Point], best: list[Point], file: Path, title: str) -> None:
    """Every point by what it uses, with the front: a colour for each budget, a mark for each number of steps, hollow with a
    cache."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    fig, ax = plt.subplots(figsize=(7, 4.5))
    ax.step([p.gflops for p in best], [p.distance for p in best], where="post", color="0.6", linewidth=1, zorder=1)
    budgets, steps = sorted({point.budget for point in points}), sorted({str(point.steps) for point in points}, key=len)
    colours = plt.get_cmap("viridis")([0.85 * i / max(1, len(budgets) - 1) for i in range(len(budgets))])
    shades = dict(zip(budgets, colours, strict=True))
    marks = dict(zip(steps, itertools.cycle("osD^v"), strict=False))
    for point in points:
        ax.errorbar(
            point.gflops, point.distance, point.spread, fmt=marks[str(point.steps)], color=shades[point.budget], capsize=2,
            linewidth=1, markerfacecolor="none" if point.cache is not None else shades[point.budget],
        )  # fmt: skip
    keys = [Line2D([], [], color=shades[budget], linewidth=4, label=f"budget {Fraction(budget)}") for budget in budgets]
    keys += [Line2D([], [], color="0.3", marker=marks[n], linestyle="", label=f"{n} steps") for n in steps]
    keys.append(Line2D([], [], color="0.3", marker="o", markerfacecolor="none", linestyle="", label="with a cache"))
    keys.append(Line2D([], [], color="0.6", label="front"))
    ax.set(xscale="log", xlabel="GFLOPs of an image, all steps", ylabel="distance, lower is better")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(title, fontsize=8)
    ax.legend(handles=keys, fontsize=7, ncols=2)
    fig.tight_layout()
    fig.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
