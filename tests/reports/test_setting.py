"""A setting draws what `elit.sample` does, and costs what its sampling runs."""

from collections.abc import Callable

import pytest
import torch

import elit
from elit.reports.setting import Setting, budget_name, draw_all

SETTINGS = {
    "plain": Setting(3),
    "budget": Setting(3, budget=0.5),
    "CFG": Setting(3, elit.Guidance(2.0), 0.5),
    "cheap CFG": Setting(3, elit.Guidance(2.0, weak_budget=0.25)),
    "autoguidance": Setting(3, elit.Guidance(2.0, weak_budget=0.25, weak_label="same")),
    "in an interval": Setting(5, elit.Guidance(2.0, interval=(0.3, 0.7))),
    "schedule": Setting(4, budget=elit.Schedule(((0.5, 0.25),), 1.0)),
    "schedule under CFG": Setting(4, elit.Guidance(2.0), elit.Schedule(((0.5, 0.25),), 1.0)),
    "schedule under cheap CFG": Setting(4, elit.Guidance(2.0, weak_budget=0.5), elit.Schedule(((0.5, 0.25),), 1.0)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_cost_of_a_step_is_that_of_the_forwards_it_runs(name: str, tiny: elit.DiT) -> None:
    setting, runs = SETTINGS[name], []
    hook = tiny.register_forward_pre_hook(lambda module, inputs: runs.append((len(inputs[0]), inputs[3])))
    setting.draw(tiny, [1])
    hook.remove()
    flops = [batch * elit.count_flops(tiny, budget) for batch, budget in runs]
    assert setting.gflops_per_step(tiny) == pytest.approx(sum(flops) / setting.steps / 1e9)


def test_a_setting_draws_as_sample_does(tiny: elit.DiT) -> None:
    setting = SETTINGS["schedule under cheap CFG"]
    same = elit.sample(tiny, [1, 2], steps=4, budget=setting.budget, guidance=setting.guidance, seed=5)
    assert torch.equal(setting.draw(tiny, [1, 2], seed=5), same)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Setting(2).draw(tiny, [1, 2], noise=noise), elit.sample(tiny, [1, 2], steps=2, noise=noise))


def test_equal_settings_are_drawn_once_and_all_from_the_same_noise(tiny: elit.DiT) -> None:
    runs = []
    tiny.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    images = draw_all(tiny, [Setting(2), Setting(3, budget=0.5), Setting(2)], [1, 2], seed=4)
    assert len(runs) == 2 + 3
    assert images[0] is images[2]
    assert torch.equal(images[1], elit.sample(tiny, [1, 2], steps=3, budget=0.5, seed=4))


def test_a_budget_is_named_by_its_level(make_dit: Callable[..., elit.DiT]) -> None:
    assert budget_name(0.6, make_dit()) == "2/4"
    assert budget_name(1.0, make_dit(group_size=None)) == "1/1"
