"""A recipe draws what `elit.sample` does, and costs what its sampling runs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import elit
from elit.recipe import Recipe
from elit.reports.samples import budget_name, draw_all

RECIPES = {
    "plain": Recipe(steps=3),
    "budget": Recipe(steps=3, budget=0.5),
    "CFG": Recipe(steps=3, guidance=elit.Guidance(2.0), budget=0.5),
    "cheap CFG": Recipe(steps=3, guidance=elit.Guidance(2.0, weak_budget=0.25)),
    "autoguidance": Recipe(steps=3, guidance=elit.Guidance(2.0, weak_budget=0.25, weak_label="same")),
    "in an interval": Recipe(steps=5, guidance=elit.Guidance(2.0, interval=(0.3, 0.7))),
    "Heun": Recipe("heun", 4, elit.Schedule(((0.5, 0.25),), 1.0), elit.Guidance(2.0, interval=(0.3, 0.7), weak_budget=0.5)),
    "Heun in a step": Recipe("heun", 1),
    "SDE": Recipe("euler_maruyama", 5, elit.Schedule(((0.5, 0.25),), 1.0), elit.Guidance(2.0, interval=(0.1, 0.7))),
    "schedule": Recipe(steps=4, budget=elit.Schedule(((0.5, 0.25),), 1.0)),
    "schedule under CFG": Recipe(steps=4, guidance=elit.Guidance(2.0), budget=elit.Schedule(((0.5, 0.25),), 1.0)),
    "schedule under cheap CFG": Recipe(
        steps=4, guidance=elit.Guidance(2.0, weak_budget=0.5), budget=elit.Schedule(((0.5, 0.25),), 1.0)
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_cost_of_a_step_is_that_of_the_forwards_it_runs(name: str, tiny: elit.DiT) -> None:
    recipe, runs = RECIPES[name], []
    hook = tiny.register_forward_pre_hook(lambda module, inputs: runs.append((len(inputs[0]), inputs[3])))
    recipe.draw(tiny, [1])
    hook.remove()
    flops = [batch * elit.count_flops(tiny, budget) for batch, budget in runs]
    assert recipe.gflops_per_step(tiny) == pytest.approx(sum(flops) / recipe.steps / 1e9)


def test_a_recipe_draws_as_sample_does(tiny: elit.DiT) -> None:
    recipe = RECIPES["schedule under cheap CFG"]
    same = elit.sample(tiny, [1, 2], steps=4, budget=recipe.budget, guidance=recipe.guidance, seed=5)
    assert torch.equal(replace(recipe, seed=5).draw(tiny, [1, 2]), same)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Recipe(steps=2).draw(tiny, [1, 2], noise=noise), elit.sample(tiny, [1, 2], steps=2, noise=noise))


def test_equal_recipes_are_drawn_once_and_all_from_the_same_noise(tiny: elit.DiT) -> None:
    runs = []
    tiny.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    images = draw_all(
        tiny, [replace(recipe, seed=4) for recipe in (Recipe(steps=2), Recipe(steps=3, budget=0.5), Recipe(steps=2))], [1, 2]
    )
    assert len(runs) == 2 + 3
    assert images[0] is images[2]
    assert torch.equal(images[1], elit.sample(tiny, [1, 2], steps=3, budget=0.5, seed=4))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 10**9}, {"tile": 0}, {"tile": 10**9}])
def test_steps_and_tiles_have_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(elit.UserError, match=r"at least 1 .*at most [\d,]+, not"):
        Recipe(**wrong)  # type: ignore[arg-type]


def test_a_budget_is_named_by_its_level(make_dit: Callable[..., elit.DiT]) -> None:
    assert budget_name(0.6, make_dit()) == "2/4"
    assert budget_name(1.0, make_dit(group_size=None)) == "1/1"
