"""The held-out loss of models by budget, beside the first of them: the same pictures, noise and times for all.

python benchmarks/heldout.py runs/emoji-styles-dense runs/emoji-styles --data data/emoji-styles/test --count 192
"""

import argparse
from pathlib import Path

from rich.table import Table

from elit.console import console, output, progress_bar
from elit.data.opening import open_data
from elit.evaluation.heldout import TIMES, Loss, heldout_loss
from elit.hub import find_model
from elit.weights import load_model

BUDGETS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def main(arguments: list[str] | None = None) -> dict[tuple[str, float], Loss]:
    """Measures, prints the table, and returns the losses by model and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders; the first is what the others are compared with")
    parser.add_argument("--data", default="data/emoji-styles/test", help="held-out pictures, prepared")
    parser.add_argument("--count", type=int, default=192)
    options = parser.parse_args(arguments)
    found: dict[tuple[str, float], Loss] = {}
    for name in options.models:
        model = load_model(Path(find_model(name)))
        data = open_data(options.data, model.input.shape[-1])
        budgets = (1.0,) if model.core is None else BUDGETS
        with progress_bar() as bar:
            task = bar.add_task(name, total=options.count * len(TIMES) * len(budgets), unit="forwards")
            losses = heldout_loss(model, data, options.count, budgets, done=lambda n: bar.update(task, advance=n))  # noqa: B023
        found |= {(name, budget): loss for budget, loss in zip(budgets, losses, strict=True)}
    first = found[options.models[0], 1.0]
    table = Table("model", "budget", "loss", "above the first, %", title=f"Held-out loss of {options.count} pictures")
    for (name, budget), loss in found.items():
        above, error = loss.above(first)
        shown = f"{100 * above:.1f} ± {100 * error:.1f}"
        table.add_row(name, f"{round(16 * budget)}/16", f"{loss.mean:.4f} ± {loss.error:.4f}", shown)
    output.print(table)
    console.print("± is a standard error; of the differences, paired by picture", markup=False)
    return found


if __name__ == "__main__":
    main()
