"""Measures of sets of features, as pure functions; in float64 where nothing else is said.

Features are NumPy arrays or tensors; a value that is not finite is a ValueError. docs/evaluation.md says how each
measure differs from the figures that others publish under its name. Shapes: N and M rows, D features.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from elit.errors import UserError
from elit.evaluation.intervals import Array, Estimate, draws, normal_interval, to_tensor
from elit.seeding import generator_for

BLOCK = 2048  # rows compared at a time: a block of distances to 10,000 others takes 80 MB in float32
ROUNDING = 1e-6  # of covariances, which may have been kept in float32
SHARE_DRAWN = 0.64  # of different rows, in as many drawn with replacement: 1 - 1 / e, and a little more
SPARE = 8  # neighbours more than asked for that are measured exactly


def as_features(features_ND: Array) -> Tensor:
    """The features as a matrix of float32 or float64. Raises UserError for another shape, or values that are not finite."""
    x = to_tensor(features_ND)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float() if x.is_floating_point() else x.double()
    if x.ndim != 2:
        raise UserError(f"features are a matrix, a row for each image, and not of shape {tuple(x.shape)}")
    _check_finite(x, "the features")
    return x


def _of_one_width(a_ND: Array, b_MD: Array) -> tuple[Tensor, Tensor]:
    a, b = as_features(a_ND), as_features(b_MD)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"features of one width are compared, and not {a.shape[1]} with {b.shape[1]}")
    return a, b


def _check_finite(x: Tensor, name: str) -> None:
    finite = x.isfinite()
    if not finite.all():
        count = int((~finite).sum())
        raise UserError(f"{count} of {x.numel()} values of {name} are NaN or infinite; look at the images they come from")


def mean_and_covariance(features_ND: Array) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64. Raises UserError for fewer than 2 rows."""
    x = as_features(features_ND).double()
    if len(x) < 2:
        raise UserError(f"a covariance needs at least 2 rows, not {len(x)}")
    return x.mean(0), torch.atleast_2d(torch.cov(x.T))


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Dowson and Landau, 1982; Heusel et al., 2017).

    For any factor F F^T = A, the last trace is the sum of the roots of the eigenvalues of F^T B F: always real. F is
    Cholesky's where both are positive definite. A singular covariance (its rank is below the count of samples) is factored
    by its eigenvectors, with those left out whose eigenvalue is rounding. Raises UserError for shapes that do not agree,
    for values that are not finite, and for covariances that are none.
    """
    mean_a, cov_a, mean_b, cov_b = (to_tensor(x).double() for x in (mean_a, cov_a, mean_b, cov_b))
    (width,) = mean_a.shape if mean_a.ndim == 1 else (-1,)
    if mean_b.shape != (width,) or cov_a.shape != (width, width) or cov_b.shape != (width, width):
        shapes = ", ".join(str(tuple(x.shape)) for x in (mean_a, cov_a, mean_b, cov_b))
        raise UserError(f"means (D,) and covariances (D, D) of one width D are compared, and not {shapes}")
    for x in (mean_a, cov_a, mean_b, cov_b):
        _check_finite(x, "the means and covariances")
    check_covariance(cov_a, "the first covariance")
    check_covariance(cov_b, "the second covariance")
    factor, other = _factor_of_one(cov_a, cov_b)
    return float(
        (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * _root_trace(factor.T @ other @ factor)
    )


def check_covariance(cov_DD: Tensor, name: str) -> None:
    """Raises UserError for a matrix that is no covariance: not symmetric, or with a negative eigenvalue beyond rounding.

    Rounding is a millionth, for the one of the largest number, for the other of the trace: matrices kept in float32 pass.
    """
    largest = float(cov_DD.abs().max()) if cov_DD.numel() else 0.0
    if float((cov_DD - cov_DD.T).abs().max() if cov_DD.numel() else 0.0) > ROUNDING * largest:
        raise UserError(f"{name} is no covariance: it is not symmetric; fetch or make it again")
    shift = ROUNDING * float(cov_DD.trace()) + torch.finfo(torch.float64).tiny
    _, failed = torch.linalg.cholesky_ex(cov_DD + shift * torch.eye(len(cov_DD), dtype=cov_DD.dtype, device=cov_DD.device))
    if shift < 0 or failed:
        raise UserError(f"{name} is no covariance: it has negative eigenvalues; fetch or make it again")


def _root_trace(matrix: Tensor) -> Tensor:
    """The sum of the roots of a symmetric matrix's eigenvalues, those below zero being rounding."""
    return torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt().sum()


