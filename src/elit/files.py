"""Files and folders: written whole or not at all, kept from others while at work, read only where they are plain files.

At every moment a folder that is replaced is whole under its name or beside it, as `.NAME.PID@HOST.old`, and `found` finds
it. What a process has not finished bears its number and its machine, for several machines may write to one storage.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from elit.errors import UserError

LOCK_FILE = ".lock"
# Seconds without a change after which what a process of another machine, which cannot be asked, left behind is of the dead:
# setting a folder aside takes a moment, writing one may take long.
QUIET = {"old": 60.0, "part": 86400.0, "gone": 86400.0}


class WriteError(OSError):
    """Something could not be written: the message is one sentence with the place, the reason and the remedy."""


@contextmanager
def told(place: Path) -> Iterator[None]:
    """Turns an OSError inside, such as of a full disk, into a WriteError that names the place."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            error.errno, f"{place} could not be written ({error.strerror or error}); {_remedy(error)}"
        ) from error


def _remedy(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "make room, and give the same command again" if full else "give a folder that you may write to"


def check_writable(folder: Path) -> None:
    """Makes the folder where it is missing and tries it, before the work. Raises WriteError where it cannot be written."""
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name, so that a kill leaves nothing
            pass


def check_makeable(folder: Path) -> None:
    """Tries, before the work, that a folder can be made or replaced, and leaves nothing behind. Raises WriteError."""
    with told(folder):
        check_writable(next(place for place in folder.absolute().parents if place.exists()))


def unfinished(place: Path, kind: str) -> Path:
    """The hidden name beside a file or folder for what this process makes of it: part, old or gone."""
    return place.with_name(f".{place.name}.{os.getpid()}@{_machine()}.{kind}")


def _machine() -> str:
    """This machine's name, without dots."""
    return os.uname().nodename.replace(".", "-")[:32] or "unknown"


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A file to write to, which takes its name only when all is written. Raises WriteError where it cannot be."""
    beside = unfinished(file, "part")
    with told(file):
        try:
            yield beside
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with written_whole(file) as part:
        part.write_text(text, encoding="utf8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes its name only when all is written. Raises WriteError where it cannot be.

    An older folder of that name gives way at the last moment: it is set aside, the new one takes its place, and only then
    is it deleted. Where anything fails, the old one is back under its name.
    """
    beside = unfinished(folder, "part")
    with told(folder):
        shutil.rmtree(beside, ignore_errors=True)
        remove_dead_beside(folder)
        try:
            beside.mkdir(parents=True)
            yield beside
            replace_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Gives the folder `new` the name of `folder`; an older one is whole, under that name or aside, until it has it."""
    aside = unfinished(folder, "old")
    if not folder.exists():
        new.rename(folder)
        return
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.rename(aside)
        new.rename(folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Renames the folder before it is emptied, so that a kill never leaves half of it under its name."""
    gone = unfinished(folder, "gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def found(folder: Path) -> Path:
    """The folder; where a kill came between setting it aside and replacing it, it is given its name again."""
    if not folder.exists():
        for aside in _of_the_dead(folder, "old"):
            aside.rename(folder)
            break
    return folder


def remove_dead_beside(folder: Path) -> None:
    """Removes what killed processes left beside a folder; where one of them set it aside, it has its name again first."""
    found(folder)
    for left in [*_of_the_dead(folder, "old"), *_of_the_dead(folder, "part"), *_of_the_dead(folder, "gone")]:
        shutil.rmtree(left, ignore_errors=True)


def _of_the_dead(folder: Path, kind: str) -> list[Path]:
    """The folders beside one, `.NAME.PID@HOST.kind`, of processes that are no more."""
    beside = sorted(folder.parent.glob(f".{_literal(folder.name)}.*.{kind}"))
    return [place for place in beside if place.name.count(".") == folder.name.count(".") + 3 and _is_of_the_dead(place)]


def _is_of_the_dead(place: Path) -> bool:
    """Whether the process that left this unfinished is no more; of another machine's, whether it has long been quiet."""
    *_, owner, kind = place.name.split(".")
    pid, _, machine = owner.partition("@")
    if machine in ("", _machine()):
        return not _alive(pid)
    try:
        return time.time() - place.stat().st_ctime > QUIET[kind]
    except OSError:  # it is gone
        return False


def _literal(name: str) -> str:
    """A name for `glob`, in which none of its letters is a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _alive(pid: str) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError, OverflowError):
        return True
    return True


def remove_leftovers(folder: Path, of: str = "", everyones: bool = False) -> None:
    """Removes the files `.NAME.PID@HOST.part` directly in a folder, which processes that are no more left half-written.

    of: NAME, or the beginning of it; any if empty. everyones: also those whose process number is alive, which whoever holds
    the folder's lock may say: the number is then another program's.
    """
    with told(folder):
        for part in folder.iterdir():
            half_written = part.name.startswith(f".{of}") and part.name.endswith(".part") and part.is_file()
            if half_written and (everyones or _is_of_the_dead(part)):
                part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[bool]:
    """Keeps others out of a folder while inside; the system lets go when the process ends in any way.

    doing: what the error says that the other process does, such as "training". Raises UserError where another process
    holds the folder. Yields whether it is held: file systems without locks keep nobody out. The lock's file is removed.
    """
    held = _take_lock(folder, doing)
    try:
        yield held is not None
    finally:
        if held is not None:
            (folder / LOCK_FILE).unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
            held.close()


def _take_lock(folder: Path, doing: str) -> IO[str] | None:
    """The open and locked file; None where the system has no locks."""
    file = _try_lock(folder, doing)
    while file is not None and not _has_name(file, folder / LOCK_FILE):  # its holder removed it meanwhile
        file.close()
        file = _try_lock(folder, doing)
    if file is not None:
        with told(folder):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
    return file


def _has_name(file: IO[str], name: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), name.stat())
    except FileNotFoundError:
        return False


def _try_lock(folder: Path, doing: str) -> IO[str] | None:
    try:
        import fcntl
    except ImportError:
        return None
    with told(folder):
        file = (folder / LOCK_FILE).open("a+", encoding="utf8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system that has no locks
            file.close()
            return None
        file.seek(0)
        by = file.read(200).strip()
        file.close()
        raise UserError(
            f"another process is {doing} in {folder}{f' ({by})' if by else ''}; wait for it, stop it, or give another --out"
        ) from error
    return file


def read_bytes(file: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises UserError for a file that is missing, is no regular file (a pipe would wait for ever), is larger than `limit`
    bytes, or cannot be read.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            content = b"" if size > limit else stream.read(limit + 1)
    except FileNotFoundError as error:
        raise UserError(f"{file} cannot be read: there is no such file") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); give another, or mend its rights") from error
    if size > limit or len(content) > limit:
        raise UserError(f"{file} is larger than the {limit:,} bytes that such a file may have; give the right one")
    return content


def open_regular(file: Path) -> IO[bytes]:
    """A regular file, open to read. Raises OSError for a missing one, UserError for a folder, a pipe or a device."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{file} is not a plain file; give one")
    return os.fdopen(descriptor, "rb")


def digest(content: bytes) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()[:12]
