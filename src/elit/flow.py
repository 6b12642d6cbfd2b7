"""The flow: paths between data and noise, laws of training times, and the loss. t = 1 is noise, t = 0 is data.

Lipman et al. (2023), Liu et al. (2023), Ma et al. (2024, SiT).
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowSample:
    """Points on paths from data to noise: x_t and velocity (B, C, H, W), t (B,).

    active: the stages, of a flow that has several, whose velocities count; t is (B, stages) there.
    """

    x_t: Tensor
    velocity: Tensor
    t: Tensor
    active: int = 1


class Flow(Protocol):
    """What training and sampling ask of a flow. `FlowPath` is one; a flow of several stages is another."""

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> FlowSample:
        """The points between data x and noise at times t, and the velocity there that a model learns to predict."""

    def loss(self, velocity: Tensor, sample: FlowSample) -> Tensor:
        """What a predicted velocity costs: a scalar."""

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score of the density at t > 0, for samplers of the SDE."""


class FlowPath(StrEnum):
    """x_t = alpha(t) x + sigma(t) noise: linear (1 - t, t), or cosine (cos(pi t / 2), sin(pi t / 2))."""

    LINEAR = "linear"
    COSINE = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t if self is FlowPath.LINEAR else torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return t if self is FlowPath.LINEAR else torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t) if self is FlowPath.LINEAR else -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t) if self is FlowPath.LINEAR else math.pi / 2 * torch.cos(math.pi / 2 * t)

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> FlowSample:
        """x_t = alpha x + sigma noise, and the velocity alpha' x + sigma' noise; t is (B,)."""
        time = t.view(-1, *[1] * (x.ndim - 1))
        return FlowSample(
            x_t=self.alpha(time) * x + self.sigma(time) * noise,
            velocity=self.d_alpha(time) * x + self.d_sigma(time) * noise,
            t=t,
        )

    def loss(self, velocity: Tensor, sample: FlowSample) -> Tensor:
        """The mean squared error of the predicted velocity, in float32."""
        return (velocity.float() - sample.velocity).square().mean()

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score of p_t, (r v - x_t) / (sigma^2 - r sigma' sigma) with r = alpha / alpha' (SiT, equation 9); t > 0."""
        ratio, sigma = self.alpha(t) / self.d_alpha(t), self.sigma(t)
        return (ratio * velocity - x_t) / (sigma**2 - ratio * self.d_sigma(t) * sigma)


class TimeLaw(StrEnum):
    """The law of training times: uniform, or logit-normal(0, 1), whose sigma / alpha is e^n on either path."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit-normal"

    def draw(self, count: int, path: FlowPath, generator: torch.Generator) -> Tensor:
        """(count,) times in [0, 1]."""
        if self is TimeLaw.UNIFORM:
            return torch.rand(count, generator=generator)
        n = torch.randn(count, generator=generator)
        return n.sigmoid() if path is FlowPath.LINEAR else 2 / math.pi * n.exp().atan()

    def share_above(self, t: float, path: FlowPath) -> float:
        """The chance of a time above t in [0, 1]."""
        if self is TimeLaw.UNIFORM or t in (0, 1):
            return 1 - t
        n = math.log(t / (1 - t)) if path is FlowPath.LINEAR else math.log(math.tan(math.pi / 2 * t))
        return math.erfc(n / math.sqrt(2)) / 2


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards the noise: shift t / (1 + (shift - 1) t). That of 1 / shift is the inverse of that of shift."""
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)
