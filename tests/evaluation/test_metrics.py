"""Distances against scipy, torchmetrics, brute force and closed forms."""

import math
import random

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elit.evaluation import metrics
from elit.evaluation.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_distance_interval,
    kernel_distance_rows,
    kernel_distance_subsets,
    mean_and_covariance,
    precision_recall,
    rank_correlation,
)
from elit.seeding import generator_for


def features(count: int, width: int, *key: str | int) -> Tensor:
    """Correlated features of unequal scales, float64."""
    generator = generator_for("metrics", *key)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + shift


def distance_between(a: Tensor, b: Tensor) -> float:
    return frechet_distance(*mean_and_covariance(a), *mean_and_covariance(b))


def test_mean_and_covariance_by_their_definitions() -> None:
    """The covariance is unbiased, and both are float64 whatever the features are."""
    x = features(7, 3, "moments").float()
    mean, covariance = mean_and_covariance(x)
    rows = x.double()
    expected = sum(torch.outer(row - rows.mean(0), row - rows.mean(0)) for row in rows) / 6
    assert mean.dtype == covariance.dtype == torch.float64
    torch.testing.assert_close(mean, rows.sum(0) / 7)
    torch.testing.assert_close(covariance, expected)


def test_features_of_width_one() -> None:
    """One feature has a covariance of one row and one column, and the distance of two normal laws on a line."""
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [11.0]])
    assert mean_and_covariance(a)[1].shape == (1, 1)
    assert distance_between(a, b) == pytest.approx((7 - 1) ** 2 + (math.sqrt(12) - math.sqrt(2)) ** 2)


