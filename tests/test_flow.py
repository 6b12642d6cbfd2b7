"""Paths, laws of training times, score and loss, against closed forms stated here on their own."""

import math

import pytest
import torch
from torch import Tensor

from elit.flow import FlowPath, FlowSample, TimeLaw
from elit.seeding import generator_for

PATHS = list(FlowPath)
MEAN, STD = 0.7, 0.6  # of the Gaussian data below


def alpha_sigma(path: FlowPath, t: Tensor) -> tuple[Tensor, Tensor]:
    """The two paths as the method's formulas write them."""
    if path == "linear":
        return 1 - t, t
    return torch.cos(torch.pi * t / 2), torch.sin(torch.pi * t / 2)


def inner_times(count: int = 50) -> Tensor:
    return torch.linspace(0.02, 0.98, count, dtype=torch.float64)


def gaussian_flow(path: FlowPath, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Exact velocity and score of data N(MEAN, STD^2).

    x_t = alpha x + sigma eps is N(alpha MEAN, V) with V = alpha^2 STD^2 + sigma^2. Its transport is affine and keeps
    the standardised value (x - alpha MEAN) / sqrt(V), so v = alpha' MEAN + V' / (2 V) (x - alpha MEAN); the score is
    that of the normal law.
    """
    t = t.clone().requires_grad_()
    alpha, sigma = alpha_sigma(path, t)
    variance = alpha**2 * STD**2 + sigma**2
    (d_alpha,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (d_variance,) = torch.autograd.grad(variance.sum(), t)
    centred = x - (alpha * MEAN).detach()
    return d_alpha * MEAN + d_variance / (2 * variance.detach()) * centred, -centred / variance.detach()


@pytest.mark.parametrize("path", PATHS)
def test_alpha_and_sigma_go_from_data_to_noise(path: FlowPath) -> None:
    """The path is data alone at t = 0 and noise alone at t = 1, by the formulas in between."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.alpha(ends), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(path.sigma(ends), torch.tensor([0.0, 1.0], dtype=torch.float64))
    alpha, sigma = alpha_sigma(path, inner_times())
    torch.testing.assert_close(path.alpha(inner_times()), alpha)
    torch.testing.assert_close(path.sigma(inner_times()), sigma)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_autograds(path: FlowPath) -> None:
    """d_alpha and d_sigma are the derivatives of alpha and sigma, the ends included."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    for function, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        (expected,) = torch.autograd.grad(function(t).sum(), t)
        torch.testing.assert_close(derivative(t.detach()), expected)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_is_the_derivative_of_the_path(path: FlowPath) -> None:
    """The target is d x_t / dt by central differences, each image at its own time, and x_t mixes data and noise."""
    generator = generator_for("velocity test")
    x, noise = torch.randn(2, 5, 3, 4, 6, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.5, 0.77, 0.95], dtype=torch.float64)
    sample, h = path.interpolate(x, noise, t), 1e-5
    difference = (path.interpolate(x, noise, t + h).x_t - path.interpolate(x, noise, t - h).x_t) / (2 * h)
    torch.testing.assert_close(sample.velocity, difference, rtol=1e-7, atol=1e-8)
    for i in range(5):
        alpha, sigma = alpha_sigma(path, t[i])
        torch.testing.assert_close(sample.x_t[i], alpha * x[i] + sigma * noise[i])
    assert torch.equal(sample.t, t)


@pytest.mark.parametrize("path", PATHS)
def test_score_of_gaussian_data(path: FlowPath) -> None:
    """From the exact velocity of a Gaussian comes its exact score, up to t = 1."""
    t = torch.cat([inner_times(), torch.ones(1, dtype=torch.float64)])
    x = torch.randn(len(t), generator=generator_for("score test"), dtype=torch.float64) * 2
    velocity, score = gaussian_flow(path, x, t)
    torch.testing.assert_close(path.score(velocity, x, t), score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_expected_velocity_of_gaussian_data_is_the_exact_one(path: FlowPath) -> None:
    """Regressing the training target on x_t finds the exact velocity: target and closed form describe one flow."""
    generator, count = generator_for("regression test"), 200_000
    x = MEAN + STD * torch.randn(count, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    for time in (0.2, 0.6, 0.9):
        sample = path.interpolate(x, noise, torch.full((count,), time, dtype=torch.float64))
        design = torch.stack([torch.ones_like(x), sample.x_t], dim=1)
        intercept, slope = torch.linalg.lstsq(design, sample.velocity[:, None]).solution[:, 0]
        where = torch.tensor([0.0, 1.0], dtype=torch.float64)
        exact, _ = gaussian_flow(path, where, torch.full((2,), time, dtype=torch.float64))
        torch.testing.assert_close(torch.stack([intercept, intercept + slope]), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("path", PATHS)
def test_logit_normal_is_the_same_noise_to_data_ratio_on_both_paths(path: FlowPath) -> None:
    """sigma / alpha = e^n with n the generator's next standard normals, and log(sigma / alpha) is N(0, 1)."""
    count = 100_000
    t = TimeLaw.LOGIT_NORMAL.draw(count, path, generator_for("law test"))
    n = torch.randn(count, generator=generator_for("law test"))
    alpha, sigma = alpha_sigma(path, t.double())
    torch.testing.assert_close((sigma / alpha).log(), n.double(), rtol=1e-3, atol=1e-3)
    assert t.min() >= 0 and t.max() <= 1


def test_quantiles_of_logit_normal_times() -> None:
    """A quarter of the linear path's times lies below sigmoid of the normal's lower quartile, and so on."""
    t = TimeLaw.LOGIT_NORMAL.draw(100_000, FlowPath.LINEAR, generator_for("quantile test")).double()
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        n = math.sqrt(2) * torch.erfinv(torch.tensor(2 * share - 1, dtype=torch.float64))
        assert (t < n.sigmoid()).double().mean().item() == pytest.approx(share, abs=0.005)
    cosine = TimeLaw.LOGIT_NORMAL.draw(100_000, FlowPath.COSINE, generator_for("quantile test"))
    assert (cosine < 0.5).double().mean().item() == pytest.approx(0.5, abs=0.005)  # sigma = alpha at t = 1/2 there


@pytest.mark.parametrize("path", PATHS)
def test_uniform_times(path: FlowPath) -> None:
    """Uniform times have the uniform law's moments and quantiles on either path."""
    t = TimeLaw.UNIFORM.draw(100_000, path, generator_for("uniform test")).double()
    assert t.mean().item() == pytest.approx(1 / 2, abs=0.005)
    assert t.var().item() == pytest.approx(1 / 12, abs=0.002)
    for share in (0.1, 0.5, 0.9):
        assert (t < share).double().mean().item() == pytest.approx(share, abs=0.005)


def test_times_come_from_the_generator_alone() -> None:
    """The global generator neither matters nor moves."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [law.draw(8, FlowPath.COSINE, generator_for("alone", 3)) for law in TimeLaw]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = [law.draw(8, FlowPath.COSINE, generator_for("alone", 3)) for law in TimeLaw]
    assert torch.equal(torch.stack(first), torch.stack(again))


def test_loss_is_the_mean_squared_error() -> None:
    """The loss averages over every number of the batch, and asks the model at x_t and t."""
    generator = generator_for("loss test")
    sample = FlowSample(*torch.randn(2, 3, 2, 4, 4, generator=generator), torch.tensor([0.1, 0.2, 0.9]))
    errors = [2 * sample.x_t[b] + sample.t[b] - sample.velocity[b] for b in range(3)]
    total = sum(error**2 for image in errors for error in image.flatten().tolist())
    loss = FlowPath.LINEAR.loss(2 * sample.x_t + sample.t.view(-1, 1, 1, 1), sample)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(total / (3 * 2 * 4 * 4), rel=1e-5)


def test_loss_of_a_bfloat16_model_is_taken_in_float32() -> None:
    """A half-precision prediction is compared in float32: small errors of large values are not lost."""
    velocity = torch.full((1, 1, 2, 2), 256.5)
    sample = FlowSample(torch.zeros(1, 1, 2, 2), velocity, torch.zeros(1))
    loss = FlowPath.LINEAR.loss(torch.full_like(sample.x_t, 256, dtype=torch.bfloat16), sample)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.25)
