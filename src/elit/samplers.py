"""Samplers: pure functions of velocity(x, t) and of the times they are given, from noise at t = 1 to data at t = 0.

`velocity` takes x (B, C, H, W) in float64 and a time t in [0, 1], and returns the velocity at x. The state is float64.
After every step `callback_on_step_end(step, t, x)`, where given, sees the step's number, the time reached and the
state; what it returns, unless None, replaces the state.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from elit.flow import Flow, FlowPath

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, float, Tensor], Tensor | None]


def even_times(steps: int) -> list[float]:
    """linspace(1, 0, steps + 1): the times of `steps` steps of an ODE sampler."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def sde_times(steps: int) -> list[float]:
    """linspace(1, 0.04, steps), then 0: the times of `steps` steps of Euler-Maruyama, the last without noise (SiT)."""
    return [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]


def euler(velocity: Velocity, x: Tensor, times: Sequence[float], callback_on_step_end: Callback | None = None) -> Tensor:
    """Euler's method: a model call for each step between two `times`."""
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        x = x + (t_next - t) * velocity(x, t).double()
        x = _called(callback_on_step_end, step, t_next, x)
    return x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float], callback_on_step_end: Callback | None = None) -> Tensor:
    """Heun's method (Karras et al., 2022), with no correction on the last step: two model calls a step, and one there."""
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(x, t).double()
        ahead = x + (t_next - t) * v
        if step < len(times) - 2:
            ahead = x + (t_next - t) * (v + velocity(ahead, t_next).double()) / 2
        x = _called(callback_on_step_end, step, t_next, ahead)
    return x


def euler_maruyama(
    velocity: Velocity,
    x: Tensor,
    times: Sequence[float],
    sde_noise: Tensor,
    flow: Flow = FlowPath.LINEAR,
    callback_on_step_end: Callback | None = None,
) -> Tensor:
    """Euler-Maruyama of the reverse SDE with diffusion w(t) = 2t (SiT): a model call a step, the last without noise.

    dx = (v - w s / 2) dt + sqrt(w) dW. `sde_noise` is (steps - 1, B, C, H, W).
    """
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        diffusion, time = 2 * t, torch.tensor(t, dtype=torch.float64, device=x.device)
        v = velocity(x, t).double()
        x = x + (v - diffusion / 2 * flow.score(v, x, time)) * (t_next - t)
        if step < len(times) - 2:
            x = x + (diffusion * (t - t_next)) ** 0.5 * sde_noise[step].to(x)
        x = _called(callback_on_step_end, step, t_next, x)
    return x


def _called(callback: Callback | None, step: int, t: float, x: Tensor) -> Tensor:
    replaced = None if callback is None else callback(step, t, x)
    return x if replaced is None else replaced.double()
