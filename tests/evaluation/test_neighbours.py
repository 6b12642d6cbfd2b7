"""Precision, recall, density, coverage and the nearest reference against their definitions, pair by pair in float64."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elit.evaluation import metrics
from elit.evaluation.metrics import (
    density_coverage,
    inception_score,
    memorisation,
    nearest,
    neighbours,
    precision_recall,
)
from elit.seeding import generator_for


def points(count: int, width: int, *key: int | str, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=generator_for("neighbours", *key), dtype=torch.float64) + shift


def distance(a: Tensor, b: Tensor) -> float:
    return math.dist(a.tolist(), b.tolist())


def radius(index: int, x: Tensor, k: int) -> float:
    """To the k-th nearest other point of the set."""
    return sorted(distance(x[index], other) for i, other in enumerate(x) if i != index)[k - 1]


def share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points inside any ball of the centres."""
    radii = [radius(i, centres, k) for i in range(len(centres))]
    inside = [any(distance(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
    return sum(inside) / len(points)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [7, 2048])
def test_precision_and_recall_by_their_definitions(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the block; the two sets overlap in part."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    reference, samples = points(40, 3, "r"), points(30, 3, "s", shift=0.8)
    precision, recall = precision_recall(reference, samples, k)
    assert precision == pytest.approx(share_inside(samples, reference, k))
    assert recall == pytest.approx(share_inside(reference, samples, k))
    assert 0.1 < precision < 0.95 and 0.1 < recall < 0.95


def test_any_ball_counts_and_not_that_of_the_nearest_alone() -> None:
    """The sample's nearest reference point has a small ball that misses it; a farther one's large ball holds it."""
    reference = torch.tensor([[0.0], [0.1], [3.0], [9.0]])
    samples = torch.tensor([[1.0], [50.0]])
    assert precision_recall(reference, samples, 1)[0] == 0.5  # 3.0 reaches to 0.1, and so to 1.0


def test_a_point_on_the_edge_of_a_ball_is_inside() -> None:
    """So copies count: of a reference whose pictures come twice, balls reach no farther than their own points."""
    reference = torch.tensor([[0.0], [0.0], [4.0], [4.0], [9.0], [9.0]])
    assert precision_recall(reference, torch.tensor([[4.0], [9.0], [5.0]]), 1) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )


@pytest.mark.parametrize("block", [7, 2048])
def test_density_and_coverage_by_their_definitions(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    reference, samples, k = points(40, 3, "r"), points(30, 3, "s", shift=0.8), 5
    radii = [radius(i, reference, k) for i in range(40)]
    inside = [[distance(s, r) <= bound for r, bound in zip(reference, radii, strict=True)] for s in samples]
    density, coverage = density_coverage(reference, samples, k)
    assert density == pytest.approx(sum(map(sum, inside)) / (k * 30))
    assert coverage == pytest.approx(sum(any(column) for column in zip(*inside, strict=True)) / 40)


def test_float32_far_from_the_origin_is_float64() -> None:
    """Centring keeps single precision right where the mean is a thousand deviations away."""
    reference, samples = points(60, 5, "far", shift=1000.0), points(50, 5, "far s", shift=1000.5)
    assert precision_recall(reference.float(), samples.float()) == precision_recall(
        reference.float().double(), samples.float().double()
    )


def test_nearest_finds_the_copy() -> None:
    reference = points(50, 4, "copies")
    found, index = nearest(reference[[7, 3]] + torch.tensor([[0.0] * 4, [0.003, 0, 0, 0.004]]), reference)
    assert index.tolist() == [7, 3]
    assert found.tolist() == pytest.approx([0, 0.005], abs=1e-6)


@pytest.mark.parametrize("block", [7, 2048])
def test_neighbours_and_ratios_by_their_definitions(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted distances, the indices that have them, and the first over the second, which order does not change."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    training, samples = points(30, 4, "t"), points(20, 4, "u")
    found, index = neighbours(samples, training, 3)
    for i, sample in enumerate(samples):
        expected = sorted((distance(sample, image), j) for j, image in enumerate(training))[:3]
        assert found[i].tolist() == pytest.approx([d for d, _ in expected])
        assert index[i].tolist() == [j for _, j in expected]
    told = memorisation(samples, training)
    assert told.ratio.tolist() == pytest.approx((found[:, 0] / found[:, 1]).tolist())
    assert (told.distance.tolist(), told.index.tolist()) == (found[:, 0].tolist(), index[:, 0].tolist())
    flipped = memorisation(samples, training.flip(0))
    assert flipped.ratio.tolist() == pytest.approx(told.ratio.tolist())
    assert (29 - flipped.index).tolist() == told.index.tolist()


def test_neighbours_nearer_to_each_other_than_products_can_tell() -> None:
    """In single precision, 1,000 deviations from the mean: 2 |x|^2 is 4e6, and the squared distances are below 1e-4."""
    cluster = 1000 + 0.001 * torch.arange(1, 9)
    reference = torch.cat([cluster, -cluster])[torch.randperm(16, generator=generator_for("cluster"))][:, None]
    found, index = neighbours(torch.tensor([[1000.0], [-1000.0]]), reference, 3)
    assert reference[index][..., 0].tolist() == [cluster[:3].tolist(), (-cluster[:3]).tolist()]
    assert found.tolist() == [pytest.approx([0.001, 0.002, 0.003], rel=0.1)] * 2


def test_copies_are_found_and_come_first() -> None:
    """Exact copies in single precision, far from the origin, of an image that is there twice too; and a near copy."""
    training = points(40, 6, "training", shift=100.0).float()
    training[11] = training[30]
    samples = torch.cat([points(5, 6, "new", shift=100.0).float(), training[[30, 2]], training[[7]] + 0.001])
    told = memorisation(samples, training)
    assert told.distance[5:7].tolist() == told.ratio[5:7].tolist() == [0, 0]
    assert told.index[6:].tolist() == [2, 7] and int(told.index[5]) in (11, 30)
    assert set(told.closest(3).tolist()) == {5, 6, 7} and told.closest(3)[2] == 7
    assert told.share() == pytest.approx(float((told.ratio < 1 / 3).double().mean())) and told.share() >= 3 / 8
    assert told.share(below=2.0) == 1
    with pytest.raises(ValueError, match="no 2 nearest of 1 references"):
        memorisation(samples, training[:1])


@given(st.integers(5, 20), st.integers(5, 20), st.integers(0, 10**6))
def test_the_same_set_is_precise_recalled_and_covered_in_any_order(n: int, m: int, seed: int) -> None:
    """Of identical sets everything is 1; swapping the sets swaps precision and recall; the order does not matter."""
    a, b = points(n, 3, seed, 0), points(m, 3, seed, 1)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert density_coverage(a, a, 3)[1] == 1.0
    precision, recall = precision_recall(a, b)
    assert precision_recall(b, a) == pytest.approx((recall, precision))
    assert precision_recall(a.flip(0), b.roll(2, 0)) == pytest.approx((precision, recall))


@pytest.mark.parametrize(("n", "m"), [(3, 9), (9, 3)])
def test_too_few_rows_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="needs more than 3 rows on each side, not 3"):
        precision_recall(torch.zeros(n, 2), torch.zeros(m, 2))
    with pytest.raises(ValueError, match="needs more than 5 rows"):
        density_coverage(torch.zeros(n, 2), torch.zeros(m, 2))


def test_inception_score_by_its_definition() -> None:
    logits = 3 * points(24, 6, "logits")
    expected = []
    for part in logits.split(8):
        p = part.softmax(1)
        kl = [sum(q * math.log(q / m) for q, m in zip(row.tolist(), p.mean(0).tolist(), strict=True)) for row in p]
        expected.append(math.exp(sum(kl) / 8))
    mean, deviation = inception_score(logits, splits=3)
    assert mean == pytest.approx(sum(expected) / 3)
    assert deviation == pytest.approx(math.sqrt(sum((e - mean) ** 2 for e in expected) / 3))


def test_splits_are_cut_where_the_original_cuts_them() -> None:
    """At i N // splits: of 11 rows in 3 splits 0 to 3, 3 to 7 and 7 to 11."""
    logits = 3 * points(11, 6, "uneven")
    parts = [inception_score(logits[a:b], 1)[0] for a, b in ((0, 3), (3, 7), (7, 11))]
    assert inception_score(logits, 3)[0] == pytest.approx(sum(parts) / 3)
    assert inception_score(logits, 3)[1] == pytest.approx(statistics.pstdev(parts))


def test_inception_score_of_certain_and_uncertain_classes() -> None:
    """K sure and equal classes score K; one class, or none for sure, scores 1. Fewer rows than splits are refused."""
    assert inception_score(1000 * torch.eye(5).repeat(4, 1), 1)[0] == pytest.approx(5)
    assert inception_score(torch.zeros(9, 5), 3) == pytest.approx((1, 0))
    assert inception_score(1000 * torch.eye(5)[[2] * 6], 2) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="3 rows cannot be cut into 10 splits"):
        inception_score(torch.zeros(3, 5))
