"""The pyramid, its schedule and its flow, each beside a statement of its own: float64, pixel by pixel, stage by stage."""

import math

import pytest
import torch
from torch import Tensor

import elit
from elit.flow import FlowPath, TimeLaw
from elit.pyramid import Pyramid, PyramidFlow, default_thresholds, sampled_stages, steps_by_stage


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def half(x: Tensor) -> Tensor:
    """(h, w): the mean of each 2 x 2 pixels."""
    return torch.tensor(
        [[sum(x[2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)) / 4 for c in range(len(x[0]) // 2)]
         for r in range(len(x) // 2)], dtype=x.dtype
    )  # fmt: skip


def double(x: Tensor) -> Tensor:
    """(h, w): pixel 2i lies a quarter of a pixel before the centre of i, and 2i + 1 a quarter behind it."""

    def weights(n: int) -> Tensor:
        w = torch.zeros(2 * n, n, dtype=x.dtype)
        for i in range(n):
            for out, neighbour in ((2 * i, max(i - 1, 0)), (2 * i + 1, min(i + 1, n - 1))):
                w[out, i] += 0.75
                w[out, neighbour] += 0.25
        return w

    return weights(len(x)) @ x @ weights(len(x[0])).T


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_pyramid_is_halves_and_what_their_doubles_miss(stages: int) -> None:
    x = drawn(1, 2, 16, 8)
    expected, rest = [], [x[0, 0], x[0, 1]]
    for _ in range(stages - 1):
        smaller = [half(channel) for channel in rest]
        expected.append(torch.stack([a - double(b) for a, b in zip(rest, smaller, strict=True)]))
        rest = smaller
    expected.append(torch.stack(rest))
    made = Pyramid(2, stages).unpack(Pyramid(2, stages).decompose(x))
    assert len(made) == stages
    for ours, theirs in zip(made, reversed(expected), strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_recomposing_a_pyramid_gives_the_image_back(stages: int) -> None:
    x, pyramid = drawn(2, 3, 16, 24, dtype=torch.float32), Pyramid(3, stages)
    packed = pyramid.decompose(x)
    assert packed.shape == (2, 3 * (4**stages - 1) // 3, 16 // 2 ** (stages - 1), 24 // 2 ** (stages - 1))
    assert (pyramid.recompose(packed) - x).abs().max() < 1e-6
    if stages > 1:
        assert (pyramid.recompose(torch.zeros_like(packed)) - x).abs().max() > 0.5


def test_a_packed_pyramid_holds_every_pixel_of_every_stage_above_its_place() -> None:
    """So that noise of the packed shape is noise of every stage, and a place holds what its token needs."""
    pyramid = Pyramid(1, 3)
    stages = [drawn(1, 1, 2**i, 2 ** (i + 1), seed=i) for i in range(3)]
    packed = pyramid.pack(stages)
    for i, stage in enumerate(stages):
        first = sum(4**j for j in range(i))
        for r in range(2**i):
            for c in range(2 ** (i + 1)):
                place = packed[0, first : first + 4**i, r >> i, c >> i]
                assert stage[0, 0, r, c] == place[(r % 2**i) * 2**i + c % 2**i]
    for ours, stage in zip(pyramid.unpack(packed), stages, strict=True):
        assert torch.equal(ours, stage)


def test_two_stages_run_as_published() -> None:
    """The coarse stage 1 -> 0.1 in 40 steps, then 0.1 -> 0 beside the fine one, 1 -> 0 in 10."""
    coarse, fine = sampled_stages(Pyramid(4, 2))
    first = [coarse.clocks(t) for t in coarse.times(40)]
    second = [fine.clocks(t) for t in fine.times(10)]
    for k, clocks in enumerate(first):
        assert clocks == pytest.approx([0.1 + (40 - k) / 40 * 0.9, 1.0], abs=1e-12)
    for k, clocks in enumerate(second):
        assert clocks == pytest.approx([0.1 * (10 - k) / 10, (10 - k) / 10], abs=1e-12)


@pytest.mark.parametrize("thresholds", [(), (0.1,), (0.3, 0.2), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize("steps", [1, 7])
def test_any_number_of_stages_run_by_the_rule(thresholds: tuple[float, ...], steps: int) -> None:
    """While stage i runs 1 -> tau_i, every earlier one runs tau_(i-1) -> tau_i; clocks join, and speeds are their slopes."""
    stages = len(thresholds) + 1
    tau = [*thresholds, 0.0]
    parts = sampled_stages(Pyramid(1, stages), thresholds)
    ended, reached = 1.0, [1.0] * stages
    for i, part in enumerate(parts):
        times = part.times(steps)
        assert times[0] == pytest.approx(ended)
        assert part.clocks(times[0]) == pytest.approx(reached)
        for k, t in enumerate(times):
            done = k / steps
            before = [tau[i - 1] + done * (tau[i] - tau[i - 1])] * i
            assert part.clocks(t) == pytest.approx([*before, 1 + done * (tau[i] - 1), *[1.0] * (stages - i - 1)])
        slopes = [
            (b - a) / (times[-1] - times[0]) for a, b in zip(part.clocks(times[0]), part.clocks(times[-1]), strict=True)
        ]
        assert part.speeds() == pytest.approx(slopes)
        ended, reached = times[-1], part.clocks(times[-1])
    assert ended == pytest.approx(0)
    assert reached == pytest.approx([0.0] * stages)


def test_fewer_stages_end_clean_themselves() -> None:
    parts = sampled_stages(Pyramid(1, 3), (0.3, 0.2), count=2)
    assert [part.clocks(part.times(5)[-1]) for part in parts] == [
        pytest.approx([0.3, 1.0, 1.0]), pytest.approx([0.0, 0.0, 1.0], abs=1e-12)
    ]  # fmt: skip
    packed = drawn(1, 21, 1, 1)
    assert torch.equal(parts[0].seen(packed)[:, :1], packed[:, :1])
    assert not parts[0].seen(packed)[:, 1:].any()
    assert torch.equal(parts[1].seen(packed)[:, :5], packed[:, :5]) and not parts[1].seen(packed)[:, 5:].any()


@pytest.mark.parametrize(
    ("steps", "stages", "expected"),
    [
        (50, 2, [40, 10]),
        (50, 1, [50]),
        (50, 3, [30, 10, 10]),
        (2, 2, [1, 1]),
        (3, 3, [1, 1, 1]),
        (4, 3, [2, 1, 1]),
        ((7, 3), 2, [7, 3]),
        (25, 2, [20, 5]),
    ],
)
def test_steps_of_every_stage(steps, stages, expected) -> None:
    assert steps_by_stage(steps, stages) == expected


@pytest.mark.parametrize(
    ("thresholds", "stages", "said"),
    [
        ((0.1, 0.2), 3, "0.1, 0.2 do not fall from below 1 to above 0"),
        ((0.2, 0.2), 3, "do not fall"),
        ((0.0,), 2, "do not fall"),
        ((-0.1,), 2, "do not fall"),
        ((1.0,), 2, "do not fall"),
        ((float("nan"),), 2, "do not fall"),
        ((0.1,), 3, "thresholds 0.1 are 1; 3 stages have 2"),
        ((0.1,), 1, "1 stages have 0"),
    ],
)
def test_thresholds_out_of_order_are_refused(thresholds, stages, said) -> None:
    with pytest.raises(elit.UserError, match=said):
        sampled_stages(Pyramid(3, stages), thresholds)


@pytest.mark.parametrize(
    ("steps", "said"),
    [((5,), "steps 5 are not 2 whole numbers"), ((5, 0), "5, 0 are not"), (1, "1 steps are too few for 2 stages")],
)
def test_steps_that_fit_no_stages_are_refused(steps, said) -> None:
    with pytest.raises(elit.UserError, match=said):
        steps_by_stage(steps, 2)


def test_the_usual_thresholds_fall() -> None:
    assert default_thresholds(2) == (0.1,)
    for stages in range(1, 9):
        sampled_stages(Pyramid(1, stages), default_thresholds(stages))


FLOW = PyramidFlow(Pyramid(2, 3), (0.5, 0.3, 0.2))


@pytest.mark.parametrize("path", FlowPath)
@pytest.mark.parametrize("active", [1, 2, 3])
def test_points_and_loss_are_those_of_every_stage_alone(path: FlowPath, active: int) -> None:
    flow = PyramidFlow(FLOW.pyramid, FLOW.weights, path)
    x, noise, predicted = drawn(3, 2, 8, 8), drawn(3, 42, 2, 2, seed=1), drawn(3, 42, 2, 2, seed=2)
    t = torch.rand(3, active, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sample = flow.interpolate(x, noise, t)
    unpack = flow.pyramid.unpack
    clean, noises = unpack(flow.pyramid.decompose(x)), unpack(noise)
    expected = 0.0
    for i in range(3):
        point, velocity, guess = (unpack(part)[i] for part in (sample.x_t, sample.velocity, predicted))
        if i >= active:
            assert not point.any() and not velocity.any() and (sample.t[:, i] == 1).all()
            continue
        for b in range(3):
            turn = float(t[b, i])
            a, s = (1 - turn, turn) if path == "linear" else (math.cos(math.pi / 2 * turn), math.sin(math.pi / 2 * turn))
            da, ds = (-1, 1) if path == "linear" else (-math.pi / 2 * s, math.pi / 2 * a)
            torch.testing.assert_close(point[b], a * clean[i][b] + s * noises[i][b])
            torch.testing.assert_close(velocity[b], da * clean[i][b] + ds * noises[i][b])
        errors = [(float(p) - float(v)) ** 2 for p, v in zip(guess.flatten(), velocity.flatten(), strict=True)]
        expected += sum(errors) / len(errors)
    assert float(flow.loss(predicted, sample)) == pytest.approx(expected, rel=1e-5)


def test_stages_are_trained_as_often_as_their_weights_say() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [0, 0, 0]
    for _ in range(2000):
        counts[FLOW.draw_active(generator) - 1] += 1
    assert [count / 2000 for count in counts] == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_earlier_stages_are_nearly_clean_and_the_last_follows_the_law() -> None:
    """logit t is n - 2 for the earlier ones, and n for the last by the logit-normal law."""
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([FLOW.draw_times(3, TimeLaw.LOGIT_NORMAL, generator) for _ in range(3000)]).double()
    logits = times.logit()
    assert logits.mean(0).tolist() == pytest.approx([-2, -2, 0], abs=0.08)
    assert logits.std(0).tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert logits.T.corrcoef().fill_diagonal_(0).abs().max() < 0.06
    uniform = torch.stack([FLOW.draw_times(1, TimeLaw.UNIFORM, generator) for _ in range(1000)])
    assert uniform.shape == (1000, 1) and float(uniform.mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((0.9, 0.1), "0.9, 0.1 are 2; give one for each of 3 stages"),
        ((0.5, 0.6, -0.1), "make 1"),
        ((0.5, 0.5, 0.5), "make 1"),
    ],
)
def test_stage_weights_that_are_no_chances_are_refused(weights, said) -> None:
    with pytest.raises(elit.UserError, match=said):
        PyramidFlow(Pyramid(1, 3), weights)
