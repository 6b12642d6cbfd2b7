"""TeaCache: which calls reuse, what reused calls compute, its calibration, and the commands that use it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import elit
from elit.backbones.layers import Block
from elit.backbones.table import BACKBONES
from elit.cache_fit import Fit, Fits, calibrate, load_fit, save_fit
from elit.cli import main
from elit.condition import Labels
from elit.elastic.model import ElasticModel
from elit.recipe import Recipe
from elit.records import read_json
from elit.step_cache import StepCache, TimeChange, fit_polynomial
from elit.weights import fingerprint
from models import CONFIGS, made


def embedded(model: ElasticModel, t: float) -> Tensor:
    """256 sinusoids through the two-layer MLP, in float64."""
    turns = torch.tensor([t * 10000.0 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    fc1, fc2 = model.time_embedding.fc1, model.time_embedding.fc2
    hidden = fc1.weight.double() @ torch.cat([turns.cos(), turns.sin()]) + fc1.bias.double()
    return fc2.weight.double() @ (hidden * torch.sigmoid(hidden)) + fc2.bias.double()


def stated(model: ElasticModel, times: list[float], threshold: float, coefficients: tuple[float, ...]) -> list[bool]:
    """The rule of appendix B, call by call: which reuse."""
    reuses, total = [False], 0.0
    for before, now in pairwise(times):
        a, b = embedded(model, before), embedded(model, now)
        change = float((b - a).abs().sum() / a.abs().sum())
        total += max(0.0, sum(c * change**k for k, c in enumerate(coefficients)))
        reuses.append(total < threshold)
        total = total if reuses[-1] else 0.0
    return reuses


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "coefficients"), [(0.02, (0.0, 1.0)), (0.1, (0.01, 0.5, 20.0))])
def test_which_calls_reuse_is_the_rule(tiny: elit.DiT, threshold: float, coefficients: tuple[float, ...]) -> None:
    recipe = Recipe(steps=20, cache=StepCache(threshold, coefficients))
    reuses = [reuse for _, reuse in recipe.forwards(tiny)]
    assert reuses == stated(tiny, [1 - k / 20 for k in range(20)], threshold, coefficients)
    assert 0 < sum(reuses) < 19


@torch.no_grad()
def test_a_reused_step_adds_what_the_blocks_changed_before(tiny: elit.DiT) -> None:
    """Euler's method written out: embedding, blocks or their last change, and the final layer, for each path of guidance."""
    recipe = Recipe(steps=12, budget=0.5, guidance=elit.Guidance(2.0, weak_budget=0.25), cache=StepCache(0.05))
    reuses = stated(tiny, [1 - k / 12 for k in range(12)], 0.05, (0.0, 1.0))
    assert 0 < sum(reuses) < 11
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x, changes = noise.double(), {}

    def velocity(x: Tensor, t: float, y: Tensor, level: int, reuse: bool, path: str) -> Tensor:
        before: list[Tensor] = []

        def around(h: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
            before.append(h)
            return h + changes[path] if reuse else run(h)

        after: list[Tensor] = []
        tiny_predict = tiny.predict
        tiny.predict = lambda h, c, grid: after.append(h) or tiny_predict(h, c, grid)  # type: ignore[method-assign]
        try:
            v = tiny.run(x.float(), torch.full((2,), t), Labels(y, 7), level, around)
        finally:
            del tiny.predict
        changes[path] = after[0] - before[0]
        return v

    for k, reuse in enumerate(reuses):
        strong = velocity(x, 1 - k / 12, torch.tensor([1, 2]), 2, reuse, "strong")
        weak = velocity(x, 1 - k / 12, torch.tensor([7, 7]), 1, reuse, "weak")
        x = x - (weak + 2.0 * (strong - weak)).double() / 12
    torch.testing.assert_close(recipe.draw(tiny, [1, 2], noise=noise), x.float(), rtol=1e-4, atol=1e-4)
    plain = replace(recipe, cache=None).draw(tiny, [1, 2], noise=noise)
    assert (plain - x.float()).abs().max() > 1e-3


KINDS = {
    "none": elit.Guidance(),
    "CFG": elit.Guidance(2.0),
    "cheap CFG": elit.Guidance(2.0, weak_budget=0.25),
    "autoguidance in an interval": elit.Guidance(2.0, (0.3, 0.7), 0.25, "same"),
}


NAMES = [*(row.architecture for row in BACKBONES if row.architecture in CONFIGS), "elastic"]
KINDS_IN_TURN = [
    (name, sampler, list(KINDS)[(i + j) % len(KINDS)])
    for i, name in enumerate(NAMES)
    for j, sampler in enumerate(["euler", "heun", "euler_maruyama"])
    if (name, sampler) != ("DFM", "euler_maruyama")
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "sampler", "kind"), KINDS_IN_TURN)
def test_on_every_backbone_sampler_and_guidance_the_blocks_run_as_told(name: str, sampler: str, kind: str) -> None:
    """A recipe tells of each call whether it reuses, and just the others run blocks; nothing reused, nothing changes."""
    guidance = KINDS[kind]
    model = made(CONFIGS[name])
    recipe = Recipe(sampler, 8, elit.Schedule(((0.5, 0.5),), 1.0), guidance, cache=StepCache(0.15))
    ran: list[int] = []
    first = next(module for module in model.modules() if isinstance(module, Block))
    first.register_forward_pre_hook(lambda module, inputs: ran.append(len(inputs[0])))
    images = recipe.draw(model, [1, 2, 0, 1, 2])  # as many as run one path after the other
    reused, calls = recipe.reused(model)
    assert len(ran) == calls - reused and 0 < reused < calls
    plain = replace(recipe, cache=None)
    never = replace(recipe, cache=StepCache(1e-12)) if sampler != "heun" else plain
    assert torch.equal(never.draw(model, [1, 2, 0, 1, 2]), plain.draw(model, [1, 2, 0, 1, 2]))
    assert not torch.equal(images, plain.draw(model, [1, 2, 0, 1, 2]))
    two = recipe.draw(model, [1, 2])  # few enough to run both paths as one batch
    torch.testing.assert_close(two, images[:2], rtol=1e-3, atol=1e-3)


