"""On the device that ELIT_TEST_DEVICE names, the CPU if none: models make what float64 makes on the CPU, within rounding."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

import elit
from elit import Guidance
from elit.backbones.config import DiTConfig
from elit.elastic.levels import Budget
from elit.elastic.model import ElasticModel
from elit.target import parse_budget
from models import CONFIGS, inputs_of, made

every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "CFG": ("euler", {"guidance": Guidance(2.0)}),
    "cheap CFG": ("heun", {"guidance": Guidance(2.0, weak_budget=0.25)}),
    "autoguidance": ("euler", {"guidance": Guidance(2.0, weak_budget=0.25, weak_label="same"), "budget": 0.5}),
    "a budget per sample": ("euler_maruyama", {"budget": [0.25, 1.0, 0.5]}),
    "by time": ("euler", {"budget": parse_budget("1/2@t>0.5,1")}),
}


def apart(ours: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """The distance of some tensors, taken together, as a share of the size of the exact ones."""
    a, b = (torch.cat([one.detach().cpu().double().flatten() for one in ones]) for ones in (ours, exact))
    return float((a - b).norm() / b.norm())


def mixed(model: ElasticModel) -> Budget:
    """The lowest budget and the full one, in turns; none of a dense model."""
    return None if model.core is None else [model.levels.fractions()[0], 1.0] * 2


def gradients(model: ElasticModel) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@every_model
def test_velocities_and_gradients(config: DiTConfig, device: torch.device) -> None:
    """Of a batch with the lowest and the full budget in it."""
    model, exact = made(config).to(device), made(config).double()
    x, t, y = inputs_of(config)
    v = model(x.to(device), t.to(device), y.to(device), mixed(model))
    expected = exact(x.double(), t.double(), y, mixed(model))
    assert apart([v], [expected]) < 1e-5
    for one in (v, expected):
        one.square().mean().backward()
    assert apart(gradients(model), gradients(exact)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["cells, rope", "HDiT", "VideoDiT"])
def test_half_precision(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Weights and work in a half are as near as its digits allow."""
    model, exact = made(CONFIGS[name]).to(device, dtype), made(CONFIGS[name]).double()
    x, t, y = inputs_of(CONFIGS[name])
    with torch.no_grad():
        v = model(x.to(device, dtype), t.to(device), y.to(device), mixed(model))
        expected = exact(x.double(), t.double(), y, mixed(model))
    assert apart([v], [expected]) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("sampler, options", WAYS.values(), ids=WAYS.keys())
def test_samples(sampler: str, options: dict[str, object], device: torch.device) -> None:
    """Every way to guide and to spend a budget, from the same noise on any device."""
    config = CONFIGS["cells, rope"]
    drawn = elit.sample(made(config).to(device), [0, 1, 2], sampler, 3, **options)  # type: ignore[arg-type]
    exact = elit.sample(made(config).double(), [0, 1, 2], sampler, 3, **options)  # type: ignore[arg-type]
    assert drawn.device.type == device.type and apart([drawn], [exact]) < 1e-4