@pytest.mark.parametrize("width", [2, 5, 40])
def test_frechet_is_scipys_formula(width: int) -> None:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) with scipy's general matrix root."""
    (mean_a, a), (mean_b, b) = (mean_and_covariance(features(300, width, "scipy", i)) for i in range(2))
    root = scipy.linalg.sqrtm((a @ b).numpy())
    expected = (mean_a - mean_b).square().sum().item() + (a + b).trace().item() - 2 * root.trace().real
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_commuting_gaussians() -> None:
    """For diagonal covariances it is the sum of squared differences of means and of deviations, rotated or not."""
    generator = generator_for("commuting")
    means = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    deviations = torch.rand(2, 6, generator=generator, dtype=torch.float64) * 3
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    expected = ((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2).sum().item()
    plain = [(means[i], deviations[i].square().diag()) for i in range(2)]
    turned = [(turn @ mean, turn @ covariance @ turn.T) for mean, covariance in plain]
    assert frechet_distance(*plain[0], *plain[1]) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(expected, rel=1e-9)


class AsTheyAre(nn.Module):
    """The "network" of a metric that is given features instead of images."""

    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_frechet_is_torchmetrics() -> None:
    """The same features through torchmetrics' metric, which sums moments over batches, in float64."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # which takes seconds, and not all who collect need

    a, b = features(200, 12, "tm", 0), features(150, 12, "tm", 1)
    metric = FrechetInceptionDistance(feature=AsTheyAre(), normalize=True).set_dtype(torch.float64)
    for real, x in ((True, a), (False, b)):
        for batch in x.split(64):
            metric.update(batch, real=real)
    assert distance_between(a, b) == pytest.approx(metric.compute().item(), rel=1e-5)


def test_frechet_of_fewer_samples_than_features() -> None:
    """Singular covariances give a finite distance, right where it is known: of a line and a plane."""
    few = features(5, 64, "few"), features(9, 64, "more")
    assert math.isfinite(distance_between(*few))
    assert distance_between(*few) > 0
    on_line, on_plane = torch.zeros(2, 50, 64, dtype=torch.float64)
    on_line[:, 3] = features(50, 1, "line")[:, 0]
    on_plane[:, 3:5] = features(50, 2, "plane")
    expected = distance_between(on_line[:, 3:5], on_plane[:, 3:5])
    assert distance_between(on_line, on_plane) == pytest.approx(expected, rel=1e-6)


def of_spectrum(count: int, width: int, decay: float, *key: int | str) -> Tensor:
    """The covariance of features whose deviations fall as a power of their rank, turned at random."""
    generator = generator_for("spectrum", *key)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    deviations = torch.arange(1, width + 1).double() ** -decay
    return torch.cov((torch.randn(count, width, generator=generator, dtype=torch.float64) * deviations @ turn).T)


def by_singular_values(a: Tensor, b: Tensor) -> float:
    """tr(A + B) - 2 |A^1/2 B^1/2|_1 with roots and singular values by NumPy: slow, and exact for singular ones."""

    def root(x: Tensor) -> np.ndarray:
        values, vectors = np.linalg.eigh(x.numpy())
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    return float((a + b).trace()) - 2 * np.linalg.svd(root(a) @ root(b), compute_uv=False).sum()


@pytest.mark.parametrize(
    ("counts", "decay"),
    [((900, 700), 0.5), ((900, 700), 1.5), ((900, 700), 3), ((60, 900), 0.5), ((900, 60), 1), ((60, 80), 1), ((80, 60), 0)],
)
def test_frechet_of_any_spectrum_and_rank(counts: tuple[int, int], decay: float) -> None:
    """Covariances well-posed, decaying to 1e-13, and singular on either side or on both, to a millionth."""
    from torchmetrics.image.fid import _compute_fid

    a, b = (of_spectrum(count, 120, decay, i) for i, count in enumerate(counts))
    zero = torch.zeros(120)
    distance = frechet_distance(zero, a, zero, b)
    assert distance == pytest.approx(by_singular_values(a, b), rel=1e-6)
    assert frechet_distance(zero, b, zero, a) == pytest.approx(distance, rel=1e-6)
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-7 * a.trace().item())
    if min(counts) > 120 and decay < 3:  # where the general root is well-posed
        root = scipy.linalg.sqrtm((a @ b).numpy()).trace().real
        assert distance == pytest.approx((a + b).trace().item() - 2 * root, rel=1e-6)
        assert distance == pytest.approx(_compute_fid(zero, a, zero, b).item(), rel=1e-6)


def test_frechet_of_what_never_varies() -> None:
    """A covariance of zeros, and one with empty rows, of features that are constant."""
    zero, one, some = torch.zeros(3, 3), torch.eye(3), torch.diag(torch.tensor([4.0, 0, 1]))
    mean = torch.zeros(3)
    assert frechet_distance(mean, zero, mean, zero) == 0
    assert frechet_distance(mean, zero, mean + 2, one) == pytest.approx(12 + 3)
    assert frechet_distance(mean, one, mean, some) == pytest.approx(1 + 1)
    assert frechet_distance(mean, some, mean, zero) == pytest.approx(5)


def test_means_and_covariances_that_do_not_fit() -> None:
    mean, covariance = torch.zeros(3), torch.eye(3)
    for wrong in [(mean, covariance, torch.zeros(4), torch.eye(4)), (mean, covariance[:2], mean, covariance)]:
        with pytest.raises(ValueError, match="of one width D are compared, and not"):
            frechet_distance(*wrong)
    with pytest.raises(ValueError, match="9 of 9 values of the means and covariances are NaN"):
        frechet_distance(mean, covariance, mean, covariance / 0)
    with pytest.raises(ValueError, match="at least 2 rows, not 1"):
        mean_and_covariance(torch.zeros(1, 3))


@pytest.mark.parametrize("count", [5, 400])
def test_frechet_of_a_set_and_itself_is_zero(count: int) -> None:
    """Zero to rounding beside the covariance's trace, for singular covariances too, and in whatever order."""
    x = features(count, 64, "itself")
    zero = pytest.approx(0, abs=1e-6 * mean_and_covariance(x)[1].trace().item())
    assert distance_between(x, x) == zero
    assert distance_between(x, x[torch.randperm(count, generator=generator_for("itself"))]) == zero


@given(st.integers(2, 6), st.integers(2, 30), st.integers(2, 30), st.integers(0, 10**6))
def test_frechet_is_symmetric_and_blind_to_order(width: int, n: int, m: int, seed: int) -> None:
    """d(a, b) = d(b, a) = d(shuffled a, b), never below zero by more than rounding, and a shift adds its square."""
    a, b = features(n, width, seed, 0), features(m, width, seed, 1)
    distance, shuffled = distance_between(a, b), a[random.Random(seed).sample(range(n), n)]
    close = pytest.approx(distance, rel=1e-6, abs=1e-5)
    assert distance > -1e-6
    assert distance_between(b, a) == close
    assert distance_between(shuffled, b) == close
    aligned = distance_between(a - a.mean(0), b - b.mean(0))
    assert distance == pytest.approx(aligned + (a.mean(0) - b.mean(0)).square().sum().item(), rel=1e-6, abs=1e-5)


def brute_kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased estimator, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (sum(p * q for p, q in zip(x.tolist(), y.tolist(), strict=True)) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 4), (12, 20)])
def test_kernel_distance_pair_by_pair(n: int, m: int) -> None:
    """Sets of unequal size too."""
    a, b = features(n, 5, "kid", 0), features(m, 5, "kid", 1)
    assert kernel_distance(a, b) == pytest.approx(brute_kernel_distance(a, b), rel=1e-9)


