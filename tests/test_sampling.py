"""`sample`: what its images depend on, and what it refuses."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from elit import DiT, FlowPath, Guidance, Schedule, sample
from elit.recipe import Recipe
from elit.sampling import SAMPLERS, image_noise
from elit.seeding import generator_for

SHAPE = (3, 8, 8)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def some_noise(*shape: int) -> Tensor:
    return torch.randn(*shape, *SHAPE, generator=generator_for("sampling test", *shape))


@torch.no_grad()
def euler_by_hand(model: DiT, x: Tensor, labels: list[int], steps: int, budget: float | None, scale: float) -> Tensor:
    """Euler's method on the guided velocity, one image at a time."""
    images = []
    for x_1, label in zip(x.double(), labels, strict=True):
        state = x_1[None]
        for k in range(steps):
            t = torch.tensor([1 - k / steps])
            cond = model(state.float(), t, torch.tensor([label]), budget)
            null = model(state.float(), t, torch.tensor([model.config.num_classes]), budget)
            state = state - (null + scale * (cond - null)).double() / steps
        images.append(state)
    return torch.cat(images).float()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_is_a_hand_written_loop(tiny: DiT, scale: float) -> None:
    """Noise, labels, steps, budget and guidance all reach the images, which are float32."""
    noise, labels = some_noise(3), [0, 6, 3]
    images = sample(tiny, labels, steps=5, budget=0.5, guidance=Guidance(scale=scale), noise=noise)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, euler_by_hand(tiny, noise, labels, 5, 0.5, scale), **CLOSE)


def test_defaults_are_euler_at_full_budget_without_guidance(tiny: DiT) -> None:
    """The plain call is 50 conditional Euler steps of the full budget."""
    noise = some_noise(1)
    torch.testing.assert_close(
        sample(tiny, [2], noise=noise), euler_by_hand(tiny, noise, [2], 50, None, 1.0), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_the_seed_and_its_place_alone(tiny: DiT, sampler: str) -> None:
    """The first images of a larger batch are those of a smaller one, whatever the global generator."""
    torch.manual_seed(1)
    four = sample(tiny, [1, 2, 3, 4], sampler, steps=4, seed=5)
    torch.manual_seed(2)
    two = sample(tiny, [1, 2], sampler, steps=4, seed=5)
    torch.testing.assert_close(four[:2], two, **CLOSE)
    other_label = sample(tiny, [1, 2, 3, 0], sampler, steps=4, seed=5)
    torch.testing.assert_close(other_label[:3], four[:3], **CLOSE)
    assert (other_label[3] - four[3]).abs().max() > 0.05
    assert (sample(tiny, [1, 2], sampler, steps=4, seed=6) - two).abs().amax((1, 2, 3)).min() > 0.05


def test_noise_is_bitwise_that_of_seed_and_index() -> None:
    """Image i's noise is the same in any batch and from any start; seeds, images and kinds differ; it is normal."""
    noise = image_noise(3, (6, *SHAPE))
    assert torch.equal(image_noise(3, (2, *SHAPE)), noise[:2])
    assert torch.equal(image_noise(3, (2, *SHAPE), first=4), noise[4:])
    everything = torch.cat([noise, image_noise(4, (6, *SHAPE)), image_noise(3, (6, *SHAPE), "sde")]).flatten(1)
    correlation = torch.corrcoef(everything) - torch.eye(18)
    assert correlation.abs().max() < 0.35  # of 192 numbers each
    assert everything.mean().item() == pytest.approx(0, abs=0.06)
    assert everything.std().item() == pytest.approx(1, abs=0.04)


def test_given_noise_is_used_and_the_seed_is_not(tiny: DiT) -> None:
    """With `noise` and `sde_noise` the seed no longer matters; without them they are those of the seed."""
    noise, sde_noise = some_noise(2), some_noise(3, 2)
    kept = noise.clone(), sde_noise.clone()
    images = [
        sample(tiny, [1, 2], "euler_maruyama", steps=4, seed=seed, noise=noise, sde_noise=sde_noise) for seed in (0, 9)
    ]
    assert torch.equal(*images)
    assert torch.equal(noise, kept[0])
    assert torch.equal(sde_noise, kept[1])

    drawn = image_noise(9, (2, *SHAPE)), image_noise(9, (2, 3, *SHAPE), "sde").transpose(0, 1)
    given = sample(tiny, [1, 2], "euler_maruyama", steps=4, noise=drawn[0], sde_noise=drawn[1])
    assert torch.equal(sample(tiny, [1, 2], "euler_maruyama", steps=4, seed=9), given)
    zeros = sample(tiny, [1, 2], "euler_maruyama", steps=4, noise=noise, sde_noise=torch.zeros_like(sde_noise))
    assert (zeros - images[0]).abs().max() > 0.05


@pytest.mark.parametrize("path", list(FlowPath))
def test_path_reaches_the_sde(tiny: DiT, path: FlowPath) -> None:
    """The drift uses the score of the path asked for, by name or as a value."""
    steps, noise, sde_noise = 2, some_noise(1), some_noise(1, 1)
    with torch.no_grad():
        x = noise.double()
        for t, t_next in ((1.0, 0.04), (0.04, 0.0)):
            v = tiny(x.float(), torch.tensor([t]), torch.tensor([2]), None).double()
            drift = v - t * path.score(v, x, torch.tensor(t, dtype=torch.float64))
            x = x + drift * (t_next - t) + (2 * t * (t - t_next)) ** 0.5 * sde_noise[0] * (t_next > 0)
    made = sample(tiny, [2], "euler_maruyama", steps, noise=noise, sde_noise=sde_noise, path=str(path))
    torch.testing.assert_close(made, x.float(), **CLOSE)


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.0), Guidance(scale=2.0, weak_budget=0.25)])
@pytest.mark.parametrize("budgets", [[0.25, 1.0, 0.5], [0.5, 0.5, 0.5]])
def test_one_budget_per_image(tiny: DiT, guidance: Guidance, budgets: list[float]) -> None:
    """Each image of a mixed batch is the one made alone at its own budget; so too where all budgets are equal."""
    noise, options = some_noise(3), {"steps": 3, "guidance": guidance}
    mixed = sample(tiny, [1, 2, 3], budget=budgets, noise=noise, **options)
    alone = [sample(tiny, [i + 1], budget=budget, noise=noise[i : i + 1], **options) for i, budget in enumerate(budgets)]
    torch.testing.assert_close(mixed, torch.cat(alone), **CLOSE)


