"""The quality report: fair halves, resumable figures, and an honest verdict."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import elit
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.data.emoji import load_emoji
from elit.data.emoji_styles_test import FEATURES_FILE, read_split, split_labels
from elit.evaluation.exam import styles_exam
from elit.evaluation.metrics import precision_recall
from elit.evaluation.quality import NETWORKS, Judge, Quality, measure, measure_recipes, summary, verdict
from elit.pixels import to_float
from elit.precision import fast_bfloat16
from elit.recipe import Recipe
from elit.weights import fingerprint, read_tensors, save_tensors
from small_world import narrow_features

COUNT = 24


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with pytest.MonkeyPatch.context() as patch:
        narrow_features(patch)
        yield Judge(COUNT)


@pytest.fixture(scope="module")
def model() -> elit.DiT:
    tiny = elit.create_model(
        "ELIT-SiT-S/8", width=32, heads=2, depth=3, head_depth=1, tail_depth=1, in_channels=3, num_classes=99
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return tiny.eval()


def test_the_halves_share_no_picture(judge: Judge) -> None:
    assert set(judge.reference.tolist()).isdisjoint(judge.other.tolist())
    assert judge.count == len(judge.reference) == COUNT


def test_the_reference_itself_is_at_distance_zero_and_others_are_not(judge: Judge) -> None:
    same = judge.score(to_float(load_emoji().images[judge.reference]))
    assert (same.frechet, same.frechet_squeezenet) == pytest.approx((0, 0), abs=1e-6)
    real = judge.yardstick()
    noise = judge.score(torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert 0 < real.frechet < noise.frechet and real.kernel < noise.kernel
    assert 0 < real.frechet_squeezenet < noise.frechet_squeezenet


def test_emoji_in_seven_styles_are_judged_by_the_features_that_come_with_the_package(judge: Judge) -> None:
    """The half that samples stand for carries the labels of the test split, and scores as its own features do."""
    width = judge.features[NETWORKS[0]].shape[1]
    judge = Judge(40, styles_exam())
    rows = judge.other.tolist()
    assert judge.labels.tolist() == [split_labels()[row] for row in rows]
    kept = read_tensors(FEATURES_FILE)
    real = {name: kept[name][judge.other, :width].float() for name in NETWORKS}
    assert judge.yardstick() == judge.score_features(real)
    kinds = {read_split().keys[row].split("/")[0] for row in rows}
    by_kind = [(read_split().keys[row].split("/")[0], int(judge.exam.categories[row])) for row in rows]
    assert len(set(by_kind)) == len(kinds), "a subgroup is of one category"


def test_samples_carry_the_other_halfs_labels_and_their_own_noise(judge: Judge, model: elit.DiT) -> None:
    drawn = judge.draw(model, Recipe(steps=2, guidance=elit.Guidance(1.5), budget=0.5, seed=3))
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16(torch.device("cpu"))):
        alone = elit.sample(model, judge.labels, steps=2, budget=0.5, guidance=elit.Guidance(1.5), seed=3)
    torch.testing.assert_close(drawn, alone)


def test_measured_figures_are_kept_and_go_on(model: elit.DiT, judge: Judge, tmp_path: Path) -> None:
    recipe = Recipe(steps=2)
    whole = measure(judge, model, [0.25, 1.0], [0, 1], recipe, tmp_path / "a")
    measure(judge, model, [0.25], [0], recipe, tmp_path / "b")
    kept = next((tmp_path / "b").glob("*.json"))
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "frechet": 12345.0}))
    resumed = measure(judge, model, [0.25, 1.0], [0, 1], recipe, tmp_path / "b")
    assert resumed["budgets"][1] == whole["budgets"][1]
    other = (whole["budgets"][0]["frechet"], resumed["budgets"][0]["frechet"])
    assert other[1] > 6000 > other[0], "what was finished is taken from the folder"
    assert whole["samples"] == COUNT and whole["seeds"] == [0, 1]


def test_a_new_figure_needs_no_new_samples(
    model: elit.DiT, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of an earlier version, without precision, are measured anew, from what is kept of the samples."""
    recipe = Recipe(steps=2, budget=0.5)
    [whole] = measure_recipes(judge, model, [recipe], [0], tmp_path)
    [drawn] = tmp_path.glob("*.safetensors")
    kept = drawn.with_suffix(".json")
    values = json.loads(kept.read_text())
    kept.write_text(json.dumps({**{k: v for k, v in values.items() if k != "precision"}, "frechet": 12345.0}))
    monkeypatch.setattr(Judge, "draw", lambda *_: pytest.fail("it was drawn again"))
    assert measure_recipes(judge, model, [recipe], [0], tmp_path) == [whole]
    assert json.loads(kept.read_text()) == values
    tensors = read_tensors(drawn)
    again = judge.extract(tensors["images"])
    for name in NETWORKS:
        torch.testing.assert_close(again[name], tensors[name])
    save_tensors({"images": tensors["images"], NETWORKS[0]: tensors[NETWORKS[0]]}, drawn)
    kept.unlink()
    assert measure_recipes(judge, model, [recipe], [0], tmp_path) == [whole], "the second network's features, of the images"


