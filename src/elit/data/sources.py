"""Where pictures come from: folders here or in object storage, zip files, and data sets of `datasets`.

Every source lists (key, label) in a fixed order, lazily, so that memory does not grow with the number of pictures, and
reads a picture's bytes by its key in any process.
"""

import errno
import glob
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

from annotated_types import Ge, Lt

from elit.data.pictures_on_disk import (
    LABELS_FILE,
    SETTINGS_FILE,
    SUFFIXES,
    Entry,
    PassedOver,
    hidden,
    legible,
    names_in,
    walk_pictures,
)
from elit.errors import UserError
from elit.files import open_regular, read_bytes
from elit.records import parse_json
from elit.words import one_line

PICTURE_BYTES, LABELS_BYTES = 2**30, 2**30  # that a picture's file, and a table of labels, may have
Label = Annotated[int, Ge(0), Lt(1_000_000)]
OF_A_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)  # errors that others need not have
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError)  # RuntimeError: encrypted
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class Source(Protocol):
    """Pictures by key. label_names: () where nothing is labelled."""

    @property
    def label_names(self) -> tuple[str, ...]: ...
    def listing(self, passed: PassedOver | None = None) -> Iterator[tuple[str, int | None]]:
        """(key, label) of every picture, in order; what is passed over is counted in `passed`."""
        ...

    def read(self, key: str) -> bytes:
        """The file of a picture. Raises UserError where this one is unreadable, and OSError where the source is."""
        ...


@dataclass(frozen=True)
class SourceOptions:
    """For data sets: the split, and the columns of the picture and the label ("" : found by their types)."""

    split: str = "train"
    image_column: str = ""
    label_column: str = ""


def open_source(name: str, options: SourceOptions = SourceOptions()) -> Source:
    """The source of that name. Raises UserError for one that is missing or unreadable, or does not use the options."""
    if name == "emoji" and options == SourceOptions():
        from elit.data.twemoji import EmojiSource

        return EmojiSource()
    if is_data_set(name):
        return DatasetSource(name, options)
    if options != SourceOptions():
        raise UserError(f"a split or a column is of a data set, and {name} is none; leave it out")
    path = Path(name).expanduser()
    if "://" not in name and not path.exists():
        raise UserError(
            f"there is no file or folder {name}; give a folder of class folders, a zip file, or a data set's id such as"
            " user/name"
        )
    if name.lower().endswith(".zip") and not path.is_dir():
        return ZipSource(name)
    if "://" not in name and not path.is_dir():
        raise UserError(f"{name} is a file and no zip file; give a folder of class folders, a zip file or a data set")
    return FolderSource(name)


def is_data_set(name: str) -> bool:
    """Whether a source of that name is a data set of `datasets`: a folder that it wrote, Parquet files, or an id."""
    path = Path(name).expanduser()
    if name == "emoji" or "://" in name:
        return False
    if not path.exists():
        return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)) and not name.lower().endswith(".zip")
    return path.is_dir() and is_dataset(path)


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `datasets`, or holds Parquet files."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")) or bool(parquet_files(folder))


