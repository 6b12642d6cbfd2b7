"""What a budget costs beside the dense model: time against FLOPs, peak memory, and both at more tokens.

    python benchmarks/forward.py

1. Time of a forward (no_grad) and of a training step (forward, mse loss, backward; the optimiser's update is not part of
   it) in float32, on interleaved rounds. `efficiency` is (time / dense time) / (FLOPs / dense FLOPs), the median of what
   each round gives: 1 is as good a use of the machine as the dense model makes, lower is better. `of product` is the
   FLOP/s as a share of a plain matrix product's, timed in the same rounds; beside the dense model's share it is
   1 / efficiency. A training step counts as three forwards.
2. Peak memory of a training step, as the operating system sees it, each model in a process of its own (Linux only).
3. Both at 1,024 and 4,096 tokens, with RoPE.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import elit
from elit.console import console as progress
from timing import Spread, Variant, interleave, machine, open_report, spread

BUDGETS = ("1", "1/2", "1/4", "1/16")
DENSE = "dense"
PRODUCT = "product"
PRODUCT_SHAPE = (1024, 768, 3072)  # rows, inputs, outputs: the widest linear of a B model on 1,024 tokens
PRODUCTS = 4  # per timing
PRODUCT_FLOPS = 2 * PRODUCTS * PRODUCT_SHAPE[0] * PRODUCT_SHAPE[1] * PRODUCT_SHAPE[2]
FORWARD, TRAINING = "forward", "training step"
FORWARDS = {FORWARD: 1, TRAINING: 3}  # FLOPs of each, in forwards
EFFICIENCY_TARGETS = {
    FORWARD: {"1": 1.00, "1/16": 1.05},
    TRAINING: dict.fromkeys(BUDGETS, 1.05),
}
SHARE_TARGET = 0.95
MEMORY_TARGETS = {"1/4": 0.75}
SCALING_INPUTS = (64, 128)  # 1,024 and 4,096 tokens with patches of 2
PATCH = 2
NOTHING = "nothing"  # the model of a process that only imports
MIB = 2**20
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Case:
    """A model at a budget; `label` is the budget as it is written, or `dense`."""

    label: str
    model: elit.DiT
    budget: float | None

    @property
    def flops(self) -> int:
        """Of a forward of one image."""
        return elit.count_flops(self.model, self.budget)


@dataclass(frozen=True)
class Row:
    """What the rounds say of one case; shares are of the matrix product's FLOP/s."""

    kind: str
    label: str
    flops: int
    seconds: list[float]
    time: Spread
    efficiency: Spread
    share: Spread
    relative_share: Spread
    efficiency_target: float | None
    share_target: float | None


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak of a training step: above weights and gradients, and above a process that only imports."""

    above: int
    in_all: int


def make_model(name: str, input_size: int, rope: bool) -> elit.DiT:
    """A model as if trained: what is zero when fresh is random here, since products of zeros can take another time."""
    model = elit.create_model(name, input_size=input_size, num_classes=1000, rope=rope)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def make_cases(size: str, input_size: int, rope: bool = False) -> list[Case]:
    """The dense model, and the elastic one at every budget, which share their weights."""
    dense, elastic = (make_model(name, input_size, rope) for name in (f"SiT-{size}", f"ELIT-SiT-{size}"))
    return [Case(DENSE, dense, None), *(Case(label, elastic, float(Fraction(label))) for label in BUDGETS)]


def make_inputs(model: elit.DiT, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random x, t and y."""
    x = torch.randn(batch, model.config.in_channels, *model.input.shape[1:])
    return x, torch.rand(batch), torch.randint(model.config.num_classes, (batch,))


# --- time


def forward_variant(case: Case, batch: int) -> Variant:
    """A forward without gradients."""
    inputs = make_inputs(case.model, batch)

    def run(_: None) -> Tensor:
        with torch.no_grad():
            return case.model(*inputs, budget=case.budget)

    return Variant(run)


