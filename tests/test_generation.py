"""Sampling at scale: the same bytes however the work is cut, interrupted or spread; and nothing lost or mixed up."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elit import DiT, Guidance, Schedule, UserError, sample
from elit.cli import main
from elit.generation import generate, image_name
from elit.labels import LabelRule
from elit.pictures import to_image
from elit.recipe import Recipe
from elit.sampling import image_noise
from ranks import elit, run_ranks, start_ranks, wait_for

UNIFORM = LabelRule("uniform", 7)
RECIPE = Recipe(steps=3, budget=0.5, guidance=Guidance(2.0, weak_budget=0.25), tile=4)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    return ["sample", f"--model={model}", f"--out={out}", "--steps=3", "--budget=1/2", "--guidance.scale=2", *more]


def test_image_i_is_that_of_its_tile(tiny: DiT, tmp_path: Path) -> None:
    """The PNG is `sample` on the whole tile, with the labels and the noise of its places, rounded to the nearest."""
    folder = generate(tiny, RECIPE, UNIFORM, 6, tmp_path)
    labels = [UNIFORM.label(0, i) for i in range(8)]
    for first in (0, 4):
        noise = image_noise(0, (4, 3, 8, 8), first=first)
        images = sample(tiny, labels[first : first + 4], "euler", 3, 0.5, RECIPE.guidance, noise=noise)
        for i, image in enumerate(images[: 6 - first], start=first):
            with Image.open(folder / image_name(i)) as png:
                assert png.tobytes() == to_image(image).tobytes()
    assert json.loads((folder / "dataset.json").read_text()) == {
        "labels": [[f"00000/{i:06d}.png", labels[i]] for i in range(6)]
    }
    assert image_name(12345) == "00012/012345.png"


@pytest.mark.parametrize("sampler", ["euler", "euler_maruyama"])
def test_the_bytes_depend_on_neither_the_batch_nor_the_count(tiny: DiT, tmp_path: Path, sampler: str) -> None:
    recipe = replace(RECIPE, sampler=sampler)
    ten = contents(generate(tiny, recipe, UNIFORM, 10, tmp_path / "a"))
    batched = contents(generate(tiny, recipe, UNIFORM, 10, tmp_path / "b", batch=3))
    assert ten == batched
    generate(tiny, recipe, UNIFORM, 3, tmp_path / "c")
    grown = contents(generate(tiny, recipe, UNIFORM, 10, tmp_path / "c", batch=2))
    assert ten == grown


def test_two_processes_make_the_bytes_of_one(model_folder: Path, tmp_path: Path) -> None:
    """And so does another batch; the .npz holds the images too."""
    log = tmp_path / "log"
    two = elit(*arguments(model_folder, tmp_path / "two", "--count=21", "--npz"))
    assert run_ranks(2, two, log) == [0, 0], log.read_text()
    assert main(arguments(model_folder, tmp_path / "one", "--count=21", "--npz", "--batch=2")) == 0
    made = contents(tmp_path / "one")
    assert len(made) == 21 + 4  # settings, labels, the sheet and the .npz
    assert made == contents(tmp_path / "two")
    (file,) = (tmp_path / "one").glob("*.npz")
    with np.load(file) as arrays:
        assert arrays.files == ["arr_0"]
        array = arrays["arr_0"]
    assert (array.shape, array.dtype) == ((21, 8, 8, 3), np.uint8)
    for i in range(21):
        with Image.open(file.with_suffix("") / image_name(i)) as png:
            assert np.array_equal(np.asarray(png), array[i])


def test_a_killed_run_goes_on_to_the_same_bytes(model_folder: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment; then only what is missing is made."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    work = elit(*arguments(model_folder, killed, "--count=400"))
    (process,) = start_ranks(1, work, tmp_path / "log")
    wanted = random.Random(time.time_ns()).randint(1, 200)
    while len(list(killed.rglob("[0-9]*.png"))) < wanted:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), (tmp_path / "log").read_text()
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    assert wait_for([process]) == [-signal.SIGKILL]
    kept = {p: p.stat().st_mtime_ns for p in killed.rglob("[0-9]*.png")}
    assert wanted <= len(kept) < 400
    for out in (killed, straight):
        assert main(arguments(model_folder, out, "--count=400")) == 0
    assert contents(killed) == contents(straight)
    assert len(list(killed.rglob("[0-9]*.png"))) == 400
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())


OTHERS: list[dict[str, Any]] = [
    {"sampler": "heun"}, {"steps": 4}, {"budget": 0.75}, {"budget": Schedule(((0.5, 0.25),), 0.5)}, {"seed": 1},
    {"tile": 2}, {"path": "cosine"},
    {"guidance": Guidance(3.0, weak_budget=0.25)}, {"guidance": Guidance(2.0)},
    {"guidance": Guidance(2.0, (0.0, 0.5), 0.25)}, {"guidance": Guidance(2.0, weak_budget=0.25, weak_label="same")},
]  # fmt: skip


def test_settings_never_share_a_folder(tiny: DiT, make_dit: Callable[..., DiT], tmp_path: Path) -> None:
    """Every setting that changes pixels changes the folder; what does not (the budget within its level) keeps it."""
    folders = [generate(tiny, replace(RECIPE, **other), UNIFORM, 1, tmp_path) for other in [{}, *OTHERS]]
    folders.append(generate(make_dit(write_sees_dropped=True), RECIPE, UNIFORM, 1, tmp_path))  # the same weights
    folders.append(generate(make_dit().to(torch.bfloat16), RECIPE, UNIFORM, 1, tmp_path))
    for labels in (LabelRule("balanced", 7), LabelRule("list", 7, (1, 2))):
        folders.append(generate(tiny, RECIPE, labels, 1, tmp_path))
    assert len(set(folders)) == len(OTHERS) + 5
    assert generate(tiny, replace(RECIPE, budget=0.6), UNIFORM, 1, tmp_path) == folders[0]


def test_a_folder_of_other_settings_is_refused(tiny: DiT, tmp_path: Path) -> None:
    """Given as OUT itself, or edited by hand; one of the same settings may be given as OUT."""
    folder = generate(tiny, RECIPE, UNIFORM, 2, tmp_path)
    assert generate(tiny, RECIPE, UNIFORM, 3, folder) == folder
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(steps is 3 there and 5 now\); give another --out"):
        generate(tiny, replace(RECIPE, steps=5), UNIFORM, 3, folder)
    assert contents(tmp_path) == before
    (folder / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="other settings"):
        generate(tiny, RECIPE, UNIFORM, 3, tmp_path)


def test_a_full_disk_stops_the_run_and_the_next_goes_on(tiny: DiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error reaches the caller; no half-written file counts; what was finished is kept."""
    whole = contents(generate(tiny, RECIPE, UNIFORM, 30, tmp_path / "whole"))
    save = Image.Image.save

    def on_a_small_disk(image: Image.Image, file: Path, **options: Any) -> None:
        save(image, file, **options)
        if "000017.png" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(Image.Image, "save", on_a_small_disk)
    with pytest.raises(
        OSError, match=r"000017\.png could not be written \(No space left on device\); make room, and give the same command"
    ):
        generate(tiny, RECIPE, UNIFORM, 30, tmp_path / "full")
    monkeypatch.undo()
    left = contents(tmp_path / "full")
    assert 16 <= sum(name.endswith(".png") for name in left) < 30
    assert not any(name.endswith("000017.png") or name.endswith(".part") for name in left)
    assert whole == contents(generate(tiny, RECIPE, UNIFORM, 30, tmp_path / "full"))