def parquet_files(folder: Path, split: str = "train") -> list[str]:
    """The Parquet files of a split: those whose names begin with it, as the hub has them; of "train", else all.

    Raises UserError where no file is of a split.
    """
    files = sorted(str(file) for pattern in ("*.parquet", "data/*.parquet") for file in folder.glob(pattern))
    of_split = [file for file in files if re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", Path(file).name)]
    if files and not of_split and split != "train":
        raise UserError(f"none of the Parquet files of {folder} is of the split {split!r}, such as {split}-00000.parquet")
    return of_split or files


@dataclass(frozen=True)
class LabelTable:
    """What dataset.json holds: labels by path, or none; ours also tell what the classes are called."""

    labels: list[tuple[str, Label]] | None
    label_names: list[str] | None = None


class _Files:
    """Pictures that are files: labels by dataset.json, or by the names of the outermost folders.

    A source without folders is one class, named `name`.
    """

    name: str
    suffixes: tuple[str, ...] = SUFFIXES
    what = "images"

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "labels_file"}  # workers read pictures, not labels

    def walk(self, passed: PassedOver) -> Iterator[str]:
        """The relative paths of all pictures, ordered by their parts; what is passed over is counted."""
        raise NotImplementedError

    def read(self, key: str) -> bytes:
        raise NotImplementedError

    def read_labels(self) -> bytes | None:
        """What dataset.json holds, or None where there is none."""
        raise NotImplementedError

    def is_sample(self) -> bool:
        """Whether `elit sample` wrote this folder: then the pictures are those that dataset.json lists."""
        return False

    @cached_property
    def labels_file(self) -> LabelTable | None:
        """What dataset.json says; None where there is none."""
        text = self.read_labels()
        try:
            return None if text is None else parse_json(text, LabelTable, "in it")
        except UserError as error:
            raise UserError(
                f'{LABELS_FILE} of {self.name} is not {{"labels": [["00000/img.png", 6], ...]}}, labels from 0 on'
                f" ({error}); write it again"
            ) from error

    @cached_property
    def table(self) -> dict[str, int] | None:
        """The labels of dataset.json by path; None where there is no such file, or it has none."""
        file = self.labels_file
        return None if file is None or file.labels is None else dict(file.labels)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        return tuple(legible(name) for name in self._names())

    def _names(self) -> tuple[str, ...]:
        """The classes' names, as the folders have them."""
        file = self.labels_file
        if file is not None:
            count = max(self.table.values()) + 1 if self.table else 0
            known = file.label_names or []
            return tuple(known) if count and len(known) >= count else tuple(str(i) for i in range(count))
        folders: list[str] = []
        first = loose = None
        for path in self.walk(PassedOver()):
            first = first or path
            folder, inside, _ = path.partition("/")
            if not inside:
                loose = loose or path
            elif not folders or folders[-1] != folder:
                folders.append(folder)
        if first is None:
            such = f"{self.name}/cats/1{self.suffixes[0]}"
            raise UserError(f"{self.name} holds no {self.what}; put them in one folder per class, such as {such}")
        if folders and loose:
            raise UserError(f"{self.name} holds {legible(loose)} beside class folders; move it into one of them")
        return tuple(folders) or (Path(self.name).stem,)

    def pictures(self, passed: PassedOver) -> Iterator[str]:
        """The keys of all pictures, in order, whatever their labels."""
        listed = set(self.table or ())
        sample = bool(listed) and self.is_sample()
        for path in self.walk(passed):
            if path in listed or not sample:
                listed.discard(path)
                yield path
            else:
                passed.add(f"not listed in {LABELS_FILE}", path)
        if listed and sample:
            raise UserError(
                f"{self.name} has no {min(listed)}, which its {LABELS_FILE} lists; give its elit sample command again"
            )
        for path in listed:
            passed.add(f"listed in {LABELS_FILE} and not there", path)

    def listing(self, passed: PassedOver | None = None) -> Iterator[tuple[str, int | None]]:
        by_folder = self.labels_file is None
        number = {name: i for i, name in enumerate(self._names())} if by_folder else {}
        listed, path = 0, ""
        for path in self.pictures(PassedOver() if passed is None else passed):
            if by_folder:
                yield path, number[path.partition("/")[0]] if "/" in path else 0
            else:
                label = None if self.table is None else self.table.get(path)
                listed += label is not None
                yield path, label
        if self.table and path and not listed:
            raise UserError(f"{LABELS_FILE} of {self.name} names none of its files, such as {path}; write it again")


