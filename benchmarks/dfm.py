"""Stages beside none: a tiny DFM, a tiny DFM with budgets and their plain twin, trained on the emoji for equal FLOPs.

python benchmarks/dfm.py                                 # as long as configs/emoji-tiny-dense.yaml: 1,236 TFLOPs each
python benchmarks/dfm.py --tflops 11 -- --compile false --dtype fp32 --model.width 96 --model.depth 6 --model.patch_size 4
                                                         # smaller ones: about 10 minutes each on a core

Runs are gone on with, and what was measured is kept: give the same command again after a stop.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from elit.backbones.table import build_model
from elit.card import load_card
from elit.console import Table, output
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=WHOLE, help="of each training")
    parser.add_argument("--only", choices=TWINS, help="train this one alone, and measure nothing")
    parser.add_argument("--count", type=int, help="samples of a seed; 949 if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=2.0, help="of classifier-free guidance")
    parser.add_argument("--out", type=Path, default=Path("runs/stages"))
    parser.add_argument("options", nargs="*", help="of elit train, such as -- --compile false")
    options = parser.parse_args()
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
    return train(load_config(file, [*wanted, *more]))


def compare(folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Distances at every seed, and a sheet of the same labels from each model."""
    judge, rows, pictures = Judge(options.count), {}, {}
    for name, folder in folders.items():
        model, card = load_model(folder), load_card(folder)
        plain = replace(card.recipe, guidance=Guidance(options.scale))
        recipes = {name: plain if model.stages > 1 else replace(plain, steps=20)}
        if model.core is not None:
            recipes[f"{name}, 1/4 then 1"] = replace(plain, budget=Schedule.by_stage([0.25, 1.0], model.stages))
            recipes[f"{name}, 1/4"] = replace(plain, budget=0.25)
        made = list(recipes.values())
        scores = measure_recipes(judge, model, made, range(options.seeds), options.out / "work")
        for (called, recipe), score in zip(recipes.items(), scores, strict=True):
            rows[called] = {"gflops": recipe.gflops(model), **score}
            pictures[called] = recipe.draw(model, SHOWN).cpu()
        if model.stages > 1:
            coarse: Recipe = replace(plain, stages=1)
            pictures[f"{name}, first stage"] = coarse.draw(model, SHOWN).cpu()
    table = Table("model", "GFLOPs an image", "distance", "deviation")
    for called, row in rows.items():
        table.add_row(called, f"{row['gflops']:.1f}", f"{row['frechet']:.1f}", f"{row.get('frechet_std', 0.0):.1f}")
    output.print(table)
    output.print(f"Fréchet distance of EfficientNet-Lite0 features, {judge.count} samples, {options.seeds} seed(s),"
                 f" {options.tflops:g} TFLOPs of training each")  # fmt: skip
    write_whole(options.out / "results.json", json.dumps({"tflops": options.tflops, "rows": rows}, indent=2) + "\n")
    save_png(
        sheet(torch.cat(list(pictures.values())), [str(label) for label in SHOWN], list(pictures)), options.out / "sheet.png"
    )


if __name__ == "__main__":
    main()
