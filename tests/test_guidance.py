"""Guidance against its formula, by explicit calls of a tiny elastic model."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from elit import DiT, FlowPath, Guidance, Schedule
from elit.condition import Labels
from elit.guidance import bind, guided, guided_velocity
from elit.samplers import Velocity, euler, euler_maruyama, even_times, heun, sde_times
from elit.seeding import generator_for

LABELS = torch.tensor([0, 3, 6])
NULL = 7  # of a model of seven classes
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad() -> Any:
    with torch.no_grad():
        yield


def state(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=generator_for("guidance test"), dtype=dtype)


def velocity_of(model: DiT, labels: Tensor, budget: Any, guidance: Guidance) -> Velocity:
    return guided_velocity(model, Labels(labels, model.null_class), budget, guidance)


class Calls:
    """The model's calls, noted by a hook: batch, time, labels and level of each."""

    def __init__(self, model: DiT) -> None:
        self.model = model
        self.noted: list[tuple[int, float, list[int], Any]] = []
        model.register_forward_pre_hook(self.note)

    def note(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        x, t, condition, budget = args
        assert t.unique().numel() == 1
        labels = condition.y if isinstance(condition, Labels) else condition
        self.noted.append((len(x), t[0].item(), labels.tolist(), self.model.levels.resolve(budget, len(x))))


def explicit(model: DiT, t: float, label: int | None, budget: Any) -> Tensor:
    """The model's velocity at `state()`: of LABELS, or of one label for all."""
    labels = LABELS if label is None else torch.full_like(LABELS, label)
    return model(state().float(), torch.full((3,), t), labels, budget)


NAMED = {
    "CFG": (Guidance(scale=2.5), 0.75, NULL, 0.75),
    "CFG at full budget": (Guidance(scale=0.5), None, NULL, None),
    "cheap CFG": (Guidance(scale=2.5, weak_budget=0.25), 1.0, NULL, 0.25),
    "autoguidance": (Guidance(scale=2.5, weak_budget=0.25, weak_label="same"), None, None, 0.25),
    "CFG, one budget per image": (Guidance(scale=2.5), [0.25, 1.0, 0.5], NULL, [0.25, 1.0, 0.5]),
    "CFG, equal budgets per image": (Guidance(scale=2.5), [0.5, 0.5, 0.5], NULL, 0.5),
    "cheap CFG, one budget per image": (Guidance(scale=3, weak_budget=0.5), [0.25, 1.0, 0.5], NULL, 0.5),
    "extrapolation backwards": (Guidance(scale=-1.0), 0.5, NULL, 0.5),
}


@pytest.mark.parametrize("name", NAMED)
def test_formula(tiny: DiT, name: str) -> None:
    """v = v_weak + w (v_cond - v_weak), with the weak label and budget of each kind of guidance."""
    guidance, budget, weak_label, weak_budget = NAMED[name]
    v_cond, v_weak = explicit(tiny, 0.6, None, budget), explicit(tiny, 0.6, weak_label, weak_budget)
    assert (v_cond - v_weak).abs().max() > 1e-2
    guided = velocity_of(tiny, LABELS, budget, guidance)(state(), 0.6)
    torch.testing.assert_close(guided, v_weak + guidance.scale * (v_cond - v_weak), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 7])
def test_null_class_is_the_models_own(make_dit: Callable[..., DiT], classes: int) -> None:
    """The weak label is the model's number of classes, not that of ImageNet."""
    model = make_dit(num_classes=classes)
    calls = Calls(model)
    labels = torch.tensor([0, classes - 1])
    velocity_of(model, labels, 1.0, Guidance(scale=2, weak_budget=0.5))(state()[:2], 0.5)
    assert [(noted, level) for _, _, noted, level in calls.noted] == [([0, classes - 1], 4), ([classes] * 2, 2)]


