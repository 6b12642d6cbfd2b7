"""A picture of what budgets draw: a column for each label, a real picture on top, and the same noise down every column.

python benchmarks/budget_rows.py bundled --out docs/budgets.png
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from elit.console import say
from elit.guidance import Guidance
from elit.hub import find_model
from elit.pictures import save_png, sheet
from elit.reports.samples import draw_all
from elit.reports.subject import load_subject

BUDGETS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model or run folder, or bundled")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", help="instead of a dozen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, help="of guidance; the card's if not given")
    options = parser.parse_args()
    subject = load_subject(find_model(options.model), options.labels, options.seed)
    guidance = subject.recipe.guidance if options.scale is None else Guidance(options.scale)
    recipes = [replace(subject.recipe, guidance=guidance, budget=budget) for budget in BUDGETS]
    rows = list(draw_all(subject.model, recipes, subject.labels))
    names = [f"{round(budget * subject.model.latents)}/{subject.model.latents}" for budget in BUDGETS]
    if subject.data is not None:
        rows, names = [subject.real_examples(1)[0], *rows], ["real", *names]
    save_png(sheet(torch.cat(rows), [name.replace("/", "\n") for name in subject.label_names], names), options.out)
    say(f"the picture is {options.out}")


if __name__ == "__main__":
    main()
