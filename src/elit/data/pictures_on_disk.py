"""Which files below a folder are pictures: one rule for preparation, training and evaluation.

A picture is what has a picture's suffix, in any case, in the folder or in any folder below it; links are followed. Names
that begin with a dot are passed over, as __MACOSX is, and what is passed over is counted, with the reason. Whether a file
holds what its name says shows when it is read.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from elit.console import say
from elit.errors import UserError

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
LABELS_FILE, SETTINGS_FILE, SHEETS = "dataset.json", "settings.json", ("sheet.png", "sheet.gif")
OURS = (LABELS_FILE, SETTINGS_FILE)  # which elit sample writes beside its pictures, and a sheet of some of them
DEEPEST = 32  # folders within folders
HIDDEN, OTHERS, EMPTY = "hidden", "no pictures by their names", "folders without pictures"


class Entry(NamedTuple):
    """A name in a folder."""

    name: str
    kind: Literal["folder", "file"]


ListFolder: TypeAlias = Callable[[str], Iterable[Entry]]


class PassedOver:
    """What was passed over, by reason: how many, and the first of them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """Such as "2 hidden (such as .thumbs), 1 no pictures by their names (notes.txt)"; empty where there is nothing."""
        such = {reason: "such as " if count > 1 else "" for reason, count in self.counts.items()}
        told = (f"{count} {reason} ({such[reason]}{self.first[reason]})" for reason, count in self.counts.items())
        return ", ".join(told)

    def tell(self, name: str) -> None:
        """Says it aloud, where there is something."""
        if self:
            say(legible(f"passed over in {name}: {self}"), "yellow")


def walk_pictures(
    list_folder: ListFolder, root: str, passed: PassedOver, suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[str]:
    """The paths of the pictures below `root`, relative to it and ordered by their parts; what is passed over is counted.

    list_folder: the names in a folder of that path. Raises UserError for a folder that cannot be listed, or that is
    too deep, as behind a link that leads back up.
    """
    yield from _walk(list_folder, root, "", passed, suffixes)


def _walk(list_folder: ListFolder, folder: str, inside: str, passed: PassedOver, suffixes: tuple[str, ...]) -> Iterator[str]:
    try:
        entries = sorted(list_folder(folder))
    except OSError as error:
        raise UserError(
            f"the folder {legible(folder)} cannot be read ({error.strerror or error}); make it readable or remove it"
        ) from error
    ours = {entry.name for entry in entries} & set(OURS)
    for name, kind in entries:
        if hidden(name):
            passed.add(HIDDEN, inside + name)
        elif kind == "folder":
            if inside.count("/") > DEEPEST:
                raise UserError(f"{legible(folder)} is more than {DEEPEST} folders deep; remove the link that leads back up")
            found = False
            for path in _walk(list_folder, f"{folder}/{name}", f"{inside}{name}/", passed, suffixes):
                found = True
                yield path
            if not found:
                passed.add(EMPTY, inside + name)
        elif not (name in OURS or (ours and name in SHEETS)):
            if name.lower().endswith(suffixes):
                yield inside + name
            else:
                passed.add(OTHERS, inside + name)


def names_in(folder: str) -> Iterator[Entry]:
    """The names in a folder of this machine; a link counts as what it leads to."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield Entry(entry.name, "folder" if _is_folder(entry) else "file")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link to itself, which cannot be read either


def hidden(path: str) -> bool:
    """Whether a file or a folder around it has a name that begins with a dot, or is what macOS adds to zip files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def legible(name: str) -> str:
    """A file's name as text that can be printed and stored: bytes of it that are no UTF-8 are written as \\xe9."""
    return name.encode("utf8", "surrogateescape").decode("utf8", "backslashreplace")