def test_what_a_kill_left_half_written_never_counts(tiny: DiT, tmp_path: Path) -> None:
    """Of images, lists, sheets and arrays; whatever the number of the process that was killed is another's now."""
    folder = generate(tiny, RECIPE, UNIFORM, 4, tmp_path, npz=True)
    whole = contents(tmp_path)
    (folder / image_name(2)).rename(folder / "00000" / ".000002.png.77.part")
    for name in (f"{folder.name}/.sheet.png.77.part", f"{folder.name}/.dataset.json.1.part", f".{folder.name}.npz.77.part"):
        (tmp_path / name).write_bytes(b"half")
    generate(tiny, RECIPE, UNIFORM, 4, tmp_path, npz=True)
    assert contents(tmp_path) == whole


def test_one_command_at_a_time_works_in_a_folder(tiny: DiT, tmp_path: Path) -> None:
    """The second is told of the first, and removes nothing of it; a folder of other settings is free."""
    folder = generate(tiny, RECIPE, UNIFORM, 2, tmp_path)
    part = folder / "00000" / ".000003.png.1.part"
    part.write_bytes(b"being written")
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=r"another process is sampling in .*; wait for it, stop it, or give another --out"
        ):
            generate(tiny, RECIPE, UNIFORM, 4, tmp_path)
        assert part.is_file()
        generate(tiny, replace(RECIPE, steps=2), UNIFORM, 2, tmp_path)
        holder.communicate("\n")
    generate(tiny, RECIPE, UNIFORM, 4, tmp_path)
    assert not part.exists() and not list(tmp_path.rglob(".*"))


