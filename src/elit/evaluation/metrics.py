"""Measures of sets of features, as pure functions; in float64 where nothing else is said.

Shapes: N and M rows, D features.
"""

import math

import torch
from torch import Tensor


def mean_and_covariance(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64."""
    x = features_ND.double()
    return x.mean(0), torch.atleast_2d(torch.cov(x.T))


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Dowson and Landau, 1982; Heusel et al., 2017).

    The last trace is the nuclear norm of A^1/2 B^1/2, with roots by symmetric eigen-decomposition: always real, exact to
    rounding, and finite for singular covariances, whose rank is at most the count of samples less one.
    """
    mean_a, cov_a, mean_b, cov_b = (torch.as_tensor(x).double() for x in (mean_a, cov_a, mean_b, cov_b))
    cross = torch.linalg.svdvals(symmetric_root(cov_a) @ symmetric_root(cov_b)).sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def symmetric_root(matrix_DD: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix; eigenvalues below zero are rounding, and zero."""
    values, vectors = torch.linalg.eigh(matrix_DD)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """KID, the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al., 2018).

    Unbiased at any count of samples, so it may come out slightly below zero for equal distributions.
    """
    a, b = a_ND.double(), b_MD.double()
    n, m, d = len(a), len(b), a.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"the kernel distance needs at least 2 samples on each side, not {n} and {m}")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / d + 1) ** 3

    k_aa, k_bb = kernel(a, a), kernel(b, b)
    within = (k_aa.sum() - k_aa.trace()) / (n * (n - 1)) + (k_bb.sum() - k_bb.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two lists without ties."""

    def ranks(x: Tensor) -> Tensor:
        return x.argsort().argsort().double()

    return float(torch.corrcoef(torch.stack([ranks(torch.as_tensor(a)), ranks(torch.as_tensor(b))]))[0, 1])


BLOCK = 2048  # rows compared at a time: a block of distances to 10,000 others takes 80 MB in float32


def precision_recall(reference_ND: Tensor, samples_MD: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019), both in [0, 1].

    A ball around every point of a set reaches to its k-th nearest neighbour in that set. Precision is the share of samples
    inside **any** ball of the reference, recall the share of the reference inside any ball of the samples. Distances are
    computed in the features' own dtype, of centred features, block by block. Raises ValueError for fewer than k + 1 rows.
    """
    reference, samples = _centred(reference_ND, samples_MD, k)
    reference_radii, sample_radii = _squared_radii(reference, k), _squared_radii(samples, k)
    inside, covered = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for some, radii in zip(samples.split(BLOCK), sample_radii.split(BLOCK), strict=True):
        distances = _squared_distances(some, reference)
        inside += int((distances <= reference_radii).any(1).sum())
        covered |= (distances <= radii[:, None]).any(0)
    return inside / len(samples), float(covered.double().mean())


def density_coverage(reference_ND: Tensor, samples_MD: Tensor, k: int = 5) -> tuple[float, float]:
    """Density, at least 0, and coverage, in [0, 1] (Naeem et al., 2020), of balls as in `precision_recall`.

    Density is the mean count of reference balls that a sample is in, over k; coverage the share of reference balls with a
    sample inside.
    """
    reference, samples = _centred(reference_ND, samples_MD, k)
    radii = _squared_radii(reference, k)
    count, covered = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for some in samples.split(BLOCK):
        inside = _squared_distances(some, reference) <= radii
        count += int(inside.sum())
        covered |= inside.any(0)
    return count / (k * len(samples)), float(covered.double().mean())


def nearest(samples_MD: Tensor, reference_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The distance (M,) of every sample to its nearest reference, and that one's index (M,): what was memorised."""
    reference, samples = _centred(reference_ND, samples_MD, 0)
    found = [_squared_distances(some, reference).min(1) for some in samples.split(BLOCK)]
    return torch.cat([near.values for near in found]).sqrt(), torch.cat([near.indices for near in found])


def inception_score(logits_NK: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans et al., 2016): mean and deviation over the splits.

    The splits are runs of N / splits rows in the order given, as in the original. Raises ValueError for fewer rows.
    """
    if not 1 <= splits <= len(logits_NK):
        raise ValueError(f"{len(logits_NK)} rows cannot be cut into {splits} splits")
    scores = []
    for some in logits_NK.double().log_softmax(1).tensor_split(splits):
        marginal = some.logsumexp(0) - math.log(len(some))
        scores.append((some.exp() * (some - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))


def _centred(reference_ND: Tensor, samples_MD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both without the reference's mean, which keeps the products of their distances small."""
    least = min(len(reference_ND), len(samples_MD))
    if least <= k or k < 0:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} rows on each side, not {least}")
    mean = reference_ND.mean(0)
    return reference_ND - mean, samples_MD - mean


def _squared_distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return torch.addmm(a_ND.square().sum(1)[:, None] + b_MD.square().sum(1), a_ND, b_MD.T, alpha=-2).clamp_(min=0)


def _squared_radii(x_ND: Tensor, k: int) -> Tensor:
    """(N,): the squared distance of every row to its k-th nearest other row."""
    radii = []
    for first in range(0, len(x_ND), BLOCK):
        distances = _squared_distances(x_ND[first : first + BLOCK], x_ND)
        distances.diagonal(first).fill_(torch.inf)  # not to itself
        radii.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)
