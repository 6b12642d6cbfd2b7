"""`elit prepare` from the command line: it ends in data that `elit train` takes, and a mistake is one sentence."""

import json
from pathlib import Path

import pytest
from PIL import Image

from elit.cli import main

TINY = [
    *("--model.input_size", "8", "--model.patch_size", "2", "--model.in_channels", "3", "--model.num_classes", "2"),
    *("--model.width", "16", "--model.depth", "3", "--model.heads", "2", "--model.rope", "true", "--model.group_size", "2"),
    *("--model.head_depth", "1", "--model.tail_depth", "1", "--batch_size", "4", "--steps", "3", "--log.preview_every", "0"),
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with pictures of two classes, one of them broken."""
    monkeypatch.chdir(tmp_path)
    for name in ("blue", "red"):
        Path("photos", name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12 + 8 * i, 20), name).save(Path("photos", name, f"{i}.png"))
    Path("photos", "red", "3.png").write_bytes(b"no picture")


def images(*arguments: str) -> int:
    return main(["prepare", "images", *arguments, "--size", "8", "--workers", "1"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Prepares what must fail; returns the one sentence it says."""
    capsys.readouterr()
    assert images(*arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("elit: ") and "Traceback" not in said and len(said.splitlines()) == 1, said
    return said


def test_a_folder_of_pictures_becomes_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert images("photos", "--out", "data", "--publish", "public") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "6 pictures of 2 classes are in data" in said and "1 could not be read" in said and "data/skipped.json" in said
    assert "Parquet files and a card are in public" in said
    assert main(["train", *TINY, "--out", "run", "--data.source", "data"]) == 0
    card = json.loads(Path("run/checkpoints/step_00000003/card.json").read_text())
    assert list(card["label_names"]) == ["blue", "red"]


def test_buckets_train_a_model_with_rope(capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of 12 : 20 and 20 : 20 go to two sizes; a model without rotary positions is told so."""
    assert images("photos", "--out", "data", "--crop", "buckets", "--buckets", "8x8,16x8") == 0
    assert main(["train", *TINY, "--out", "run", "--data.source", "data"]) == 0
    capsys.readouterr()
    arguments = ["false" if value == "true" else value for value in TINY]
    assert main(["train", *arguments, "--out", "other", "--data.source", "data"]) == 2
    assert "the data have several sizes; set model.rope true" in capsys.readouterr().err


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file or folder nowhere; give a folder" in refused(capsys, "nowhere", "--out", "data")
    assert "'8by8' is not a size; write heights and widths" in refused(
        capsys, "photos", "--out", "data", "--crop", "buckets", "--buckets", "8by8"
    )
    assert "--split is of a data set, and photos is none; leave it out" in refused(
        capsys, "photos", "--out", "data", "--split", "test"
    )
    assert "--seed is of --crop random-crop" in refused(capsys, "photos", "--out", "data", "--seed", "1")
    assert "--bucket-step makes the buckets" in refused(capsys, "photos", "--out", "data", "--bucket-step", "8")
    assert "--out" in refused(capsys, "photos", "--out", "") and not Path("data").exists()
    assert "exists and holds no prepared data" in refused(capsys, "photos", "--out", "photos")
    assert images("photos", "--out", "data") == 0
    assert "crop is center-crop-adm there and wide now" in refused(capsys, "photos", "--out", "data", "--crop", "wide")
    assert "photos exists; give another folder with --publish" in refused(
        capsys, "photos", "--out", "data", "--publish", "photos"
    )


def test_an_unfinished_folder_cannot_be_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert images("photos", "--out", "data") == 0
    Path("data/elit-data.json").unlink()
    capsys.readouterr()
    assert main(["train", *TINY, "--out", "run", "--data.source", "data"]) == 2
    assert "data is not prepared to the end; run its elit prepare command again" in " ".join(capsys.readouterr().err.split())


def test_files_of_a_source_become_class_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "folder", "emoji", "--labels", "heart,keycap", "--count", "2", "--out", "mine"]) == 0
    assert sorted(str(file) for file in Path("mine").rglob("*.png")) == [
        *("mine/heart/000000.png", "mine/heart/000001.png", "mine/keycap/000000.png", "mine/keycap/000001.png")
    ]
    assert main(["prepare", "folder", "emoji", "--labels", "herat", "--out", "other"]) == 2
    assert "heart" in capsys.readouterr().err


def test_a_list_of_the_skipped_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert images("photos", "--out", "data") == 0
    Path("data", "skipped.json").write_text("3")
    assert images("photos", "--out", "data") == 2
    assert "elit: data/skipped.json: it is 3" in capsys.readouterr().err