def frechet_distance_interval(
    samples_ND: Array, mean: Array, cov: Array, rounds: int = 200, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The Fréchet distance of samples from a fixed reference, with `intervals.bootstrap_deviation`'s interval, but faster.

    The same figures up to rounding. The reference is factored once, F F^T = B, and the samples are taken to y = F^T x once:
    a round then needs the covariance of y, each different row counted as often as it was drawn, and the eigenvalues of
    that; where the different rows are fewer than the dimensions, those of their products with each other, which are the
    same. Raises UserError as `frechet_distance` and `bootstrap_deviation` do.
    """
    x, (mean, cov) = as_features(samples_ND).double(), (to_tensor(part).double() for part in (mean, cov))
    value = frechet_distance(*mean_and_covariance(x), mean, cov)
    rows, centre = len(x), x.mean(0)
    x = x - centre
    y, squares = x @ _factor(cov), x.square().sum(1)
    products = y @ y.T if rows * SHARE_DRAWN < y.shape[1] else None
    distances = []
    for drawn in draws(rows, rounds, seed):
        weights = torch.bincount(drawn, minlength=rows).double()
        moved = weights @ x / rows
        trace = (weights @ squares - rows * moved.square().sum()) / (rows - 1)
        cross = _drawn_root_trace(weights, y, products)
        distances.append(float((centre + moved - mean).square().sum() + trace + cov.trace() - 2 * cross))
    return normal_interval(value, float(torch.tensor(distances, dtype=torch.float64).std()), confidence)


def _drawn_root_trace(weights_N: Tensor, y_NR: Tensor, products_NN: Tensor | None) -> Tensor:
    """The sum of the roots of the eigenvalues of the covariance of rows, each counted by its weight.

    products: of the rows with each other, where these are to be used.
    """
    kept, rows = weights_N.nonzero()[:, 0], float(weights_N.sum())
    weights = weights_N[kept]
    if products_NN is None:
        mean = weights_N @ y_NR / rows
        matrix = -rows * torch.outer(mean, mean)
        for some, counts in zip(kept.split(BLOCK), weights.split(BLOCK), strict=True):
            part = y_NR[some]
            matrix += part.T @ (counts[:, None] * part)
    else:
        matrix = products_NN[kept][:, kept]
        to_mean = matrix @ weights / rows
        matrix = matrix - to_mean - to_mean[:, None] + weights @ to_mean / rows
        matrix *= weights.sqrt() * weights.sqrt()[:, None]
    return _root_trace(matrix / (rows - 1))


def _factor_of_one(a_DD: Tensor, b_DD: Tensor) -> tuple[Tensor, Tensor]:
    """F (D, R) with F F^T one of two covariances, a singular one if there is, and the other covariance."""
    for one, other in ((a_DD, b_DD), (b_DD, a_DD)):
        cholesky, failed = torch.linalg.cholesky_ex(one)
        if failed:
            return _singular_factor(one), other
    return cholesky, a_DD


def _factor(cov_DD: Tensor) -> Tensor:
    """F (D, R) with F F^T a covariance."""
    cholesky, failed = torch.linalg.cholesky_ex(cov_DD)
    return _singular_factor(cov_DD) if failed else cholesky


def _singular_factor(cov_DD: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov_DD)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


class _KernelSums(NamedTuple):
    """Sums of k(x, y) = (x.y / D + 1)^3 for every row of a set: over its own set without itself, and over the other.

    Of a over a and b: aa, ab (N,); of b: bb, ba (M,).
    """

    aa: Tensor
    bb: Tensor
    ab: Tensor
    ba: Tensor

    def squared_discrepancy(self) -> float:
        """The unbiased squared maximum mean discrepancy (Gretton et al., 2012, equation 3)."""
        n, m = len(self.aa), len(self.bb)
        within = self.aa.sum() / (n * (n - 1)) + self.bb.sum() / (m * (m - 1))
        return float(within - 2 * self.ab.sum() / (n * m))

    def left_out(self) -> tuple[Tensor, Tensor]:
        """(N,) and (M,): the discrepancy without each row of a, and without each row of b; at least 3 rows each."""

        def one_set(own: Tensor, cross: Tensor, other: Tensor) -> Tensor:
            n, m = len(own), len(other)
            within = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) + other.sum() / (m * (m - 1))
            return within - 2 * (cross.sum() - cross) / ((n - 1) * m)

        return one_set(self.aa, self.ab, self.bb), one_set(self.bb, self.ba, self.aa)


def _kernel_sums(a_ND: Array, b_MD: Array, least: int = 2) -> _KernelSums:
    a, b = _of_one_width(a_ND, b_MD)
    if min(len(a), len(b)) < least:
        raise UserError(f"the kernel distance needs at least {least} samples on each side, not {len(a)} and {len(b)}")

    def sums(x: Tensor, y: Tensor, without_itself: bool = False) -> tuple[Tensor, Tensor]:
        """Over the kernels of each row and of each column."""
        rows, columns = (torch.zeros(len(z), dtype=torch.float64, device=z.device) for z in (x, y))
        for i in range(0, len(x), BLOCK):
            some = x[i : i + BLOCK].double() / x.shape[1]
            for j in range(0, len(y), BLOCK):
                base = (some @ y[j : j + BLOCK].double().T).add_(1)
                kernel = base.square().mul_(base)
                if without_itself and i == j:
                    kernel.fill_diagonal_(0)
                rows[i : i + BLOCK] += kernel.sum(1)
                columns[j : j + BLOCK] += kernel.sum(0)
        return rows, columns

    return _KernelSums(sums(a, a, without_itself=True)[0], sums(b, b, without_itself=True)[0], *sums(a, b))


def kernel_distance(a_ND: Array, b_MD: Array) -> float:
    """KID, the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al., 2018).

    Unbiased at any count of samples, so it may come out slightly below zero for equal distributions. Of all rows at once:
    most publish `kernel_distance_subsets`. Raises UserError for fewer than 2 rows.
    """
    return _kernel_sums(a_ND, b_MD).squared_discrepancy()


def kernel_distance_interval(a_ND: Array, b_MD: Array, confidence: float = 0.95) -> Estimate:
    """`kernel_distance` of all rows, with the normal interval of its two-sample jackknife standard error.

    The error is that of drawing both sets anew. For equal distributions the estimate is not normal, and the interval is
    wide rather than exact. Raises UserError for fewer than 3 rows.
    """
    sums = _kernel_sums(a_ND, b_MD, least=3)
    variance = sum((len(x) - 1) * x.var(correction=0) for x in sums.left_out())  # (n - 1) / n times the sum of squares
    return normal_interval(sums.squared_discrepancy(), math.sqrt(float(variance)), confidence)


def kernel_distance_rows(a_ND: Array, b_MD: Array) -> Tensor:
    """(N,) float64: the jackknife's pseudo-values of `kernel_distance` by the rows of a (Tukey, 1958).

    Row i's is N times the distance less N - 1 times that without row i. Their standard error is that of drawing a anew,
    and their differences row by row tell two sets of paired samples apart. Raises UserError for fewer than 3 rows.
    """
    sums = _kernel_sums(a_ND, b_MD, least=3)
    rows = len(sums.left_out()[0])
    return rows * sums.squared_discrepancy() - (rows - 1) * sums.left_out()[0]


def kernel_distance_subsets(
    a_ND: Array, b_MD: Array, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID as its authors publish it: mean and deviation over `subsets` of `size` rows of each side.

    A subset's rows are drawn without replacement; subsets overlap, so the deviation (over N, not N - 1) is that of KID on
    `size` rows and no error of the mean. Raises UserError where a side has fewer rows than a subset.
    """
    a, b = _of_one_width(a_ND, b_MD)
    if subsets < 1 or not 2 <= size <= min(len(a), len(b)):
        raise UserError(f"{subsets} subsets of {size} rows cannot be drawn of {len(a)} and {len(b)}; give a smaller size")
    generator = generator_for("kernel distance", seed)
    values = torch.tensor(
        [kernel_distance(*(x[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b))) for _ in range(subsets)],
        dtype=torch.float64,
    )
    return float(values.mean()), float(values.std(correction=0))


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two lists; equal values share their mean rank. NaN where all of a list are equal."""

    def ranks(x: Tensor) -> Tensor:
        return (x[:, None] > x).sum(1) + 0.5 * (x[:, None] == x).sum(1)

    return float(torch.corrcoef(torch.stack([ranks(to_tensor(x)).double() for x in (a, b)]))[0, 1])


def precision_recall(reference_ND: Array, samples_MD: Array, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019), both in [0, 1].

    A ball around every point of a set reaches to its k-th nearest neighbour in that set. Precision is the share of samples
    inside **any** ball of the reference, recall the share of the reference inside any ball of the samples. Distances are
    computed in the features' own dtype, of centred features, block by block. Raises UserError for fewer than k + 1 rows.
    """
    inside, covered = precision_recall_rows(reference_ND, samples_MD, k)
    return float(inside.mean()), float(covered.mean())


