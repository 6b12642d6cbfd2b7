"""Muon: against torch's, against the singular value decomposition, and in whichever precision the device multiplies fast."""

from collections.abc import Callable

import pytest
import torch
from by_config import draw_batch, load_data, make_state, train_step
from torch import Tensor

from elit import precision
from elit.training import muon as module
from elit.training.config import TrainConfig
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


def test_bfloat16_amplifies_what_differs_by_rounding_and_float32_does_not() -> None:
    """Why two processes part from one sooner with Muon: of a relative 1e-5, float32 makes as much, bfloat16 its own step."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(64, 64, generator=generator, dtype=torch.float64)
    other = one * (1 + 1e-5 * torch.randn(64, 64, generator=generator, dtype=torch.float64))
    far = {
        dtype: (orthogonal(one.to(dtype)).double() - orthogonal(other.to(dtype)).double()).abs().max().item()
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    }
    assert far[torch.float32] == pytest.approx(far[torch.float64], rel=0.2) and far[torch.float64] < 5e-5
    assert far[torch.bfloat16] > 1e-3


def test_a_step_that_is_not_finite_moves_nothing() -> None:
    """Told by `found_inf`, as torch's own optimisers are: neither the weights nor the momentum, to the bit."""
    [p] = matrices()[:1]
    optimizer = Muon([p], lr=0.1, weight_decay=0.1)
    for bad in (False, True):
        before, momentum = p.clone(), optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros(1)).clone()
        p.grad = torch.full_like(p, float("nan")) if bad else torch.ones_like(p)
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        assert torch.equal(p, before) is bad
    assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum)


def test_halves_of_a_batch_draw_the_curve_of_the_whole(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-5 over 25 steps where it orthogonalises in float32, so it is fed what it ought to be."""
    set_fast(monkeypatch, fast=False)
    curves = []
    for accumulate in (1, 2):
        config = make_config(optimizer__name="muon", accumulate=accumulate, optimizer__warmup_steps=5)
        data, state = load_data(config), make_state(config, torch.device("cpu"))
        curves.append(
            [train_step(config, state, draw_batch(config, data, k), torch.device("cpu")).loss.item() for k in range(25)]
        )
    assert curves[0] == pytest.approx(curves[1], rel=0, abs=1e-5)
