"""Models of decomposable flow matching and their staged sampling, beside a float64 statement of both.

The statement of the model reads tensors by their published names (`published_model.py`); that of the sampler keeps a list of
stages, each with a time of its own, and knows no global time.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import elit
import published_model as published
from elit.backbones.config import DFMConfig
from elit.backbones.dfm import DFM
from elit.backbones.table import build_model
from elit.published import patch_linears, published_names
from elit.sampling import start
from randomised import randomised

# heads are 64 wide, as the statement has them
DENSE = DFMConfig(input_size=16, patch_size=4, in_channels=2, num_classes=3, width=64, depth=3, heads=1, stages=3)
ELASTIC = dataclasses.replace(DENSE, group_size=2, head_depth=1, tail_depth=1, write_sees_dropped=True, latent_table=16)
TWO = dataclasses.replace(ELASTIC, stages=2)
State = dict[str, Tensor]


def made(config: DFMConfig) -> tuple[DFM, State]:
    """A model whose every weight counts, and its weights by their published names."""
    model = randomised(build_model(config)).eval()
    assert isinstance(model, DFM)
    state = {theirs: model.state_dict()[ours] for ours, theirs in published_names(model).items()}
    for theirs, linear in patch_linears(model).items():
        weight = model.state_dict()[linear]
        side = round((weight.shape[1] / config.in_channels) ** 0.5)
        state[theirs] = weight.unflatten(1, (side, side, config.in_channels)).permute(0, 3, 1, 2)
    return model, state


def stages_of(model: DFM, seed: int = 0, batch: int = 1) -> list[Tensor]:
    """Drawn stages (B, C, h, w), the coarsest first."""
    generator = torch.Generator().manual_seed(seed)
    side, count = model.config.input_size, model.stages
    return [torch.randn(batch, 2, side >> count - 1 - i, side >> count - 1 - i, generator=generator) for i in range(count)]


def stated(state: State, config: DFMConfig, keep: int) -> Callable[[list[Tensor], list[float], int], list[Tensor]]:
    split = (0, 0, 0) if config.group_size is None else (1, 1, 2)
    return lambda stages, times, y: published.staged_velocity(state, stages, times, y, *split, keep)


def assert_close(ours: list[Tensor], theirs: list[Tensor], within: float = 1e-4) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < within


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "keeps"), [(DENSE, [0]), (ELASTIC, [1, 3, 4]), (TWO, [2])], ids=["dense", "elastic", "two"]
)
def test_the_velocities_of_all_stages_are_the_statement(config: DFMConfig, keeps: list[int]) -> None:
    model, state = made(config)
    stages, times = stages_of(model), [0.2, 0.7, 1.0][: model.stages]
    for y, keep in enumerate(keeps):
        v = model(model.pyramid.pack(stages), torch.tensor([times]), torch.tensor([y]), keep / 4 if keep else None)
        expected = stated(state, config, keep)([stage[0] for stage in stages], times, y)
        assert_close([part[0] for part in model.pyramid.unpack(v)], expected, 1e-5)


@torch.no_grad()
def test_one_time_for_a_sample_is_that_of_all_its_stages() -> None:
    model, _ = made(TWO)
    x, t, y = model.pyramid.pack(stages_of(model, batch=2)), torch.tensor([0.3, 0.8]), torch.tensor([0, 3])
    assert torch.equal(model(x, t, y), model(x, t[:, None].expand(-1, 2), y))
    with pytest.raises(elit.UserError, match=r"2 times, one per sample, or 2 of each, one per stage, not \(2, 3\)"):
        model(x, t[:, None].expand(-1, 3), y)


def sampled(
    v: Callable[[list[Tensor], list[float], int], list[Tensor]],
    noise: list[Tensor],
    tau: list[float],
    steps: list[int],
    method: str,
    guide: Callable[[list[Tensor], list[float], int], list[Tensor]],
) -> list[Tensor]:
    """Stage after stage: each active one moves by its own step of its own time; later ones are zeros at time 1."""
    x = [stage.double() for stage in noise]
    for i, n in enumerate(steps):
        spans = [(tau[i - 1], tau[i])] * i + [(1.0, tau[i])]

        def velocity(now: list[Tensor], k: int, i: int = i, n: int = n, spans: list = spans) -> list[Tensor]:
            times = [a + k / n * (b - a) for a, b in spans] + [1.0] * (len(now) - i - 1)
            shown = [stage if j <= i else torch.zeros_like(stage) for j, stage in enumerate(now)]
            return guide(shown, times, i) if guide is not v else v(shown, times, 1)

        def moved(now: list[Tensor], v: list[Tensor], n: int = n, spans: list = spans) -> list[Tensor]:
            return [s + v[j] * (spans[j][1] - spans[j][0]) / n if j < len(spans) else s for j, s in enumerate(now)]

        for k in range(n):
            first = velocity(x, k)
            ahead = moved(x, first)
            if method == "heun" and k < n - 1:
                second = velocity(ahead, k + 1)
                ahead = moved(x, [(a + b) / 2 for a, b in zip(first, second, strict=True)])
            x = ahead
    return x


@torch.no_grad()
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("config", [DENSE, TWO], ids=["three stages", "two stages, elastic"])
@pytest.mark.parametrize("interval", [None, (0.0, 1.0), (0.27, 0.77)])
def test_staged_samples_are_the_statement(method: str, config: DFMConfig, interval: tuple[float, float] | None) -> None:
    """Guidance acts on each stage while its own time is in the interval."""
    model, state = made(config)
    tau, steps = ([0.4, 0.15, 0.0], [3, 2, 2]) if model.stages == 3 else ([0.3, 0.0], [3, 4])
    keep = 0 if config is DENSE else 3
    strong, weak = stated(state, config, keep), stated(state, config, 0 if config is DENSE else 1)

    def guided(stages: list[Tensor], times: list[float], last: int) -> list[Tensor]:
        assert interval is not None
        v, w = strong(stages, times, 1), weak(stages, times, 3)
        on = [interval[0] <= t <= interval[1] for t in times]
        return [b + 2.5 * (a - b) if on[j] else a for j, (a, b) in enumerate(zip(v, w, strict=True))]

    noise = stages_of(model, seed=4)
    guide = strong if interval is None else guided
    expected = sampled(strong, [stage[0] for stage in noise], tau, steps, method, guide)
    image = expected[0]
    for stage in expected[1:]:
        image = torch.nn.functional.interpolate(image[None], scale_factor=2.0, mode="bilinear")[0] + stage
    guidance = elit.Guidance() if interval is None else elit.Guidance(2.5, interval, None if config is DENSE else 0.25)
    ours = elit.sample(
        *(model, [1], method, steps, 0.75 if keep else None, guidance),
        noise=model.pyramid.pack(noise),
        thresholds=tau[:-1],
    )
    assert ours.shape == (1, 2, 16, 16)
    assert_close([ours[0]], [image])


@torch.no_grad()
def test_a_budget_for_each_stage() -> None:
    """Halves of the global time are the stages: a schedule over it is a budget per stage."""
    model, state = made(TWO)
    noise = stages_of(model, seed=5)
    low, high = stated(state, TWO, 1), stated(state, TWO, 4)

    def by_stage(stages: list[Tensor], times: list[float], last: int) -> list[Tensor]:
        return (high if last else low)(stages, times, 1)

    expected = sampled(low, [stage[0] for stage in noise], [0.1, 0.0], [2, 2], "heun", by_stage)
    budget = elit.Schedule.by_stage([0.25, 1.0], model.stages)
    assert budget == elit.Schedule(((0.5, 0.25),), 1.0)
    packed = model.pyramid.pack(noise)
    ours = elit.sample(model, [1], "heun", [2, 2], budget, noise=packed)
    assert_close([ours[0]], [model.pyramid.recompose(model.pyramid.pack([s[None] for s in expected]))[0]])
    ran: list[tuple[float, float]] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: ran.append((float(inputs[1][0, 1]), inputs[3])))
    elit.sample(model, [1], "heun", [2, 2], budget, noise=packed)
    hook.remove()
    assert all(b == 0.25 for t, b in ran[:3]) and all(b == 1.0 for t, b in ran[3:]) and len(ran) == 6


@pytest.mark.parametrize("given", [[0.25], [0.25, 0.5, 1.0]])
def test_a_stage_budget_too_many_is_refused(given: list[float]) -> None:
    with pytest.raises(elit.UserError, match=f"{len(given)} budgets .* 2 stages"):
        elit.Schedule.by_stage(given, 2)


@torch.no_grad()
def test_the_first_stages_alone_make_a_coarse_image() -> None:
    """It is the small image made larger, and the noise of the others has no part in it."""
    model, _ = made(DENSE)
    noise = stages_of(model, seed=6)
    other = [noise[0], *(2 * stage for stage in noise[1:])]
    a, b = (elit.sample(model, [1], steps=[2, 1, 1], noise=model.pyramid.pack(n), stages=1) for n in (noise, other))
    assert torch.equal(a, b)
    small = model.pyramid.unpack(model.pyramid.decompose(a))
    assert a.shape == (1, 2, 16, 16) and all(stage.abs().max() < 0.35 * small[0].abs().max() for stage in small[1:])


@torch.no_grad()
def test_callbacks_count_on_through_the_stages_and_see_the_pyramid() -> None:
    model, _ = made(TWO)
    seen: list[tuple[int, float, tuple[int, ...]]] = []
    elit.sample(model, [1, 2], steps=[2, 3], callback_on_step_end=lambda i, t, x: seen.append((i, t, tuple(x.shape))))
    assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == pytest.approx([0.75, 0.5, 1 / 3, 1 / 6, 0])
    assert {shape for _, _, shape in seen} == {(2, *model.input.shape)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampler": "euler_maruyama"}, "euler_maruyama samples a model of one stage, and this has 2"),
        ({"steps": [4, 4, 4]}, "4, 4, 4 are not 2 whole numbers"),
        ({"steps": 1}, "too few for 2 stages"),
        ({"steps": [4, True]}, "too few or too many"),
        ({"thresholds": [1.5]}, "do not fall"),
        ({"thresholds": [0.2, 0.1]}, "are 2; 2 stages have 1"),
        ({"stages": 3}, "3 stages were asked for; the model has 2"),
        ({"stages": 0}, "0 stages were asked for"),
        ({"noise": torch.zeros(1, 2, 16, 16)}, r"noise is a tensor \(1, 10, 8, 8\)"),
    ],
)
def test_what_does_not_fit_the_stages_is_refused(given, said) -> None:
    model, _ = made(TWO)
    with pytest.raises(elit.UserError, match=said):
        elit.sample(model, [1], **{"steps": 4, **given})


@pytest.mark.parametrize("given", [{"steps": [4]}, {"thresholds": [0.1]}, {"stages": 1}])
def test_a_model_of_one_stage_has_none_to_set(given, tiny: elit.DiT) -> None:
    with pytest.raises(elit.UserError, match="are for models of several stages, and this has one"):
        elit.sample(tiny, [1], **{"steps": 4, **given})


def test_a_course_of_single_steps_is_for_models_of_one_stage() -> None:
    with pytest.raises(elit.UserError, match="a model of 2 stages is sampled whole"):
        start(made(TWO)[0], 1, "euler", 4, 0)


def test_stages_that_halve_a_patch_too_often_are_refused() -> None:
    with pytest.raises(elit.UserError, match="3 stages halve patches 2 times, and patch_size 2 is no multiple of 4"):
        dataclasses.replace(DENSE, patch_size=2)


def test_a_dfm_costs_as_much_as_its_dit() -> None:
    """Within 2 % at equal tokens, at every budget."""
    with torch.device("meta"):
        plain = elit.create_model("ELIT-SiT-B/4", depth=6)
        staged = elit.create_model("ELIT-DFM-SiT-B/4", depth=6, stages=3)
    for budget in (0.0625, 1.0):
        assert elit.count_flops(plain, budget) < elit.count_flops(staged, budget) < 1.02 * elit.count_flops(plain, budget)