def test_a_smaller_count_shrinks_nothing(tiny: DiT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels, sheet and array keep what an earlier command made, and that is said; an array is never cut short."""
    folder = generate(tiny, RECIPE, UNIFORM, 10, tmp_path, npz=True)
    whole = contents(tmp_path)
    generate(tiny, RECIPE, UNIFORM, 3, tmp_path, npz=True)
    assert contents(tmp_path) == whole
    assert "holds 10 images from before" in capsys.readouterr().err
    (folder / image_name(7)).unlink()
    with pytest.raises(UserError, match=r"\.npz holds 10 images, whose files are not all there, and would shrink to 3"):
        generate(tiny, RECIPE, UNIFORM, 3, tmp_path, npz=True)
    generate(tiny, RECIPE, UNIFORM, 3, tmp_path)
    assert "listed 10 images, of which some are gone" in capsys.readouterr().err
    assert len(json.loads((folder / "dataset.json").read_text())["labels"]) == 3
    assert (tmp_path / f"{folder.name}.npz").read_bytes() == whole[f"{folder.name}.npz"]


def test_an_image_of_another_size_is_named(tiny: DiT, tmp_path: Path) -> None:
    folder = generate(tiny, RECIPE, UNIFORM, 4, tmp_path)
    for broken, said in (
        (Image.new("RGB", (9, 8)), "is 9 x 8 and not 8 x 8 as the others are"),
        (None, "cannot be read as an"),
    ):
        if broken is None:
            (folder / image_name(2)).write_bytes(b"nothing")
        else:
            broken.save(folder / image_name(2))
        with pytest.raises(UserError, match=rf"000002\.png {said}.*; remove it, and give the same command again"):
            generate(tiny, RECIPE, UNIFORM, 4, tmp_path)


def test_settings_that_are_no_json_are_told(tiny: DiT, tmp_path: Path) -> None:
    folder = generate(tiny, RECIPE, UNIFORM, 1, tmp_path)
    (folder / "settings.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"other settings \(its settings\.json cannot be read\)"):
        generate(tiny, RECIPE, UNIFORM, 1, tmp_path)


def test_the_list_names_the_classes(tiny: DiT, tmp_path: Path) -> None:
    folder = generate(tiny, RECIPE, UNIFORM, 2, tmp_path, label_names=tuple("abcdefg"))
    assert json.loads((folder / "dataset.json").read_text())["label_names"] == list("abcdefg")


def sampled(*options: str) -> int:
    return main(["sample", *options])


def test_a_small_count_makes_no_image_in_vain(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image runs a tile of one, and says so; a sample of the usual tile that is there is gone on with."""
    fixed = [f"--model={model_folder}", "--steps=2"]
    assert sampled(*fixed, f"--out={tmp_path / 'a'}", "--count=1") == 0
    (settings,) = (tmp_path / "a").glob("*/settings.json")
    assert json.loads(settings.read_text())["tile"] == 1
    assert "images are made 1 at a time" in " ".join(capsys.readouterr().err.split())
    assert sampled(*fixed, f"--out={tmp_path / 'b'}", "--count=9") == 0
    before = contents(tmp_path / "b")
    assert sampled(*fixed, f"--out={tmp_path / 'b'}", "--count=1") == 0
    assert contents(tmp_path / "b") == before
    assert json.loads(before[next(n for n in before if n.endswith("settings.json"))])["tile"] == 8
    assert sampled(*fixed, f"--out={tmp_path / 'c'}", "--count=1", "--tile=8") == 0
    (image,) = (tmp_path / "c").rglob("000000.png")
    assert image.read_bytes() == next(v for n, v in before.items() if n.endswith("000000.png"))


@pytest.mark.parametrize(
    "wrong", ["--count=0", "--count=-3", "--count=100000000000", "--tile=0", "--tile=1000000000", "--out="]
)
def test_mistakes_leave_nothing_behind(
    wrong: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert sampled(f"--model={model_folder}", "--steps=2", "--out=made", wrong) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list((tmp_path / "here").iterdir())


def test_a_full_disk_of_one_process_is_told_by_the_first(model_folder: Path, tmp_path: Path) -> None:
    """Where the second process alone has work left: both end with 2, and the sentence is said once."""
    out = tmp_path / "out"
    assert sampled(f"--model={model_folder}", "--steps=2", "--tile=2", f"--out={out}", "--count=4") == 0
    (second,) = out.rglob("000002.png")
    second.unlink()
    (second.parent / "000002.png").mkdir()  # which no file can replace
    (second.parent / "000002.png" / "kept").touch()
    again = elit("sample", f"--model={model_folder}", "--steps=2", "--tile=2", f"--out={out}", "--count=4")
    assert run_ranks(2, again, tmp_path / "log") == [2, 2]
    assert (tmp_path / "log").read_text().count("000002.png could not be written") == 1


@pytest.mark.parametrize(("count", "batch", "tile"), [(0, 1, 4), (1, 0, 4), (1, 1, 0)])
def test_counts_that_cannot_be_are_refused(tiny: DiT, tmp_path: Path, count: int, batch: int, tile: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        generate(tiny, replace(RECIPE, tile=tile), UNIFORM, count, tmp_path / "out", batch=batch)
    assert not (tmp_path / "out").exists()
