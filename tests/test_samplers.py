"""Samplers against the exact solutions of Gaussian data, torchdiffeq, and a literal loop."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from elit.flow import FlowPath
from elit.samplers import Velocity, euler, euler_maruyama, even_times, heun, sde_times
from elit.seeding import generator_for

PATHS = list(FlowPath)
MEAN, STD = 0.7, 0.4  # of the Gaussian data


def coefficients(path: FlowPath, t: float) -> tuple[float, float, float, float]:
    """alpha, sigma and their derivatives, as the method's formulas write them."""
    if path == "linear":
        return 1 - t, t, -1.0, 1.0
    c, s, quarter = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2), math.pi / 2
    return c, s, -quarter * s, quarter * c


def exact_velocity(path: FlowPath) -> Velocity:
    """The velocity of data N(MEAN, STD^2): alpha' E[x | x_t] + sigma' E[noise | x_t] by the rule of joint normals."""

    def velocity(x_t: Tensor, t: float) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = coefficients(path, t)
        surprise = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return d_alpha * (MEAN + alpha * STD**2 * surprise) + d_sigma * sigma * surprise

    return velocity


def exact_data(noise: Tensor) -> Tensor:
    """Where the ODE takes noise: transport between two normal laws on a line keeps the order, on either path."""
    return MEAN + STD * noise


def start(count: int = 64) -> Tensor:
    return torch.randn(count, 1, 1, 1, generator=generator_for("sampler test"), dtype=torch.float64)


def curved(x: Tensor, t: float) -> Tensor:
    """A velocity without a closed form, not linear in x."""
    return torch.sin(3 * x) * math.cos(2 * t) + t**2


