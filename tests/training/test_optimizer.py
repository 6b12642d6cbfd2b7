"""Which optimiser moves which weight, by how much, and along which schedule."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from by_config import draw_batch, load_data, make_state, train_step

from elit.training.config import OptimizerConfig, TrainConfig
from elit.training.optimizer import lr_scale

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 100), (10, 100), (100, 100), (200, 100)])
def test_schedule(warmup: int, steps: int) -> None:
    """(k + 1) / warmup, then 1, or cos^2 of a quarter turn from the warm-up's end to the last step."""
    constant = OptimizerConfig(warmup_steps=warmup)
    cosine = replace(constant, schedule="cosine")
    for step in range(steps):
        rising = (step + 1) / warmup if step < warmup else None
        turn = math.pi / 2 * (step - warmup) / max(steps - warmup, 1)
        assert lr_scale(constant, step, steps) == pytest.approx(rising or 1)
        assert lr_scale(cosine, step, steps) == pytest.approx(rising or math.cos(turn) ** 2)
    if warmup < steps:
        assert lr_scale(cosine, steps, steps) == pytest.approx(0, abs=1e-12)
        assert lr_scale(cosine, warmup, steps) == pytest.approx(1)


def test_trapezoid() -> None:
    """Up over the warm-up, level, and down over the last steps, to zero at the end."""
    config = OptimizerConfig(schedule="trapezoid", warmup_steps=4, decay_steps=5)
    scales = [lr_scale(config, step, 20) for step in range(21)]
    assert scales == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 13, 0.8, 0.6, 0.4, 0.2, 0])


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(make_config: Make, device: torch.device) -> None:
    """Every weight has one optimiser: Muon's are the linears of blocks, Read and Write, but no modulation or embedding."""
    state = make_state(make_config(optimizer__name="muon"), device)
    muon, adamw = state.optimizers
    names = {p: name for name, p in state.model.named_parameters()}
    by_muon, by_adamw = ([names[p] for p in optimizer.param_groups[0]["params"]] for optimizer in (muon, adamw))
    assert sorted(by_muon + by_adamw) == sorted(names.values())
    linears = ("attention.qkv", "attention.q", "attention.kv", "attention.out", "mlp.fc1", "mlp.fc2")
    assert set(by_muon) == {name for name in names.values() if name.removesuffix(".weight").endswith(linears)}
    assert len(by_muon) == 3 * 4 + 5 + 5  # three blocks, Read and Write


@pytest.mark.parametrize("rate", [0.01, 0.03])
def test_muon_steps_are_orthogonal(make_config: Make, rate: float, device: torch.device) -> None:
    """A first step goes rate x scale x sqrt(max(1, rows / columns)) along the gradient's polar factor, or nearly so."""
    config = make_config(optimizer__name="muon", optimizer__muon_lr=rate, optimizer__warmup_steps=2, model__width=32)
    state = make_state(config, device)
    for p in state.model.parameters():  # zero weights would hide the gradients of what lies before them
        torch.nn.init.normal_(p.data, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    batch = draw_batch(config, load_data(config), 0)
    matrices = state.optimizers[0].param_groups[0]["params"]
    before = [p.detach().clone() for p in matrices]
    train_step(config, state, batch, device)
    for p, old in zip(matrices, before, strict=True):
        momentum = state.optimizers[0].state[p]["momentum_buffer"]  # along the gradient, after one step
        step = (old - p.detach()) / (0.5 * rate * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))
        u, s, v = torch.linalg.svd(momentum.double(), full_matrices=False)
        strong = s > 0.1 * s[0]
        along = torch.einsum("ri,rc,ic->i", u, step.double(), v)[strong]
        assert along.min() > 0.5 and along.max() < 1.4
        assert torch.linalg.matrix_norm(step, 2) < 1.4
