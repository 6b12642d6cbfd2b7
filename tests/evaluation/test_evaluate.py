"""Evaluation end to end: figures against measures computed apart, one process and two, and what is refused."""

import csv
import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractors_for_tests import tiny_extractor
from PIL import Image
from torch import Tensor

from elit import DiT, Guidance, UserError
from elit.card import Card, save_card
from elit.cli import main
from elit.codec import PixelCodec
from elit.distributed import is_main, process_group
from elit.evaluation import evaluate as module
from elit.evaluation.evaluate import (
    Reference,
    append_lines,
    evaluate,
    facts_of,
    open_reference,
    open_references,
    write_results,
)
from elit.evaluation.extractors import Extractor
from elit.evaluation.features import efficientnet_features
from elit.evaluation.intervals import bootstrap, bootstrap_deviation
from elit.evaluation.measure import measure_features
from elit.evaluation.metrics import (
    density_coverage,
    density_coverage_rows,
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_and_covariance,
    memorisation,
    precision_recall,
    precision_recall_rows,
)
from elit.evaluation.results import read_results
from elit.evaluation.sources import Images, Sampled, open_images
from elit.evaluation.statistics import save_statistics
from elit.files import WriteError
from elit.generation import generate, tile_images
from elit.labels import LabelRule
from elit.pixels import to_float, to_uint8
from elit.recipe import Recipe
from elit.seeding import generator_for
from elit.step_cache import StepCache
from ranks import run_ranks

SIDE = 8


