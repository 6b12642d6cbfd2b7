"""The engine against `elit.sample` alone: the same images, whoever else is served."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from elit import DiT, Guidance, UserError, sample
from elit.recipe import Recipe
from elit.serving.engine import Engine, Order, measure_costs

ORDERS = [
    Order(Recipe(steps=5, seed=3), (1, 2)),
    Order(Recipe(sampler="heun", steps=4, seed=4, guidance=Guidance(2.0)), (0,)),
    Order(Recipe(sampler="euler_maruyama", steps=6, seed=5, guidance=Guidance(1.5, weak_budget=0.25)), (5, 3, 6)),
    Order(Recipe(steps=7, guidance=Guidance(3.0, (0.2, 0.7), 0.25, "same")), (4,)),
]
LEVELS = (1, 3, 2, 4)


def reference(model: DiT, order: Order, budget: float) -> Tensor:
    recipe = order.recipe
    return sample(model, list(order.labels), recipe.sampler, recipe.steps, budget, recipe.guidance, recipe.seed)


def served(engine: Engine, orders: Sequence[Order], levels: Sequence[int], joining: int = 1) -> dict[int, Tensor]:
    """The images of all orders, of which another joins at every so many steps."""
    ended: dict[int, Tensor] = {}
    for tick in itertools.count():
        if tick % joining == 0 and tick // joining < len(orders):
            engine.join(tick // joining, orders[tick // joining])
        done = engine.step({number: levels[number] for number in engine.running})
        ended |= {number: progress.x for number, progress in done.items() if progress.ended}
        if len(ended) == len(orders):
            return ended
    raise AssertionError


@pytest.mark.parametrize("most_rows", [64, 3])
def test_images_are_those_of_sample_alone(tiny: DiT, most_rows: int) -> None:
    """Others join and leave at every step, each with its time, budget, guidance and sampler; within float tolerance."""
    engine = Engine(tiny, most_rows)
    made = served(engine, ORDERS, LEVELS)
    assert not engine.running
    for number, order in enumerate(ORDERS):
        expected = reference(tiny, order, LEVELS[number] / tiny.latents)
        torch.testing.assert_close(made[number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", range(4))
def test_images_of_a_request_that_shares_no_call_are_the_same_to_the_bit(tiny: DiT, number: int) -> None:
    """Beside others, which share theirs."""
    alone = Order(ORDERS[number].recipe, ORDERS[number].labels, alone=True)
    made = served(Engine(tiny, 64), [alone, *ORDERS], (LEVELS[number], *LEVELS))
    assert torch.equal(made[0], reference(tiny, alone, LEVELS[number] / tiny.latents))


def test_a_request_may_be_lowered_and_raised_while_it_runs(tiny: DiT) -> None:
    """The levels that were granted are those of a schedule, and a time that Heun asks for twice keeps its level."""

    class Granted:
        def at(self, t: float) -> float:
            return one.granted[t] / tiny.latents

    engine = Engine(tiny, 64)
    one = engine.join(0, ORDERS[1])
    levels = itertools.cycle((4, 1, 3, 2))
    while engine.running:
        x = [progress.x for progress in engine.step({0: next(levels)}).values()]
    assert list(one.granted) == [1.0, 0.75, 0.5, 0.25] and list(one.granted.values()) == [4, 1, 2, 1]
    recipe = ORDERS[1].recipe
    expected = sample(tiny, [0], "heun", 4, Granted(), recipe.guidance, recipe.seed)
    torch.testing.assert_close(x[0], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(x[0], reference(tiny, ORDERS[1], 1.0), atol=1e-3)


def test_what_leaves_is_gone_and_the_others_go_on(tiny: DiT) -> None:
    engine = Engine(tiny, 64)
    for number in (0, 1):
        engine.join(number, ORDERS[0])
    assert engine.running[0].asks_left == 5 and engine.running[0].guided_left == 0
    engine.step({0: 4, 1: 4})
    engine.leave(0)
    engine.leave(0)
    while engine.running:
        done = engine.step({1: 4})
    torch.testing.assert_close(done[1].x, reference(tiny, ORDERS[0], 1.0), rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_makes_calls_smaller(tiny: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.run

    def limited(x: Tensor, *rest: object) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return run(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny, "run", limited)
    engine = Engine(tiny, 64)
    made = served(engine, ORDERS[:3], LEVELS)
    assert engine.most_rows == 2 and engine.out_of_memory >= 1
    monkeypatch.undo()
    torch.testing.assert_close(made[2], reference(tiny, ORDERS[2], 0.5), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(tiny, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    engine.join(9, ORDERS[0])
    with pytest.raises(RuntimeError, match="a fault"):
        engine.step({9: 1})


def test_attention_is_noted_once_and_changes_nothing(tiny: DiT) -> None:
    order = Order(Recipe(steps=5, seed=3), (1, 2), alone=True, attention=True)
    engine = Engine(tiny, 64)
    one = engine.join(0, order)
    while engine.running:
        done = engine.step({0: 2})
    assert torch.equal(done[0].x, reference(tiny, order, 0.5))
    assert one.seen is not None and one.seen.shape == (2, 16)
    torch.testing.assert_close(one.seen.sum(1), torch.full((2,), 4 * 2.0))  # 4 windows, 2 latents, whose weights sum to 1


def test_what_cannot_be_is_a_sentence(tiny: DiT) -> None:
    engine = Engine(tiny, 64)
    for order, said in [
        (Order(Recipe(), (8,)), "labels are"),
        (Order(Recipe(sampler="ddim"), (1,)), "unknown sampler"),
        (Order(Recipe(sampler="euler_maruyama", steps=1), (1,)), "steps of euler_maruyama"),
    ]:
        with pytest.raises(UserError, match=said):
            engine.join(0, order)
    assert not engine.running


def test_costs_are_measured_and_never_fall_with_the_level(tiny: DiT) -> None:
    costs = measure_costs(tiny, 8)
    assert len(costs.row) == 4 and costs.call >= 0 and list(costs.row) == sorted(costs.row) and costs.row[0] > 0