class Recorded:
    """A velocity that notes when it was asked."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.times = velocity, []

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.times.append(t)
        assert x.dtype == torch.float64
        return self.velocity(x, t)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(path: FlowPath, sampler: Callable[..., Tensor], order: int) -> None:
    """The error to the exact map falls by 2^order when the steps double, to little."""
    noise, velocity = start(), exact_velocity(path)
    errors = [(sampler(velocity, noise, even_times(n)) - exact_data(noise)).abs().max().item() for n in (100, 200, 400)]
    for error, half in pairwise(errors):
        assert math.log2(error / half) == pytest.approx(order, abs=0.15)
    assert errors[-1] < {1: 2e-2, 2: 1e-3}[order]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_torchdiffeqs(steps: int) -> None:
    """Every state of Euler's method is that of torchdiffeq on the grid linspace(1, 0, steps + 1)."""
    states = []
    euler(curved, start(), even_times(steps), lambda step, t, x: states.append(x))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    expected = odeint(lambda t, x: curved(x, float(t)), start(), times, method="euler")
    torch.testing.assert_close(torch.stack(states), expected[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_heun_is_torchdiffeqs_but_for_an_euler_step_at_the_end(steps: int) -> None:
    """Heun's states are those of torchdiffeq, and the last step is not corrected."""
    states = []
    heun(curved, start(), even_times(steps), lambda step, t, x: states.append(x))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    expected = odeint(lambda t, x: curved(x, float(t)), start(), times[:-1], method="heun2")
    torch.testing.assert_close(torch.stack(states[:-1]), expected[1:], rtol=1e-12, atol=1e-12)
    last = expected[-1] - curved(expected[-1], float(times[-2])) / steps
    torch.testing.assert_close(states[-1], last, rtol=1e-12, atol=1e-12)


def test_one_step_of_heun_is_eulers() -> None:
    assert torch.equal(heun(curved, start(), even_times(1)), euler(curved, start(), even_times(1)))


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_times_at_which_the_odes_ask_the_model(steps: int) -> None:
    """Euler asks once a step, Heun at both ends of every step but the last: n and 2n - 1 calls."""
    grid = [1 - k / steps for k in range(steps)]
    asked = Recorded(curved)
    euler(asked, start(), even_times(steps))
    assert asked.times == pytest.approx(grid)

    asked = Recorded(curved)
    heun(asked, start(), even_times(steps))
    assert asked.times == pytest.approx(sorted(grid + grid[1:], reverse=True))
    assert len(asked.times) == 2 * steps - 1


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_times_at_which_the_sde_asks_the_model(steps: int) -> None:
    """Euler-Maruyama asks at linspace(1, 0.04, n), the last time for the noiseless step to 0: n calls."""
    asked, reached = Recorded(exact_velocity(FlowPath.LINEAR)), []
    noise = torch.zeros(steps - 1, *start().shape)
    euler_maruyama(asked, start(), sde_times(steps), noise, callback_on_step_end=lambda step, t, x: reached.append(t))
    grid = [1 + (0.04 - 1) * k / (steps - 1) for k in range(steps)]
    assert asked.times == pytest.approx(grid)
    assert reached == pytest.approx([*grid[1:], 0.0])


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shifted_times_of_the_sde_end_with_the_same_step_without_noise(shift: float) -> None:
    """From 1 to 0.04 and 0; undoing the shift by its formula leaves even steps before."""
    times = sde_times(6, shift)
    assert times[0] == 1 and times[-2:] == pytest.approx([0.04, 0.0], abs=1e-12)
    even = [t / (shift - (shift - 1) * t) for t in times[:-1]]
    steps = [before - after for before, after in pairwise(even)]
    assert steps == pytest.approx([steps[0]] * 5, abs=1e-12)


def literal_euler_maruyama(path: FlowPath, x: Tensor, steps: int, sde_noise: Tensor) -> Tensor:
    """x <- x + (v - w s / 2) dt + sqrt(w |dt|) noise with w = 2t; s is (r v - x) / (sigma^2 - r sigma' sigma)."""
    times = [1 - 0.96 * k / (steps - 1) for k in range(steps)]
    for k in range(steps):
        t = times[k]
        dt = times[k + 1] - t if k + 1 < steps else -t
        alpha, sigma, d_alpha, d_sigma = coefficients(path, t)
        v = curved(x, t)
        ratio = alpha / d_alpha
        s = (ratio * v - x) / (sigma**2 - ratio * d_sigma * sigma)
        x = x + (v - 0.5 * (2 * t) * s) * dt
        if k + 1 < steps:
            x = x + math.sqrt(2 * t * abs(dt)) * sde_noise[k]
    return x


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [2, 6])
def test_euler_maruyama_is_the_literal_loop(path: FlowPath, steps: int) -> None:
    """The same noise gives the same end as the formula written out."""
    sde_noise = torch.randn(steps - 1, *start().shape, generator=generator_for("sde"), dtype=torch.float64)
    expected = literal_euler_maruyama(path, start(), steps, sde_noise)
    made = euler_maruyama(curved, start(), sde_times(steps), sde_noise, path)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_euler_maruyama_ends_in_the_data_law(path: FlowPath) -> None:
    """With the exact velocity the SDE ends in N(MEAN, STD^2), and much of the noise it started from is forgotten."""
    steps, count = 250, 20_000
    generator = generator_for("law", path)
    noise = torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    sde_noise = torch.randn(steps - 1, count, 1, 1, 1, generator=generator)
    data = euler_maruyama(exact_velocity(path), noise, sde_times(steps), sde_noise, path)
    assert data.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert data.std().item() == pytest.approx(STD, abs=0.015)
    correlation = torch.corrcoef(torch.stack([noise.flatten(), data.flatten()]))[0, 1].item()
    assert correlation < 0.5  # the ODE's is 1: here most of the end comes from the noise on the way


def all_samplers() -> dict[str, Callable[..., Tensor]]:
    steps = 5
    sde_noise = torch.randn(steps - 1, *start().shape, generator=generator_for("sde"))
    return {
        "euler": lambda v, x, c=None: euler(v, x, even_times(steps), c),
        "heun": lambda v, x, c=None: heun(v, x, even_times(steps), c),
        "euler_maruyama": lambda v, x, c=None: euler_maruyama(v, x, sde_times(steps), sde_noise, callback_on_step_end=c),
    }


@pytest.mark.parametrize("name", list(all_samplers()))
def test_state_is_float64_though_the_model_answers_in_float32(name: str) -> None:
    """A float32 start and float32 velocities are summed in float64."""
    run = all_samplers()[name]
    velocity = exact_velocity(FlowPath.LINEAR)
    states = []
    single = run(Recorded(lambda x, t: velocity(x, t).float()), start().float(), lambda step, t, x: states.append(x.dtype))
    assert {*states, single.dtype} == {torch.float64}
    torch.testing.assert_close(single, run(velocity, start()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(all_samplers()))
def test_callback_sees_every_step(name: str) -> None:
    """It is told 0, 1, ..., falling times down to 0, and the state, the last of which is returned."""
    seen = []
    out = all_samplers()[name](exact_velocity(FlowPath.LINEAR), start(), lambda *told: seen.append(told))
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4]
    times = [t for _, t, _ in seen]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert torch.equal(seen[-1][2], out)


@pytest.mark.parametrize("name", list(all_samplers()))
def test_callback_may_replace_the_state(name: str) -> None:
    """What the callback returns is where the next step starts, here a state known from a run without it."""
    run, velocity, states = all_samplers()[name], exact_velocity(FlowPath.LINEAR), []
    plain = run(velocity, start(), lambda step, t, x: states.append(x))
    replaced = run(velocity, start() + 10, lambda step, t, x: states[1] if step == 1 else None)
    assert torch.equal(replaced, plain)
    at_the_end = run(velocity, start(), lambda step, t, x: torch.zeros_like(x).float() if step == 4 else None)
    assert torch.equal(at_the_end, torch.zeros_like(plain))
