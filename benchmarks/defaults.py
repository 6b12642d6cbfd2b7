"""Which steps and guidance scale sample the bundled model best: the sweep behind the defaults in its card.

python benchmarks/defaults.py                     # full budget, one seed, half of the real pictures a cell
python benchmarks/defaults.py --model FOLDER --steps 10,25 --scales 1,2
"""

import argparse
from dataclasses import replace

from rich.table import Table

from elit.card import load_card
from elit.console import output, progress_bar
from elit.evaluation.exam import exam_of
from elit.evaluation.quality import Judge
from elit.guidance import Guidance
from elit.hub import find_model
from elit.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--steps", default="10,15,25,40")
    parser.add_argument("--scales", default="1,1.5,2,3")
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=100, help="not one of those that the card's figures use")
    parser.add_argument("--count", type=int, help="fewer samples a cell than half of the real pictures")
    options = parser.parse_args()
    folder = find_model(options.model)
    model, card = load_model(folder), load_card(folder)
    usual = replace(card.recipe, budget=options.budget, seed=options.seed)
    cells = [
        replace(usual, steps=int(steps), guidance=Guidance(float(scale)))
        for steps in options.steps.split(",")
        for scale in options.scales.split(",")
    ]
    judge = Judge(options.count, exam_of(model, card))
    table = Table("steps", "scale", "model calls", "Fréchet", "by SqueezeNet", "KID x 1000", "in category")
    with progress_bar() as bar:
        task = bar.add_task("sweeping", total=len(cells) * judge.count, unit="images")
        for cell in cells:
            images = judge.draw(model, cell, lambda n: bar.advance(task, n))
            quality = judge.score(images)
            calls = cell.steps * (1 if cell.guidance.scale == 1 else 2)
            distances = (f"{quality.frechet:.1f}", f"{quality.frechet_squeezenet:.0f}", f"{quality.kernel:.1f}")
            table.add_row(str(cell.steps), f"{cell.guidance.scale:g}", str(calls), *distances, f"{quality.accuracy:.3f}")
    output.print(table)


if __name__ == "__main__":
    main()
