"""Clips sampled from a model folder: GIFs and MP4s in any number, the pipeline's frames, a report; and what has no clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit import ElitPipeline, sample
from elit.backbones.config import VideoConfig
from elit.backbones.table import build_model
from elit.card import Card, SamplingDefaults, save_card
from elit.cli import main
from elit.data.moving_emoji import MOTIONS
from elit.media import read_clip
from elit.pixels import to_uint8
from elit.weights import load_model, save_weights
from randomised import randomised

TINY = VideoConfig(
    input_size=8, frames=4, in_channels=3, num_classes=8, width=16, depth=3, heads=2, head_depth=1, tail_depth=1,
    group_size=2, group_frames=2, rope=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of clips, with the motions' names and few steps."""
    folder = tmp_path_factory.mktemp("clips") / "model"
    folder.mkdir()
    model = randomised(build_model(TINY))
    with torch.no_grad():
        model.final.linear.weight.mul_(0.3)  # keeps most pixels inside of [-1, 1]
    save_weights(model, folder)
    save_card(Card(SamplingDefaults(2, 1.5), label_names=MOTIONS), folder)
    return folder


def sampled(folder: Path, out: Path, *more: str) -> Path:
    """The folder that `elit sample` wrote."""
    assert main(["sample", f"--model={folder}", f"--out={out}", *more]) == 0
    return next(place.parent for place in out.rglob("settings.json"))


def test_a_gif_is_the_clip_that_sample_makes(clips_folder: Path, tmp_path: Path) -> None:
    """Frame by frame, within what a palette of 256 colours loses; labels, names and a moving sheet beside it."""
    made = sampled(clips_folder, tmp_path, "--labels=grows,turns-left", "--count=2", "--guidance.scale=1", "--tile=2")
    assert sorted(p.name for p in made.iterdir() if not p.name.startswith(".")) == [
        *("00000", "dataset.json", "settings.json", "sheet.gif")
    ]
    listed = json.loads((made / "dataset.json").read_text())
    assert listed["labels"] == [["00000/000000.gif", 0], ["00000/000001.gif", 6]]
    wanted = to_uint8(sample(load_model(clips_folder), [0, 6], "euler", 2))
    for i in range(2):
        clip = read_clip(made / listed["labels"][i][0])
        assert clip.shape == (3, 4, 8, 8)
        assert (clip.int() - wanted[i].int()).abs().float().mean() < 8
        assert (clip.int() - wanted[1 - i].int()).abs().float().mean() > 20
    with Image.open(made / "sheet.gif") as sheet:
        assert sheet.n_frames == 4


def test_a_sample_goes_on_and_each_budget_has_its_own_folder(clips_folder: Path, tmp_path: Path) -> None:
    """The clips that are there stay to the byte; what was removed is made again, alike."""
    made = sampled(clips_folder, tmp_path, "--count=3", "--tile=4")
    before = {p.name: p.read_bytes() for p in (made / "00000").iterdir()}
    (made / "00000/000001.gif").unlink()
    assert sampled(clips_folder, tmp_path, "--count=4", "--tile=4") == made
    after = {p.name: p.read_bytes() for p in (made / "00000").iterdir()}
    assert after["000000.gif"] == before["000000.gif"] and after["000001.gif"] == before["000001.gif"]
    assert len(after) == 4
    assert main(["sample", f"--model={clips_folder}", f"--out={tmp_path}", "--count=3", "--tile=4", "--budget=1/8"]) == 0
    folders = [place.parent for place in tmp_path.rglob("settings.json")]
    assert len(folders) == 2
    one, other = (read_clip(folder / "00000/000000.gif") for folder in folders)
    assert not torch.equal(one, other)


def test_mp4_files_have_as_many_frames(clips_folder: Path, tmp_path: Path) -> None:
    made = sampled(clips_folder, tmp_path, "--count=1", "--format=mp4")
    assert [p.name for p in (made / "00000").iterdir()] == ["000000.mp4"]
    assert read_clip(made / "00000/000000.mp4").shape == (3, 4, 8, 8)
    assert (made / "sheet.gif").is_file()


def test_the_pipeline_gives_frames_as_diffusers_has_them(clips_folder: Path) -> None:
    pipe = ElitPipeline.from_pretrained(clips_folder)
    images = pipe(labels=["grows", "shrinks"], budget=0.25).images
    assert [len(clip) for clip in images] == [4, 4] and images[0][0].size == (8, 8)
    array = pipe(labels=["grows", "shrinks"], budget=0.25, output_type="np").images
    tensor = pipe(labels=["grows", "shrinks"], budget=0.25, output_type="pt").images
    assert array.shape == (2, 4, 8, 8, 3) and tensor.shape == (2, 4, 3, 8, 8)
    for i, clip in enumerate(images):
        for j, frame in enumerate(clip):
            assert abs(np.asarray(frame) / 255 - array[i, j]).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())


def test_the_report_of_budgets_moves(clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GIF beside the page, and GIFs in it; a row for each of the eight budgets."""
    monkeypatch.setattr("elit.reports.budgets.LATENCY_REPEATS", 2)
    out = tmp_path / "report"
    again = ["report", "budgets", f"--model={clips_folder}", "--labels=grows,moves-left", f"--out={out}"]
    assert main(again) == 0
    assert main(again) == 0  # the GIF is known as a report's own
    with Image.open(out / "budgets.gif") as sheet:
        assert sheet.n_frames == 4 and sheet.height > 8 * 96
    assert "data:image/gif;base64," in (out / "report.html").read_text()
    assert len(json.loads((out / "results.json").read_text())["budgets"]) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--format=png"], "a PNG does not hold; give --format gif or mp4"),
        (["sample", "--npz"], "leave --npz out"),
        (["report", "guidance"], "elit report guidance is of pictures"),
        (["report", "attention"], "elit report budgets shows them"),
        (["evaluate", "--count=4", "--reference=emoji"], "makes clips; give a model of pictures"),
    ],
)
def test_what_is_for_pictures_alone_is_refused_of_a_model_of_clips(
    words: list[str], said: str, clips_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--model={clips_folder}"] if words[0] != "evaluate" else [str(clips_folder)]
    assert main([*words, *given, f"--out={tmp_path / 'out'}"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["gif", "mp4"])
def test_a_model_of_pictures_makes_no_clips(
    form: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", f"--model={model_folder}", f"--format={form}", f"--out={tmp_path / 'out'}"]) == 2
    assert f"the model makes pictures, and {form} is for clips; leave --format {form} out" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()
