"""The results of a model: the table of docs/evaluation.md from its card, the dense twin, copies, and one command for all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import DENSE, EMOJI, model_folder

import elit
from elit.bundled import FOLDER
from elit.card import Card, SamplingDefaults, load_card
from elit.cli import main
from elit.data.dataset import PreparedData
from elit.data.emoji import load_emoji
from elit.data.prepare import ImageSettings, prepare_images
from elit.evaluation.metrics import memorisation
from elit.evaluation.quality import FIRST, Drawn, Judge
from elit.reports.scorecard import (
    against_dense,
    copies,
    features_once,
    provenance,
    results_block,
    results_panels,
    results_table,
    write_block,
)
from elit.training.config import TrainConfig
from elit.training.reading import load_config
from elit.weights import fingerprint, load_model
from small_world import narrow_features

ROOT = Path(__file__).parents[2]
DENSE_EMOJI = elit.DiTConfig(input_size=32, patch_size=8, in_channels=3, num_classes=99, width=32, depth=3, heads=2)
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_published_table_is_the_cards() -> None:
    """Word for word, and its figures are those of card.json."""
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf8")
    block = text.split(BEGIN)[1].split(END)[0].strip()
    assert block == results_block(elit.load_bundled(), load_card(FOLDER)), (
        "run elit results --from-card --readme docs/evaluation.md"
    )
    quality = json.loads((ROOT / "src/elit/bundled/card.json").read_text())["quality"]
    rows = {row[0]: row for row in cells(block[block.index("| budget") :])}
    column = rows["budget"].index("Fréchet distance")
    for row in quality["budgets"]:
        assert rows[f"{row['budget'] * 16:.0f}/16"][column] == f"{row['frechet']:.1f} ± {row['frechet_std']:.1f}"
    assert rows["real pictures"][column] == f"{quality['real']['frechet']:.1f}"


def made_up(**more: object) -> Card:
    row = {"frechet": 300.04, "frechet_std": 3.0, "kernel": 170.0, "precision": 0.75, "recall": 0.5, "accuracy": 0.625}
    quality = {
        "samples": 8,
        "seeds": [0, 1],
        "sampling": {"steps": 2, "guidance_scale": 2.0},
        "real": {"frechet": 100, "kernel": 0.26, "accuracy": 0.7},
        "budgets": [{**row, "budget": 1.0}, {**row, "budget": 0.25, "frechet": 350.0}],
        **more,
    }
    return Card(SamplingDefaults(2, 2.0), quality)


def test_a_table_has_the_columns_that_were_measured(tiny: elit.DiT) -> None:
    card = made_up()
    table = cells(results_table(tiny, card.quality or {}))
    of = tiny.latents
    names = ["budget", "latents per window", "GFLOPs", "Fréchet distance", "KID x 1000", "precision", "recall"]
    assert table[0] == [*names, "in the asked category"]
    gflops = f"{elit.count_flops(tiny, 0.25) / 1e9:.2f}"
    assert table[2] == [f"{of // 4}/{of}", str(of // 4), gflops, "350.0 ± 3.0", "170.0", "0.750", "0.500", "0.625"]
    assert table[-1] == ["real pictures", "", "", "100.0", "0.3", "", "", "0.700"]
    dense = {"gflops": 1.944, "latency_ms": 9.0, "frechet": 306.0, "frechet_std": 4.0, "provenance": {}}
    latency = {"cpu": "Processor", "threads": 2, "budgets": [{"budget": 1.0, "latency_ms": 16.5}]}
    fuller = made_up(dense=dense, latency=latency)
    table = cells(results_table(tiny, fuller.quality or {}))
    assert table[0][3] == "latency (ms)" and [row[3] for row in table[2:]] == ["", "16.5", "9.0", ""]
    assert table[-2][:5] == ["dense twin", "", "1.94", "9.0", "306.0 ± 4.0"]
    block = results_block(tiny, fuller)
    assert "8 samples a budget and seed, 2 steps, guidance 2;" in block
    assert "300.0 ± 3.0" in block and "2 threads of an Processor" not in block
    assert "Latency: one forward at batch 1, 2 threads, Processor." in block
    assert "6.0 below that of the dense twin, 1.2 deviations" in block
    panels = results_panels(tiny, fuller.quality or {})
    assert [point.x for point in panels[0].curves["dense twin"]] == [1.944]
    with pytest.raises(ValueError, match="no measured quality"):
        results_block(tiny, Card())


def test_dense_against_elastic_in_a_sentence() -> None:
    full, dense = {"frechet": 310.0, "frechet_std": 3.0}, {"frechet": 300.0, "frechet_std": 4.0}
    known = {"provenance": {"training_pflops": 1236.4}}
    assert against_dense(full, {**dense, **known}) == (
        "The full budget's Fréchet distance is 10.0 above that of the dense twin (trained for 1,236.4 PFLOPs), 2.0"
        " deviations of their difference."
    )
    assert against_dense({"frechet": 290.0}, {"frechet": 300.0, "provenance": {}}).endswith(
        "10.0 below that of the dense twin."
    )


def test_the_twins_recipes_take_equal_training_flops() -> None:
    """To a thousandth: the elastic model's budgets are drawn evenly from 1/16 to 1."""

    def cost(config: TrainConfig) -> float:
        with torch.device("meta"):
            model = elit.DiT(config.model)
        budgets = [k / model.latents for k in range(1, model.latents + 1)]
        return config.steps * config.batch_size * sum(elit.count_flops(model, b) for b in budgets) / len(budgets)

    elastic, dense = (load_config(str(ROOT / f"configs/emoji-tiny{kind}.yaml"), []) for kind in ("", "-dense"))
    assert elastic.budget.lowest == 1 / 16 and dense.model.group_size is None
    assert cost(dense) == pytest.approx(cost(elastic), rel=1e-3)