class FolderSource(_Files):
    """A folder here, or a URL that fsspec opens, such as s3://bucket/pictures."""

    def __init__(self, name: str) -> None:
        self.name = name.rstrip("/") or name
        self.files: Any = None  # of a URL
        if "://" in name and not name.startswith("file://"):
            self._open_url(name)
            return
        self.root = str(Path(name.removeprefix("file://")).expanduser().absolute())
        if not Path(self.root).is_dir():
            raise UserError(f"{name} is not a folder; give a folder of class folders")

    def _open_url(self, name: str) -> None:
        import fsspec

        try:
            self.files, self.root = fsspec.core.url_to_fs(name)
            is_folder = self.files.isdir(self.root)
        except Exception as error:  # each storage has errors of its own: no such bucket, no credentials, no network
            raise not_opened(name, error) from error
        self.root = self.root.rstrip("/")
        if not is_folder:
            raise UserError(f"{name} is not a folder; give a folder of class folders")

    def walk(self, passed: PassedOver) -> Iterator[str]:
        yield from walk_pictures(names_in if self.files is None else self._names_in, self.root, passed, self.suffixes)

    def _names_in(self, folder: str) -> Iterator[Entry]:
        for entry in self.files.ls(folder, detail=True):
            base = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            yield Entry(base, "folder" if entry["type"] == "directory" else "file")

    def read(self, key: str) -> bytes:
        try:
            if self.files is None:
                return read_picture(Path(self.root, key))
            return bytes(self.files.cat_file(f"{self.root}/{key}"))
        except UserError:
            raise
        except Exception as error:  # of the storage's own kind
            if isinstance(error, OSError) and (error.errno in OF_A_FILE or isinstance(error, FileNotFoundError)):
                raise UserError(f"cannot be read: {error.strerror or error}") from error
            raise error if isinstance(error, OSError) else OSError(f"{self.root}/{key}: {error}") from error

    def read_labels(self) -> bytes | None:
        file = f"{self.root}/{LABELS_FILE}"
        if self.files is None:
            return read_bytes(Path(file), LABELS_BYTES) if os.path.lexists(file) else None
        return bytes(self.files.cat_file(file)) if self.files.isfile(file) else None

    def is_sample(self) -> bool:
        return self.files is None and Path(self.root, SETTINGS_FILE).is_file()


def read_picture(file: Path) -> bytes:
    """The bytes of a picture's file. Raises OSError as opening does, UserError for what is no plain file or too large."""
    with open_regular(file) as stream:
        content = stream.read(PICTURE_BYTES + 1)
    if len(content) > PICTURE_BYTES:
        raise UserError(f"it is larger than {PICTURE_BYTES // 2**20} MiB")
    return content


