"""The flow: paths between data and noise, laws of training times, and the loss. t = 1 is noise, t = 0 is data.

Lipman et al. (2023), Liu et al. (2023), Ma et al. (2024, SiT).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Path(StrEnum):
    """x_t = alpha(t) x + sigma(t) noise: linear (1 - t, t), or cosine (cos(pi t / 2), sin(pi t / 2))."""

    LINEAR = "linear"
    COSINE = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t if self is Path.LINEAR else torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return t if self is Path.LINEAR else torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t) if self is Path.LINEAR else -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t) if self is Path.LINEAR else math.pi / 2 * torch.cos(math.pi / 2 * t)

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score of p_t, (r v - x_t) / (sigma^2 - r sigma' sigma) with r = alpha / alpha' (SiT, equation 9); t > 0."""
        ratio, sigma = self.alpha(t) / self.d_alpha(t), self.sigma(t)
        return (ratio * velocity - x_t) / (sigma**2 - ratio * self.d_sigma(t) * sigma)


class TimeLaw(StrEnum):
    """The law of training times: uniform, or logit-normal(0, 1), whose sigma / alpha is e^n on either path."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit-normal"

    def draw(self, count: int, path: Path, generator: torch.Generator) -> Tensor:
        """(count,) times in [0, 1]."""
        if self is TimeLaw.UNIFORM:
            return torch.rand(count, generator=generator)
        n = torch.randn(count, generator=generator)
        return n.sigmoid() if path is Path.LINEAR else 2 / math.pi * n.exp().atan()

    def share_above(self, t: float, path: Path) -> float:
        """The chance of a time above t in [0, 1]."""
        if self is TimeLaw.UNIFORM or t in (0, 1):
            return 1 - t
        n = math.log(t / (1 - t)) if path is Path.LINEAR else math.log(math.tan(math.pi / 2 * t))
        return math.erfc(n / math.sqrt(2)) / 2


@dataclass(frozen=True)
class FlowSample:
    """Points on paths from data to noise: x_t and velocity (B, C, H, W), t (B,)."""

    x_t: Tensor
    velocity: Tensor
    t: Tensor


def interpolate(path: Path, x: Tensor, noise: Tensor, t: Tensor) -> FlowSample:
    """x_t = alpha x + sigma noise, and the velocity alpha' x + sigma' noise that a model learns to predict."""
    time = t.view(-1, *[1] * (x.ndim - 1))
    return FlowSample(
        x_t=path.alpha(time) * x + path.sigma(time) * noise,
        velocity=path.d_alpha(time) * x + path.d_sigma(time) * noise,
        t=t,
    )


def flow_loss(model: Callable[[Tensor, Tensor], Tensor], sample: FlowSample) -> Tensor:
    """The mean squared error of the predicted velocity, in float32: a scalar."""
    return (model(sample.x_t, sample.t).float() - sample.velocity).square().mean()
