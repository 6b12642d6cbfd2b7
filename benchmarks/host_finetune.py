"""What a dense transformer of diffusers and the elastic one made of it lose on held-out emoji, and a sheet of both.

python benchmarks/host_finetune.py runs/emoji-sd3 runs/emoji-sd3-elastic --picture prompts.png

The runs are those of configs/hosts/: the pictures and names that they held out are what is measured, at drawn points that
are the same for both. The sheet has a column per prompt, and a row per budget below the dense one's.
"""

import argparse
from pathlib import Path

import torch
from rich.table import Table

from elit import Guidance, sample
from elit.backbones.hosts.model import HostModel
from elit.console import console, output, progress_bar
from elit.data.opening import load_images
from elit.data.prompts import PromptedData, with_prompts
from elit.evaluation.heldout import TIMES, Loss, heldout_loss
from elit.host_models import load_host_model
from elit.pictures import save_png, sheet
from elit.prompt_tables import open_prompts

LEVELS = (1, 2, 4, 8)  # latents of a group that are measured, beside all
PROMPTS = (
    "red apple",
    "heavy black heart",
    "orange book",
    "automobile",
    "blue heart",
    "grinning face",
    "strawberry",
    "clock face three oclock",
    "pig face",
    "frog face",
    "fire",
)


def main(arguments: list[str] | None = None) -> dict[str, Loss]:
    """Measures, prints the table, draws the sheet, and returns the losses by what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", help="a run of elit finetune, or a checkpoint of one, that is dense")
    parser.add_argument("elastic", help="one that was made elastic of it")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the pictures that the runs held out")
    parser.add_argument("--count", type=int, help="pictures that are measured; all held-out ones if not given")
    parser.add_argument("--picture", type=Path, help="PNG of the sheet")
    parser.add_argument("--steps", type=int, default=30, help="of its sampler")
    parser.add_argument("--scale", type=float, default=3.0, help="of its guidance")
    parser.add_argument("--prompts", default=",".join(PROMPTS), help="comma-separated names of emoji")
    options = parser.parse_args(arguments)
    dense, elastic = (load_host_model(place) for place in (options.dense, options.elastic))
    table = open_prompts("emoji")
    data = with_prompts(load_images("emoji", dense.input.shape[-1]), table, options.held_out, of_held_out=True)
    count = options.count or len(data)
    latents = elastic.levels.latents
    budgets = [k / latents for k in LEVELS if k < latents] + [1.0]
    found = {"dense": measured(dense, data, count, [1.0])[0]}
    found |= dict(
        zip(map(elastic.levels.name, map(elastic.levels.of, budgets)), measured(elastic, data, count, budgets), strict=True)
    )
    told = Table(
        "budget", "loss", "above the dense, %", title=f"Held-out loss of {count} pictures at {len(TIMES)} times each"
    )
    for name, loss in found.items():
        above, error = loss.above(found["dense"])
        told.add_row(
            name, f"{loss.mean:.4f} ± {loss.error:.4f}", "" if name == "dense" else f"{100 * above:+.1f} ± {100 * error:.1f}"
        )
    output.print(told)
    console.print("± is a standard error; of the differences, paired by picture", markup=False)
    if options.picture:
        names = [name.strip() for name in options.prompts.split(",")]
        prompts, guidance = table.find(names), Guidance(scale=options.scale)
        rows = [sample(dense, prompts, steps=options.steps, guidance=guidance)]
        rows += [
            sample(elastic, prompts, steps=options.steps, budget=budget, guidance=guidance) for budget in reversed(budgets)
        ]
        captions = ["dense", *(f"budget {elastic.levels.name(elastic.levels.of(b))}" for b in reversed(budgets))]
        save_png(sheet(torch.cat(rows), names, captions), options.picture)
        console.print(f"the sheet is {options.picture}", markup=False)
    return found


def measured(model: HostModel, data: PromptedData, count: int, budgets: list[float]) -> list[Loss]:
    """The losses at some budgets."""
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=count * len(TIMES) * len(budgets), unit="forwards")
        return heldout_loss(model, data, count, budgets, done=lambda n: bar.update(task, advance=n))


if __name__ == "__main__":
    main()