def precision_recall_rows(reference_ND: Array, samples_MD: Array, k: int = 3) -> tuple[Tensor, Tensor]:
    """What precision and recall are the means of: 1 for every sample (M,) and every reference (N,) in a ball, float64."""
    reference, samples = _centred(reference_ND, samples_MD, k)
    reference_radii, sample_radii = _squared_radii(reference, k), _squared_radii(samples, k)
    inside, covered = [], torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for some, radii in zip(samples.split(BLOCK), sample_radii.split(BLOCK), strict=True):
        distances = _squared_distances(some, reference)
        inside.append((distances <= reference_radii).any(1))
        covered |= (distances <= radii[:, None]).any(0)
    return torch.cat(inside).double(), covered.double()


def density_coverage(reference_ND: Array, samples_MD: Array, k: int = 5) -> tuple[float, float]:
    """Density, at least 0, and coverage, in [0, 1] (Naeem et al., 2020), of balls as in `precision_recall`.

    Density is the mean count of reference balls that a sample is in, over k; coverage the share of reference balls with a
    sample inside.
    """
    density, covered = density_coverage_rows(reference_ND, samples_MD, k)
    return float(density.mean()), float(covered.mean())


def density_coverage_rows(reference_ND: Array, samples_MD: Array, k: int = 5) -> tuple[Tensor, Tensor]:
    """What density and coverage are the means of: of every sample (M,) its count of balls over k, and 1 for every reference
    (N,) whose ball is not empty; float64."""
    reference, samples = _centred(reference_ND, samples_MD, k)
    radii = _squared_radii(reference, k)
    counts, covered = [], torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for some in samples.split(BLOCK):
        inside = _squared_distances(some, reference) <= radii
        counts.append(inside.sum(1))
        covered |= inside.any(0)
    return torch.cat(counts).double() / k, covered.double()


