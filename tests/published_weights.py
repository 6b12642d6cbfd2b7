"""The weights and inputs behind `data/published/expected.safetensors`, and checkpoints laid out as the authors' are.

No file holds the weights: each tensor is drawn from a seed made of its own published name.
"""

import json
import math
import re
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elit.backbones.layers import sincos_table
from elit.elastic.grid import Grid

DATA = Path(__file__).parent / "data" / "published"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((DATA / "tensors.json").read_text())

State = dict[str, Tensor]


def drawn_tensor(name: str, shape: list[int]) -> Tensor:
    """Standard normal from the CRC-32 of the name, then brought to the size that its kind has in a trained model."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if re.search(r"[qk]_norm\.scale$", name) or re.search(r"norm.*weight$", name):
        return 1 + 0.1 * normal
    if len(shape) < 2:
        return 0.1 * normal
    if "embed" in name and "mlp" not in name and len(shape) == 2:
        return 0.5 * normal
    unit_gain = normal / math.prod(shape[1:]) ** 0.5
    return 0.5 * unit_gain if "adaLN" in name else unit_gain


def drawn_state(shapes: dict[str, list[int]]) -> State:
    """Every learned tensor; `pos_embed` is the fixed sin-cos table and is not learned."""
    return {name: drawn_tensor(name, shape) for name, shape in shapes.items() if name != "pos_embed"}


def drawn_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x (2, 4, 32, 32), t (2,) and y (2,), in this order from seed 1."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 32, 32, generator=generator)
    t = torch.rand(2, generator=generator)
    return x, t, torch.randint(0, 1000, (2,), generator=generator)


# The arguments of the training runs, as far as they are read, among others that are not.
ARGS: dict[str, dict[str, Any]] = {
    "sit_s2_256": {"model": "SiT-S/2", "elit_group_size": 4},
    "elit_s4_qknorm": {"model": "ELIT-SiT-S/4", "qk_norm": True, "elit_group_size": 4},
    "elit_s2_256": {"model": "ELIT-SiT-S/2", "elit_group_size": 4},
    "elit_b2_128_g8": {"model": "ELIT-SiT-B/2", "elit_group_size": 8, "resolution": 128},
    "dfm_b2_256": {"model": "DFM-SiT-B/2", "stage_sampling_thresholds": [0.2], "num_steps_per_scale": [30, 10]},
}
COMMON = {
    **{"resolution": 256, "num_classes": 1000, "encoder_depth": 8, "qk_norm": False, "path_type": "linear"},
    **{"prediction": "v", "weighting": "lognormal", "learning_rate": 1e-4, "exp_name": "mine", "elit_min_mask_prob": None},
    **{"elit_max_mask_prob": 0.9375, "elit_read_depth": 1, "elit_write_depth": 1},
    **{"stages_count": 2, "stage_weights": [0.9, 0.1], "stage_sampling_thresholds": [0.1], "num_steps_per_scale": [40, 10]},
}


def args_of(name: str, **changed: Any) -> Namespace:
    """The arguments of a model of `tensors.json`, with some changed."""
    return Namespace(**(COMMON | ARGS[name] | changed))


def with_positions(state: State, shapes: dict[str, list[int]]) -> State:
    """With the fixed table, as it is in a file."""
    _, tokens, width = shapes["pos_embed"]
    side = math.isqrt(tokens)
    return {"pos_embed": sincos_table(Grid(side, side), width)[None], **state}


def light_state(name: str) -> State:
    """All tensors of a model in a few megabytes: each is a view of the same numbers. For what does not ask for outputs."""
    shapes = SHAPES[name]
    numbers = 0.02 * torch.randn(max(map(math.prod, shapes.values())), generator=torch.Generator().manual_seed(4))
    learned = {key: numbers[: math.prod(shape)].view(shape) for key, shape in shapes.items() if key != "pos_embed"}
    return with_positions(learned, shapes)


def save_checkpoint(
    file: Path, ema: State, args: Namespace | None, model: State | None = None, **torch_options: Any
) -> Path:
    """A file as the authors' training writes it; without `model`, the raw weights are the averaged ones."""
    contents = {
        "model": ema if model is None else model,
        "ema": ema,
        "opt": {"state": {}, "param_groups": []},
        "steps": 400000,
    }
    torch.save(contents if args is None else {**contents, "args": args}, file, **torch_options)
    return file