def pictures(count: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 3, 3, generator=generator_for("evaluate test", seed))
    return to_uint8(torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").tanh())


def write_pictures(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture
def tiny_features(monkeypatch: pytest.MonkeyPatch) -> Extractor:
    """What the command line loads in place of a network."""
    made = tiny_extractor(logits=True)
    monkeypatch.setattr("elit.evaluation.extractors.load_extractor", lambda name, *_: replace(made, name=name))
    return made


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Runs a command that must fail; returns the one sentence it says."""
    assert main(["evaluate", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("elit: ") and len(said.splitlines()) == 1, said
    return said


def test_every_measure_is_that_of_the_features(tmp_path: Path) -> None:
    """Read from files in batches, against the measures on all features at once."""
    extractor = tiny_extractor(logits=True)
    ours, theirs = pictures(50), pictures(60, seed=1)
    source = open_images(str(write_pictures(tmp_path / "ours", ours)))
    reference = open_reference(str(write_pictures(tmp_path / "theirs", theirs)), extractor, (SIDE, SIDE))
    (row,) = evaluate([source], [reference], module.MEASURES, tmp_path / "out", batch=7)
    a, b = extractor(ours), extractor(theirs).pooled
    precision, recall = precision_recall(b, a.pooled)
    density, coverage = density_coverage(b, a.pooled)
    memory = memorisation(a.pooled, b)
    score, deviation = inception_score(a.logits if a.logits is not None else a.pooled)
    expected = {
        "FD": frechet_distance(*mean_and_covariance(a.pooled), *mean_and_covariance(b)),
        "KID x 1000": 1000 * kernel_distance(a.pooled, b),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "copies": memory.share(),
        "median distance": float(memory.distance.median()),
        "IS": score,
        "IS deviation": deviation,
    }
    found = row.metrics
    assert found["KID x 1000 low"] < found["KID x 1000"] < found["KID x 1000 high"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert (row.count, row.features, row.notes) == (50, "tiny", ())
    assert row.reference == f"{tmp_path / 'theirs'}: 60 images of 8 x 8, tiny (tiny-made)"
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_intervals_are_the_bootstraps_of_the_rows(tmp_path: Path) -> None:
    """The same figures as without; each interval is that of the rows the figure is a mean over, and the distance's own."""
    extractor = tiny_extractor(logits=True)
    ours, theirs = Images("ours", pictures(50)), Images("theirs", pictures(60, seed=1))
    reference = Reference("theirs", extractor, None, theirs)
    (plain,) = evaluate([ours], [reference], module.MEASURES, tmp_path, batch=7)
    (row,) = evaluate([ours], [reference], module.MEASURES, tmp_path, batch=7, rounds=50)
    a, b = extractor(ours.images).pooled, extractor(theirs.images).pooled
    other = mean_and_covariance(b)
    around = bootstrap_deviation(lambda x: frechet_distance(*mean_and_covariance(x), *other), a, rounds=50)
    wanted = {"FD": around}
    for names, rows in (
        (("precision", "recall"), precision_recall_rows(b, a)),
        (("density", "coverage"), density_coverage_rows(b, a)),
        (("copies",), (memorisation(a, b).copied().double(),)),
    ):
        wanted |= {
            name: bootstrap(lambda x: float(x.mean()), some, rounds=50) for name, some in zip(names, rows, strict=True)
        }
    found, figures = row.metrics, plain.metrics
    assert {name: found[name] for name in figures} == figures
    for name, (value, low, high) in wanted.items():
        assert [found[f"{name}{end}"] for end in ("", " low", " high")] == pytest.approx([value, low, high], rel=1e-4)
    assert len(found) == len(figures) + 2 * len(wanted)


def test_the_command_shows_intervals(tiny_features: Extractor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of statistics from a file too, for which no rows of the reference are needed; one round is refused."""
    ours, theirs = write_pictures(tmp_path / "ours", pictures(9)), tmp_path / "theirs.npz"
    save_statistics(
        measure_features(Images("theirs", pictures(9, seed=1)), tiny_features, 4, tmp_path / "w").statistics, theirs
    )
    arguments = [str(ours), f"--reference={theirs}", "--features=tiny", f"--out={tmp_path / 'out'}"]
    assert main(["evaluate", *arguments, "--bootstrap=20"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"\d \(-?[\d.]+ to [\d.]+\)", said), said
    assert "at least 2 rounds" in refused(capsys, *arguments, "--bootstrap=1")


def test_samples_equal_to_the_reference_are_at_no_distance(tmp_path: Path) -> None:
    extractor = tiny_extractor()
    reference = open_reference(str(write_pictures(tmp_path / "a", pictures(40))), extractor, (SIDE, SIDE))
    (row,) = evaluate([Images("same", pictures(40))], [reference], ["fd", "memorisation"], tmp_path)
    assert row.metrics["FD"] == pytest.approx(0, abs=1e-9)
    assert row.metrics["copies"] == 1.0


def test_statistics_from_a_file_give_what_the_images_give(tmp_path: Path) -> None:
    """Bit for bit; and a reference batch as ADM has it gives mu and sigma to the distance and its images to the rest."""
    extractor = tiny_extractor("inception", "FID")
    images = Images("theirs", pictures(60, seed=1))
    statistics = measure_features(images, extractor, 16, tmp_path / "w").statistics
    save_statistics(statistics, tmp_path / "theirs.npz")
    np.savez(tmp_path / "theirs-images.npz", arr_0=images.images.permute(0, 2, 3, 1).numpy())
    shifted = statistics.pooled.mean.numpy() + 1
    adm = {"mu": shifted, "sigma": statistics.pooled.covariance.numpy()}
    np.savez(tmp_path / "adm.npz", arr_0=images.images.permute(0, 2, 3, 1).numpy(), **adm)
    found = {}
    for name in ("theirs.npz", "theirs-images.npz", "adm.npz"):
        reference = open_reference(str(tmp_path / name), extractor, (SIDE, SIDE))
        measures = ["fd"] if name == "theirs.npz" else ["fd", "pr"]
        (row,) = evaluate([Images("ours", pictures(50))], [reference], measures, tmp_path / "out")
        found[name] = row.metrics
    assert found["theirs.npz"]["FID"] == found["theirs-images.npz"]["FID"]
    assert found["adm.npz"]["FID"] != found["theirs.npz"]["FID"]
    assert found["adm.npz"]["recall"] == found["theirs-images.npz"]["recall"]


def arguments(samples: Path | str, reference: Path | str, out: Path, *more: str) -> list[str]:
    return ["evaluate", str(samples), "--reference", str(reference), "--out", str(out), *more]


def test_a_model_is_measured_at_several_budgets_and_seeds(
    tiny_features: Extractor, model_folder: Path, tiny: DiT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each figure is that of the images that the recipe makes; the table, the .json, the .csv and the line agree; what was
    measured is not measured again."""
    reference, out = write_pictures(tmp_path / "reference", pictures(30)), tmp_path / "results"
    more = ["--budgets", "1/4,1", "--seeds", "2", "--count", "10", "--steps", "2", "--tile", "4", "--metrics", "fd,kid"]
    assert main(arguments(model_folder, reference, out, *more)) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(line["budget"], line["seed"], line["count"]) for line in lines] == [
        (0.25, 0, 10), (0.25, 1, 10), (1.0, 0, 10), (1.0, 1, 10)
    ]  # fmt: skip
    real = mean_and_covariance(tiny_features(pictures(30)).pooled)
    for line in lines:
        recipe = Recipe(steps=2, budget=line["budget"], seed=line["seed"], tile=4)
        recipe = replace(recipe, guidance=replace(recipe.guidance, scale=2.0))  # of a folder without a card
        images = torch.cat(
            [to_uint8(tile_images(tiny, recipe, LabelRule("uniform", 7), PixelCodec(), tile)) for tile in range(3)]
        )[:10]
        expected = frechet_distance(*mean_and_covariance(tiny_features(images).pooled), *real)
        assert line["metrics"]["FD"] == pytest.approx(expected, rel=1e-6)
    assert lines[0]["gflops"] < lines[2]["gflops"]
    mean = (lines[0]["metrics"]["FD"] + lines[1]["metrics"]["FD"]) / 2
    assert f"{mean:.3f} ±" in said.out
    assert "reference: 30 images of 8 x 8" in " ".join(said.out.split())
    (file,) = out.glob("*.json")
    assert [row["metrics"] for row in json.loads(file.read_text())] == [line["metrics"] for line in lines]
    with file.with_suffix(".csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["FD"]) for row in table] == [line["metrics"]["FD"] for line in lines]
    kept = {p: p.stat().st_mtime_ns for p in (out / "kept").iterdir()}
    assert main(arguments(model_folder, reference, out, *more)) == 0
    assert "measured before" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (out / "kept").iterdir()} == kept
    assert len((out / "results.jsonl").read_text().splitlines()) == 8
    assert main(arguments(model_folder, reference, out, *more[:-1], "fd", "--guidance.scale", "1")) == 0
    assert "measured before" not in capsys.readouterr().err


def test_figures_of_other_settings_stand_side_by_side(
    tiny_features: Extractor, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, intervals, weak budgets and shifts tell rows apart in files and report; budgets of one level are two rows."""
    reference, out = write_pictures(tmp_path / "reference", pictures(12)), tmp_path / "results"
    common = ["--count", "4", "--steps", "2", "--tile", "4"]
    told = (["--labels", "balanced"], ["--guidance.interval", "0,0.5"], ["--guidance.weak_budget", "1/4"], ["--shift", "3"])
    for more in (*told, []):
        assert main(arguments(model_folder, reference, out, *common, *more)) == 0
    assert len(list(out.glob("*.json"))) == len(read_results([out / "results.jsonl"])) == 5
    assert main(arguments(model_folder, reference, tmp_path / "levels", *common, "--budgets", "0.25,0.3,0.25")) == 0
    rows = read_results([tmp_path / "levels" / "results.jsonl"])
    assert [row.budget for row in rows] == [0.25, 0.3]
    assert rows[0].metrics == rows[1].metrics


def test_two_processes_measure_what_one_does(tiny: DiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files and of a model, with rows on disk: statistics and figures are the same bits."""
    write_pictures(tmp_path / "ours", pictures(37))
    write_pictures(tmp_path / "theirs", pictures(30, seed=1))
    monkeypatch.chdir(tmp_path)
    extractor, other = tiny_extractor(logits=True), tiny_extractor("other", "other FD")
    recipe, labels = Recipe(steps=2, tile=4), LabelRule("uniform", 7)
    many, few = (Sampled("model", tiny, recipe, labels, PixelCodec(), n) for n in (21, 3))

    def work(out: Path) -> None:
        with process_group():
            references = open_references("theirs", [extractor, other], (SIDE, SIDE))
            rows = evaluate([open_images("ours"), many], references, ["fd", "kid", "pr", "dc"], out, batch=5)
            rows += evaluate([few], references[:1], ["fd"], out, batch=5)  # fewer runs than processes
            statistics = measure_features(open_images("ours"), extractor, 5, out).statistics
            if is_main():
                save_statistics(statistics, out / "s.npz")
                (out / "rows.json").write_text(json.dumps([row.told() for row in rows]))

    work(Path("one"))
    assert run_ranks(2, lambda: work(Path("two")), Path("log")) == [0, 0], Path("log").read_text()
    one, two = ((tmp_path / name / "rows.json").read_text() for name in ("one", "two"))
    assert one == two
    assert len(json.loads(one)) == 5
    assert (tmp_path / "one" / "s.npz").read_bytes() == (tmp_path / "two" / "s.npz").read_bytes()


def test_what_one_process_cannot_open_is_told_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of rows that the first process made is not seen by the second: both tell so, and neither waits."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "ours", pictures(6))
    extractor = tiny_extractor()

    def work() -> None:
        with process_group():
            if os.environ["RANK"] == "1":
                np.load = lambda *given, **more: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "no such file"))
            measure_features(open_images("ours"), extractor, 5, Path("out") / "work", rows=True)

    assert run_ranks(2, work, Path("log")) == [2, 2]
    said = Path("log").read_text()
    assert said.count("rank 1 cannot open") == 2 and said.count("give an --out on storage that all processes share") == 2


def test_statistics_are_made_of_ones_own_data(
    tiny_features: Extractor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of all features, say what they are of, and are never overwritten; and serve as the reference."""
    folder, out = write_pictures(tmp_path / "data", pictures(30)), tmp_path / "new" / "stats.npz"
    assert main(["evaluate", "stats", str(folder), "--out", str(out)]) == 0
    assert f"{folder}: 30 images of 8 x 8, efficientnet-lite0 (tiny-made)" in capsys.readouterr().out
    mean, covariance = mean_and_covariance(tiny_features(pictures(30)).pooled)
    with np.load(out) as archive:
        torch.testing.assert_close(torch.from_numpy(archive["mu"]), mean, rtol=0, atol=1e-7)
        torch.testing.assert_close(torch.from_numpy(archive["sigma"]), covariance, rtol=0, atol=1e-7)
    before = out.read_bytes()
    assert "is there already" in refused(capsys, "stats", folder, "--out", out)
    assert out.read_bytes() == before
    assert ".npz: give --out STATS.npz" in refused(capsys, "stats", folder)
    assert main(arguments(folder, out, tmp_path / "results")) == 0
    assert json.loads((tmp_path / "results" / "results.jsonl").read_text())["metrics"]["FD"] == pytest.approx(0, abs=1e-6)


def test_the_embedded_network_measures_the_emoji(tmp_path: Path) -> None:
    """No stand-in: the command's figure is the Fréchet distance of `efficientnet_features`."""
    images = open_images("emoji", count=12).read(0, 12)
    folder = write_pictures(tmp_path / "some", images)
    np.savez(tmp_path / "others.npz", arr_0=images[4:].permute(0, 2, 3, 1).numpy())
    assert main(arguments(folder, tmp_path / "others.npz", tmp_path / "out")) == 0
    features = efficientnet_features(to_float(images))
    expected = frechet_distance(*mean_and_covariance(features), *mean_and_covariance(features[4:]))
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert row["metrics"]["FD (EfficientNet-Lite0)"] == pytest.approx(expected, rel=1e-4)
    (note,) = row["notes"]
    assert note.startswith("12 samples and 8 reference images are no more than the features' 1,280 dimensions")


def test_what_cannot_be_measured_is_refused(
    tiny_features: Extractor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown metrics, missing references, other sizes, other types, empty folders: one sentence each."""
    folder = write_pictures(tmp_path / "a", pictures(12))
    out = ["--out", tmp_path / "out"]
    assert "there is no metric 'fid'; known: fd, kid" in refused(
        capsys, folder, "--reference", folder, "--metrics", "fid", *out
    )
    assert "no metric was asked for" in refused(capsys, folder, "--reference", folder, "--metrics", ",", *out)
    assert "compares with something: give --reference" in refused(capsys, folder)
    assert "one set of samples is evaluated at a time, not 2" in refused(capsys, folder, folder, "--reference", folder)
    large = tmp_path / "large"
    large.mkdir()
    Image.new("RGB", (9, 8)).save(large / "0.png")
    said = refused(capsys, folder, "--reference", large, *out)
    assert "the samples are 8 x 8 and those of" in said and "9 x 8" in said
    assert main(["evaluate", "stats", str(folder), "--out", str(tmp_path / "s.npz")]) == 0
    assert "the samples are 9 x 8 and those of" in refused(capsys, large, "--reference", tmp_path / "s.npz", *out)
    said = refused(capsys, folder, "--reference", tmp_path / "s.npz", "--metrics", "fd,pr", *out)
    assert "pr compares single images, and" in said and "holds statistics alone" in said
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((5, 8, 8, 3), dtype=np.float32))
    assert "float32; images are (N, H, W, 3) uint8" in refused(capsys, tmp_path / "floats.npz", "--reference", folder)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(capsys, tmp_path / "empty", "--reference", folder)
    assert "there are no images at nowhere" in refused(capsys, "nowhere", "--reference", folder)
    (folder / "0003.png").write_bytes(b"broken")
    assert "12 images, so 13 cannot be taken" in refused(capsys, folder, "--reference", folder, "--count", "13")
    assert "--batch: 0 is not from 1" in refused(capsys, large, "--reference", large, "--batch", "0", *out)
    assert "at least 2 images, not 1" in refused(capsys, large, "--reference", large, *out)
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_a_models_counts_that_cannot_be_are_refused(
    tiny_features: Extractor, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = write_pictures(tmp_path / "a", pictures(12))
    for more, said in (
        (["--count", "1"], "1 samples are too few; give --count 2 or more"),
        (["--seeds", "0"], "--seeds: 0 is not from 1"),
        (["--budgets", "2"], "budget 2 is not in (0, 1]"),
        (["--labels", "7"], "there is no label '7'"),
    ):
        assert said in refused(capsys, model_folder, "--reference", reference, *more)


def test_the_inception_score_needs_logits(tmp_path: Path) -> None:
    extractor = tiny_extractor()
    reference = open_reference(str(write_pictures(tmp_path / "a", pictures(12))), extractor, (SIDE, SIDE))
    with pytest.raises(ValueError, match="needs logits, which tiny has not; give --features inception"):
        evaluate([Images("a", pictures(12))], [reference], ["is"], tmp_path)


def test_features_that_are_not_finite_name_their_image(tmp_path: Path) -> None:
    """And the rows that were being written are removed."""
    extractor = tiny_extractor()

    def broken(pixels: Tensor) -> Any:
        out = extractor.forward(pixels)
        out.pooled[pixels.flatten(1).float().mean(1) == 0] = torch.nan
        return out

    images = pictures(12)
    images[9] = 0
    source = open_images(str(write_pictures(tmp_path / "a", images)))
    with pytest.raises(ValueError, match=r"a/0009\.png has features that are not finite"):
        measure_features(source, replace(extractor, forward=broken), 4, tmp_path / "work", rows=True)
    assert not list(tmp_path.glob("work*"))


def test_what_was_done_to_the_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extractor = tiny_extractor()
    folder = write_pictures(tmp_path / "a", pictures(12))
    for name in ("0000", "0002"):  # the first one's size is looked at before
        Image.new("L", (SIDE, SIDE), 9).save(folder / f"{name}.png")
    reference = open_reference(str(folder), extractor, (SIDE, SIDE))
    resized = open_images(str(folder), square=4)
    resized.read(0, 12)
    assert resized.notes() == ["2 images grey or of a palette were made RGB, transparency on white"]
    (row,) = evaluate([open_images(str(folder))], [reference], ["fd"], tmp_path / "out")
    assert row.notes == ("2 images grey or of a palette were made RGB, transparency on white",)
    assert "2 images grey" in capsys.readouterr().err
    file = write_results([row], tmp_path / "out")
    assert write_results([row], tmp_path / "out") == file
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2


def test_several_networks_look_at_samples_made_once(
    tmp_path: Path, tiny: DiT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two networks' figures are those of each alone; each tile is sampled once, and what one of them lacks is left out."""
    extractors = [tiny_extractor(logits=True), tiny_extractor("other", "other FD")]
    references = open_references(str(write_pictures(tmp_path / "a", pictures(12))), extractors, (SIDE, SIDE))
    recipe, labels, made = Recipe(steps=2, tile=4), LabelRule("uniform", 7), []
    source = Sampled("model", tiny, recipe, labels, PixelCodec(), 10)

    def counting(*arguments: Any) -> Tensor:
        made.append(arguments[-1])
        return tile_images(*arguments)

    monkeypatch.setattr("elit.evaluation.sources.tile_images", counting)
    both = evaluate([source], references, ["fd", "kid", "is"], tmp_path / "both", batch=4)
    assert made == [0, 1, 2]
    assert [row.features for row in both] == ["tiny", "other"]
    assert "IS" in both[0].metrics and "IS" not in both[1].metrics
    for row, reference, measures in zip(both, references, (["fd", "kid", "is"], ["fd", "kid"]), strict=True):
        (alone,) = evaluate([source], [reference], measures, tmp_path / row.features, batch=4)
        assert alone.metrics == row.metrics
    made.clear()
    third = open_references(str(tmp_path / "a"), [*extractors, tiny_extractor("third", "third FD")], (SIDE, SIDE))
    again = evaluate([source], third, ["fd", "kid", "is"], tmp_path / "both", batch=4)
    assert made == [0, 1, 2] and again[:2] == both and again[2].features == "third"
    assert capsys.readouterr().err.count("measured before") == 2
    assert evaluate([source], third, ["fd", "kid", "is"], tmp_path / "both", batch=4) == again and len(made) == 3
    assert not list(tmp_path.rglob("*.npy"))


def test_the_command_takes_several_features(
    tiny_features: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With commas or repeated; a table for each; and one file of statistics is of one network."""
    monkeypatch.setattr(
        "elit.evaluation.extractors.load_extractor",
        lambda name, *_: replace(tiny_features, name=name, distance=f"FD of {name}", fingerprint=name),
    )
    folder, out = write_pictures(tmp_path / "a", pictures(12)), tmp_path / "out"
    assert main(arguments(folder, folder, out, "--features=one,two", "--features", "three")) == 0
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["features"] for line in lines] == ["one", "two", "three"]
    assert capsys.readouterr().out.count("Beside the reference") == 3
    said = refused(capsys, "stats", folder, "--out", tmp_path / "s.npz", "--features", "one,two")
    assert "of one network, not of 2" in said


def test_a_reference_batch_serves_other_features_by_its_images(tmp_path: Path) -> None:
    """ADM's holds Inception's statistics and the images: these are looked at by any network."""
    images = Images("theirs", pictures(20, seed=1))
    array = images.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "batch.npz", arr_0=array, mu=np.zeros(6), sigma=np.eye(6))
    extractors = [tiny_extractor("inception", "FID"), tiny_extractor()]
    references = open_references(str(tmp_path / "batch.npz"), extractors, (SIDE, SIDE))
    assert [reference.statistics is None for reference in references] == [False, True]
    rows = evaluate([Images("ours", pictures(20))], references, ["fd"], tmp_path / "out")
    (alone,) = evaluate([Images("ours", pictures(20))], [Reference("t", extractors[1], None, images)], ["fd"], tmp_path)
    assert rows[1].metrics == alone.metrics and rows[0].metrics["FID"] != rows[1].metrics["FD"]


def test_figures_are_shown_before_they_are_written(
    tiny_features: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fills up costs no figure; a place that cannot be written is told before the work."""
    folder, out = write_pictures(tmp_path / "a", pictures(12)), tmp_path / "out"

    def full(*_: Any) -> None:
        raise WriteError(errno.ENOSPC, f"{out} could not be written (No space left on device); make room")

    monkeypatch.setattr(module, "write_whole", full)
    assert main(arguments(folder, folder, out)) == 2
    said = capsys.readouterr()
    assert "0.000" in said.out and "make room" in said.err
    monkeypatch.setattr(module, "measure_all", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    assert "could not be written" in refused(capsys, folder, "--reference", folder, "--out", tmp_path / "file" / "out")


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    """A line that a kill cut short is ended, and is one of its own."""
    file = tmp_path / "results.jsonl"
    append_lines(file, ["one"])
    with file.open("a") as stream:
        stream.write("half")
    append_lines(file, ["two", "three"])
    assert file.read_text().splitlines() == ["one", "half", "two", "three"]


def test_a_folder_of_samples_tells_its_settings(tiny: DiT, tmp_path: Path) -> None:
    """Whether it, or the folder above it, is named; its name is the one that its maker gave."""
    recipe = Recipe(steps=2, budget=0.5, guidance=Guidance(2.0, weak_budget=0.25), seed=3, tile=4)
    folder = generate(tiny, recipe, LabelRule("list", 7, (1, 2)), 8, tmp_path / "mine")
    reference = Reference("theirs", tiny_extractor(), None, Images("theirs", pictures(20)))
    for name in (folder, tmp_path / "mine"):
        (row,) = evaluate([open_images(str(name))], [reference], ["fd"], tmp_path / "out")
        assert (row.called, row.budget, row.steps, row.seed, row.labels) == ("mine", 0.5, 2, 3, "1,2")
        assert (row.guidance, row.weak_budget, row.precision) == (2.0, 0.25, "fp32")
        assert (row.shift, row.cache, row.stages, row.thresholds) == (None,) * 4
    recipe = replace(recipe, shift=2.0, cache=StepCache(0.3))
    sampled = Sampled("tiny", tiny, recipe, LabelRule("list", 7, (1, 2)), PixelCodec(), 8)
    for source in (sampled, open_images(str(generate(tiny, recipe, sampled.labels, 8, tmp_path / "more")))):
        assert {name: facts_of(source).get(name) for name in ("shift", "cache")} == {"shift": 2.0, "cache": 0.3}
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"steps": [2, 1], "thresholds": [0.5]}))
    facts = facts_of(open_images(str(folder)))
    assert (facts["steps"], facts["stages"], facts["thresholds"]) == (3, (2, 1), (0.5,))
    (folder / "settings.json").write_text("{}")
    (row,) = evaluate([open_images(str(folder))], [reference], ["fd"], tmp_path / "out")
    assert row.called is None and row.steps is None


def test_a_kept_row_that_is_damaged_is_measured_anew(tiny: DiT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Sampled("m", tiny, Recipe(steps=2, tile=4), LabelRule("uniform", 7), PixelCodec(), 4)
    reference = Reference("theirs", tiny_extractor(), None, Images("theirs", pictures(20)))
    whole = evaluate([source], [reference], ["fd"], tmp_path)
    (kept,) = (tmp_path / "kept").iterdir()
    for text in ("[" * 100_000, "{}", json.dumps({**json.loads(kept.read_text()), "count": "many"})):
        kept.write_text(text)
        assert evaluate([source], [reference], ["fd"], tmp_path) == whole
        assert "measured anew" in capsys.readouterr().err


def test_classes_go_by_name_where_the_card_names_them(
    tiny_features: Extractor, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_card(Card(label_names=tuple("abcdefg")), model_folder)
    reference, more = write_pictures(tmp_path / "a", pictures(12)), ["--steps", "2", "--count", "4", "--labels"]
    assert main(arguments(model_folder, reference, tmp_path / "out", *more, "c,a")) == 0
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text())["labels"] == "2,0"
    capsys.readouterr()
    assert "there is no label 'z'" in refused(capsys, model_folder, "--reference", reference, *more, "z")


def test_what_several_rows_have_in_common_is_said_once(
    tiny_features: Extractor, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--budgets", "1/4,1", "--seeds", "2", "--count", "4", "--steps", "2", "--tile", "4"]
    assert main(arguments(model_folder, write_pictures(tmp_path / "a", pictures(12)), tmp_path / "out", *more)) == 0
    assert capsys.readouterr().err.count("the covariance is singular") == 1


def test_a_share_of_the_images_is_never_taken_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launcher started two processes that have not met, each would measure its half and call it the set."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="is in no group"):
        measure_features(Images("all", pictures(12)), tiny_extractor(), 4, tmp_path / "work")
