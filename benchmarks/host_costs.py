"""FLOPs of text-to-image and text-to-video transformers at their real sizes, dense and elastic: the tables of docs/hosts.md.

    python benchmarks/host_costs.py
    python benchmarks/host_costs.py --only Qwen-Image

Counted on meta tensors by `elit.count_flops`, at the real widths. Cost is linear in the number of blocks of a kind, so a
transformer with few blocks of each tells that of all exactly; nothing is timed. Tables are printed as Markdown.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

import elit
from elit.console import show

BUDGETS = (1.0, 0.5, 0.25, 0.125)
WEAK = 0.125  # of the unconditional pass in cheap CFG, as in the paper's lowest row
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A transformer at its real size, and what it is usually asked for.

    make: with so many blocks of each kind (double-stream, single-stream; the second is not asked where there is none).
    blocks: how many it has. head, tail: blocks that stay on all tokens, over both kinds. guided: whether it is run with
    classifier-free guidance, so that a step is two passes.
    """

    name: str
    make: Callable[[int, int], Any]
    inputs: Callable[[], Arguments]
    blocks: tuple[int, int]
    head: int
    tail: int
    window: tuple[int, int, int]
    grid: tuple[int, ...]
    told: str
    guided: bool = True


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


SHAPES = (
    Shape(
        "Qwen-Image",
        lambda double, single: diffusers.QwenImageTransformer2DModel(num_layers=double),
        lambda: {
            "hidden_states": empty(1, 4096, 64),
            "encoder_hidden_states": empty(1, 128, 3584),
            "timestep": empty(1),
            "img_shapes": [[(1, 64, 64)]],
        },
        (60, 0),
        8,
        8,
        (1, 8, 8),
        (64, 64),
        "1024², 128 tokens of text",
    ),
    Shape(
        "SD3.5-L",
        lambda double, single: diffusers.SD3Transformer2DModel(
            num_layers=double,
            num_attention_heads=38,
            caption_projection_dim=2432,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        ),
        lambda: {
            "hidden_states": empty(1, 16, 128, 128),
            "encoder_hidden_states": empty(1, 333, 4096),
            "pooled_projections": empty(1, 2048),
            "timestep": empty(1),
        },
        (38, 0),
        6,
        6,
        (1, 8, 8),
        (64, 64),
        "1024², 333 tokens of text",
    ),
    Shape(
        "Flux-dev",
        lambda double, single: diffusers.FluxTransformer2DModel(
            num_layers=double, num_single_layers=single, guidance_embeds=True
        ),
        lambda: {
            "hidden_states": empty(1, 4096, 64),
            "encoder_hidden_states": empty(1, 512, 4096),
            "pooled_projections": empty(1, 768),
            "timestep": empty(1),
            "guidance": empty(1),
            "img_ids": empty(4096, 3),
            "txt_ids": empty(512, 3),
        },
        (19, 38),
        8,
        8,
        (1, 8, 8),
        (64, 64),
        "1024², 512 tokens of text",
        guided=False,
    ),
    Shape(
        "Wan 14B",
        lambda double, single: diffusers.WanTransformer3DModel(num_layers=double),
        lambda: {
            "hidden_states": empty(1, 16, 21, 60, 104),
            "encoder_hidden_states": empty(1, 512, 4096),
            "timestep": empty(1),
        },
        (40, 0),
        6,
        6,
        (2, 4, 4),
        (21, 30, 52),
        "480p, 81 frames, 512 tokens of text",
    ),
)


def counted(shape: Shape, blocks: tuple[int, int], budget: float | None = None) -> int:
    """FLOPs of one pass with so many blocks of each kind: on all tokens, or all of them in a core at a budget."""
    with torch.device("meta"):
        transformer = shape.make(*blocks)
    if budget is not None:
        elit.elasticize(transformer, 0, 0, shape.window)
    return elit.count_flops(transformer, budget, shape.inputs(), shape.grid)


def by_kind(shape: Shape, budget: float | None = None) -> tuple[int, int, int]:
    """FLOPs of everything but blocks, of a block of the first kind and of one of the second."""
    kinds = 1 if shape.blocks[1] else 0
    one = counted(shape, (1, kinds), budget)
    first = counted(shape, (2, kinds), budget) - one
    second = counted(shape, (1, 2), budget) - one if kinds else 0
    return one - first - second, first, second


def shares(shape: Shape) -> tuple[int, dict[float, float], dict[float, float]]:
    """The dense pass's FLOPs; the share of it at each budget; and the share of a step, with cheap CFG where guided.

    The head is of blocks of the first kind; the tail of blocks of the last.
    """
    (first, second), (rest, of_first, of_second) = shape.blocks, by_kind(shape)
    dense = rest + first * of_first + second * of_second
    outside = (shape.head, shape.tail) if second else (shape.head + shape.tail, 0)
    one = {}
    for budget in BUDGETS:
        around, core_first, core_second = by_kind(shape, budget)
        core = (first - outside[0]) * core_first + (second - outside[1]) * core_second
        one[budget] = (around + outside[0] * of_first + outside[1] * of_second + core) / dense
    step = {budget: (one[budget] + one[WEAK]) / 2 if shape.guided else one[budget] for budget in BUDGETS}
    return dense, one, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one transformer, such as Qwen-Image")
    only = parser.parse_args().only
    columns = [f"{kind} at {b:g}" for kind in ("pass", "step") for b in BUDGETS]
    show(f"| transformer | asked for | blocks | TFLOPs a pass | {' | '.join(columns)} |")
    show("|" + "---|" * (4 + 2 * len(BUDGETS)))
    for shape in SHAPES:
        if only is not None and shape.name != only:
            continue
        dense, one, step = shares(shape)
        blocks = f"{shape.head}-{sum(shape.blocks) - shape.head - shape.tail}-{shape.tail}"
        cells = [*(f"{one[b]:.3f}" for b in BUDGETS), *(f"{step[b]:.3f}" for b in BUDGETS)]
        show(f"| {shape.name} | {shape.told} | {blocks} | {dense / 1e12:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