def neighbours(samples_MD: Array, reference_ND: Array, k: int) -> tuple[Tensor, Tensor]:
    """The distances (M, k) of every sample to its k nearest references, rising, and their indices (M, k).

    k + SPARE are found by products, block by block, and then measured as differences: a copy is at distance zero, and
    references that are equally near up to the products' rounding are told apart. Raises UserError for fewer than k.
    """
    if k > len(reference_ND):
        raise UserError(f"there are no {k} nearest of {len(reference_ND)} references; give more references")
    reference, samples = _centred(reference_ND, samples_MD, 0)
    distances, indices = [], []
    for some in samples.split(BLOCK):
        found = _squared_distances(some, reference).topk(min(k + SPARE, len(reference)), dim=1, largest=False).indices
        columns = [(some - reference[near]).norm(dim=1) for near in found.T]
        exact = torch.stack(columns, dim=1).sort(stable=True, dim=1)
        distances.append(exact.values[:, :k])
        indices.append(found.gather(1, exact.indices[:, :k]))
    return torch.cat(distances), torch.cat(indices)


def nearest(samples_MD: Array, reference_ND: Array) -> tuple[Tensor, Tensor]:
    """The distance (M,) of every sample to its nearest reference, and that one's index (M,)."""
    distance, index = neighbours(samples_MD, reference_ND, 1)
    return distance[:, 0], index[:, 0]


