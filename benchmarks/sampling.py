"""What guidance costs in practice, what the loop around the model costs, and what writing images costs.

    python benchmarks/sampling.py

1. Images/s of CFG, cheap CFG (weak budget 1/16) and no guidance at budgets 1 and 1/4, on the bundled model and on
   ELIT-SiT-S/2, interleaved; each with its GFLOPs per image and step, and the share of its time spent outside the model.
2. `generate` with its PNG files beside the same tiles without writing: what the writers cost sampling.
3. Peak memory of sampling 500 and 5,000 images of the bundled model, each in a process of its own (Linux only).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import elit
from elit.generation import generate, tile_images
from elit.labels import LabelRule
from elit.recipe import Recipe
from timing import Variant, interleave, machine, memory_table, open_report, peak_mib, spread

LOWEST = 1 / 16
KINDS = {
    "none": elit.Guidance(),
    "CFG": elit.Guidance(scale=2.0),
    "cheap CFG": elit.Guidance(scale=2.0, weak_budget=LOWEST),
}
BUDGETS = {"1": 1.0, "1/4": 0.25}


class Stopwatch:
    """Counts the seconds spent inside a model."""

    def __init__(self, model: elit.DiT) -> None:
        self.inside = 0.0
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)

    def begin(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def end(self, *_: Any) -> None:
        self.inside += time.perf_counter() - self.began


def models() -> dict[str, elit.DiT]:
    """The bundled model, and a preset whose zero weights are filled, as products of zeros can take another time."""
    preset = elit.create_model("ELIT-SiT-S/2")
    for parameter in preset.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return {"bundled": elit.load_bundled(), "ELIT-SiT-S/2": preset.eval()}


def step_gflops(model: elit.DiT, budget: float, guidance: elit.Guidance) -> float:
    """Of one image in one step, both passes."""
    flops = elit.count_flops(model, budget)
    if guidance.scale != 1:
        flops += elit.count_flops(model, guidance.weak_budget or budget)
    return flops / 1e9


def time_guidance(name: str, model: elit.DiT, args: argparse.Namespace) -> tuple[Table, list[dict[str, Any]]]:
    """Part 1 for one model."""
    watch, outside = Stopwatch(model), {}
    noise = torch.randn(args.batch, model.config.in_channels, *model.input.shape[1:])

    def variant(key: str, budget: float, guidance: elit.Guidance) -> Variant:
        def run(_: None) -> Tensor:
            watch.inside, began = 0.0, time.perf_counter()
            x = elit.sample(model, [0] * args.batch, steps=args.steps, budget=budget, guidance=guidance, noise=noise)
            outside.setdefault(key, []).append(1 - watch.inside / (time.perf_counter() - began))
            return x

        return Variant(run)

    cases = {f"{label} {kind}": (label, kind) for label in BUDGETS for kind in KINDS}
    variants = {key: variant(key, BUDGETS[label], KINDS[kind]) for key, (label, kind) in cases.items()}
    seconds = interleave(variants, args.repeats, name)
    table = Table(
        title=f"{name}: batch {args.batch}, {args.steps} Euler steps, float32, median of {args.repeats} (quartiles)"
    )
    for column in ("budget", "guidance", "images/s", "GFLOPs a step", "time of CFG", "FLOPs of CFG", "outside the model"):
        table.add_column(column, justify="left" if column in ("budget", "guidance") else "right")
    rows = []
    for key, (label, kind) in cases.items():
        gflops = {kind: step_gflops(model, BUDGETS[label], guidance) for kind, guidance in KINDS.items()}
        ratio = spread([own / cfg for own, cfg in zip(seconds[key], seconds[f"{label} CFG"], strict=True)]).median
        rate = spread([args.batch / s for s in seconds[key]])
        share = spread(outside[key]).median
        rows.append({"budget": label, "guidance": kind, "seconds": seconds[key], "gflops": gflops[kind], "outside": share})
        flops = f"{gflops[kind] / gflops['CFG']:.2f}"
        table.add_row(label, kind, rate.show(digits=1), f"{gflops[kind]:.2f}", f"{ratio:.2f}", flops, f"{share:.1%}")
    return table, rows


def time_writing(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Part 2: the same tiles with and without files."""
    model = elit.load_bundled()
    recipe, labels = Recipe(steps=args.steps), LabelRule("balanced", model.config.num_classes)
    tiles = args.written // recipe.tile

    def with_files(folder: str) -> None:
        generate(model, recipe, labels, tiles * recipe.tile, Path(folder))

    def without(_: object) -> None:
        from elit.codec import PixelCodec

        for tile in range(tiles):
            tile_images(model, recipe, labels, PixelCodec(), tile)

    with tempfile.TemporaryDirectory() as place:
        fresh = lambda: tempfile.mkdtemp(dir=place)  # noqa: E731
        seconds = interleave({"files": Variant(with_files, fresh), "none": Variant(without)}, args.repeats, "writing")
    ratio = spread([a / b for a, b in zip(seconds["files"], seconds["none"], strict=True)])
    table = Table(title=f"Writing: {tiles * recipe.tile} images of the bundled model, {args.steps} steps")
    for column in ("PNG files, s", "none, s", "ratio"):
        table.add_column(column, justify="right")
    table.add_row(spread(seconds["files"]).show(), spread(seconds["none"]).show(), ratio.show(digits=3))
    return table, {"seconds": seconds}


def memory(count: int, steps: int) -> float:
    """Peak resident MiB of a process that samples `count` images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--memory-of", str(count), folder, "--steps", str(steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def sample_and_tell(count: int, folder: str, steps: int) -> None:
    """What `memory` runs."""
    model = elit.load_bundled()
    labels = LabelRule("uniform", model.config.num_classes)
    generate(model, Recipe(steps=steps, budget=LOWEST), labels, count, Path(folder))
    sys.stdout.write(f"{peak_mib()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--written", type=int, default=64, help="images of part 2")
    parser.add_argument("--memory-counts", type=int, nargs="*", default=[500, 5000], help="of part 3")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", nargs=2, metavar=("COUNT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        sample_and_tell(int(args.memory_of[0]), args.memory_of[1], args.steps)
        return
    out = open_report()
    figures: dict[str, Any] = {"machine": machine()}
    for name, model in models().items() if 1 in args.parts else ():
        table, figures[name] = time_guidance(name, model, args)
        out.print(table)
    if 2 in args.parts:
        table, figures["writing"] = time_writing(args)
        out.print(table)
    if 3 in args.parts:
        figures["memory_mib"] = {count: memory(count, 1) for count in args.memory_counts}
        out.print(memory_table("Memory of `generate`, bundled model, 1 step at 1/16", "images", figures["memory_mib"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