class ZipSource(_Files):
    """A zip file; a folder that holds everything in it does not count."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open()

    def _open(self) -> None:
        import fsspec

        try:
            if "://" in self.name:
                stream = fsspec.open(self.name, "rb").open()
            else:
                stream = open_regular(Path(self.name).expanduser().absolute())
            self.zip = zipfile.ZipFile(stream)
        except UserError:
            raise
        except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
            raise UserError(f"{self.name} is not a whole zip file ({error}); fetch or write it again") from error
        except Exception as error:  # of the storage's own kind
            raise not_opened(self.name, error) from error
        names = [
            name
            for name in self.zip.namelist()
            if not hidden(name) and (name.lower().endswith(SUFFIXES) or name.endswith(LABELS_FILE))
        ]
        tops = {name.partition("/")[0] for name in names}
        inner = [name.partition("/")[2] for name in names]
        wrapped = len(tops) == 1 and all(name and ("/" in name or not name.lower().endswith(SUFFIXES)) for name in inner)
        self.prefix = f"{tops.pop()}/" if wrapped and names else ""

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["name"])  # type: ignore[misc]

    def walk(self, passed: PassedOver) -> Iterator[str]:
        folders: dict[str, set[Entry]] = {"": set()}
        for name in self.zip.namelist():
            inside = name.removeprefix(self.prefix).split("/")
            for depth, part in enumerate(inside):
                if part:
                    around = "".join(f"/{folder}" for folder in inside[:depth])
                    folders.setdefault(around, set()).add(Entry(part, "file" if depth == len(inside) - 1 else "folder"))
        yield from walk_pictures(lambda folder: folders.get(folder, set()), "", passed, self.suffixes)

    def read(self, key: str) -> bytes:
        try:
            return self._member(key, PICTURE_BYTES)
        except UNREADABLE as error:
            raise UserError(f"cannot be read: {error}") from error

    def read_labels(self) -> bytes | None:
        try:
            return self._member(LABELS_FILE, LABELS_BYTES)
        except KeyError:
            return None
        except UNREADABLE as error:
            raise UserError(f"{LABELS_FILE} of {self.name} cannot be read ({error}); write the zip again") from error

    def _member(self, key: str, limit: int) -> bytes:
        member = self.zip.getinfo(self.prefix + key)
        if member.file_size > limit:
            raise UserError(f"it is larger than {limit // 2**20} MiB")
        return self.zip.read(member)


def not_opened(name: str, error: Exception) -> UserError:
    """What is said of a source that cannot be opened."""
    why = one_line(str(error))[:200]
    if not isinstance(error, ImportError):
        return UserError(f"{name} cannot be opened ({why}); see that it is there, and may be read")
    scheme = name.partition("://")[0]
    remedy = f"install it with: pip install {DRIVERS[scheme]}" if scheme in DRIVERS else why
    return UserError(f"{scheme}:// needs a package that is not installed; {remedy}")


class DatasetSource:
    """A data set of `datasets`: a folder that it wrote, a folder of Parquet files, or an id on the hub."""

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name, self.options = name, options
        self._open()

    def _open(self) -> None:
        import datasets

        path = Path(self.name).expanduser()
        parquet = parquet_files(path, self.options.split) if path.is_dir() else []
        try:
            if parquet:
                files = [glob.escape(file) for file in parquet]
                loaded: Any = datasets.load_dataset("parquet", data_files=files, split="train")
            elif path.is_dir():
                loaded = datasets.load_from_disk(str(path))
                if not isinstance(loaded, dict) and self.options.split not in ("train", str(loaded.split)):
                    raise UserError("it has no splits")
            else:
                loaded = datasets.load_dataset(self.name, split=self.options.split)
            self.rows = loaded[self.options.split] if isinstance(loaded, dict) else loaded
        except Exception as error:  # the library raises many kinds: no such id, split or file, no network
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"the data set {self.name!r}, split {self.options.split!r}, cannot be loaded ({why});"
                " give a folder, or fetch it where there is a network"
            ) from error
        self.image_column = self._column(self.options.image_column, datasets.Image, "image", "--image-column")
        label = self.options.label_column
        self.label_column = label or next((c for c in ("label", "labels", "class") if c in self.rows.column_names), "")
        if label:
            self._column(label, object, "label", "--label-column")
        self.rows = self.rows.select_columns(list(dict.fromkeys(c for c in (self.image_column, self.label_column) if c)))
        try:
            self.rows = self.rows.cast_column(self.image_column, datasets.Image(decode=False))
        except Exception as error:  # Arrow has several for one mistake
            raise UserError(f"the column {self.image_column} of {self.name} holds no pictures; name another") from error

    def _column(self, name: str, kind: type, what: str, option: str) -> str:
        found = [c for c, feature in self.rows.features.items() if (c == name if name else isinstance(feature, kind))]
        if not found:
            raise UserError(
                f"the data set {self.name} has no {what} column{f' {name!r}' if name else ''};"
                f" name one of {', '.join(self.rows.column_names)} with {option}"
            )
        return str(found[0])

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "options": self.options}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        if not self.label_column:
            return ()
        feature = self.rows.features[self.label_column]
        if getattr(feature, "names", None):
            return tuple(feature.names)
        try:
            values = [value for value in self.rows.unique(self.label_column) if value is not None]
        except Exception as error:  # of a column of lists or pictures, Arrow's own
            raise UserError(
                f"the column {self.label_column} of {self.name} holds no labels; name another with --label-column"
            ) from error
        if all(type(value) is str for value in values):
            return tuple(sorted(values))
        if not all(type(value) is int and 0 <= value < 1_000_000 for value in values):
            raise UserError(
                f"the column {self.label_column} of {self.name} holds {values[:3]};"
                " labels are names, or whole numbers from 0 on"
            )
        return tuple(str(i) for i in range(max(values) + 1))

    def listing(self, passed: PassedOver | None = None) -> Iterator[tuple[str, int | None]]:
        names = {name: i for i, name in enumerate(self.label_names)}
        column = self.rows.select_columns([self.label_column]) if self.label_column else None  # without the pictures
        for start in range(0, len(self.rows), 1000):
            stop = min(start + 1000, len(self.rows))
            labels = [None] * (stop - start) if column is None else column[start:stop][self.label_column]
            for row, label in zip(range(start, stop), labels, strict=True):
                yield f"{row:08d}", self._number(row, label, names)

    def _number(self, row: int, label: Any, names: dict[str, int]) -> int | None:
        number = names[label] if type(label) is str else label
        if number is not None and not 0 <= number < len(self.label_names):
            raise UserError(f"row {row} of {self.name} has the label {number}; labels are 0 to {len(self.label_names) - 1}")
        return number

    def read(self, key: str) -> bytes:
        picture = self.rows[int(key)][self.image_column]
        if picture is None or (picture["bytes"] is None and picture["path"] is None):
            raise UserError("the row has no picture")
        if picture["bytes"] is not None:
            content: bytes = picture["bytes"]
            return content
        try:
            return read_picture(Path(picture["path"]))
        except OSError as error:
            raise UserError(f"cannot be read: {error}") from error
