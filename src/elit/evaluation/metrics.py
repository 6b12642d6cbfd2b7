"""Distances between two sets of features, in float64, as pure functions.

Shapes: N and M rows, D features.
"""

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
