"""Which training of budgets pays: a dense model made elastic in several ways, all for the same FLOPs, by held-out loss.

elit prepare emoji-styles --out data/emoji-styles
python benchmarks/recipes.py
python benchmarks/recipes.py --data data/emoji-styles --trunk 400 --extra 100 --kinds cells-mixed,sharp-mixed

It trains one dense model for --trunk steps, the trunk; then each kind goes on from it for the FLOPs of --extra dense steps,
the dense model among them. Two kinds start from nothing, and get the trunk's FLOPs too. The loss is that of held-out
pictures at drawn points that are the same for all. Other options, such as --model.width 64, are keys of the configuration.
What is finished is kept in --work, and the same command goes on there.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from elit.console import console, output, progress_bar
from elit.data.opening import open_data
from elit.errors import UserError
from elit.evaluation.heldout import TIMES, heldout_loss
from elit.files import write_whole
from elit.records import NotNegative, Positive, Whole, read_json, record
from elit.training.checkpoint import checkpoints
from elit.training.config import TrainConfig
from elit.training.dry_run import step_flops
from elit.training.loop import train
from elit.training.reading import load_config
from elit.weights import load_model

CONFIGS = Path(__file__).parents[1] / "configs"
BUDGETS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
DRAWN, MIXED = ["--budget.mixed", "0"], ["--budget.mixed", "0.5"]


@dataclass(frozen=True)
class Kind:
    """A way to train budgets: keys of the configuration, and whether it starts from the trunk."""

    keys: list[str]
    from_trunk: bool = True


KINDS = {
    "dense": Kind(["--model.group_size", "null", *DRAWN]),
    "paper-drawn": Kind(["--model.anchor", "none", *DRAWN]),
    "sharp-drawn": Kind(["--model.anchor", "sharp", *DRAWN]),
    "pyramid-drawn": Kind(["--model.anchor", "pyramid", *DRAWN]),
    "cells-drawn": Kind(["--model.anchor", "cells", *DRAWN]),
    "paper-mixed": Kind(["--model.anchor", "none", *MIXED]),
    "sharp-mixed": Kind(["--model.anchor", "sharp", *MIXED]),
    "pyramid-mixed": Kind(["--model.anchor", "pyramid", *MIXED]),
    "cells-mixed": Kind(["--model.anchor", "cells", *MIXED]),
    "cells-mostly-low": Kind(["--model.anchor", "cells", "--budget.mixed", "0.75"]),
    "cells-distilled": Kind(["--model.anchor", "cells", *MIXED, "--finetune.distill", "1"]),
    "paper-scratch": Kind(["--model.anchor", "none", *DRAWN], from_trunk=False),
    "cells-scratch": Kind(["--model.anchor", "cells", *MIXED], from_trunk=False),
}


@record
class Row:
    """What is kept of one kind: its steps, TFLOPs of training in all, and by budget the loss and its standard error.

    above: how much the loss at the full budget lies above the dense model's, as a share, and its paired standard error.
    """

    kind: str
    steps: Whole
    tflops: Positive
    losses: dict[str, tuple[NotNegative, NotNegative]]
    above: tuple[float, NotNegative]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Trains, measures, prints the table, and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/emoji-styles", help="a folder with train and test, prepared")
    parser.add_argument("--trunk", type=int, default=400, help="steps of the dense model that the others start from")
    parser.add_argument("--extra", type=int, default=100, help="dense steps whose FLOPs every kind has on top")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, with commas between; dense is always among them")
    parser.add_argument("--count", type=int, default=192, help="held-out pictures")
    parser.add_argument("--work", default="runs/recipes", help="folder for the runs and what is measured")
    options, overrides = parser.parse_known_args(arguments)
    kinds = list(dict.fromkeys(["dense", *options.kinds.split(",")]))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"there is no kind {unknown[0]}; known: {', '.join(KINDS)}")
    bench = Bench(Path(options.data), Path(options.work), options.trunk, options.extra, options.count, overrides)
    rows = [bench.row(kind) for kind in kinds]
    output.print(table(rows, options.count))
    console.print(f"the figures are in {bench.work / 'rows'}", markup=False)
    return rows


@dataclass(frozen=True)
class Bench:
    """The queue: what its kinds share."""

    data: Path
    work: Path
    trunk: int
    extra: int
    count: int
    overrides: list[str]

    def row(self, kind: str) -> Row:
        """Trained and measured, or as it was kept."""
        kept = self.work / "rows" / f"{kind}.json"
        if kept.is_file():
            return read_json(kept, Row)
        trunk = self.config("trunk", KINDS["dense"], self.trunk)
        start = train(trunk)
        dense = self.step_tflops(trunk)
        config = self.config(kind, KINDS[kind], 1, start)
        before = self.trunk * dense if KINDS[kind].from_trunk else 0.0
        steps = round(((self.trunk + self.extra) * dense - before) / self.step_tflops(config))
        made = train(self.config(kind, KINDS[kind], steps, start))
        row = self.measured(kind, made, steps, before + steps * self.step_tflops(config))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(vars(row), indent=2) + "\n")
        return row

    def config(self, name: str, kind: Kind, steps: int, start: Path | None = None) -> TrainConfig:
        """The configuration of a run of so many steps; its learning rate falls to nothing, but the trunk's."""
        origin = ["--init_from", str(start)] if start is not None and kind.from_trunk else []
        decay = 0 if name == "trunk" else steps * 6 // 10
        keys = ["--steps", str(steps), "--optimizer.decay_steps", str(decay), "--log.preview_every", "0"]
        keys += ["--data.source", str(self.data / "train"), "--optimizer.warmup_steps", str(min(20, steps // 2))]
        return load_config(
            CONFIGS / "emoji-styles.yaml", [*keys, *self.overrides, *kind.keys, *origin, "--out", str(self.work / name)]
        )

    def step_tflops(self, config: TrainConfig) -> float:
        """TFLOPs of a training step, on average."""
        return step_flops(config) / 1e12

    def measured(self, kind: str, folder: Path, steps: int, tflops: float) -> Row:
        """The held-out losses of a trained model, beside those of the dense one."""
        data = open_data(str(self.data / "test"), 64)
        model, dense = load_model(folder), load_model(checkpoints(self.work / "dense")[-1])
        budgets = (1.0,) if model.core is None else BUDGETS
        with progress_bar() as bar:
            total = self.count * len(TIMES) * (len(budgets) + 1)
            task = bar.add_task(f"{kind}: held-out loss", total=total, unit="forwards")
            done = lambda forwards: bar.update(task, advance=forwards)  # noqa: E731
            losses = heldout_loss(model, data, self.count, budgets, done=done)
            twin = heldout_loss(dense, data, self.count, (1.0,), done=done)[0]
        by_budget = {f"{round(16 * b)}/16": (loss.mean, loss.error) for b, loss in zip(budgets, losses, strict=True)}
        return Row(kind, steps, tflops, by_budget, losses[-1].above(twin))


def table(rows: list[Row], count: int) -> Table:
    """A row per kind: its FLOPs, its losses by budget, and its distance to the dense model."""
    names = [f"{round(16 * budget)}/16" for budget in BUDGETS]
    out = Table("kind", "steps", "TFLOPs", *names, "above dense, %", title=f"Held-out loss of {count} pictures")
    for row in rows:
        cells = [f"{row.losses[name][0]:.4f}" if name in row.losses else "" for name in names]
        above = f"{100 * row.above[0]:.1f} ± {100 * row.above[1]:.1f}"
        out.add_row(row.kind, str(row.steps), f"{row.tflops:.1f}", *cells, above)
    return out


if __name__ == "__main__":
    main()
