"""How half precision is computed on this processor: attention, matrix products and Muon's orthogonalisation.

    python benchmarks/attention.py

`elit.elastic.attention` is timed beside torch's fused kernel: forward (with gradients recorded) and backward apart, on
interleaved repeats. Ratios are fused / ours, medians of the ratio within each repeat: above 1, ours is faster. A product
and an orthogonalisation follow, in bfloat16 beside float32: above 1, bfloat16 is slower, and `elit.precision` should know.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from elit.elastic.attention import attention
from elit.precision import fast_bfloat16
from elit.training.muon import orthogonal
from timing import Spread, Variant, interleave, machine, open_report, spread

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Sizes of one attention; `sequences` is batch x groups."""

    sequences: int
    heads: int
    queries: int
    keys: int
    width: int


SHAPES = (
    Shape(64, 3, 256, 256, 64),
    Shape(64, 3, 128, 128, 64),
    Shape(32, 3, 64, 64, 64),
    Shape(1024, 3, 16, 16, 64),
    Shape(1024, 3, 1, 16, 64),
)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Comparison:
    """Seconds of forward + backward for both ways, and how many times as long the fused one takes."""

    shape: Shape
    dtype: str
    ours: Spread
    fused: Spread
    both_ratio: Spread
    forward_ratio: Spread
    backward_ratio: Spread


def variants(shape: Shape, dtype: torch.dtype) -> dict[str, Variant]:
    """Forward and backward of both ways, on inputs that lie in memory as the layers of the models give them."""

    def lay_out(length: int) -> Tensor:
        return torch.randn(shape.sequences, length, shape.heads, shape.width, dtype=dtype).transpose(1, 2)

    q, k, v = (lay_out(length).requires_grad_() for length in (shape.queries, shape.keys, shape.keys))
    grad = lay_out(shape.queries)
    ways: dict[str, Attention] = {
        "ours": attention,
        "fused": F.scaled_dot_product_attention,
    }
    out = {}
    for name, way in ways.items():
        out[f"{name} forward"] = Variant(lambda _, way=way: way(q, k, v))
        out[f"{name} backward"] = Variant(lambda y: torch.autograd.grad(y, (q, k, v), grad), lambda way=way: way(q, k, v))
    return out


def compare(shape: Shape, dtype: str, repeats: int) -> Comparison:
    """Times one shape in one dtype."""
    seconds = interleave(variants(shape, DTYPES[dtype]), repeats, f"{dtype} {tuple(shape)}")

    def both(way: str) -> list[float]:
        return [a + b for a, b in zip(seconds[f"{way} forward"], seconds[f"{way} backward"], strict=True)]

    def ratio(fused: list[float], plain: list[float]) -> Spread:
        return spread([a / b for a, b in zip(fused, plain, strict=True)])

    return Comparison(
        shape,
        dtype,
        ours=spread(both("ours")),
        fused=spread(both("fused")),
        both_ratio=ratio(both("fused"), both("ours")),
        forward_ratio=ratio(seconds["fused forward"], seconds["ours forward"]),
        backward_ratio=ratio(seconds["fused backward"], seconds["ours backward"]),
    )


def table(rows: list[Comparison], repeats: int) -> Table:
    """One row per shape and dtype."""
    out = Table(title=f"Attention, forward + backward: median of {repeats} interleaved repeats (quartiles)")
    out.add_column("batch x groups, heads,\nqueries, keys, head width")
    out.add_column("dtype")
    for name in ("ours, ms", "fused, ms", "fused / ours", "of it forward", "of it backward"):
        out.add_column(name, justify="right")
    for row in rows:
        times = (row.ours.show(1e3), row.fused.show(1e3))
        ratios = (row.both_ratio.show(), f"{row.forward_ratio.median:.2f}", f"{row.backward_ratio.median:.2f}")
        out.add_row(", ".join(map(str, row.shape)), row.dtype, *times, *ratios)
    return out


def precisions(repeats: int) -> Table:
    """A product and an orthogonalisation in both precisions."""
    out = Table(title=f"bfloat16 beside float32: median of {repeats} interleaved repeats (quartiles)")
    for name in ("operation", "float32, ms", "bfloat16, ms", "bfloat16 / float32"):
        out.add_column(name, justify="left" if name == "operation" else "right")
    a, b, c = torch.randn(1024, 768), torch.randn(3072, 768), torch.randn(192, 768)
    operations: dict[str, Callable[[torch.dtype], Variant]] = {
        "product 1024 x 768 x 3072": lambda d: Variant(lambda x: F.linear(*x), lambda: (a.to(d), b.to(d))),
        "orthogonalisation 192 x 768": lambda d: Variant(orthogonal, lambda: c.to(d)),
    }
    for title, make in operations.items():
        seconds = interleave({name: make(dtype) for name, dtype in DTYPES.items()}, repeats, title)
        ratio = [half / full for half, full in zip(seconds["bfloat16"], seconds["float32"], strict=True)]
        shown = (spread(seconds[name]).show(1e3) for name in ("float32", "bfloat16"))
        out.add_row(title, *shown, spread(ratio).show())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    out = open_report()
    out.print(f"bfloat16 instructions: {'yes' if fast_bfloat16(torch.device('cpu')) else 'no'}")
    rows = [compare(shape, dtype, args.repeats) for dtype in DTYPES for shape in SHAPES]
    out.print(table(rows, args.repeats))
    out.print(precisions(args.repeats))
    if args.json:
        figures: dict[str, Any] = {"machine": machine(), "repeats": args.repeats, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
