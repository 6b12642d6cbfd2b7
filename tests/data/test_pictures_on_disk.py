"""One rule for a folder of pictures, whoever reads it: preparation, training or evaluation."""

import json
import os
from pathlib import Path

import pytest
import torch
from pictures import content, textured

from elit.data.dataset import PreparedData
from elit.data.images import load_folder
from elit.data.pictures_on_disk import SUFFIXES, PassedOver, legible
from elit.data.prepare import ImageSettings, prepare_images
from elit.data.sources import FolderSource
from elit.evaluation.sources import image_files, open_images

KINDS = {".jfif": "jpeg", ".ppm": "ppm", ".pgm": "ppm", ".tif": "tiff", ".gif": "gif", ".jp2": "jpeg2000", ".PNG": "png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of every kind in class folders, one of them a link and one nested, among much that is none."""
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    (folder / "cats" / "more").mkdir(parents=True)
    for suffix, kind in KINDS.items():
        (folder / "cats" / f"x{suffix}").write_bytes(content(textured(8, 8), kind))
    (folder / "cats" / "more" / "deep.png").write_bytes(content(textured(8, 8)))
    elsewhere.mkdir()
    for i in range(2):
        (elsewhere / f"{i}.png").write_bytes(content(textured(8, 8, i)))
    (folder / "dogs").symlink_to(elsewhere)
    for hidden in (".thumbs", "cats/.thumbnails", "__MACOSX"):
        (folder / hidden).mkdir()
        (folder / hidden / "a.png").write_bytes(content(textured(8, 8)))
    (folder / "cats" / "notes.txt").write_text("no picture")
    (folder / "empty").mkdir()
    return folder


def test_everybody_finds_the_same_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says the same of what is passed over."""
    count = len(KINDS) + 3
    wanted = "3 hidden (such as .thumbs), 1 no pictures by their names (cats/notes.txt), 1 folders without pictures (empty)"
    prepared = prepare_images(ImageSettings(str(folder), 8), tmp_path / "out", workers=1)
    assert f"passed over in {folder}: {wanted}" in capsys.readouterr().err
    trained = load_folder(folder, 8)
    assert f"passed over in {folder}: {wanted}" in capsys.readouterr().err
    evaluated = open_images(str(folder))
    evaluated.read(0, evaluated.count)
    assert not evaluated.leave_out_broken() and evaluated.notes()[-1] == f"passed over: {wanted}"
    assert (prepared.count, len(trained), evaluated.count) == (count, count, count)
    assert prepared.label_names == trained.label_names == ("cats", "dogs")
    assert prepared.label_counts == trained.label_counts == (count - 2, 2)
    keys = [str(file.relative_to(folder)) for file in image_files(folder)]
    assert keys == [key for key, _ in FolderSource(str(folder)).listing()]


@pytest.mark.parametrize("broken", ["cut", "pipe", "device", "gone", "loop"])
def test_everybody_leaves_out_what_cannot_be_read(folder: Path, tmp_path: Path, broken: str) -> None:
    """A pipe or a device behind a picture's name neither waits nor swells."""
    file = folder / "cats" / "more" / "bad.png"
    if broken == "cut":
        file.write_bytes(content(textured(8, 8))[:60])
    elif broken == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to({"device": "/dev/zero", "gone": "/nowhere", "loop": file}[broken])
    count = len(KINDS) + 3
    assert prepare_images(ImageSettings(str(folder), 8), tmp_path / "out", workers=1).count == count
    skipped = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert [key for key, _ in skipped] == ["cats/more/bad.png"]
    assert len(load_folder(folder, 8)) == count
    evaluated = open_images(str(folder))
    evaluated.read(0, evaluated.count)
    assert evaluated.leave_out_broken() and evaluated.count == count


def test_every_suffix_is_counted_in_any_case(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"a{suffix.upper()}").write_bytes(b"")
    assert len(image_files(tmp_path)) == len(SUFFIXES)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Pictures and classes keep their place; what is stored and printed of their names is text."""
    source = tmp_path / os.fsdecode(b"photos\xfc")
    folder = source / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(content(textured(8, 8)))
    for workers in (1, 2):
        info = prepare_images(ImageSettings(str(source), 8), tmp_path / f"out{workers}", workers=workers)
        assert (info.count, info.label_names) == (1, ("caf\\xe9",))
    assert prepare_images(ImageSettings(str(source), 8), tmp_path / "out1", workers=1).count == 1  # and so again
    assert PreparedData(tmp_path / "out1").table["key"].to_pylist() == ["caf\\xe9/\\xff.png"]
    data = load_folder(source, 8)
    assert data.label_names == ("caf\\xe9",) and torch.equal(data.images[0], open_images(str(source)).read(0, 1)[0])
    assert legible("caf\udce9/a.png") == "caf\\xe9/a.png"


def test_a_path_is_no_pattern_and_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in names, as a glob or a terminal's markup has them."""
    folder = tmp_path / "dd[a]" / "[bold]cats"
    folder.mkdir(parents=True)
    (folder / "[x].png").write_bytes(content(textured(8, 8)))
    (folder / "[x.txt").write_text("")
    info = prepare_images(ImageSettings(str(tmp_path / "dd[a]"), 8), tmp_path / "out[1]", workers=1)
    prepare_images(ImageSettings(str(tmp_path / "dd[a]"), 8), tmp_path / "out[1]", workers=1)
    assert info.label_names == ("[bold]cats",) and open_images(str(tmp_path / "dd[a]")).count == 1
    said = capsys.readouterr().err
    assert "([bold]cats/[x.txt)" in said and "out[1] is already prepared" in said


def test_what_is_passed_over_is_told_by_reason() -> None:
    passed = PassedOver()
    assert not passed and str(passed) == ""
    for name in ("a", "b"):
        passed.add("hidden", name)
    passed.add("odd", "c")
    assert passed and str(passed) == "2 hidden (such as a), 1 odd (c)"
