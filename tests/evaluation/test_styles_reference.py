"""The test split of emoji in seven styles as the package brings it: its list, pictures and features agree, and serve."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from extractors_for_tests import tiny_extractor

from elit import DiT, DiTConfig, UserError
from elit.card import Card, save_card
from elit.cli import main, parse
from elit.cli.evaluate import model_samples
from elit.data import emoji_styles_test
from elit.data.emoji_styles import STYLES, split_of
from elit.data.emoji_styles_test import FEATURES_FILE, label_names, load_styles_test, read_split, split_labels
from elit.evaluation.evaluate import open_reference
from elit.evaluation.extractors import Extractor, load_extractor
from elit.evaluation.metrics import frechet_distance, mean_and_covariance
from elit.evaluation.styles_reference import load_styles_reference
from elit.labels import labels_in_full
from elit.weights import read_tensors, save_weights
from randomised import randomised

NAMES = [style.name for style in STYLES]


@pytest.fixture(scope="module")
def squeezenet() -> Extractor:
    return load_extractor("squeezenet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the pairs, at 64 x 64."""
    folder = tmp_path_factory.mktemp("styles")
    narrow = DiTConfig(
        *(64, 16, 3),
        num_classes=775,
        width=16,
        depth=3,
        heads=2,
        group_size=2,
        head_depth=1,
        tail_depth=1,
        label_factors=(96, 7),
    )
    save_weights(randomised(DiT(narrow)), folder)
    save_card(Card(label_names=label_names()), folder)
    return folder


def test_the_list_is_of_test_pictures_alone_with_labels_of_pairs() -> None:
    keys, labels = read_split().keys, split_labels()
    assert len(keys) == len(set(keys)) == len(labels) == 1035
    assert [label_names()[label] for label in labels] == [key.rpartition("/")[0] for key in keys]
    assert len(label_names()) == 775 and set(labels) <= set(labels_in_full(label_names()))
    assert {split_of(key.split("/")[2]) for key in keys} == {"test"}
    for style in STYLES:
        assert 0.08 < sum(f"/{style.name}/" in key for key in keys) / style.pictures < 0.12


def test_pictures_are_small_and_labelled() -> None:
    test = load_styles_test()
    concepts = read_split().concepts
    assert test.images.shape == (len(concepts) * 7, 3, 64, 64) and test.images.dtype == torch.uint8
    assert len(test.names) == len(test) and test.label_names == label_names()
    keys = set(read_split().keys)
    for i, label in enumerate(test.labels.tolist()):
        assert f"{label_names()[label]}/{concepts[i // 7]}" in keys and label_names()[label].endswith(f"/{NAMES[i % 7]}")
    assert emoji_styles_test.SHEET_FILE.stat().st_size < 2e6
    assert all(file.stat().st_size < 4e6 for file in FEATURES_FILE.parent.iterdir())


