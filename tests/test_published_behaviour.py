"""Imported models and the samplers on them, at every size, budget and guidance, against a float64 statement of both.

The statement, `published_model.py`, reads the published tensors by their published names, and is itself held to outputs of
the authors' release.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import elit
import published_model as published
from elit.backbones.dfm import DFM
from published_weights import DATA, SHAPES, State, args_of, drawn_inputs, drawn_state, save_checkpoint, with_positions

# name -> blocks of the tail, side of the window; the head has 8
MODELS = {"sit_s2_256": (0, 0), "elit_s4_qknorm": (2, 4), "elit_s2_256": (2, 4), "elit_b2_128_g8": (2, 8)}
SMALL = "elit_s4_qknorm"


def imported(name: str, folder: Path) -> tuple[State, elit.DiT]:
    state = drawn_state(SHAPES[name])
    file = save_checkpoint(folder / "0400000.pt", with_positions(state, SHAPES[name]), args_of(name))
    return state, elit.load_published(file)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in L2."""
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, elit.DiT]:
    return imported(SMALL, tmp_path_factory.mktemp("small"))


def stated(state: State, name: str, x: Tensor, t: float, y: int, keep: int) -> Tensor:
    tail, window = MODELS[name]
    return published.velocity(state, x, t, y, 8, tail, window, keep)


@pytest.mark.parametrize(("name", "key", "keep"), [("sit_s2_256", "fwd", 0), (SMALL, "fwd/1.0", 16), (SMALL, "fwd/0.25", 4)])
def test_the_statement_is_what_the_release_computes(name: str, key: str, keep: int) -> None:
    x, t, y = drawn_inputs()
    state, expected = drawn_state(SHAPES[name]), load_file(DATA / "expected.safetensors")[f"{name}/{key}"]
    for i in range(2):
        assert error(expected[i], stated(state, name, x[i], t[i].item(), int(y[i]), keep)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "keeps"), [("sit_s2_256", [0]), ("elit_s2_256", [1, 7, 16]), ("elit_b2_128_g8", [1, 33, 64])]
)
def test_velocities_at_every_size_and_budget(name: str, keeps: list[int], tmp_path: Path) -> None:
    """Windows of 16 and 64 tokens, one window and many; the null class and the ends of time among the inputs."""
    state, model = imported(name, tmp_path)
    side = model.config.grid.width * model.config.patch_size
    x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(7))
    for i, keep in enumerate(keeps):
        t, y = [0.0, 1.0, 0.3, 0.77][i], [1000, 0, 207, 999][i]
        ours = model(x, torch.tensor([t]), torch.tensor([y]), keep / model.latents if keep else None)
        assert error(ours[0], stated(state, name, x[0], t, y, keep)) < 1e-5


@torch.no_grad()
def test_velocities_of_a_model_of_stages(tmp_path: Path) -> None:
    """Both stages active, and the coarse one alone, with zeros at time 1 in place of the fine one."""
    state, model = imported("dfm_b2_256", tmp_path)
    assert isinstance(model, DFM)
    generator = torch.Generator().manual_seed(8)
    stages = [torch.randn(1, 4, side, side, generator=generator) for side in (16, 32)]
    for second, times, y in ((stages[1], [0.07, 0.6], 207), (torch.zeros(1, 4, 32, 32), [0.4, 1.0], 1000)):
        ours = model(model.pyramid.pack([stages[0], second]), torch.tensor([times]), torch.tensor([y]))
        expected = published.staged_velocity(state, [stages[0][0], second[0]], times, y)
        for a, b in zip(model.pyramid.unpack(ours), expected, strict=True):
            assert error(a[0], b) < 1e-5


@torch.no_grad()
def test_velocities_at_many_budgets_of_one_model(small: tuple[State, elit.DiT]) -> None:
    state, model = small
    x, t, y = drawn_inputs()
    for keep in (1, 2, 3, 6, 9, 13, 15, 16):
        ours = model(x[:1], t[:1], y[:1], keep / 16)
        assert error(ours[0], stated(state, SMALL, x[0], t[0].item(), int(y[0]), keep)) < 1e-5


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_maruyama"])
@pytest.mark.parametrize(
    ("budget", "guidance"),
    [
        (1.0, elit.Guidance()),
        (0.5, elit.Guidance(scale=3.0)),
        (1.0, elit.Guidance(scale=4.0, weak_budget=1 / 16)),
        (0.75, elit.Guidance(scale=2.0, weak_budget=1 / 8, weak_label="same", interval=(0.2, 0.7))),
    ],
    ids=["unguided", "cfg", "cheap-cfg", "autoguidance"],
)
def test_samples_of_every_sampler_and_guidance(
    small: tuple[State, elit.DiT], sampler: str, budget: float, guidance: elit.Guidance
) -> None:
    state, model = small
    label, steps = 207, 3
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    sde_noise = torch.randn(steps - 1, 1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    keep, low, high = round(16 * budget), *guidance.interval
    weak_keep = round(16 * guidance.weak_budget) if guidance.weak_budget else keep
    weak_label = label if guidance.weak_label == "same" else 1000

    def velocity(x: Tensor, t: float) -> Tensor:
        strong = stated(state, SMALL, x, t, label, keep)
        if guidance.scale == 1 or not low <= t <= high:
            return strong
        weak = stated(state, SMALL, x, t, weak_label, weak_keep)
        return weak + guidance.scale * (strong - weak)

    x = noise[0].double()
    if sampler == "euler_maruyama":
        expected = published.linear_sde(velocity, x, steps, sde_noise[:, 0].double())
        ours = elit.sample(model, [label], sampler, steps, budget, guidance, noise=noise, sde_noise=sde_noise)
    else:
        expected = getattr(published, sampler)(velocity, x, steps)
        ours = elit.sample(model, [label], sampler, steps, budget, guidance, noise=noise)
    assert error(ours[0], expected) < 1e-4
