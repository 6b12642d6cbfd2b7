"""What processes leave unfinished beside files and folders: whose it is, and when it is swept or found again."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from elit import files
from elit.files import found, remove_dead_beside, remove_leftovers, unfinished

DAY = 86_400


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def aside(folder: Path, pid: int, machine: str | None, kind: str = "old") -> Path:
    """What a process of a machine (an older version named none) set aside of a folder."""
    owner = f"{pid}" if machine is None else f"{pid}@{machine}"
    place = folder.with_name(f".{folder.name}.{owner}.{kind}")
    place.mkdir()
    (place / "weights").write_text("all of them")
    return place


@pytest.mark.parametrize("machine", [None, "here"])
def test_what_a_dead_process_of_this_machine_set_aside_is_found(
    machine: str | None, dead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_machine", lambda: "here")
    aside(tmp_path / "model.v1", dead, machine)
    assert (found(tmp_path / "model.v1") / "weights").read_text() == "all of them"


def test_another_machines_process_is_not_judged_by_its_number_here(
    dead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be at work: only what has long been quiet is given back or swept, and what may be written longest, last."""
    model = tmp_path / "model"
    old, part = aside(model, dead, "there"), aside(model, dead, "there", "part")
    half = tmp_path / f".settings.json.{dead}@there.part"
    half.write_text("{")
    remove_dead_beside(model)
    remove_leftovers(tmp_path)
    assert old.exists() and part.exists() and half.exists() and not model.exists()

    now = time.time()
    monkeypatch.setattr(files.time, "time", lambda: now + 120)
    remove_dead_beside(model)
    assert (model / "weights").exists() and part.exists()
    monkeypatch.setattr(files.time, "time", lambda: now + DAY + 60)
    remove_dead_beside(model)
    remove_leftovers(tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["model"]


def test_this_process_knows_its_own(tmp_path: Path) -> None:
    """Names say whose a thing is, whatever dots the machine's name and the folder's have; and it is alive."""
    part = unfinished(tmp_path / "a.b", "part")
    part.mkdir()
    assert part.name.startswith(".a.b.") and part.name.count(".") == 4
    remove_dead_beside(tmp_path / "a.b")
    assert part.exists()