def training_variant(case: Case, batch: int) -> Variant:
    """Forward, mse loss and backward; the gradients of the step before are let go of first, outside the time."""
    x, t, y = make_inputs(case.model, batch)
    target = torch.randn_like(x)
    return Variant(
        lambda _: F.mse_loss(case.model(x, t, y, budget=case.budget), target).backward(),
        setup=case.model.zero_grad,
    )


def product_variant() -> Variant:
    """Plain matrix products: the rate that the machine can be held to."""
    rows, inputs, outputs = PRODUCT_SHAPE
    a, b, out = torch.randn(rows, inputs), torch.randn(inputs, outputs), torch.empty(rows, outputs)

    def run(given: None) -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    return Variant(run)


def time_kind(kind: str, cases: Sequence[Case], batch: int, rounds: int) -> tuple[list[Row], list[float]]:
    """A row per case, and the seconds of the matrix products."""
    make = forward_variant if kind == FORWARD else training_variant
    variants = {PRODUCT: product_variant()} | {case.label: make(case, batch) for case in cases}
    seconds = interleave(variants, rounds, kind)
    flops = {case.label: case.flops * batch * FORWARDS[kind] for case in cases}
    return [make_row(kind, label, flops, seconds) for label in flops], seconds[PRODUCT]


def make_row(kind: str, label: str, flops: Mapping[str, int], seconds: Mapping[str, list[float]]) -> Row:
    """Every ratio is taken within a round, and its median over the rounds."""
    work = flops[label] / flops[DENSE]
    pairs = zip(seconds[label], seconds[DENSE], strict=True)
    efficiency = [own / dense / work for own, dense in pairs]
    pairs = zip(seconds[label], seconds[PRODUCT], strict=True)
    share = [flops[label] / own / (PRODUCT_FLOPS / product) for own, product in pairs]
    return Row(
        kind,
        label,
        flops[label],
        seconds[label],
        time=spread(seconds[label]),
        efficiency=spread(efficiency),
        share=spread(share),
        relative_share=spread([1 / value for value in efficiency]),
        efficiency_target=EFFICIENCY_TARGETS[kind].get(label),
        share_target=None if label == DENSE else SHARE_TARGET,
    )


def time_table(rows: Sequence[Row], product: Sequence[float], batch: int) -> Table:
    """The rows of one kind."""
    kind = rows[0].kind
    what = "forward, no_grad" if kind == FORWARD else "training step: forward, mse loss, backward; no optimiser update"
    rate = PRODUCT_FLOPS / spread(product).median / 1e9
    out = Table(
        title=f"Time: {what}; batch {batch}, float32, median of {len(product)} rounds (quartiles)",
        caption=f"matrix product {' x '.join(map(str, PRODUCT_SHAPE))}: {rate:.0f} GFLOP/s",
    )
    out.add_column("budget")
    for name in ("time, ms", "GFLOPs", "efficiency", "target", "GFLOP/s", "of product", "of dense's share", "target"):
        out.add_column(name, justify="right")
    for row in rows:
        efficiency, relative = row.efficiency.median, row.relative_share.median
        out.add_row(
            row.label,
            row.time.show(1e3, 0),
            f"{row.flops / 1e9:,.1f}",
            row.efficiency.show(digits=3),
            verdict("<=", row.efficiency_target, row.efficiency_target is not None and efficiency <= row.efficiency_target),
            f"{row.flops / row.time.median / 1e9:,.1f}",
            f"{row.share.median:.1%}",
            f"{relative:.3f}",
            verdict(">=", row.share_target, row.share_target is not None and relative >= row.share_target),
        )
    return out


def verdict(relation: str, target: float | None, reached: bool) -> str:
    """A target with whether it was reached, or a dash where there is none."""
    if target is None:
        return "-"
    return f"{relation} {target:.2f} " + ("[green]reached[/]" if reached else "[red]not reached[/]")