def test_pictures_list_and_features_agree(squeezenet: Extractor) -> None:
    """The kept row of a picture's key is its features, in both networks."""
    test, keys = load_styles_test(), read_split().keys
    chosen = [3, 200, 401]
    codes = [read_split().concepts[i // 7] for i in chosen]
    rows = [keys.index(f"{label_names()[int(test.labels[i])]}/{code}") for i, code in zip(chosen, codes, strict=True)]
    for extractor in (squeezenet, load_extractor("efficientnet-lite0")):
        features, kept = extractor(test.images[chosen]).pooled, read_tensors(FEATURES_FILE)[extractor.name]
        assert kept.shape == (1035, extractor.width) and kept.dtype == torch.float16
        torch.testing.assert_close(kept[rows].float(), features, rtol=2e-3, atol=2e-3)


def test_the_reference_is_the_moments_of_what_is_kept(squeezenet: Extractor) -> None:
    statistics, rows = load_styles_reference(squeezenet)
    kept = read_tensors(FEATURES_FILE)["squeezenet"].double().numpy()
    np.testing.assert_allclose(statistics.pooled.mean, kept.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(statistics.pooled.covariance, np.cov(kept, rowvar=False), rtol=1e-5, atol=1e-6)
    assert np.array_equal(rows, kept)
    told = statistics.provenance
    assert (told.source, told.count, told.size) == ("emoji-styles", 1035, (64, 64))
    assert told.fingerprint == squeezenet.fingerprint


def test_half_precision_moves_a_distance_by_less_than_a_thousandth(squeezenet: Extractor) -> None:
    """Of real pictures: 48 of the test split beside 48 others."""
    features = squeezenet(load_styles_test().images[::6]).pooled
    ours, theirs = features[:48].double(), features[48:96].double()
    exact = frechet_distance(*mean_and_covariance(ours), *mean_and_covariance(theirs))
    kept = frechet_distance(*mean_and_covariance(ours.half().double()), *mean_and_covariance(theirs))
    assert exact > 1 and kept == pytest.approx(exact, rel=1e-3)
    eighth = frechet_distance(*mean_and_covariance(ours.bfloat16().double()), *mean_and_covariance(theirs))
    assert abs(eighth - exact) > abs(kept - exact)


def test_a_model_is_measured_in_both_networks_at_once(model: Path, tmp_path: Path) -> None:
    """By the command, with labels of the test pictures one for one, and with measures of single images."""
    more = ["--features", "efficientnet-lite0,squeezenet", "--count", "4", "--steps", "1", "--metrics", "fd,kid"]
    assert main(["evaluate", str(model), "--reference", "emoji-styles", "--out", str(tmp_path), *more]) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["features"] for row in rows] == ["efficientnet-lite0", "squeezenet"]
    for row, distance in zip(rows, ("FD (EfficientNet-Lite0)", "FD (SqueezeNet)"), strict=True):
        assert row["metrics"][distance] > 0 and row["metrics"]["KID x 1000"] > 0
        assert row["labels"].startswith("1,035 listed (")
        assert row["reference"].startswith(f"emoji-styles: 1,035 images of 64 x 64, {row['features']} (")


def test_samples_have_the_labels_of_the_reference(model: Path) -> None:
    def labels(*more: str) -> list[int]:
        (source,) = model_samples(parse(["evaluate", str(model), "--reference", "emoji-styles", *more]))
        return [source.labels.label(0, i) for i in range(1040)]

    assert labels() == [*split_labels(), *split_labels()[:5]]
    assert labels("--labels", "balanced")[:9] == [*range(7), 8, 9]
    assert set(labels("--labels", "heart/noto")) == {label_names().index("heart/noto")}
    with pytest.raises(UserError, match="this model is told labels; give them as --labels"):
        labels("--prompt", "a heart")


def test_a_model_of_other_labels_draws_its_own(model_folder: Path) -> None:
    options = parse(["evaluate", str(model_folder), "--reference", "emoji-styles"])
    (source,) = model_samples(options)
    assert source.labels.kind == "uniform"


def test_what_does_not_fit_is_refused(squeezenet: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"the samples are 32 x 32 and those of emoji-styles 64 x 64"):
        open_reference("emoji-styles", squeezenet, (32, 32))
    with pytest.raises(
        UserError, match=r"holds features of efficientnet-lite0 and squeezenet, not of tiny; give the folder"
    ):
        open_reference("emoji-styles", tiny_extractor(), (64, 64))
    with pytest.raises(UserError, match=r"not of these weights of squeezenet; give the folder"):
        open_reference("emoji-styles", replace(squeezenet, fingerprint="another"), (64, 64))
    (tmp_path / "cut.webp").write_bytes(emoji_styles_test.SHEET_FILE.read_bytes()[:1000])
    monkeypatch.setattr(emoji_styles_test, "SHEET_FILE", tmp_path / "cut.webp")
    with pytest.raises(UserError, match=r"cut\.webp cannot be read .* install the package anew"):
        load_styles_test.__wrapped__()