def test_both_paths_share_a_call_where_their_budgets_agree(tiny: DiT) -> None:
    """CFG is one call of 2 B; a weak budget of the main level is the same; a lower one is two calls of B."""
    calls = Calls(tiny)
    both = [*LABELS.tolist(), NULL, NULL, NULL]
    velocity_of(tiny, LABELS, 0.5, Guidance(scale=2))(state(), 0.5)
    velocity_of(tiny, LABELS, 0.5, Guidance(scale=2, weak_budget=0.6))(state(), 0.5)
    assert calls.noted == [(6, 0.5, both, 2)] * 2
    calls.noted.clear()
    velocity_of(tiny, LABELS, 0.5, Guidance(scale=2, weak_budget=0.25))(state(), 0.5)
    assert calls.noted == [(3, 0.5, both[:3], 2), (3, 0.5, both[3:], 1)]


def test_many_images_run_in_two_passes_on_a_cpu(tiny: DiT) -> None:
    """Of the same velocity as one batch of twice as many: that of each image alone."""
    labels = torch.tensor([0, 3, 6, 1])
    x = torch.randn(4, 3, 8, 8, generator=generator_for("guidance test"), dtype=torch.float64)
    guidance = Guidance(scale=2.5)
    alone = torch.cat([velocity_of(tiny, labels[i : i + 1], 0.75, guidance)(x[i : i + 1], 0.5) for i in range(4)])
    calls = Calls(tiny)
    together = velocity_of(tiny, labels, 0.75, guidance)(x, 0.5)
    assert [(count, given) for count, _, given, _ in calls.noted] == [(4, labels.tolist()), (4, [NULL] * 4)]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weak", [{}, {"weak_budget": 0.25}, {"weak_budget": 0.25, "weak_label": "same"}])
def test_scale_one_makes_no_weak_call(tiny: DiT, weak: dict[str, Any]) -> None:
    """For w = 1 the model runs once on B images, and its velocity is returned as it is."""
    expected = explicit(tiny, 0.5, None, 0.75)
    calls = Calls(tiny)
    guided = velocity_of(tiny, LABELS, 0.75, Guidance(scale=1.0, **weak))(state(), 0.5)
    assert torch.equal(guided, expected)
    assert calls.noted == [(3, 0.5, LABELS.tolist(), 3)]


def test_interval_includes_its_ends(tiny: DiT) -> None:
    """Guided for t in [low, high]; outside the conditional velocity, and no weak call."""
    calls = Calls(tiny)
    velocity = velocity_of(tiny, LABELS, 1.0, Guidance(scale=3.0, interval=(0.25, 0.75)))
    for t in (1.0, 0.76, 0.75, 0.5, 0.25, 0.24, 0.0):
        velocity(state(), t)
    assert [batch for batch, *_ in calls.noted] == [3, 3, 6, 6, 6, 3, 3]
    torch.testing.assert_close(velocity(state(), 0.76), explicit(tiny, 0.76, None, 1.0))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": float("inf")}, "scale inf"),
        ({"interval": (0.6, 0.4)}, "interval"),
        ({"interval": (-0.1, 0.4)}, "interval"),
        ({"interval": (0.0, 1.1)}, "interval"),
        ({"interval": (0.0, float("nan"))}, "interval"),
        ({"weak_budget": 0.0}, "weak_budget 0.0"),
        ({"weak_budget": 1.5}, "weak_budget 1.5"),
        ({"weak_budget": float("nan")}, "weak_budget nan"),
        ({"weak_label": "none"}, "'none'"),
        ({"weak_label": "same"}, "give weak_budget"),
    ],
)
def test_bad_values_are_refused_when_built(values: dict[str, Any], named: str) -> None:
    """A value out of range, and autoguidance without a weak budget, raise a ValueError that says which."""
    with pytest.raises(ValueError, match=named):
        Guidance(**values)