# --- memory


def status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS is what the process holds now, VmHWM the most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}; memory is measured on Linux only, leave it out with --skip-memory")


def measure_memory(name: str, budget: str, tokens_side: int, batch: int, rope: bool) -> dict[str, int]:
    """Bytes held before a training step and at its peak, in this process.

    A first step allocates the gradients, which then stay, so that they count as held before.
    """
    step = None
    if name != NOTHING:
        model = make_model(name, tokens_side * PATCH, rope)
        fraction = float(Fraction(budget))
        step = training_variant(Case(budget, model, fraction), batch).run
        step(None)
        model.zero_grad(set_to_none=False)
    gc.collect()
    CLEAR_REFS.write_text("5")  # resets VmHWM
    before = status_bytes("VmRSS")
    if step is not None:
        step(None)
    return {"before": before, "peak": status_bytes("VmHWM")}


def memory_of(name: str, budget: str, tokens_side: int, batch: int, rope: bool) -> dict[str, int]:
    """`measure_memory` in a fresh process, whose allocator gives all larger memory back as soon as it is free."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--memory-of", name, budget, str(tokens_side), "--batch", str(batch)]
    command += ["--threads", threads, *(["--rope"] if rope else [])]
    progress.print(f"memory: {name} at budget {budget}, {tokens_side**2} tokens")
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def step_memory(size: str, tokens_side: int, batch: int, rope: bool = False) -> dict[str, Peak]:
    """The peak of a training step of the dense model and at every budget."""
    imports = memory_of(NOTHING, "1", tokens_side, batch, rope)["peak"]
    peaks = {}
    for label in (DENSE, *BUDGETS):
        name, budget = (f"SiT-{size}", "1") if label == DENSE else (f"ELIT-SiT-{size}", label)
        held = memory_of(name, budget, tokens_side, batch, rope)
        peaks[label] = Peak(above=held["peak"] - held["before"], in_all=held["peak"] - imports)
    return peaks


def memory_table(peaks: Mapping[str, Peak], batch: int) -> Table:
    """Peak memory, with the target put to both ways of counting it."""
    out = Table(
        title=f"Peak memory of a training step, batch {batch}, float32, resident set",
        caption="above: beyond weights and gradients, held before the step; in all: with them, beyond a process that only"
        " imports; an optimiser's state is in neither",
    )
    out.add_column("budget")
    for name in ("above, MiB", "of dense", "target", "in all, MiB", "of dense", "target"):
        out.add_column(name, justify="right")
    for label, peak in peaks.items():
        cells = []
        for value, dense in ((peak.above, peaks[DENSE].above), (peak.in_all, peaks[DENSE].in_all)):
            target = MEMORY_TARGETS.get(label)
            reached = target is not None and value / dense < target
            cells += [f"{value / MIB:,.0f}", f"{value / dense:.3f}", verdict("<", target, reached)]
        out.add_row(label, *cells)
    return out


# --- more tokens


def scale(size: str, input_size: int, rounds: int, memory: bool) -> dict[str, Any]:
    """Forward time and training memory of one image with RoPE, per label."""
    cases = make_cases(size, input_size, rope=True)
    tokens = cases[0].model.config.grid
    variants = {case.label: forward_variant(case, batch=1) for case in cases}
    seconds = interleave(variants, rounds, f"forward, {tokens.size} tokens")
    flops = {case.label: case.flops for case in cases}
    del cases, variants  # before other processes need the memory
    peaks = step_memory(size, input_size // PATCH, batch=1, rope=True) if memory else {}
    return {"tokens": tokens.size, "seconds": seconds, "flops": flops, "memory": peaks}


def scaling_table(figures: Mapping[str, Any], size: str) -> Table:
    """One count of tokens, each figure with its ratio to the dense model's."""
    seconds, flops, peaks = figures["seconds"], figures["flops"], figures["memory"]
    rounds = len(seconds[DENSE])
    out = Table(
        title=f"{size} with RoPE, {figures['tokens']:,} tokens, batch 1: forward (median of {rounds}), training memory"
    )
    out.add_column("budget")
    for name in ("forward, ms", "of dense", "FLOPs of dense", "above, MiB", "of dense", "in all, MiB", "of dense"):
        out.add_column(name, justify="right")
    for label in seconds:
        ratio = spread([own / dense for own, dense in zip(seconds[label], seconds[DENSE], strict=True)])
        cells = [spread(seconds[label]).show(1e3, 0), f"{ratio.median:.3f}", f"{flops[label] / flops[DENSE]:.3f}"]
        if peaks:
            peak, dense = peaks[label], peaks[DENSE]
            cells += [f"{peak.above / MIB:,.0f}", f"{peak.above / dense.above:.3f}"]
            cells += [f"{peak.in_all / MIB:,.0f}", f"{peak.in_all / dense.in_all:.3f}"]
        out.add_row(label, *cells)
    return out