def test_kernel_distance_rows_are_the_jackknifes() -> None:
    """Row i's is n times the distance less n - 1 times that without row i; their error is the jackknife's."""
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(7, 5, generator=generator), torch.randn(9, 5, generator=generator) + 0.5
    rows = kernel_distance_rows(a, b)
    for i in range(7):
        without = torch.cat([a[:i], a[i + 1 :]])
        assert rows[i].item() == pytest.approx(7 * brute_kernel_distance(a, b) - 6 * brute_kernel_distance(without, b))
    spread = torch.tensor([brute_kernel_distance(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(7)])
    assert rows.var().item() / 7 == pytest.approx(6 / 7 * (spread - spread.mean()).square().sum().item())


def test_kernel_distance_is_torchmetrics() -> None:
    """KID of one subset that is the whole."""
    from torchmetrics.image.kid import poly_mmd

    a, b = features(60, 12, "tmk", 0), features(60, 12, "tmk", 1)
    assert kernel_distance(a, b) == pytest.approx(poly_mmd(a, b).item(), rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    """Between samples of one law it is zero on the average, below and above it; a shift is seen."""
    draws = torch.randn(400, 2, 8, 4, generator=generator_for("unbiased"), dtype=torch.float64)
    values = torch.tensor([kernel_distance(a, b) for a, b in draws])
    assert values.mean().abs() < 3 * values.std() / math.sqrt(400)
    assert 100 < (values < 0).sum() < 300
    assert min(kernel_distance(a, b + 2) for a, b in draws) > 0


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6))
def test_kernel_distance_is_symmetric_and_blind_to_order(n: int, m: int, seed: int) -> None:
    """k(a, b) = k(b, a), whatever the order of the rows."""
    a, b = features(n, 4, seed, 2), features(m, 4, seed, 3)
    close = pytest.approx(kernel_distance(a, b), rel=1e-9, abs=1e-9)
    assert kernel_distance(b, a) == close
    assert kernel_distance(a.flip(0), b[random.Random(seed).sample(range(m), m)]) == close


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 2)])
def test_kernel_distance_of_one_sample_is_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"not {n} and {m}"):
        kernel_distance(torch.zeros(n, 3), torch.zeros(m, 3))


@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)), min_size=3, max_size=40))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    """Spearman's rho of lists without ties, in any order of the pairs, under any growing function."""
    a = [float(i) for i in random.Random(len(pairs)).sample(range(1000), len(pairs))]
    b = [second + i / 1000 for i, (_, second) in enumerate(pairs)]  # no ties
    rho = rank_correlation(torch.tensor(a), torch.tensor(b, dtype=torch.float64))
    assert rho == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)
    assert rank_correlation(torch.tensor(a).flip(0), torch.tensor(b, dtype=torch.float64).flip(0)) == pytest.approx(rho)
    assert rank_correlation((torch.tensor(a) / 100).exp(), torch.tensor(b, dtype=torch.float64)) == pytest.approx(rho)


def test_rank_correlation_of_lists_that_agree_or_oppose() -> None:
    assert rank_correlation(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([10, 99, 12])) == pytest.approx(1)
    assert rank_correlation(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([3, 1, 2])) == pytest.approx(-1)


