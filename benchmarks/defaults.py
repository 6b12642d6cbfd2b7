"""Which steps and guidance scale sample the bundled model best: the sweep behind the defaults in its card.

python benchmarks/defaults.py                     # full budget, one seed, 949 samples a cell
python benchmarks/defaults.py --model FOLDER --steps 10,25 --scales 1,2
"""

import argparse
from pathlib import Path

from rich.table import Table

from elit.bundled import FOLDER
from elit.console import output, progress_bar
from elit.evaluation.quality import Judge
from elit.guidance import Guidance
from elit.recipe import Recipe
from elit.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FOLDER))
    parser.add_argument("--steps", default="10,15,25,40")
    parser.add_argument("--scales", default="1,1.5,2,3")
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=100, help="not one of those that the card's figures use")
    parser.add_argument("--count", type=int, help="fewer samples a cell than the 949 that half of the real pictures allow")
    options = parser.parse_args()
    cells = [
        Recipe(steps=int(steps), guidance=Guidance(float(scale)), budget=options.budget, seed=options.seed)
        for steps in options.steps.split(",")
        for scale in options.scales.split(",")
    ]
    model, judge = load_model(Path(options.model)), Judge(options.count)
    table = Table("steps", "guidance scale", "model calls", "Fréchet", "KID x 1000", "in category")
    with progress_bar() as bar:
        task = bar.add_task("sweeping", total=len(cells) * judge.count, unit="images")
        for cell in cells:
            images = judge.draw(model, cell, lambda n: bar.advance(task, n))
            quality = judge.score(images)
            calls = cell.steps * (1 if cell.guidance.scale == 1 else 2)
            figures = (f"{quality.frechet:.1f}", f"{quality.kernel:.1f}", f"{quality.accuracy:.3f}")
            table.add_row(str(cell.steps), f"{cell.guidance.scale:g}", str(calls), *figures)
    output.print(table)


if __name__ == "__main__":
    main()