def test_precision_and_recall_are_those_of_the_features(judge: Judge) -> None:
    """Of real pictures against themselves both are 1; noise recalls nothing."""
    same = judge.score(to_float(load_emoji().images[judge.reference]))
    assert (same.precision, same.recall) == (1, 1)
    real = judge.extract(to_float(load_emoji().images[judge.other]))
    scored = judge.score_features(real)
    first = NETWORKS[0]
    assert (scored.precision, scored.recall) == precision_recall(judge.features[first], real[first], 3)
    noise = judge.score(torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert noise.recall == 0 < scored.recall


def test_the_fingerprint_tells_models_apart(model: elit.DiT) -> None:
    before = fingerprint(model)
    with torch.no_grad():
        model.final.linear.bias[0] += 1
    after = fingerprint(model)
    with torch.no_grad():
        model.final.linear.bias[0] -= 1
    assert before != after


def test_mean_and_spread_over_seeds() -> None:
    out = summary([Quality(10, 90, 1, 0.8, 0.2, 0.5), Quality(14, 110, 3, 0.6, 0.4, 0.5)])
    assert [out[name] for name in ("frechet", "frechet_squeezenet", "kernel", "accuracy")] == [12, 100, 2, 0.5]
    assert (out["precision"], out["recall"]) == pytest.approx((0.7, 0.3))
    assert out["frechet_std"] == pytest.approx(8**0.5) and out["accuracy_std"] == 0


def test_the_verdict_asks_whether_budget_buys_quality() -> None:
    def row(budget: float, frechet: float) -> dict[str, float]:
        return {"budget": budget, "frechet": frechet, "frechet_std": 3.0}

    good = verdict([row(1.0, 10), row(0.5, 15), row(0.25, 20)])
    assert good["rank_correlation"] == pytest.approx(1.0)
    assert good["separation"] == pytest.approx(10 / 18**0.5)
    assert verdict([row(0.25, 10), row(0.5, 15), row(1.0, 20)])["rank_correlation"] == pytest.approx(-1.0)
    assert verdict([row(1.0, 1)]) == {}


def test_a_card_survives_a_round_trip_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    measured = {"features": "some", "samples": 3, "seeds": [0], "real": {"frechet": 1.5}, "budgets": [{"budget": 1.0}]}
    card = Card(SamplingDefaults(7, 1.25), measured)
    save_card(card, tmp_path)
    assert load_card(tmp_path) == card
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card\.json"):
        load_card(tmp_path)
    assert load_card(tmp_path / "none") == Card(SamplingDefaults())


def test_what_is_damaged_in_a_work_folder_is_made_anew(
    model: elit.DiT, judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(steps=2, budget=0.5)
    [whole] = measure_recipes(judge, model, [recipe], [0], tmp_path)
    [drawn] = tmp_path.glob("*.safetensors")
    for text in ("[" * 100_000, '{"frechet": "many"}'):
        drawn.with_suffix(".json").write_text(text)
        assert measure_recipes(judge, model, [recipe], [0], tmp_path) == [whole]
        assert "measured anew" in capsys.readouterr().err
    drawn.with_suffix(".json").unlink()
    drawn.write_bytes(drawn.read_bytes()[:-9])
    assert measure_recipes(judge, model, [recipe], [0], tmp_path) == [whole]
    assert "sampled anew" in capsys.readouterr().err
