"""`elit prepare clips`: frames by another reader, the same bytes however the work is split, and what is left out, told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit import UserError
from elit.cli import main
from elit.data.clips import decode_clip
from elit.data.crops import crop_adm
from elit.data.dataset import PreparedData
from elit.data.prepare import ClipSettings, prepare_images
from elit.media import save_clip
from elit.pixels import to_float


def moving(count: int, seed: int, size: tuple[int, int] = (20, 16)) -> list[Image.Image]:
    """Frames of a few flat colours: a bar that moves."""
    colour = np.random.default_rng(seed).integers(0, 200, 3)
    frames = []
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), 240, dtype=np.uint8)
        pixels[:, i : i + 6] = colour
        frames.append(Image.fromarray(pixels))
    return frames


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: GIFs, a WebP, an MP4; one too short, one broken, and a text."""
    folder = tmp_path_factory.mktemp("source") / "clips"
    for name in ("falls", "rises"):
        (folder / name).mkdir(parents=True)
    save_clip(moving(6, 0), folder / "falls/a.gif")
    save_clip(moving(9, 1), folder / "falls/b.gif")
    save_clip(moving(2, 2), folder / "falls/short.gif")
    first, *others = moving(5, 3)
    first.save(folder / "rises/c.webp", save_all=True, append_images=others, lossless=True)
    save_clip(moving(7, 4), folder / "rises/d.mp4")
    (folder / "rises/broken.gif").write_bytes(b"GIF89a nothing")
    (folder / "rises/notes.txt").write_text("no clip")
    return folder


def test_rows_are_the_first_frames_cropped_alike(clips: Path, tmp_path: Path) -> None:
    """Frame by frame what ADM's crop makes of the frames drawn; an MP4's within what its compression loses."""
    info = prepare_images(ClipSettings(str(clips), 8, frames=4), tmp_path / "out", workers=1)
    assert (info.kind, info.count, info.frames, info.size) == ("clips", 4, 4, (8, 8))
    assert (info.label_names, info.label_counts) == (("falls", "rises"), (2, 2))
    data = PreparedData(tmp_path / "out")
    assert data.shape == (3, 4, 8, 8)
    x, labels = data.read(torch.arange(4), [torch.Generator()] * 4)
    assert labels.tolist() == [0, 0, 1, 1]
    for clip, seed, lost in zip(x, (0, 1, 3, 4), (0, 0, 0, 0.08), strict=True):
        for i, frame in enumerate(moving(4, seed)):
            wanted = to_float(torch.from_numpy(np.array(crop_adm(frame, 8))).permute(2, 0, 1))
            assert (clip[:, i] - wanted).abs().mean() <= lost
    skipped = dict(json.loads((tmp_path / "out/skipped.json").read_text()))
    assert skipped["falls/short.gif"] == "it has 2 frames, and 4 are needed for 4 of every 1"
    assert skipped["rises/broken.gif"] == "its frames cannot be read (cannot identify image file)"


def test_every_second_frame(clips: Path) -> None:
    frames = decode_clip((clips / "falls/b.gif").read_bytes(), ".GIF", 4, every=2)
    assert [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(frames, moving(9, 1)[::2], strict=False)] == [
        True
    ] * 4
    with pytest.raises(UserError, match="it has 9 frames, and 13 are needed for 4 of every 4"):
        decode_clip((clips / "falls/b.gif").read_bytes(), ".gif", 4, every=4)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    """A disc moving on nothing becomes one on white, also where a frame clears the one before it."""
    frames = []
    for i in range(3):
        pixels = np.zeros((8, 8, 4), dtype=np.uint8)
        pixels[2:4, i : i + 2] = (250, 0, 0, 255)
        frames.append(Image.fromarray(pixels))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2)
    for i, frame in enumerate(decode_clip((tmp_path / "a.gif").read_bytes(), ".gif", 3)):
        wanted = np.full((8, 8, 3), 255)
        wanted[2:4, i : i + 2] = (250, 0, 0)
        assert np.array_equal(np.asarray(frame), wanted)


def test_any_number_of_processes_writes_the_same_bytes_and_goes_on(clips: Path, tmp_path: Path) -> None:
    settings = ClipSettings(str(clips), 8, "random-crop", frames=4)
    for name, workers in (("one", 1), ("two", 2)):
        prepare_images(settings, tmp_path / name, workers=workers)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()} for name in ("one", "two"))
    assert one == two
    with pytest.raises(UserError, match="frames is 4 there and 5 now"):
        prepare_images(ClipSettings(str(clips), 8, "random-crop", frames=5), tmp_path / "one", workers=1)


def test_a_folder_of_clips_becomes_a_model(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands; a model of another length, and a stream, are told or read alike."""
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "clips", str(clips), "--frames=4", "--size=8", "--workers=1", "--out=data"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "4 clips of 2 classes are in data" in said and "2 could not be read or are too short" in said
    tiny = [
        *("--architecture=VideoDiT", "--model.input_size=8", "--model.in_channels=3", "--model.num_classes=2", "--steps=2"),
        *("--model.width=16", "--model.depth=3", "--model.heads=2", "--model.rope=true", "--model.group_size=2"),
        *("--model.head_depth=1", "--model.tail_depth=1", "--batch_size=2", "--log.preview_every=0"),
    ]
    assert main(["train", *tiny, "--model.frames=4", "--data.source=data", "--out=run"]) == 0
    assert main(["train", *tiny, "--model.frames=4", f"--data.source=file://{tmp_path}/data", "--out=streamed"]) == 0
    capsys.readouterr()
    assert main(["train", *tiny, "--model.frames=6", "--data.source=data", "--out=other"]) == 2
    assert "set model.frames 4" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "clips", "pictures", "--out=out"], "pictures holds no clips; put them in one folder per class"),
        (["prepare", "clips", "nowhere", "--out=out"], "nowhere is not a folder"),
        (["prepare", "clips", "clips", "--frames=1", "--out=out"], "1 is not from 2 to 4096"),
        (["prepare", "clips", "clips", "--frames=99", "--out=out"], "none of the pictures could be read"),
        (["prepare", "clips", "clips", "--seed=1", "--out=out"], "--seed is of --crop random-crop"),
        (["evaluate", "data", "--reference=emoji", "--out=out"], "data holds clips, and pictures are evaluated"),
    ],
)
def test_a_mistake_is_a_sentence(
    words: list[str],
    said: str,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").symlink_to(clips)
    Path("pictures/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("pictures/a/0.png")
    if "data" in words:
        prepare_images(ClipSettings("clips", 8, frames=4), Path("data"), workers=1)
    assert main(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and "Traceback" not in error


def test_videos_without_their_library_are_told_before_the_work(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"video files need PyAV, .*\[video\]"):
        prepare_images(ClipSettings(str(clips), 8, frames=4), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
