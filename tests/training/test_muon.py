"""Muon: against torch's, against the singular value decomposition, and in whichever precision the device multiplies fast."""

import pytest
import torch
from torch import Tensor

from elit import precision
from elit.training import muon as module
from elit.training.muon import Muon, orthogonal


def matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, columns, generator=generator) for rows, columns in ((8, 8), (24, 6), (5, 17))]


def set_fast(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(module, "fast_bfloat16", lambda device: fast)


def test_steps_are_those_of_torchs_muon_where_bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over several steps with momentum, decay and a rate that depends on the shape."""
    set_fast(monkeypatch, fast=True)
    ours, theirs = matrices(), matrices()
    optimizers = (
        Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.2),
        torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.2),
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("matrix", matrices(), ids=lambda m: str(tuple(m.shape)))
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(matrix: Tensor) -> None:
    """In float64: U and V stay, and every singular value follows the iteration's own polynomial, ending near 1."""
    made = orthogonal(matrix.double())
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(made, u @ values.diag() @ vt, rtol=1e-9, atol=1e-9)
    assert 0.6 < values.min() <= values.max() < 1.3


def test_without_fast_bfloat16_the_update_is_exacter(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a step is that of float64 to rounding, and in bfloat16 it is not."""
    errors = []
    for fast in (False, True):
        set_fast(monkeypatch, fast)
        [p] = matrices()[:1]
        before, p.grad = p.clone(), matrices()[0] ** 2
        Muon([p], lr=1.0, momentum=0.0).step()
        errors.append((before - p - orthogonal(p.grad.double())).abs().max().item())
    assert errors[0] < 1e-5 < 1e-3 < errors[1]


def test_a_held_matrix_stays_and_a_zero_gradient_moves_nothing() -> None:
    held, still = torch.ones(2, 3), torch.ones(2, 3)
    still.grad = torch.zeros(2, 3)
    Muon([held, still], lr=1.0).step()
    assert torch.equal(held, torch.ones(2, 3))
    assert torch.equal(still, torch.ones(2, 3))


def test_the_processor_is_asked_by_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, fast in (({"avx2"}, False), ({"avx512f", "avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)):
        monkeypatch.setattr(precision, "processor_flags", lambda flags=flags: frozenset(flags))
        assert precision.fast_bfloat16(torch.device("cpu")) is fast
