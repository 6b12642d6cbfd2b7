"""A cost to aim at: the best measured choice among budget, steps and cache, and plain budgets where there is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import elit
from elit.cache_fit import Fit, cached, save_fit
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.cli import main
from elit.front import Front, Point, best_points, wants_front, within
from elit.recipe import Recipe
from elit.step_cache import StepCache
from elit.weights import fingerprint

CHEAP, MIDDLE, WORSE, DEAR = (
    Point(0.25, 2, None, 0.001, 40.0, 1.0),
    Point(0.5, 3, None, 0.002, 30.0, 1.0),
    Point(1.0, 2, None, 0.003, 35.0, 1.0),
    Point(1.0, 4, 5.0, 0.004, 20.0, 1.0),
)
FRONT = Front("Fréchet distance", 64, (0,), 1.0, (DEAR, WORSE, CHEAP, MIDDLE))


def test_the_front_is_what_no_other_point_beats() -> None:
    assert best_points(FRONT.points) == [CHEAP, MIDDLE, DEAR]
    assert best_points([CHEAP, replace(CHEAP, distance=50.0), replace(MIDDLE, distance=CHEAP.distance)]) == [CHEAP]


@pytest.fixture
def folder(model_folder: Path, tiny: elit.DiT) -> Path:
    """A model whose card has a front, and a cache for 4 steps."""
    save_card(Card(SamplingDefaults(2, 1.0), front=FRONT), model_folder)
    save_fit(model_folder, Fit(fingerprint(tiny), 4, "euler", (0.0, 1.0), 0.0))
    return model_folder


def costs(model: elit.DiT) -> list[float]:
    """GFLOPs of an image at each point of the front: what is counted, not what the card says."""
    recipes = [Recipe(steps=2, budget=0.25), Recipe(steps=3, budget=0.5), Recipe(steps=4, cache=StepCache(5.0))]
    return [recipe.gflops(model) for recipe in recipes]


def test_the_best_point_within_a_cost_is_chosen(folder: Path, tiny: elit.DiT) -> None:
    """By what each costs here; one whose cache is not calibrated is passed over."""
    weights, recipe = fingerprint(tiny), Recipe(steps=2)
    dearest = sorted(zip(costs(tiny), (CHEAP, MIDDLE, DEAR), strict=True), key=lambda pair: pair[0])
    for cost, _ in dearest:
        fitting = [point for other, point in dearest if other <= cost * 1.001]
        made, point = within(f"{cost * 1.001:.9f}gflops", FRONT, tiny, recipe, folder, weights)
        assert point == min(fitting, key=lambda point: point.distance)
        assert (made.budget, made.steps) == (point.budget, point.steps)
    made, point = within("1000gflops", FRONT, tiny, recipe, folder, weights)
    assert point == DEAR and made == cached(replace(recipe, steps=4, budget=1.0), 5.0, folder, weights)
    assert within("1000gflops", FRONT, tiny, recipe, folder, "other weights")[1] == MIDDLE
    least = f"{min(costs(tiny)):.3g} gflops"
    with pytest.raises(elit.UserError, match=f"less than the cheapest measured way to make an image takes, {least}"):
        within("1e-9gflops", FRONT, tiny, recipe, folder, weights)


def test_milliseconds_are_those_of_all_forwards(folder: Path, tiny: elit.DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward of a tile takes 1 ms at a quarter and 4 ms at the full budget, and what is between lies between.

    A reused one takes its share of the FLOPs.
    """
    tiles: list[int] = []
    monkeypatch.setattr("elit.front.calibrated", lambda model, batch: tiles.append(batch) or {0.25: 1.0, 1.0: 4.0})
    for allowed, expected in (("2ms", CHEAP), ("6.1ms", MIDDLE)):  # 2 x 1, and 3 x 2
        assert within(allowed, FRONT, tiny, Recipe(steps=2, tile=5), folder, "other weights")[1] == expected
    assert tiles == [5, 5]
    reused, calls = cached(Recipe(steps=4, budget=1.0), 5.0, folder, fingerprint(tiny)).reused(tiny)
    share = elit.count_flops(tiny, blocks=False) / elit.count_flops(tiny)
    paid = 4 * (calls - reused + reused * share)
    only = replace(FRONT, points=(DEAR,))
    assert reused == 3 and within(f"{paid + 1e-4:.6f}ms", only, tiny, Recipe(), folder, fingerprint(tiny))[1] == DEAR
    with pytest.raises(elit.UserError, match=f"takes, {paid:.3g} ms"):
        within(f"{paid - 1e-4:.6f}ms", only, tiny, Recipe(), folder, fingerprint(tiny))


@pytest.mark.parametrize(
    ("text", "steps", "cache", "guidance", "expected"),
    [
        ("80gflops", None, None, elit.Guidance(1.0), True),
        ("150ms", None, None, elit.Guidance(1.0), True),
        ("1/4", None, None, elit.Guidance(1.0), False),
        ("80gflops", 10, None, elit.Guidance(1.0), False),
        ("80gflops", None, 0.1, elit.Guidance(1.0), False),
        ("80gflops", None, None, elit.Guidance(2.0), False),
        ("80gflops", None, None, elit.Guidance(1.0, (0.2, 0.8)), False),
    ],
)
def test_only_a_cost_without_more_is_met_by_the_front(text, steps, cache, guidance, expected) -> None:
    assert wants_front(text, FRONT, steps, cache, guidance) is expected
    assert not wants_front(text, None, steps, cache, guidance)


def test_the_command_line_says_what_it_chose(folder: Path, tmp_path: Path, capsys) -> None:
    sampling = ["sample", "--model", str(folder), "--out", str(tmp_path / "out"), "--count", "1"]
    assert main([*sampling, "--budget", "1000gflops"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "1000gflops an image: budget 1, 4 steps, cache 5" in said and "Fréchet distance 20.0 ± 1.0" in said
    settings = json.loads(next((tmp_path / "out").rglob("settings.json")).read_text())
    assert settings["steps"] == 4 and settings["cache"]["threshold"] == 5.0
    assert main([*sampling, "--budget", "1000gflops", "--steps", "2"]) == 0
    assert "budget 1000gflops: 4/4 of the latents" in " ".join("".join(capsys.readouterr()).split())
    assert main([*sampling, "--budget", "1e-9gflops"]) == 2
    assert "cheapest measured way" in " ".join(capsys.readouterr().err.split())


def test_the_pipeline_chooses_too(folder: Path) -> None:
    pipe = elit.ElitPipeline.from_pretrained(folder)
    seen: list[int] = []
    pipe([1], budget="1000gflops", output_type="latent", callback_on_step_end=lambda i, t, x: seen.append(i))
    assert seen == [0, 1, 2, 3]
    assert pipe([1], budget="1000gflops", output_type="latent", steps=2).budget == 1.0


def test_a_card_keeps_its_front(folder: Path, tmp_path: Path) -> None:
    assert load_card(folder).front == FRONT
    save_card(Card(), tmp_path)
    assert "front" not in json.loads((tmp_path / "card.json").read_text())
    text = (folder / "card.json").read_text().replace('"gflops": 0.004', '"gflops": -1')
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(elit.UserError, match=r"front\.points.*gflops is -1"):
        load_card(tmp_path)
