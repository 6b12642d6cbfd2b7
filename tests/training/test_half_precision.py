"""Half precision: norms keep their sums in float32, and a scaled loss trains as an unscaled one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from elit.backbones.dit import DiT
from elit.elastic.interface import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_norms_are_computed_in_float32(make_dit: Callable[..., DiT], dtype: torch.dtype, size: float) -> None:
    """Every norm of a model, under autocast, on half-precision values whose squares leave fp16's range on either side."""
    model = make_dit(qk_norm=True)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | RMSNorm)}
    assert len(norms) > 10
    for name, norm in norms.items():
        width = norm.scale.numel() if isinstance(norm, RMSNorm) else norm.normalized_shape[0]
        x = (size * torch.randn(5, width, generator=torch.Generator().manual_seed(len(name)))).to(dtype)
        with torch.autocast("cpu", dtype):
            y = norm(x)
        exact = x.double()
        if isinstance(norm, RMSNorm):
            exact = exact / (exact.square().mean(-1, keepdim=True).sqrt() + 1e-5) * norm.scale.double()
        else:
            exact = exact - exact.mean(-1, keepdim=True)
            exact = exact / (exact.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            if norm.weight is not None:
                exact = exact * norm.weight.double() + norm.bias.double()
        error = (y.double() - exact).abs().max().item() / exact.abs().max().item()
        assert error < (2e-3 if dtype == torch.float16 else 1e-2), name


@pytest.mark.parametrize("rope", [False, True])
def test_a_model_in_fp16_is_the_model(make_dit: Callable[..., DiT], rope: bool) -> None:
    """Velocities and gradients under fp16 autocast are finite and near those of float32, also far from unit inputs."""
    model = make_dit(rope=rope, qk_norm=True)
    x, t = 30 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 0.3, 0.7, 1.0])
    y = torch.arange(4)
    outcomes = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            v = model(x, t, y, 0.5).float()
        v.square().mean().backward()
        outcomes.append((v.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    for exact, half in zip(*outcomes, strict=True):
        assert half.isfinite().all()
        assert (half - exact).norm() < 0.02 * exact.norm()
