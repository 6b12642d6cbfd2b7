"""Samplers: pure functions of velocity(x, t) and of the times they are given, from noise at t = 1 to data at t = 0.

`velocity` takes x (B, C, H, W) in float64 and a time t in [0, 1], and returns the velocity at x. The state is float64.
After every step `callback_on_step_end(step, t, x)`, where given, sees the step's number, the time reached and the
state; what it returns, unless None, replaces the state.

Each sampler is written once, as a course: a generator that yields `Ask` where it wants a velocity, which is sent to it,
and `Reached` after every step. `follow` gives a course its velocities one after another; a server follows many at once.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from elit.flow import Flow, FlowPath, shifted

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, float, Tensor], Tensor | None]


class Ask(NamedTuple):
    """A course wants the velocity at x and t."""

    x: Tensor
    t: float


class Reached(NamedTuple):
    """A course has made a step, and is at x and t now; it goes on from what is sent to it, or from x where that is None."""

    step: int
    t: float
    x: Tensor


Course = Generator[Ask | Reached, Tensor | None, Tensor]  # it returns the last state


def even_times(steps: int, shift: float = 1.0) -> list[float]:
    """linspace(1, 0, steps + 1): the times of `steps` steps of an ODE sampler; moved by `shift` as `flow.shifted` does."""
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def sde_times(steps: int, shift: float = 1.0) -> list[float]:
    """linspace(1, 0.04, steps), then 0: the times of `steps` steps of Euler-Maruyama, the last without noise (SiT).

    With a `shift` they are even before `flow.shifted` moves them, and 0.04 stays.
    """
    last = float(shifted(torch.tensor(0.04, dtype=torch.float64), 1 / shift))
    return [*shifted(torch.linspace(1, last, steps, dtype=torch.float64), shift).tolist(), 0.0]


def euler(velocity: Velocity, x: Tensor, times: Sequence[float], callback_on_step_end: Callback | None = None) -> Tensor:
    """Euler's method: a model call for each step between two `times`."""
    return follow(euler_course(x, times), velocity, callback_on_step_end)


def heun(velocity: Velocity, x: Tensor, times: Sequence[float], callback_on_step_end: Callback | None = None) -> Tensor:
    """Heun's method (Karras et al., 2022), with no correction on the last step: two model calls a step, and one there."""
    return follow(heun_course(x, times), velocity, callback_on_step_end)


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
    return follow(euler_maruyama_course(x, times, sde_noise, flow), velocity, callback_on_step_end)


def euler_course(x: Tensor, times: Sequence[float]) -> Course:
    """What `euler` does."""
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = yield from _asked(x, t)
        x = yield from _reached(step, t_next, x + (t_next - t) * v)
    return x


def heun_course(x: Tensor, times: Sequence[float]) -> Course:
    """What `heun` does."""
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = yield from _asked(x, t)
        ahead = x + (t_next - t) * v
        if step < len(times) - 2:
            v_ahead = yield from _asked(ahead, t_next)
            ahead = x + (t_next - t) * (v + v_ahead) / 2
        x = yield from _reached(step, t_next, ahead)
    return x


def euler_maruyama_course(x: Tensor, times: Sequence[float], sde_noise: Tensor, flow: Flow = FlowPath.LINEAR) -> Course:
    """What `euler_maruyama` does."""
    x = x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        diffusion, time = 2 * t, torch.tensor(t, dtype=torch.float64, device=x.device)
        v = yield from _asked(x, t)
        x = x + (v - diffusion / 2 * flow.score(v, x, time)) * (t_next - t)
        if step < len(times) - 2:
            x = x + (diffusion * (t - t_next)) ** 0.5 * sde_noise[step].to(x)
        x = yield from _reached(step, t_next, x)
    return x


def _asked(x: Tensor, t: float) -> Course:
    """The velocity at x and t, in float64."""
    v = yield Ask(x, t)
    assert v is not None
    return v.double()


def _reached(step: int, t: float, x: Tensor) -> Course:
    """The state to go on from."""
    replaced = yield Reached(step, t, x)
    return x if replaced is None else replaced.double()


def follow(course: Course, velocity: Velocity, callback_on_step_end: Callback | None = None) -> Tensor:
    """The last state of a course whose every question `velocity` answers."""
    answer: Tensor | None = None
    while True:
        try:
            event = course.send(answer)
        except StopIteration as end:
            return end.value
        if isinstance(event, Ask):
            answer = velocity(event.x, event.t)
        else:
            answer = None if callback_on_step_end is None else callback_on_step_end(*event)
