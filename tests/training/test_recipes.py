"""The recipes in configs/: each loads, fits its own command, and costs what its comment says."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from elit import DiT, DiTConfig
from elit.backbones.config import VideoConfig
from elit.backbones.table import backbone_of
from elit.training.budgets import mean_flops
from elit.training.config import BudgetConfig, FlowConfig, TrainConfig
from elit.training.dry_run import dry_run
from elit.training.reading import load_config

ROOT = Path(__file__).parents[2]
FILES = sorted(f for f in (ROOT / "configs").rglob("*.yaml") if f.parent.name != "hosts")  # those are of elit finetune
NAMES = [str(file.relative_to(ROOT)) for file in FILES]


@cache
def made(config: DiTConfig) -> DiT:
    """A model without weights, whose initialisation, which takes a second at this size, is left out."""
    shapes = type("Shapes", (backbone_of(config).model,), {"init_weights": lambda self: None})
    with torch.device("meta"):
        return shapes(config)


@cache
def flops(model: DiTConfig, budget: BudgetConfig, flow: FlowConfig) -> float:
    """Many recipes share a model and its budgets."""
    return mean_flops(made(model), budget, flow)


def cost_of(config: TrainConfig) -> float:
    """TFLOPs per iteration. An original to learn from, which is not there yet, is taken for the model at its full budget."""
    dense = config.model.window is None
    flow = FlowConfig() if config.budget.schedule is None else config.flow
    trained = 3 * flops(config.model, BudgetConfig() if dense else config.budget, flow)
    beside = flops(config.model, BudgetConfig(lowest=1.0), flow) if config.finetune.distill else 0.0
    return config.batch_size * (trained + beside) / 1e12


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_its_command_and_cost(name: str) -> None:
    """The comments name this very file, and the TFLOPs per iteration are those counted, to the digits given."""
    text, config = (ROOT / name).read_text(encoding="utf8"), load_config(ROOT / name, [])
    assert re.search(rf"train --config {re.escape(name)}\s", text)
    said = re.search(r"^# (\d+\.\d+) TFLOPs per iteration", text, re.M)
    assert said is not None
    assert float(said[1]) == pytest.approx(cost_of(config), abs=0.5 * 10 ** -len(said[1].split(".")[1]))
    assert config.out == f"runs/{name.removeprefix('configs/').removesuffix('.yaml')}"
    for path in re.findall(r"configs/\S+\.yaml", text):
        assert (ROOT / path).is_file()
    if "--out " in text:
        made = re.findall(r"--out (\S+)", text)  # by the commands before; the source is one of these, or within it
        assert any(f"{config.data.source}/".startswith(f"{folder}/") for folder in made)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("finetune.yaml", "release/sit-xl2-256.yaml"))])
def test_a_recipe_can_be_priced(name: str) -> None:
    """`dry_run` agrees with the comment's cost; of the others, whose models are alike, these stand for all."""
    config = load_config(ROOT / name, [])
    assert dry_run(config).step_gflops_mean == pytest.approx(1e3 * cost_of(config))


def test_the_paper_and_the_release_are_told_apart() -> None:
    """Section 5 of each: channels of the VAE, positions, split, batch, steps, times and warm-up."""
    for name, file in zip(NAMES, FILES, strict=True):
        config = load_config(file, [])
        model, elastic, multi = config.model, config.model.window is not None, name.endswith("multi.yaml")
        clips = isinstance(model, VideoConfig)
        if "/paper/" in name or "/release/" in name:
            assert config.optimizer.lr == 1e-4
        if "/paper/" in name:
            assert (model.in_channels, model.rope, model.qk_norm, model.write_sees_dropped) == (16, True, True, False)
            assert (config.steps, config.optimizer.warmup_steps) == (200_000 if clips else 500_000, 10_000)
            assert config.flow.time_law == "logit-normal" and config.batch_size == (384 if multi else 256)
            assert not elastic or (model.head_depth, model.tail_depth) == (4, 4)
        if "/release/" in name:
            assert (model.in_channels, model.rope, model.qk_norm, model.write_sees_dropped) == (4, False, False, elastic)
            assert (config.steps, config.optimizer.warmup_steps) == ((7_000_000, 10_000) if multi else (400_000, 0))
            assert (
                config.flow.time_law == ("logit-normal" if elastic or "dfm" in name else "uniform")
                and config.batch_size == 256
            )
            assert not elastic or (model.head_depth, model.tail_depth) == (8, 4)
        if "dfm" in name:
            assert config.architecture == "DFM" and model.stages == 2
        if elastic and "emoji" not in name:
            assert model.window.size == {32: 16, 64: 64}[model.input_size] * (2 if clips else 1)
        if clips and "/paper/" in name:
            assert str(model.grid) == "8x16x16" and str(model.window) == "2x4x4"