def test_provenance_is_the_runs_where_there_is_one(tmp_path: Path) -> None:
    """With what the checkpoint took that a run began from; and nothing where that one is not there any more."""
    folders = {}
    for name, step, run in (("first", 3, {"batch_size": 2, "init_from": None}), ("then", 5, {"batch_size": 7})):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        folders[name] = model_folder(tmp_path / name / f"checkpoints/step_{step:08}", DENSE)
        alone = provenance(load_model(folders[name]), folders[name])
        assert set(alone) == {"weights", "parameters"}
        (folders[name] / "training.json").write_text(json.dumps({"step": step}))
        (tmp_path / name / "config.json").write_text(json.dumps({"init_from": str(tmp_path / "first"), **run}))
    model = load_model(folders["then"])
    pflops = 3 * (5 * 7 + 3 * 2) * elit.count_flops(model) / 1e15
    told = {**alone, "steps": 5 + 3, "training_pflops": pytest.approx(pflops)}
    assert alone["weights"] == fingerprint(model) and provenance(model, folders["then"]) == told
    shutil.rmtree(tmp_path / "first")
    assert provenance(model, folders["then"]) == alone


def prepared(folder: Path, images: torch.Tensor) -> PreparedData:
    """A prepared folder of pictures, in their order."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{i:03}.png")
    prepare_images(ImageSettings(str(pictures), images.shape[-1]), folder / "prepared", workers=1)
    return PreparedData(folder / "prepared")


def test_copies_are_counted_and_shown(tmp_path: Path) -> None:
    """Training pictures given as samples are copies, each beside itself; noise is none; real pictures are the yardstick."""
    judge, data = Judge(16), load_emoji()
    rows = [int(row) for row in judge.other]
    training = prepared(tmp_path / "data", data.images[rows])
    features = features_once(judge, training, tmp_path)
    images = data.images[rows]
    told, picture = copies(judge, Drawn(images, judge.extract(images)), training, features)
    assert told["share"] == 1
    assert told["real"] == memorisation(judge.features[FIRST], features).share(told["bound"])
    assert picture.size == (8 * (2 * 32 + 4) - 4, 2 * (32 + 4) - 4)
    left, right = picture.crop((0, 0, 32, 32)), picture.crop((32, 0, 64, 32))
    assert left.tobytes() == right.tobytes()
    noise = torch.randint(256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert copies(judge, Drawn(noise, judge.extract(noise)), training, features)[0]["share"] < 0.2
    torch.testing.assert_close(features_once(judge, training, tmp_path), features, rtol=0, atol=0)


def test_a_block_goes_between_its_marks_or_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_block(file, "| new |")
    write_block(file, "| new |")
    assert file.read_text() == f"before\n{BEGIN}\n| new |\n{END}\nafter\n"
    for wrong in ("nothing", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="no one place for the table"):
            write_block(file, "| new |")
        assert file.read_text() == wrong


def test_one_command_measures_both_and_writes_card_table_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    narrow_features(monkeypatch)
    elastic = model_folder(tmp_path / "elastic", EMOJI)
    dense = model_folder(tmp_path / "dense", DENSE_EMOJI)
    Path("page.md").write_text(f"{BEGIN}\n{END}\n")
    command = ["results", "--model", str(elastic), "--budgets", "1/4,1", "--seeds", "2", "--count", "6", "--work", "work"]
    prepared(tmp_path / "data", load_emoji().images[:8])
    training = ["--training", str(tmp_path / "data/prepared")]
    assert main([*command, *training, "--dense", str(dense), "--readme", "page.md"]) == 0
    quality = load_card(elastic).quality or {}
    assert quality["dense"]["provenance"]["weights"] == fingerprint(load_model(dense))
    assert quality["dense"]["frechet_std"] > 0 and quality["samples"] == quality["dense"]["samples"] == 6
    assert all(row["latency_ms"] > 0 for row in quality["latency"]["budgets"])
    assert results_block(load_model(elastic), load_card(elastic)) in Path("page.md").read_text()
    for name in ("quality.png", "pairs.png"):
        with Image.open(f"work/{name}") as image:
            assert min(image.size) >= 32
    assert len(list(Path("work").glob("*_seed*.json"))) == len(list(Path("work").glob("*_seed*.safetensors"))) == 6
    assert set(quality["copies"]) == {"bound", "share", "real"}

    monkeypatch.setattr(Judge, "draw", lambda *_: pytest.fail("it was drawn again"))
    assert main([*command, *training]) == 0
    again = load_card(elastic).quality or {}
    assert again["dense"] == quality["dense"] and again["budgets"] == quality["budgets"]
    shutil.rmtree("work")
    Path("page.md").write_text(f"{BEGIN}\n{END}\n")
    assert main(["results", "--model", str(elastic), "--from-card", "--readme", "page.md"]) == 0
    assert "dense twin" in Path("page.md").read_text() and not Path("work").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dense", "elastic"], "elastic holds no dense model of the emoji"),
        (["--seeds", "0"], "--seeds: 0 is not from 1"),
        (["--count", "3"], "--count: 3 is not from 4"),
        (["--from-card"], "no measured quality"),
        (["--model", "other"], "other holds no model of the emoji"),
    ],
)
def test_mistakes_are_one_sentence(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "elastic", EMOJI)
    model_folder(tmp_path / "other", DENSE)
    command = ["results", "--model", "elastic", "--budgets", "1", "--seeds", "1", "--count", "4", "--work", "work"]
    assert main([*command, *options]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
