"""What a dense model's conversion is worth after a tenth of its training: with and without distillation, and from scratch.

python benchmarks/finetune.py --dense runs/emoji-tiny-dense/checkpoints/step_00006623
python benchmarks/finetune.py --dense FOLDER --steps 662 --count 200 --seeds 3

It trains three models on the embedded emoji by configs/emoji-tiny-finetune.yaml, alike but for where they start and what
they learn from, and measures each at three budgets beside the dense one. Other options, such as --optimizer.muon_lr 0.01,
are keys of the configuration. What is finished is kept in --work, and the same command goes on there.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from elit.card import SamplingDefaults, load_card
from elit.console import console, output
from elit.evaluation.quality import Judge, measure_recipes
from elit.files import write_whole
from elit.reports.scores import QUALITY_COLUMNS, quality_cells
from elit.training.loop import train
from elit.training.reading import load_config
from elit.weights import load_model

BUDGETS = (1 / 16, 1 / 4, 1.0)
CONFIG = Path(__file__).parents[1] / "configs" / "emoji-tiny-finetune.yaml"
FRESH = ["--init_from", "null", "--finetune.distill", "0", "--finetune.interface_first", "0"]
KINDS = {"converted, distilled": [], "converted": ["--finetune.distill", "0"], "from scratch": FRESH}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Trains, measures, prints the table, and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="the dense model's folder, such as a checkpoint")
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--steps", type=int, help="of every training; the config's if not given")
    parser.add_argument("--count", type=int, default=200, help="samples that quality is measured on, up to 949")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds quality is measured over")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--work", default="runs/finetune", help="folder for the runs and what is measured")
    options, overrides = parser.parse_known_args(arguments)
    work = Path(options.work)
    models = {"dense": Path(options.dense)}
    for kind, own in KINDS.items():
        steps = [] if options.steps is None else ["--steps", str(options.steps)]
        out = work / kind.replace(", ", "-").replace(" ", "-")
        config = load_config(options.config, ["--init_from", options.dense, *steps, *overrides, *own, "--out", str(out)])
        console.print(f"{kind}: {config.steps} steps", markup=False)
        models[kind] = train(config)
    sampling = SamplingDefaults(options.sampling_steps, load_card(models["dense"]).sampling.guidance_scale)
    judge, rows = Judge(options.count), []
    for kind, folder in models.items():
        model = load_model(folder)
        budgets = (1.0,) if model.core is None else BUDGETS
        usual = replace(load_card(folder).recipe, steps=sampling.steps, guidance=sampling.guidance)
        recipes = [replace(usual, budget=budget) for budget in budgets]
        scores = measure_recipes(judge, model, recipes, range(options.seeds), work / "measured")
        rows += [{"model": kind, "budget": budget, **score} for budget, score in zip(budgets, scores, strict=True)]
    write_whole(work / "results.json", json.dumps({**judge.describe(), "rows": rows}, indent=2) + "\n")
    output.print(table(rows, judge.count, options.seeds, sampling))
    console.print(f"the figures are in {work / 'results.json'}", markup=False)
    return rows


def table(rows: list[dict[str, Any]], count: int, seeds: int, sampling: SamplingDefaults) -> Table:
    """A row per model and budget."""
    how = f"{count} samples, {seeds} seed(s), {sampling.steps} steps, guidance {sampling.guidance_scale:g}"
    out = Table("model", "budget", *QUALITY_COLUMNS, title=f"Quality: {how}")
    for row in rows:
        out.add_row(row["model"], f"{round(16 * row['budget'])}/16", *quality_cells(row))
    return out


if __name__ == "__main__":
    main()