def test_schedule_is_a_change_of_budget_on_the_way(tiny: DiT) -> None:
    """The noisier half at a quarter and the rest in full are two runs, one going on where the other stopped."""
    noise = some_noise(2)
    scheduled = sample(tiny, [1, 2], steps=4, budget=Schedule(((0.5, 0.25),), 1.0), noise=noise)
    states: list[Tensor] = []
    sample(tiny, [1, 2], steps=4, budget=0.25, noise=noise, callback_on_step_end=lambda k, t, x: states.append(x))
    rest = sample(
        tiny,
        [1, 2],
        steps=4,
        budget=1.0,
        noise=noise,
        callback_on_step_end=lambda k, t, x: states[1] if k == 1 else None,
    )
    torch.testing.assert_close(scheduled, rest, **CLOSE)
    assert (scheduled - sample(tiny, [1, 2], steps=4, budget=0.25, noise=noise)).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_maruyama"])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shift_moves_the_times_of_the_steps(tiny: DiT, sampler: str, shift: float) -> None:
    """The odds of every time, t / (1 - t), are those of the even ones times the shift; the ends stay."""
    reached: list[float] = []
    sample(tiny, [1], sampler, 8, shift=shift, callback_on_step_end=lambda step, t, x: reached.append(t))
    assert reached[-1] == 0
    last = 0.04 if sampler == "euler_maruyama" else 0.0
    times = [1.0, *reached[:-1]] + ([] if last else [0.0])
    odds = [t / (1 - t) for t in times[1:] if t > 0]
    even = [o / shift / (1 + o / shift) for o in odds]
    steps = [a - b for a, b in pairwise([1.0, *even] + ([] if last else [0.0]))]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert Recipe(sampler, 8, shift=shift).parts(tiny)[0][1] == [1.0, *reached]


def test_null_class_is_a_label(tiny: DiT) -> None:
    """The model's null class samples without a label: guidance then changes nothing."""
    noise = some_noise(1)
    plain, guided = (sample(tiny, [7], steps=3, noise=noise, guidance=Guidance(scale=s)) for s in (1.0, 4.0))
    torch.testing.assert_close(plain, guided, **CLOSE)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"labels": [0, 8]}, "0 to 6"),
        ({"labels": [-1]}, "0 to 6"),
        ({"labels": [[1, 2]]}, "one list"),
        ({"labels": 3}, "one list"),
        ({"labels": []}, "label"),
        ({"sampler": "ddim"}, "euler, heun, euler_maruyama"),
        ({"steps": 0}, "0 steps"),
        ({"steps": -3, "sampler": "heun"}, "-3 steps"),
        ({"steps": 1, "sampler": "euler_maruyama"}, "1 steps"),
        ({"noise": torch.zeros(3, 3, 8, 8)}, "(2, 3, 8, 8)"),
        ({"noise": torch.zeros(2, 4, 8, 8)}, "(2, 3, 8, 8)"),
        ({"noise": torch.zeros(2, 8, 8)}, "(2, 3, 8, 8)"),
        ({"noise": torch.zeros(2, 3, 9, 8)}, "multiples of 2"),
        ({"noise": torch.zeros(2, 3, 16, 16)}, "rope=True"),
        ({"sampler": "euler_maruyama", "steps": 4, "sde_noise": torch.zeros(4, 2, 3, 8, 8)}, "(3, 2, 3, 8, 8)"),
        ({"sampler": "euler_maruyama", "path": "straight"}, "straight"),
        ({"shift": 0.0}, "shift is a number above 0"),
        ({"shift": float("nan")}, "shift is a number above 0"),
        ({"shift": True}, "shift is a number above 0"),
        ({"budget": 0.0}, "1/4, 2/4, 3/4, 4/4"),
        ({"budget": 1.5}, "1/4, 2/4, 3/4, 4/4"),
        ({"budget": [0.5, 0.5, 0.5]}, "3 budgets"),
        ({"budget": [0.5, float("nan")]}, "1/4, 2/4, 3/4, 4/4"),
    ],
)
def test_bad_input_is_one_sentence(tiny: DiT, wrong: dict[str, Any], named: str) -> None:
    """What cannot be sampled is a ValueError of one line that says what can."""
    with pytest.raises(ValueError, match=re.escape(named)) as raised:
        sample(tiny, **{"labels": [1, 2], "steps": 3, **wrong})
    assert "\n" not in str(raised.value)


def test_nothing_is_left_behind(tiny: DiT) -> None:
    """Images carry no graph, and neither the global generator nor the model's mode changes."""
    torch.manual_seed(3)
    before, training = torch.get_rng_state(), tiny.train().training
    assert not sample(tiny, [1], steps=2).requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert tiny.training == training
