"""Files and folders are whole at every moment and locked while at work; what is left unfinished is swept or found again."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from elit import files
from elit.errors import UserError
from elit.files import (
    LOCK_FILE,
    WriteError,
    found,
    locked,
    remove_dead_beside,
    remove_leftovers,
    replace_folder,
    unfinished,
    write_whole,
    written_whole,
)

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


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """At every moment while it is written, and for good where the writing fails; nothing stays beside it."""
    file = tmp_path / "card.json"
    write_whole(file, "old")
    with written_whole(file) as part:
        part.write_text("ne")
        assert file.read_text() == "old"
        part.write_text("new")
    assert file.read_text() == "new"
    with pytest.raises(WriteError, match="make room"), written_whole(file) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_replaced_is_back_under_its_name(tmp_path: Path) -> None:
    """It was set aside already when the new one turned out not to be there."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("all of them")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "gone", folder)
    assert (folder / "weights").read_text() == "all of them" and list(tmp_path.iterdir()) == [folder]


def test_what_the_living_write_stays_but_for_whoever_holds_the_lock(tmp_path: Path) -> None:
    part = unfinished(tmp_path / "settings.json", "part")
    part.write_text("{")
    remove_leftovers(tmp_path)
    assert part.exists()
    remove_leftovers(tmp_path, of="other", everyones=True)
    assert part.exists()
    remove_leftovers(tmp_path, everyones=True)
    assert not part.exists()


def enters(folder: Path) -> bool:
    """Whether another process may take a folder's lock."""
    child = os.fork()
    if not child:
        try:
            with locked(folder, "training"):
                os._exit(0)
        except UserError as error:
            os._exit(1 if "another process is training in" in str(error) else 2)
        finally:
            os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 0


def test_a_lock_keeps_other_processes_out_until_it_is_left(tmp_path: Path) -> None:
    """The sentence says by whom; the lock's file goes with it."""
    with locked(tmp_path, "training") as held:
        assert held and not enters(tmp_path)
        assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    assert not (tmp_path / LOCK_FILE).exists()
    assert enters(tmp_path)


def test_a_lock_on_a_file_that_its_holder_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the file just before it lost its name tries again, on the file that others see."""
    tried, really = [], files._try_lock

    def raced(folder: Path, doing: str) -> IO[str] | None:
        file = really(folder, doing)
        if not tried:
            (folder / LOCK_FILE).unlink()
        tried.append(doing)
        return file

    monkeypatch.setattr(files, "_try_lock", raced)
    with locked(tmp_path, "training"):
        assert len(tried) == 2 and not enters(tmp_path)
