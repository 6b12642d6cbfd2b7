"""What the whole suite shares: property tests that draw the same examples in every run, and tiny elastic models."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from elit import DiT, DiTConfig
from elit.weights import save_weights
from randomised import randomised
from small_world import small_bundled, small_emoji

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more start processes that import torch, for one small graph
torch.set_num_threads(1)  # processes that `ranks` forks wait for ever for threads that were begun before

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("deterministic")

TINY = DiTConfig(
    input_size=8, in_channels=3, num_classes=7, width=32, depth=3, heads=2, group_size=2, head_depth=1, tail_depth=1
)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder of the embedded emoji, whose labels are single words: see `small_world.use_as_bundled`."""
    return small_emoji(tmp_path_factory.mktemp("emoji") / "model")


@pytest.fixture(scope="session")
def small_bundled_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder with the bundled model's classes, budgets and card."""
    return small_bundled(tmp_path_factory.mktemp("bundled") / "model")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where models are trained and timed: ELIT_TEST_DEVICE, and the CPU where that is not set."""
    return torch.device(os.environ.get("ELIT_TEST_DEVICE", "cpu"))


@pytest.fixture
def make_dit() -> Callable[..., DiT]:
    """Makes a tiny elastic DiT of four levels whose weights are all drawn, with fields of its config overridden."""

    def make(**overrides: Any) -> DiT:
        return randomised(DiT(DiTConfig(**{**vars(TINY), **overrides}))).eval()

    return make


@pytest.fixture
def tiny(make_dit: Callable[..., DiT]) -> DiT:
    """A tiny elastic DiT: 3 x 8 x 8 images, 7 classes, 4 levels."""
    return make_dit()


@pytest.fixture
def model_folder(tiny: DiT, tmp_path: Path) -> Path:
    """That model, saved."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_weights(tiny, folder)
    return folder