# --- the whole


def report_time(out: Console, args: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables of part 1 and returns their figures."""
    cases = make_cases(args.size, args.input_size)
    out.print(f"model: ELIT-SiT-{args.size} and SiT-{args.size} ({DENSE}), input 4 x {args.input_size} x {args.input_size}")
    figures = {}
    for kind in FORWARDS:
        rows, product = time_kind(kind, cases, args.batch, args.repeats)
        out.print(time_table(rows, product, args.batch))
        figures[kind] = {"rows": [asdict(row) for row in rows], "product_seconds": product, "product_flops": PRODUCT_FLOPS}
    return figures


def report(args: argparse.Namespace) -> None:
    """Measures and prints everything that was asked for."""
    out = open_report()
    memory = not args.skip_memory and CLEAR_REFS.exists()
    figures: dict[str, Any] = {"machine": machine(), "batch": args.batch, "size": args.size, "input_size": args.input_size}
    figures["time"] = report_time(out, args)
    if memory:
        peaks = step_memory(args.size, args.input_size // PATCH, args.batch)
        out.print(memory_table(peaks, args.batch))
        figures["memory"] = {label: asdict(peak) for label, peak in peaks.items()}
    if not args.skip_scaling:
        figures["scaling"] = []
        for input_size in args.scaling_inputs:
            scaled = scale(args.size, input_size, args.scaling_repeats, memory)
            out.print(scaling_table(scaled, args.size))
            plain = {label: asdict(peak) for label, peak in scaled["memory"].items()}
            figures["scaling"].append(scaled | {"memory": plain})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds of part 1")
    parser.add_argument("--scaling-repeats", type=int, default=3, help="rounds of part 3")
    parser.add_argument("--batch", type=int, default=4, help="of parts 1 and 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default=f"B/{PATCH}", help=f"of the models, with patches of {PATCH}")
    parser.add_argument("--input-size", type=int, default=32, help="side of the latents in parts 1 and 2")
    parser.add_argument("--scaling-inputs", type=int, nargs="+", default=SCALING_INPUTS, help="sides of part 3")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-scaling", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, round by round")
    parser.add_argument(
        "--memory-of",
        nargs=3,
        metavar=("MODEL", "BUDGET", "TOKENS-SIDE"),
        help=f"only measure one training step here and print a line of JSON, in bytes; {NOTHING!r}: only the imports",
    )
    parser.add_argument("--rope", action="store_true", help="for --memory-of")
    args = parser.parse_args()
    if not args.size.endswith(f"/{PATCH}"):
        parser.error(f"--size {args.size}: the models here have patches of {PATCH}, e.g. S/{PATCH}")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        name, budget, tokens_side = args.memory_of
        held = measure_memory(name, budget, int(tokens_side), args.batch, args.rope)
        sys.stdout.write(json.dumps(held) + "\n")
    else:
        report(args)


if __name__ == "__main__":
    main()
