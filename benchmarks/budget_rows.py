"""A picture of what budgets draw: a column for each label, from the same noise down every column.

python benchmarks/budget_rows.py runs/emoji-styles --out docs/mixed-budgets.png
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from elit.card import load_card
from elit.console import say
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
    options = parser.parse_args()
    source = find_model(options.model)
    subject = load_subject(source, options.labels, options.seed, load_card(source).sampling.steps)
    recipes = [replace(subject.recipe, budget=budget) for budget in BUDGETS]
    rows = draw_all(subject.model, recipes, subject.labels)
    names = [f"{round(budget * subject.model.latents)}/{subject.model.latents}" for budget in BUDGETS]
    save_png(sheet(torch.cat(list(rows)), [name.replace("/", "\n") for name in subject.label_names], names), options.out)
    say(f"the picture is {options.out}")


if __name__ == "__main__":
    main()
