"""The command line: a user's mistake is one sentence, exit code 2, no traceback, and nothing overwritten."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import elit
from elit.card import Card, SamplingDefaults, save_card
from elit.cli import main
from elit.cli.parsing import parse_budgets
from elit.data.emoji import load_emoji
from elit.weights import save_weights
from small_world import use_as_bundled

TINY = [
    *("--model.input_size", "8", "--model.patch_size", "2", "--model.in_channels", "3", "--model.num_classes", "2"),
    *("--model.width", "16", "--model.depth", "3", "--model.heads", "2", "--model.rope", "true", "--model.group_size", "2"),
    *("--model.head_depth", "1", "--model.tail_depth", "1", "--data.size", "8", "--batch_size", "4", "--steps", "3"),
    *("--log.preview_every", "0"),
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Path) -> None:
    """A folder to work in, with a small model as the bundled one."""
    use_as_bundled(stand_in, monkeypatch)
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail; returns the one sentence it says."""
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("elit: ") and "Traceback" not in said
    assert len(said.splitlines()) == 1, said
    return said


def picture_folder(folder: Path) -> Path:
    from PIL import Image

    for name, colour in (("blue", "blue"), ("red", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12, 10), colour).save(folder / name / f"{i}.png")
    return folder


def tiny_model(folder: Path) -> Path:
    folder.mkdir()
    small = {"width": 32, "heads": 2, "depth": 3, "head_depth": 1, "tail_depth": 1}
    model = elit.create_model("ELIT-SiT-S/4", input_size=32, in_channels=3, num_classes=99, rope=True, **small)
    save_weights(model, folder)
    save_card(Card(label_names=load_emoji().label_names), folder)
    return folder


def test_info_prints_the_cost_of_every_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "ELIT-SiT-S/2"]) == 0
    said = capsys.readouterr().out
    model = elit.create_model("ELIT-SiT-S/2")
    for k in (1, 7, 16):
        assert f"{elit.count_flops(model, k / 16) / 1e9:.2f}" in said
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" in said


@pytest.mark.parametrize("name", ["ELIT-SiT-XXL/2", "sit-xl"])
def test_an_unknown_preset_names_close_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "SiT-XL/2" in refused(capsys, "info", name)


@pytest.mark.parametrize("text", ["0", "-0.5", "1.5", "nan", "1/0", "half", "17/16"])
def test_bad_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="budget"):
        parse_budgets(text)


def test_budgets_are_fractions() -> None:
    assert parse_budgets("1/16, 0.5,1") == [0.0625, 0.5, 1.0]


def test_bad_budget_and_label_of_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny_model(Path("model")))
    assert "1.5" in refused(capsys, "demo", "--model", model, "--quality", "1.5")
    assert "animal-mammal" in refused(capsys, "demo", "--model", model, "--labels", "animal-mamal")
    assert "0 to 98" in refused(capsys, "demo", "--model", model, "--labels", "99")
    assert not Path("demo").exists()


