"""A folder of pictures and a configuration small enough to train in a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elit.training.config import TrainConfig
from elit.training.reading import load_config

TINY = {
    "batch_size": 4,
    "data.size": 8,
    "model.input_size": 8,
    "model.in_channels": 3,
    "model.num_classes": 2,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 3,
    "model.group_size": 2,
    "model.head_depth": 1,
    "model.tail_depth": 1,
    "budget.lowest": 0.25,
    "optimizer.lr": 3e-3,
    "log.every": 5,
    "log.preview_every": 0,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of 8 x 8 in two class folders, the i-th of which holds i in every pixel's red."""
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels[:, :, 0] = i
        file = tmp_path / "pictures" / "ab"[i // 6] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return tmp_path / "pictures"


@pytest.fixture
def arguments(tmp_path: Path, pictures: Path, device: torch.device) -> Callable[..., list[str]]:
    """Options of `elit train` for a tiny run on `pictures`, with `values` (a.b given as a__b) in place of its own."""

    def make(**values: Any) -> list[str]:
        given = {key.replace("__", "."): value for key, value in values.items()}
        merged = {**TINY, "device": device, "out": tmp_path / "run", "data.source": pictures, "steps": 4, **given}
        return [f"--{key}={'null' if value is None else value}" for key, value in merged.items()]

    return make


@pytest.fixture
def make_config(arguments: Callable[..., list[str]]) -> Callable[..., TrainConfig]:
    """The configuration of those options."""
    return lambda **values: load_config(None, arguments(**values))