def test_a_recipe_with_a_cache_costs_what_its_calls_do(tiny: elit.DiT) -> None:
    """A reused one what is around the blocks, which is little."""
    recipe = Recipe(steps=8, budget=0.5, cache=StepCache(0.15))
    reused, calls = recipe.reused(tiny)
    whole, rest = (elit.count_flops(tiny, 0.5, blocks=blocks) for blocks in (True, False))
    assert recipe.gflops(tiny) == pytest.approx((reused * rest + (calls - reused) * whole) / 1e9)
    assert 0 < rest < 0.2 * whole


@torch.no_grad()
def test_the_blocks_run_where_a_level_or_a_stage_begins(tiny: elit.DiT) -> None:
    """However high the threshold."""
    recipe = Recipe(steps=8, budget=elit.Schedule(((0.5, 0.25),), 1.0), cache=StepCache(1e9))
    assert [reuse for _, reuse in recipe.forwards(tiny)] == [False, True, True, True, False, True, True, True]
    staged = Recipe(steps=(3, 2), cache=StepCache(1e9))
    assert [reuse for _, reuse in staged.forwards(made(CONFIGS["DFM"]))] == [False, True, True, False, True]


def test_the_change_of_an_embedding_is_relative_and_known_before_any_call(tiny: elit.DiT) -> None:
    a, b = embedded(tiny, 0.8), embedded(tiny, 0.75)
    expected = ((b - a).abs().mean() / a.abs().mean()).item()
    assert TimeChange(tiny)(0.8, 0.75) == pytest.approx(expected, rel=1e-4)
    assert TimeChange(tiny.bfloat16())(0.8, 0.75) == pytest.approx(expected, rel=0.05)