def test_guiding_the_velocities_guides_the_drifts_of_the_sde(tiny: DiT) -> None:
    """The drift v - w s / 2 is affine in v, so guiding the two drifts is what the sampler does with one velocity."""
    steps, guidance = 6, Guidance(scale=2.5, weak_budget=0.25)
    sde_noise = torch.randn(steps - 1, *state().shape, generator=generator_for("sde"), dtype=torch.float64)
    times = [1 - 0.96 * k / (steps - 1) for k in range(steps)] + [0.0]

    def drift(x: Tensor, t: float, label: int | None, budget: float) -> Tensor:
        labels = LABELS if label is None else torch.full_like(LABELS, label)
        v = tiny(x.float(), torch.full((3,), t), labels, budget).double()
        score = -((1 - t) * v + x) / t  # of the linear path
        return v - t * score

    x = state()
    for k, (t, t_next) in enumerate(pairwise(times)):
        weak, cond = drift(x, t, NULL, 0.25), drift(x, t, None, 0.75)
        x = x + (weak + guidance.scale * (cond - weak)) * (t_next - t)
        if k < steps - 1:
            x = x + (2 * t * (t - t_next)) ** 0.5 * sde_noise[k]

    velocity = velocity_of(tiny, LABELS, 0.75, guidance)
    made = euler_maruyama(velocity, state(), sde_times(steps), sde_noise, FlowPath.LINEAR)
    torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-4)


def test_schedule_switches_levels_between_steps(tiny: DiT) -> None:
    """A piece holds while t is above its time: at t = 0.5 exactly the rest of the schedule has begun."""
    calls = Calls(tiny)
    schedule = Schedule(((0.75, 0.25), (0.5, 0.5)), 1.0)
    euler(velocity_of(tiny, LABELS, schedule, Guidance()), state(), even_times(8))
    assert [(t, level) for _, t, _, level in calls.noted] == [
        (1.0, 1), (0.875, 1), (0.75, 2), (0.625, 2), (0.5, 4), (0.375, 4), (0.25, 4), (0.125, 4),
    ]  # fmt: skip


def test_schedule_and_guidance_together(tiny: DiT) -> None:
    """The weak path of CFG follows the schedule; that of cheap CFG stays at its own budget."""
    calls = Calls(tiny)
    schedule = Schedule(((0.5, 0.25),), 1.0)
    heun(velocity_of(tiny, LABELS, schedule, Guidance(scale=2)), state(), even_times(2))
    assert [(batch, t, level) for batch, t, _, level in calls.noted] == [(6, 1.0, 1), (6, 0.5, 4), (6, 0.5, 4)]
    calls.noted.clear()
    euler(
        velocity_of(tiny, LABELS, schedule, Guidance(scale=2, weak_budget=0.25)),
        state(),
        even_times(2),
    )
    assert [(batch, t, level) for batch, t, _, level in calls.noted] == [(6, 1.0, 1), (3, 0.5, 4), (3, 0.5, 1)]


def test_a_model_in_half_precision_is_guided_in_float32(tiny: DiT) -> None:
    """The two velocities are rounded to bfloat16 by the model, and their combination is not."""
    half = tiny.bfloat16()
    guidance = Guidance(scale=7.3, weak_budget=0.25)
    v, weak = (explicit(half, 0.5, label, budget).float() for label, budget in ((None, 1.0), (NULL, 0.25)))
    made = velocity_of(half, LABELS, 1.0, guidance)(state(), 0.5)
    assert made.dtype == torch.float32
    assert torch.equal(made, weak + 7.3 * (v - weak))
    assert not torch.equal(made, made.bfloat16().float())


def test_two_networks_guide_each_other(make_dit: Callable[..., DiT]) -> None:
    """Autoguidance by another, weaker model: each runs on its own, at its own budget."""
    strong, weak = make_dit(), make_dit(group_size=None, depth=2, head_depth=0, tail_depth=0)
    labels = Labels(LABELS, strong.null_class)
    velocity = guided(bind(strong, labels, 0.5), bind(weak, labels), Guidance(scale=3.0, weak_budget=0.5, weak_label="same"))
    x, t = state(), torch.full((3,), 0.5)
    v, v_weak = strong(x.float(), t, LABELS, 0.5), weak(x.float(), t, LABELS)
    assert torch.equal(velocity(x, 0.5), v_weak + 3.0 * (v - v_weak))


def test_a_budget_over_time_is_anything_with_at(tiny: DiT) -> None:
    class Falling:
        def at(self, t: float) -> float:
            return 1.0 if t > 0.5 else 0.25

    velocity = velocity_of(tiny, LABELS, Falling(), Guidance())
    for t, budget in ((0.75, 1.0), (0.25, 0.25)):
        assert torch.equal(velocity(state(), t), explicit(tiny, t, None, budget))