def test_rank_correlation_of_ties_is_scipys() -> None:
    a, b = [1.0, 2, 2, 3, 3, 3, 0], [5.0, 5, 1, 2, 2, 9, 5]
    assert rank_correlation(np.array(a), torch.tensor(b)) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(torch.ones(4), torch.arange(4)))


@pytest.mark.parametrize("block", [5, 2048])
def test_kernel_sums_do_not_depend_on_the_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    a, b = features(12, 5, "block", 0), features(23, 5, "block", 1)
    halves = [(e.high - e.low) / 2 for e in (kernel_distance_interval(a, b), kernel_distance_interval(b, a))]
    monkeypatch.setattr(metrics, "BLOCK", 100)
    whole = kernel_distance_interval(a, b)
    assert halves == pytest.approx([(whole.high - whole.low) / 2] * 2, rel=1e-9)
    monkeypatch.setattr(metrics, "BLOCK", block)
    assert kernel_distance(a, b) == pytest.approx(brute_kernel_distance(a, b), rel=1e-9)
    assert kernel_distance(a, a.clone()) == pytest.approx(brute_kernel_distance(a, a), rel=1e-9)
    assert kernel_distance(a, a) == pytest.approx(brute_kernel_distance(a, a), rel=1e-9)


def test_kernel_subsets_are_torchmetrics() -> None:
    """Mean and deviation over subsets, within four standard errors of torchmetrics' own draws."""
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = features(90, 12, "subsets", 0) / 5, features(70, 12, "subsets", 1) / 5
    theirs = KernelInceptionDistance(feature=AsTheyAre(), subsets=300, subset_size=40, normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    torch.manual_seed(0)
    mean, deviation = (value.item() for value in theirs.compute())
    ours = kernel_distance_subsets(a, b, subsets=300, size=40)
    assert ours[0] == pytest.approx(mean, abs=4 * deviation * math.sqrt(2 / 300))
    assert ours[1] == pytest.approx(deviation, rel=0.25)
    whole = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=70, normalize=True).set_dtype(torch.float64)
    whole.update(a[:70], real=True)
    whole.update(b, real=False)
    assert kernel_distance_subsets(a[:70], b, 1, 70)[0] == pytest.approx(whole.compute()[0].item(), rel=1e-9)


MEASURES = {
    "moments": lambda x, y: [z.tolist() for z in (*mean_and_covariance(x), *mean_and_covariance(y))],
    "kernel": kernel_distance,
    "interval": kernel_distance_interval,
    "subsets": lambda x, y: kernel_distance_subsets(x, y, 3, 6),
    "precision": precision_recall,
    "density": metrics.density_coverage,
    "nearest": lambda x, y: [z.tolist() for z in metrics.nearest(x, y)],
    "memorisation": lambda x, y: metrics.memorisation(x, y).ratio.tolist(),
    "inception": lambda x, y: inception_score(x, 2) + inception_score(y, 2),
}


@pytest.mark.parametrize("name", MEASURES)
def test_arrays_and_tensors_alike(name: str) -> None:
    """NumPy's arrays, read-only or run backwards, give what tensors give; integers what floats give."""
    measure = MEASURES[name]
    a, b = (10 * features(12, 4, "kinds", 0)).round(), (10 * features(9, 4, "kinds", 1)).round()
    expected = measure(a, b)
    backwards, frozen = a.flip(0).numpy()[::-1], b.numpy().copy()
    frozen.flags.writeable = False
    assert measure(backwards, frozen) == expected
    assert measure(a.int(), b.numpy().astype(np.int64)) == expected


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("name", MEASURES)
def test_features_that_are_not_finite_are_refused(name: str, wrong: float) -> None:
    a, b = features(12, 4, "nan", 0), features(9, 4, "nan", 1)
    b[3, 2] = wrong
    with pytest.raises(ValueError, match="1 of 36 values of the features are NaN or infinite"):
        MEASURES[name](a, b)


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a row for each image, and not of shape \(3,\)"):
        mean_and_covariance(torch.zeros(3))
    with pytest.raises(ValueError, match="of one width are compared, and not 3 with 4"):
        precision_recall(torch.zeros(9, 3), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="of one width are compared, and not 3 with 4"):
        kernel_distance(torch.zeros(9, 3), torch.zeros(9, 4))