def test_missing_foreign_and_truncated_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "demo", "--model", "nowhere")
    folder = tiny_model(Path("model"))
    shutil.copytree(folder, "foreign")
    Path("foreign/config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "foreign/config.json" in refused(capsys, "demo", "--model", "foreign")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(capsys, "demo", "--model", "model")


def test_a_model_of_other_images_is_refused_by_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    save_weights(elit.create_model("ELIT-SiT-S/8", width=32, heads=2, num_classes=5), Path("other"))
    assert "a model of the emoji" in refused(capsys, "demo", "--model", "other")


def test_unknown_and_mistyped_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert "optimizer.lr" in refused(capsys, "train", "--optimiser.lr", "1e-3")
    assert "steps" in refused(capsys, "train", "--steps", "many")
    Path("bad.yaml").write_text("model:\n  widht: 3\n")
    assert "model.width" in refused(capsys, "train", "--config", "bad.yaml")
    assert "nowhere.yaml" in refused(capsys, "train", "--config", "nowhere.yaml")
    assert "--config" in refused(capsys, "train")
    assert not Path("runs").exists()


def test_an_empty_or_unreadable_folder_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that cannot be read is passed over aloud; where none is left, the folder is refused."""
    Path("empty").mkdir()
    assert "empty" in refused(capsys, "train", *TINY, "--data.source", "empty")
    folder = picture_folder(Path("pictures"))
    (folder / "red/1.png").write_bytes(b"not a picture")
    assert main(["train", *TINY, "--data.source", "pictures", "--out", "run"]) == 0
    assert "passed over in pictures: 1 unreadable" in (said := capsys.readouterr().err) and "(red/1.png)" in said
    for file in folder.rglob("*.png"):
        file.write_bytes(b"not a picture")
    assert "pictures" in refused(capsys, "train", *TINY, "--data.source", "pictures")
    assert not Path("runs").exists()


def test_labels_and_sizes_that_the_model_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    picture_folder(Path("pictures"))
    few = [*TINY, "--data.source", "pictures"]
    assert "model.num_classes 2" in refused(capsys, "train", *few, "--model.num_classes", "1")
    assert "model.input_size 16" in refused(capsys, "train", *few, "--data.size", "16")


def test_another_config_in_the_same_run_is_refused_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    picture_folder(Path("pictures"))
    run = ["train", *TINY, "--data.source", "pictures", "--out", "run"]
    assert main(run) == 0
    capsys.readouterr()
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    said = refused(capsys, *run, "--optimizer.lr", "0.5")
    assert "optimizer.lr" in said and "--out" in said
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    assert "other" in refused(capsys, *run[:-1], "other")


def test_export_stores_a_model_in_half_precision_and_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model(Path("model"))
    assert main(["export", "model", "--out", "small"]) == 0
    assert Path("small/model.safetensors").stat().st_size < 0.51 * (folder / "model.safetensors").stat().st_size
    small, model = elit.load_model("small").state_dict(), elit.load_model("model").state_dict()
    assert all(torch.equal(small[name], tensor.half().float()) for name, tensor in model.items())
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, "export", "model", "--out", "small")


def test_a_dry_run_costs_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_the_demo_writes_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model(Path("model"))
    save_card(Card(SamplingDefaults(2, 1.0), label_names=load_emoji().label_names), folder)
    assert main(["demo", "--model", "model", "--labels", "heart,time", "--out", "out"]) == 0
    results = json.loads(Path("out/results.json").read_text())
    rows = results["budgets"]
    assert [row["latents_per_group"] for row in rows] == list(range(1, 17))
    model = elit.load_model("model")
    for row in rows:
        assert row["gflops"] == elit.count_flops(model, row["budget"]) / 1e9
        assert row["latency_ms"] > 0
    assert Path("out/budgets.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert "16/16" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["budgets", "guidance", "attention", "schedule"])
def test_a_report_writes_pictures_figures_and_a_page(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    small = {"width": 32, "heads": 2, "depth": 3, "head_depth": 1, "tail_depth": 1}
    save_weights(elit.create_model("ELIT-SiT-S/8", num_classes=5, group_size=2, **small), Path("other"))
    assert main(["report", kind, "--model", "other", "--labels", "1,4", "--steps", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() and f"report-{kind}" in said.err
    results = json.loads(Path(f"report-{kind}/results.json").read_text())
    assert (results["labels"], results["sampling"]["steps"]) == (["1", "4"], 2)
    assert Path(f"report-{kind}/report.html").read_text(encoding="utf8").startswith("<!doctype html>")
    assert list(Path(f"report-{kind}").glob("*.png"))


def test_mistakes_in_the_options_of_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", str(tiny_model(Path("model"))))
    assert "0 to 98" in refused(capsys, "report", "budgets", *model, "--labels", "99")
    assert "animal-mammal" in refused(capsys, "report", "attention", *model, "--labels", "animal-mamal")
    assert "'two'" in refused(capsys, "report", "guidance", *model, "--scales", "1,two")
    assert "finite" in refused(capsys, "report", "guidance", *model, "--scales", "inf")
    assert "1.5" in refused(capsys, "report", "guidance", *model, "--weak-budget", "1.5")
    assert "between 0 and 1" in refused(capsys, "report", "schedule", *model, "--times", "2")
    assert "--count 0" in refused(capsys, "report", "schedule", *model, "--count", "1")
    assert "0 is not from 1" in refused(capsys, "report", "schedule", *model, "--seeds", "0")
    assert "nowhere" in refused(capsys, "report", "budgets", "--model", "nowhere")
    assert not list(Path().glob("report-*"))


def test_more_memory_than_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's first matrix is of 4 EB."""
    monkeypatch.setattr("elit.training.loop.make_state", lambda *_, **__: torch.empty(2**60))
    said = refused(capsys, "train", *TINY, "--data.source", str(picture_folder(Path("p"))))
    assert "memory ran out" in said and "ask for fewer or smaller things" in said


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        assert "--device cpu" in refused(capsys, "train", *TINY, "--device", "cuda")
    assert "nonsense" in refused(capsys, "train", *TINY, "--device", "nonsense")


def test_sample_makes_images_and_names_their_folder(capsys, tmp_path: Path) -> None:
    """The bundled model by its label names, and again: the second call finds all there."""
    command = ["sample", "--labels", "heart,time", "--steps", "1", "--budget", "1/16", "--out", str(tmp_path)]
    assert main(command) == 0
    (folder,) = tmp_path.iterdir()
    assert f"{folder} holds 2 images" in capsys.readouterr().out
    assert [p.name for p in sorted(folder.glob("*/*.png"))] == ["000000.png", "000001.png"]
    when = (folder / "00000" / "000000.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "00000" / "000000.png").stat().st_mtime_ns == when


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labels", "hart"], "heart"),
        (["--labels", "99"], "0 to 98"),
        (["--budget", "1/4@t>0.5"], "otherwise"),
        (["--budget", "0.000001gflops"], "less than the lowest budget takes"),
        (["--budget", "0.000001ms"], "less than the lowest budget takes"),
        (["--guidance.interval", "0.5"], "write it as 0.1,0.8"),
        (["--guidance.weak_label", "same"], "give weak_budget"),
        (["--sampler", "ddim"], "known: euler"),
        (["--steps", "0"], "--steps: 0 is not from 1"),
        (["--count", "-1"], "--count: -1 is not from 1"),
        (["--model", "no/such/folder"], "is not a model folder: there is no such folder"),
        (["--device", "abacus"], "there is no device 'abacus'; give cpu, cuda, or one of several such as cuda:1"),
        (["--codec", "nowhere"], "the model makes pixels, which need no codec"),
    ],
)
def test_sample_refuses(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert said in refused(capsys, "sample", "--out", str(tmp_path / "out"), *arguments)
    assert not list(tmp_path.rglob("*.png"))
