"""Stages beside none: a tiny DFM, a tiny DFM with budgets and their plain twin, trained on the emoji for equal FLOPs.

python benchmarks/dfm.py                             # as long as configs/emoji-tiny-dense.yaml: 1,236 TFLOPs each
python benchmarks/dfm.py --tflops 0.8 --count 64 -- --compile false --dtype fp32 --batch_size 16 \\
    --model.width 96 --model.depth 4 --model.patch_size 4    # minutes on one core: small, and not trained to the end
python benchmarks/dfm.py --step                      # what a step of sampling costs beside a DiT's of the same tokens

Runs are gone on with, and what was measured is kept: give the same command again after a stop.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from elit import create_model
from elit.backbones.table import build_model
from elit.card import load_card
from elit.console import Table, output
from elit.cost import cpu_name
from elit.data.emoji import load_emoji
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.evaluation.quality import Judge, measure_recipes
from elit.files import write_whole
from elit.guidance import Guidance
from elit.pictures import save_png, sheet
from elit.recipe import Recipe
from elit.training.budgets import mean_flops
from elit.training.loop import train
from elit.training.reading import load_config
from elit.weights import load_model

TWINS = ("emoji-tiny-dense", "emoji-tiny-dfm", "emoji-tiny-elit-dfm")
WHOLE = 1236.0  # TFLOPs of configs/emoji-tiny-dense.yaml
SHOWN = (3, 14, 27, 40, 53, 66, 79, 92)  # classes


@dataclass(frozen=True)
class Way:
    """One way to sample a trained model, and what its row of tables and pictures is called."""

    name: str
    model: ElasticModel
    recipe: Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=WHOLE, help="of each training")
    parser.add_argument("--only", choices=TWINS, help="train this one alone, and measure nothing")
    parser.add_argument("--step", action="store_true", help="time steps of sampling, and train nothing")
    parser.add_argument("--repeats", type=int, default=15, help="of each timing, interleaved")
    parser.add_argument("--count", type=int, help="samples of a seed; 949 if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=2.0, help="of classifier-free guidance")
    parser.add_argument("--out", type=Path, default=Path("runs/stages"))
    parser.add_argument("options", nargs="*", help="of elit train, such as -- --compile false")
    options = parser.parse_args()
    if options.step:
        show_step(options.repeats)
        return
    folders = {}
    for name in (options.only,) if options.only else TWINS:
        folders[name] = trained(name, options.tflops, options.out / name, options.options)
    if not options.only:
        compare(folders, options)


def trained(name: str, tflops: float, out: Path, more: list[str]) -> Path:
    """The last checkpoint of a recipe's run, of so many TFLOPs; its decay is shortened as its steps are."""
    file = f"configs/{name}.yaml"
    config = load_config(file, more)
    with torch.device("meta"):
        model = build_model(config.model)
    each = 3 * config.batch_size * mean_flops(model, config.budget, config.flow) / 1e12
    steps = max(2, round(tflops / each))
    share = min(1.0, steps / config.steps)
    decay, warmup = (round(count * share) for count in (config.optimizer.decay_steps, config.optimizer.warmup_steps))
    wanted = [f"--steps={steps}", f"--optimizer.decay_steps={decay}", f"--optimizer.warmup_steps={warmup}", f"--out={out}"]
    last = train(load_config(file, [*wanted, *more]))
    if int(last.name.removeprefix("step_")) < steps:
        raise SystemExit(f"{name} was stopped; give the same command again")
    return last


def ways(folders: dict[str, Path], scale: float) -> list[Way]:
    """What is measured and shown: each model at the full budget, and the one with budgets at others too."""
    out = []
    for name, folder in folders.items():
        model, card = load_model(folder), load_card(folder)
        plain = replace(card.recipe, guidance=Guidance(scale))
        out.append(Way(name, model, plain if model.stages > 1 else replace(plain, steps=20)))
        if model.core is not None:
            by_stage = Schedule.by_stage([0.25, 1.0], model.stages)
            out.append(Way(f"{name}, 1/4 then 1", model, replace(plain, budget=by_stage)))
            out.append(Way(f"{name}, 1/4", model, replace(plain, budget=0.25)))
    return out


def compare(folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Distances at every seed by two networks of features, and a sheet of the same labels from each model."""
    judge, seeds, work = Judge(options.count), range(options.seeds), options.out / "work"
    table = Table("model", "GFLOPs an image", "FD EfficientNet", "FD SqueezeNet")
    rows, pictures = {}, {}
    for way in ways(folders, options.scale):
        (score,) = measure_recipes(judge, way.model, [way.recipe], seeds, work)
        rows[way.name] = {"gflops": way.recipe.gflops(way.model), **score}
        distances = [
            f"{score[name]:.1f} ± {score.get(f'{name}_std', 0.0):.1f}" for name in ("frechet", "frechet_squeezenet")
        ]
        table.add_row(way.name, f"{rows[way.name]['gflops']:.2f}", *distances)
        pictures[way.name] = way.recipe.draw(way.model, SHOWN).cpu()
        if way.model.stages > 1 and way.recipe.budget == 1:
            pictures[f"{way.name}, first stage"] = replace(way.recipe, stages=1).draw(way.model, SHOWN).cpu()
    output.print(table)
    output.print(f"Fréchet distances from {judge.count} pictures, {judge.count} samples of each of {options.seeds} seed(s),"
                 f" guidance {options.scale:g}; {options.tflops:g} TFLOPs of training each")  # fmt: skip
    write_whole(options.out / "results.json", json.dumps({"tflops": options.tflops, "rows": rows}, indent=2) + "\n")
    names = [load_emoji().label_names[label] for label in SHOWN]
    save_png(sheet(torch.cat(list(pictures.values())), names, list(pictures)), options.out / "sheet.png")


def show_step(repeats: int) -> None:
    """Steps of sampling in processor seconds, of a DFM and of a DiT with as many tokens, in turns."""
    kinds = {"SiT-S/4": 3, "DFM-SiT-S/4": (2, 1)}
    models = {name: create_model(name, input_size=32, num_classes=10).eval() for name in kinds}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats + 1):
        for name, steps in kinds.items():
            start = time.process_time()
            Recipe(steps=steps).draw(models[name], [1, 2, 3, 4])
            seconds[name].append((time.process_time() - start) / 3)
    table = Table("model", "processor ms a step", "of the DiT's", "GFLOPs an image and step")
    for name, steps in kinds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name][1:], seconds["SiT-S/4"][1:], strict=True))
        spent = 1000 * statistics.median(seconds[name][1:])
        table.add_row(name, f"{spent:.1f}", f"{ratio:.3f}", f"{Recipe(steps=steps).gflops_per_step(models[name]):.4f}")
    output.print(table)
    output.print(f"4 images of 32 x 32 in one call, 64 tokens each, 3 Euler steps, {repeats} repeats in turns;"
                 f" {cpu_name()}, {torch.get_num_threads()} thread(s)")  # fmt: skip


if __name__ == "__main__":
    main()
