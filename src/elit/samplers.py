"""Samplers: pure functions of velocity(x, t), from noise at t = 1 to data at t = 0.

`velocity` takes x (B, C, H, W) in float64 and a time t in [0, 1], and returns the velocity at x. The state is float64.
After every step `callback_on_step_end(step, t, x)`, where given, sees the step's number, the time reached and the
state; what it returns, unless None, replaces the state.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from elit.flow import Path

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, float, Tensor], Tensor | None]


def euler(velocity: Velocity, x: Tensor, steps: int, callback_on_step_end: Callback | None = None) -> Tensor:
    """Euler's method over times linspace(1, 0, steps + 1): `steps` model calls."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        x = x + (t_next - t) * velocity(x, t).double()
        x = _called(callback_on_step_end, step, t_next, x)
    return x


def heun(velocity: Velocity, x: Tensor, steps: int, callback_on_step_end: Callback | None = None) -> Tensor:
    """Heun's method (Karras et al., 2022), with no correction on the last step: 2 steps - 1 model calls."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(x, t).double()
        ahead = x + (t_next - t) * v
        if step < steps - 1:
            ahead = x + (t_next - t) * (v + velocity(ahead, t_next).double()) / 2
        x = _called(callback_on_step_end, step, t_next, ahead)
    return x


def euler_maruyama(
    velocity: Velocity,
    x: Tensor,
    steps: int,
    sde_noise: Tensor,
    path: Path = Path.LINEAR,
    callback_on_step_end: Callback | None = None,
) -> Tensor:
    """Euler-Maruyama of the reverse SDE with diffusion w(t) = 2t (SiT): `steps` model calls.

    dx = (v - w s / 2) dt + sqrt(w) dW over linspace(1, 0.04, steps), then one noiseless step to 0.
    `sde_noise` is (steps - 1, B, C, H, W).
    """
    times = torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist()
    x = x.double()
    for step, (t, t_next) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        diffusion, time = 2 * t, torch.tensor(t, dtype=torch.float64, device=x.device)
        v = velocity(x, t).double()
        x = x + (v - diffusion / 2 * path.score(v, x, time)) * (t_next - t)
        if step < steps - 1:
            x = x + (diffusion * (t - t_next)) ** 0.5 * sde_noise[step].to(x)
        x = _called(callback_on_step_end, step, t_next, x)
    return x


def _called(callback: Callback | None, step: int, t: float, x: Tensor) -> Tensor:
    replaced = None if callback is None else callback(step, t, x)
    return x if replaced is None else replaced.double()
