"""What a cache saves: its overhead, and quality against FLOPs for budgets, steps, caches and their combinations.

python benchmarks/cache.py --overhead                       # a cache that never reuses, beside none; then 50 steps with one
python benchmarks/cache.py --out cache-front                # the table and the figure, on the bundled model
python benchmarks/cache.py --card my-model                  # and the front written into that model's card
"""

import argparse
import itertools
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from elit.bundled import FOLDER
from elit.cache_fit import calibrate, save_fit
from elit.card import load_card, save_card
from elit.console import Table, output, progress_bar
from elit.cost import cpu_name
from elit.elastic.model import ElasticModel
from elit.evaluation.quality import Judge, measure_recipes
from elit.files import write_whole
from elit.front import Front, Point, best_points
from elit.guidance import Guidance
from elit.recipe import Recipe
from elit.step_cache import StepCache
from elit.weights import load_model
from elit.words import spread


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FOLDER), help="a model of the emoji")
    parser.add_argument("--overhead", action="store_true", help="time a cache that never reuses, and one at 50 steps")
    parser.add_argument("--repeats", type=int, default=9, help="of each timing, interleaved")
    parser.add_argument("--images", type=int, default=8, help="of each timing, in one call")
    parser.add_argument("--budgets", type=numbers, default=[1 / 16, 1 / 4, 1.0])
    parser.add_argument("--steps", type=lambda text: [int(n) for n in text.split(",")], default=[10, 25, 50])
    parser.add_argument("--thresholds", type=numbers, default=[0.05, 0.1, 0.2])
    parser.add_argument("--scale", type=float, default=1.0, help="of classifier-free guidance")
    parser.add_argument("--count", type=int, default=128, help="samples of a point and a seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("cache-front"))
    parser.add_argument("--card", type=Path, help="a model folder: measured in place of --model, with the front in its card")
    options = parser.parse_args()
    folder = options.card or Path(options.model)
    model = load_model(folder)
    if options.overhead:
        show_overhead(model, options.repeats, options.images)
        return
    show_front(options, folder, model)


def show_overhead(model: ElasticModel, repeats: int, images: int) -> None:
    """Sampling in 50 steps without a cache, with one that never reuses, and with some that do.

    Times are the process's own on its processors, which other work on the machine does not lengthen much.
    """
    labels = spread(images, model.null_class)
    plain = Recipe(steps=50)
    fit = calibrate(model, plain, labels[:2])
    caches = {"none": None, "never reuses": StepCache(1e-12, fit.coefficients)}
    caches |= {f"threshold {t:g}": fit.cache(t) for t in (0.05, 0.1)}
    seconds: dict[str, list[float]] = {name: [] for name in caches}
    drawn = {}
    for _ in range(repeats):
        for name, cache in caches.items():
            start = time.process_time()
            drawn[name] = replace(plain, cache=cache).draw(model, labels)
            seconds[name].append(time.process_time() - start)
    table = Table("cache", "steps reused", "processor seconds", "of none", "images away by")
    for name, cache in caches.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["none"], strict=True))
        reused = replace(plain, cache=cache).reused(model)[0]
        apart = (drawn[name] - drawn["none"]).square().mean().sqrt() / drawn["none"].square().mean().sqrt()
        spent = f"{statistics.median(seconds[name]):.2f}"
        table.add_row(name, f"{reused} of 50", spent, f"{ratio:.3f}", f"{float(apart):.1%}")
    output.print(table)
    output.print(f"{images} images in one call, 50 Euler steps, no guidance, {repeats} interleaved repeats; {cpu_name()},"
                 f" {torch.get_num_threads()} thread(s)")  # fmt: skip


def show_front(options: argparse.Namespace, folder: Path, model: ElasticModel) -> None:
    """Measures every combination, and writes results.json, front.png and, if asked, the card."""
    labels, fits = spread(8, model.null_class), {}
    for steps in options.steps:
        if steps > 2:
            fits[steps] = calibrate(model, Recipe(steps=steps), labels)
    kinds = itertools.product(options.budgets, options.steps, [None, *options.thresholds])
    kinds = [kind for kind in kinds if kind[2] is None or kind[1] in fits]
    recipes = [
        Recipe(
            steps=steps,
            budget=budget,
            guidance=Guidance(options.scale),
            cache=None if threshold is None else fits[steps].cache(threshold),
        )
        for budget, steps, threshold in kinds
    ]
    judge = Judge(options.count)
    with progress_bar() as bar:
        bar.add_task(f"measuring {len(recipes)} points", total=None)
        scores = measure_recipes(judge, model, recipes, range(options.seeds), options.out / "work")
    points = [
        Point(budget, steps, threshold, recipe.gflops(model), score["frechet"], score.get("frechet_std", 0.0))
        for (budget, steps, threshold), recipe, score in zip(kinds, recipes, scores, strict=True)
    ]
    measure = "Fréchet distance of EfficientNet-Lite0 features"
    front = Front(measure, judge.count, tuple(range(options.seeds)), options.scale, tuple(points))
    best = best_points(points)
    table = Table("", "budget", "steps", "cache", "GFLOPs an image", "distance")
    for point in sorted(points, key=lambda point: point.gflops):
        cache = "" if point.cache is None else f"{point.cache:g}"
        mark = "front" if point in best else ""
        figures = (f"{point.gflops:.1f}", f"{point.distance:.1f} ± {point.spread:.1f}")
        table.add_row(mark, f"{point.budget:.4g}", str(point.steps), cache, *figures)
    output.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "results.json", json.dumps(asdict(front), indent=2) + "\n")
    draw(points, best, options.out / "front.png", f"{measure}, {judge.count} samples, {options.seeds} seed(s)")
    if options.card is not None:
        for fit in fits.values():
            save_fit(folder, fit)
        save_card(replace(load_card(folder), front=front), folder)


def draw(points: list[Point], best: list[Point], file: Path, title: str) -> None:
    """Every point by what it uses, with the front."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4.5))
    budgets = sorted({point.budget for point in points})
    shades = [i / max(1, len(budgets) - 1) for i in range(len(budgets))]
    for budget, colour in zip(budgets, plt.get_cmap("viridis")(shades), strict=True):
        for cached, marker in ((False, "o"), (True, "x")):
            some = [point for point in points if point.budget == budget and (point.cache is not None) is cached]
            name = f"budget {budget:.3g}{', cache' if cached else ''}"
            ax.errorbar(
                [p.gflops for p in some], [p.distance for p in some], [p.spread for p in some],
                fmt=marker, color=colour, label=name, capsize=2, linewidth=1,
            )  # fmt: skip
    ax.step([p.gflops for p in best], [p.distance for p in best], where="post", color="0.4", linewidth=1, label="front")
    ax.set(xscale="log", xlabel="GFLOPs of an image, all steps", ylabel="distance, lower is better", title=title)
    ax.title.set_fontsize(9)
    ax.legend(fontsize=7, ncols=2)
    fig.tight_layout()
    fig.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