def test_the_polynomial_is_that_of_least_squares() -> None:
    """Beside the normal equations of its Vandermonde matrix; of few points it has as many coefficients."""
    x = np.linspace(0.02, 0.3, 9)
    y = 0.1 + 2 * x**3 + 0.01 * np.cos(40 * x)
    coefficients, error = fit_polynomial(x.tolist(), y.tolist())
    table = np.vander(x, 5, increasing=True)
    expected = np.linalg.lstsq(table, y, rcond=None)[0]
    assert coefficients == pytest.approx(expected, rel=1e-4)
    assert error == pytest.approx(math.sqrt(np.mean((table @ expected - y) ** 2)), rel=1e-6)
    assert len(fit_polynomial([0.1, 0.2], [0.3, 0.5])[0]) == len(fit_polynomial([0.1, 0.1, 0.2], [0.3, 0.4, 0.5])[0]) == 2
    assert StepCache(0.1, (-0.5, 1.0)).rescaled(0.2) == 0
    with pytest.raises(elit.UserError, match="at least 3 steps"):
        fit_polynomial([0.1], [0.2])


@torch.no_grad()
def test_a_calibration_is_of_the_velocities_of_the_samplers_own_calls(tiny: elit.DiT) -> None:
    """Each change between two steps, noted by hand."""
    recipe = Recipe(steps=6, seed=3)
    fit = calibrate(tiny, recipe, [1, 2, 3], (0.05,))
    velocities, points = [], []
    handle = tiny.register_forward_hook(lambda module, inputs, out: velocities.append(out))
    recipe.draw(tiny, [1, 2, 3])
    handle.remove()
    for k in range(5):
        a, b = embedded(tiny, 1 - k / 6), embedded(tiny, 1 - (k + 1) / 6)
        each = [(v - u).abs().mean() / u.abs().mean() for u, v in zip(velocities[k], velocities[k + 1], strict=True)]
        points.append((float((b - a).abs().mean() / a.abs().mean()), float(sum(each) / 3)))
    expected, _ = fit_polynomial(*map(list, zip(*points, strict=True)))
    for change, _ in points:
        ours, theirs = (sum(c * change**k for k, c in enumerate(some)) for some in (fit.coefficients, expected))
        assert ours == pytest.approx(theirs, rel=1e-2)
    assert (fit.model, fit.steps, fit.sampler) == (fingerprint(tiny), 6, "euler")
    assert fit.near(0.05) is fit.trials[0] and fit.near(0.06) is None
    assert fit.trials[0].reused == Recipe(steps=6, cache=StepCache(0.05, fit.coefficients)).reused(tiny)[0] / 6


@pytest.mark.parametrize("threshold", [0, -0.1, float("nan"), float("inf"), True, "0.1"])
def test_a_threshold_that_cannot_be_is_refused(threshold: object, model_folder: Path) -> None:
    with pytest.raises(elit.UserError, match="a cache's threshold is a number above 0"):
        StepCache(threshold)  # type: ignore[arg-type]
    with pytest.raises(elit.UserError, match="above 0"):
        elit.ElitPipeline.from_pretrained(model_folder)(1, output_type="latent", cache=threshold)


def test_fits_are_kept_for_each_sampling_of_one_model(tmp_path: Path) -> None:
    first, second = Fit("a", 6, "euler", (0.0, 1.0), 0.1), Fit("a", (3, 2), "heun", (0.0, 2.0), 0.1)
    for fit in (first, second, replace(first, coefficients=(0.0, 3.0))):
        save_fit(tmp_path, fit)
    assert load_fit(tmp_path, "a", Recipe(steps=6)).coefficients == (0.0, 3.0)
    assert load_fit(tmp_path, "a", Recipe("heun", (3, 2))) == second
    with pytest.raises(elit.UserError, match=r"for --steps 3,2 --sampler heun or --steps 6 .*, not --steps 7 .* --steps 7 "):
        load_fit(tmp_path, "a", Recipe(steps=7))
    for moved, text in (({"shift": 3.0}, "--shift 3; run"), ({"thresholds": (0.5,)}, "--stage-thresholds 0.5; run")):
        with pytest.raises(elit.UserError, match=f"not --steps 6 --sampler euler {text}"):
            load_fit(tmp_path, "a", Recipe(steps=6, **moved))
    moved = replace(first, shift=3.0)
    save_fit(tmp_path, moved)
    assert load_fit(tmp_path, "a", Recipe(steps=6, shift=3.0)) == moved
    assert load_fit(tmp_path, "a", Recipe(steps=6)).coefficients == (0.0, 3.0)
    with pytest.raises(elit.UserError, match="is a calibration of another model; run elit calibrate-cache"):
        load_fit(tmp_path, "b", Recipe(steps=6))
    save_fit(tmp_path, Fit("b", 6, "euler", (0.0, 1.0), 0.1))
    assert [fit.model for fit in read_json(tmp_path / "cache.json", Fits).fits] == ["b"]
    (tmp_path / "cache.json").write_text('{"fits": [{"model": "b", "steps": 0}]}')
    with pytest.raises(elit.UserError, match=r"cache\.json"):
        load_fit(tmp_path, "b", Recipe(steps=6))