@dataclass(frozen=True)
class Memorisation:
    """Of every sample, (M,): the distance to its nearest training image, that one's index, and the distance's ratio.

    The ratio is that to the distance of the second nearest (see `memorisation`).
    """

    distance: Tensor
    index: Tensor
    ratio: Tensor

    def copied(self, below: float = 1 / 3) -> Tensor:
        """(M,) bool: whether the ratio is below a bound, which makes a copy by the rule of Yoon et al. (2023)."""
        return self.ratio < below

    def share(self, below: float = 1 / 3) -> float:
        """The share of samples that are copies."""
        return float(self.copied(below).double().mean())

    def closest(self, count: int) -> Tensor:
        """The samples of the smallest ratios, the nearest to a copy first."""
        return self.ratio.argsort(stable=True)[:count]


def memorisation(samples_MD: Array, training_ND: Array) -> Memorisation:
    """How near samples are to single training images: the distance to the nearest over that to the second nearest.

    In [0, 1]: near 0 for a copy, near 1 for an image that is no nearer to one than to another; 0 for an exact copy, even
    of an image that is there twice. Near copies **in** the training set hide copies of them: look at the pairs. Features or
    flattened pixels will do. Raises UserError for fewer than 2 training images.
    """
    distance, index = neighbours(samples_MD, training_ND, 2)
    ratio = torch.where(distance[:, 0] > 0, distance[:, 0] / distance[:, 1], 0.0)
    return Memorisation(distance[:, 0], index[:, 0], ratio)


def inception_score(logits_NK: Array, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans et al., 2016): mean and deviation over the splits.

    Split i has the rows from i N // splits to (i + 1) N // splits, in the order given, as the original has it. Raises
    UserError for fewer rows than splits.
    """
    logits = as_features(logits_NK).double()
    if not 1 <= splits <= len(logits):
        raise UserError(f"{len(logits)} rows cannot be cut into {splits} splits")
    scores = []
    log_probabilities, count = logits.log_softmax(1), len(logits)
    for i in range(splits):
        some = log_probabilities[i * count // splits : (i + 1) * count // splits]
        marginal = some.logsumexp(0) - math.log(len(some))
        scores.append((some.exp() * (some - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))


def _centred(reference_ND: Array, samples_MD: Array, k: int) -> tuple[Tensor, Tensor]:
    """Both in one dtype without the reference's mean, which keeps the products of their distances small."""
    reference, samples = _of_one_width(reference_ND, samples_MD)
    least = min(len(reference), len(samples))
    if least <= k or k < 0:
        raise UserError(f"the {k}-th nearest neighbour needs more than {k} rows on each side, not {least}")
    dtype, mean = torch.promote_types(reference.dtype, samples.dtype), reference.mean(0)
    return (reference - mean).to(dtype), (samples - mean).to(dtype)


def _squared_distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    products = torch.addmm(b_MD.square().sum(1), a_ND, b_MD.T, alpha=-2)
    return products.add_(a_ND.square().sum(1)[:, None]).clamp_(min=0)


def _squared_radii(x_ND: Tensor, k: int) -> Tensor:
    """(N,): the squared distance of every row to its k-th nearest other row."""
    radii = []
    for first in range(0, len(x_ND), BLOCK):
        distances = _squared_distances(x_ND[first : first + BLOCK], x_ND)
        distances.diagonal(first).fill_(torch.inf)  # not to itself
        radii.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)
