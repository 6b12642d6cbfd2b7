"""Streamed moments: bit for bit the same for any cut and order, and right to the last digits."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elit.evaluation import moments as moments_module
from elit.evaluation.metrics import mean_and_covariance
from elit.evaluation.moments import LARGEST, UNIT, MomentSums
from elit.seeding import generator_for


def sums_of(parts: list[Tensor], width: int) -> MomentSums:
    sums = MomentSums(width)
    for part in parts:
        sums.add(part)
    return sums


def exact_covariance(rows_ND: Tensor) -> list[list[Fraction]]:
    """The unbiased covariance of the rows rounded to UNIT, in rational numbers."""
    scale = Fraction(UNIT)
    rows = [[round(Fraction(value) / scale) * scale for value in row] for row in rows_ND.double().tolist()]
    n, d = len(rows), len(rows[0])
    mean = [sum((row[i] for row in rows), Fraction(0)) / n for i in range(d)]
    return [[sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) / (n - 1) for j in range(d)] for i in range(d)]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), max_size=6), owners=st.randoms(use_true_random=False))
def test_any_cut_order_and_owner_give_the_same_bits(seed: int, cuts: list[int], owners: object) -> None:
    """Rows in one batch, or cut anywhere, shuffled, handed to several sums and merged in any order."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 4, (5,), generator=generator)
    rows = torch.randn(60, 5, generator=generator) * scales + scales
    whole = sums_of([rows], 5).moments()
    shuffled = rows[torch.randperm(60, generator=generator)]
    parts = list(shuffled.tensor_split(sorted(cuts)))
    parties = [MomentSums(5) for _ in range(3)]
    for part in parts:
        parties[owners.randrange(3)].add(part)  # type: ignore[attr-defined]
    owners.shuffle(parties)  # type: ignore[attr-defined]
    total = MomentSums(5)
    for party in parties:
        total.merge(party)
    merged = total.moments()
    assert total.count == 60
    assert torch.equal(merged.mean, whole.mean)
    assert torch.equal(merged.covariance, whole.covariance)


def test_slabs_are_exact_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a slab holds, added in pieces of every size; and other slabs give the same bits."""
    rows = 3 * torch.randn(5000, 24, generator=generator_for("slabs"))
    one = sums_of([rows], 24).moments()
    pieces = sums_of(list(rows.split([1, 1023, 1500, 7, 2469])), 24).moments()
    monkeypatch.setattr(moments_module, "SLAB", 37)
    other = sums_of([rows], 24).moments()
    for found in (pieces, other):
        assert torch.equal(found.mean, one.mean)
        assert torch.equal(found.covariance, one.covariance)
    mean, covariance = mean_and_covariance(rows)
    torch.testing.assert_close(one.mean, mean, rtol=0, atol=UNIT)
    torch.testing.assert_close(one.covariance, covariance, rtol=0, atol=20 * UNIT / 5000**0.5)


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1000.0, 1e-3), (-16000.0, 1e-4), (0.3, 1e-6), (0.0, 5000.0)])
def test_moments_are_exact_whatever_the_offset(offset: float, spread: float) -> None:
    """Against rational numbers: a mean ten million deviations from zero costs no digits."""
    rows = offset + spread * torch.randn(40, 4, generator=generator_for("offset"), dtype=torch.float64).clamp(-3, 3)
    found = sums_of([rows], 4).moments()
    expected = torch.tensor([[float(value) for value in row] for row in exact_covariance(rows)], dtype=torch.float64)
    torch.testing.assert_close(found.covariance, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-14, atol=UNIT)


def test_extreme_values_do_not_overflow() -> None:
    """Values at the limit, of one sign, in more rows than a slab."""
    rows = torch.full((3000, 3), LARGEST)
    rows[::2, 1] = -LARGEST
    found = sums_of([rows], 3).moments()
    assert found.mean.tolist() == [LARGEST, 0.0, LARGEST]
    assert found.covariance[1, 1] == pytest.approx(LARGEST**2 * 3000 / 2999, rel=1e-15)
    assert found.covariance[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -2 * LARGEST])
def test_values_that_cannot_be_summed_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite, or beyond 16,384"):
        MomentSums(2).add(torch.tensor([[0.0, bad]]))


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        sums_of([torch.zeros(1, 2)], 2).moments()
    with pytest.raises(ValueError, match="rows of 2 features"):
        MomentSums(2).add(torch.zeros(3, 4))