def test_from_calibration_to_samples_on_the_command_line(model_folder: Path, tmp_path: Path, capsys) -> None:
    """What is saved is told; samples with a cache are settings of their own; other steps are refused, with the remedy."""
    model = str(model_folder)
    arguments = ["calibrate-cache", "--model", model, "--steps", "6", "--count", "2", "--thresholds", "0.1,5"]
    assert main([*arguments, "--guidance.scale", "1"]) == 0
    assert "times as quick" in " ".join(capsys.readouterr().out.split())
    sampling = ["sample", "--model", model, "--out", str(tmp_path / "out"), "--count", "2", "--guidance.scale", "1"]
    assert main([*sampling, "--steps", "6", "--cache", "5"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "calls reuse an earlier one" in said and "times as quick" in said
    assert main([*sampling, "--steps", "6"]) == 0
    settings = [json.loads(file.read_text()) for file in (tmp_path / "out").rglob("settings.json")]
    assert sorted("cache" in one for one in settings) == [False, True]
    pipe = elit.ElitPipeline.from_pretrained(model_folder).to(torch.float32)
    with_cache = pipe([1], output_type="latent", steps=6, guidance_scale=1.0, cache=5.0).images
    fit = load_fit(model_folder, fingerprint(pipe.model), Recipe(steps=6))
    same = elit.sample(pipe.model, [1], steps=6, cache=StepCache(5.0, fit.coefficients))
    assert torch.equal(with_cache, same)
    capsys.readouterr()
    for wrong, text in (
        (["--steps", "7", "--cache", "0.1"], "calibrated for --steps 6 --sampler euler, not --steps 7"),
        (["--steps", "6", "--cache", "-1"], "above 0, such as 0.1, not -1"),
        (["--steps", "6", "--cache", "0.1", "--sampler", "heun"], "not --steps 6 --sampler heun"),
        (["--steps", "6", "--cache", "low"], "'low' is not a number"),
    ):
        assert main([*sampling, *wrong]) == 2
        assert text in " ".join(capsys.readouterr().err.split())


def test_what_was_not_calibrated_is_refused(model_folder: Path, tmp_path: Path, capsys, tiny: elit.DiT) -> None:
    assert main(["sample", "--model", str(model_folder), "--out", str(tmp_path / "o"), "--cache", "0.1"]) == 2
    assert "has no calibration of a cache; run elit calibrate-cache" in " ".join(capsys.readouterr().err.split())
    assert main(["calibrate-cache", "--model", str(model_folder), "--steps", "2", "--thresholds", "1"]) == 2
    assert "at least 3 steps" in " ".join(capsys.readouterr().err.split())
    assert main(["calibrate-cache", "--model", str(model_folder), "--thresholds", "0.1,-1"]) == 2
    save_fit(model_folder, Fit("other weights", 4, "euler", (0.0, 1.0), 0.1))
    arguments = ["--out", str(tmp_path / "o"), "--steps", "4", "--cache", "0.1"]
    assert main(["sample", "--model", str(model_folder), *arguments]) == 2
    assert "cache.json is a calibration of another model; run elit calibrate" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "o").rglob("*.png"))
    with pytest.raises(elit.UserError, match=r"cache is a StepCache, such as elit.StepCache\(0.1\), not 0.1"):
        elit.sample(tiny, [1], steps=2, cache=0.1)  # type: ignore[arg-type]
