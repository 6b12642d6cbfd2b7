"""Where pictures come from: folders here or in object storage, zip files, and data sets of `datasets`.

Every source lists (key, label) in a fixed order, lazily, so that memory does not grow with the number of pictures, and
reads a picture's bytes by its key in any process.
"""

import json
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from elit.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LABELS_FILE = "dataset.json"
DEEPEST = 32  # folders within folders
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class Source(Protocol):
    """Pictures by key. label_names: () where nothing is labelled."""

    @property
    def label_names(self) -> tuple[str, ...]: ...
    def listing(self) -> Iterator[tuple[str, int | None]]: ...
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
    """The source of that name. Raises UserError for one that is missing, empty or unreadable, with the remedy."""
    if name == "emoji":
        from elit.data.emoji import EmojiSource

        return EmojiSource()
    path = Path(name)
    if "://" not in name and not path.exists():
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not name.lower().endswith(".zip"):
            return DatasetSource(name, options)
        raise UserError(
            f"there is no {name}; give a folder of class folders, a zip file, or a data set's id such as user/name"
        )
    if "://" not in name and path.is_dir() and is_dataset(path):
        return DatasetSource(name, options)
    if name.lower().endswith(".zip"):
        return ZipSource(name)
    if "://" not in name and path.is_file():
        raise UserError(f"{name} is a file and no zip file; give a folder of class folders, a zip file or a data set")
    return FolderSource(name)


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `datasets`, or holds Parquet files."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")) or bool(parquet_files(folder))


def parquet_files(folder: Path) -> list[str]:
    return sorted(str(file) for pattern in ("*.parquet", "data/*.parquet") for file in folder.glob(pattern))


class _Files:
    """Pictures that are files: labels by dataset.json, or by the names of the outermost folders.

    A source without folders is one class, named `name`.
    """

    name: str
    suffixes: tuple[str, ...] = SUFFIXES

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "table"}  # workers read pictures, not labels

    def walk(self) -> Iterator[str]:
        """The relative paths of all pictures, ordered by their parts."""
        raise NotImplementedError

    def read(self, key: str) -> bytes:
        raise NotImplementedError

    def read_labels(self) -> bytes | None:
        """What dataset.json holds, or None where there is none."""
        raise NotImplementedError

    @cached_property
    def table(self) -> dict[str, int] | None:
        """The labels of dataset.json by path; None where there is no such file, or it has none."""
        text = self.read_labels()
        if text is None:
            return None
        try:
            entries = json.loads(text)["labels"]
            if entries is None:
                return None
            table = {str(path): label for path, label in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{LABELS_FILE} of {self.name} is not {{"labels": [["00000/img.png", 6], ...]}} ({error!r}); write it again'
            ) from error
        for path, label in table.items():
            if type(label) is not int or not 0 <= label < 1_000_000:
                raise UserError(
                    f"{LABELS_FILE} of {self.name} gives {path} the label {label!r}; labels are whole, from 0 on"
                )
        return table

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        if self.read_labels() is not None:
            return () if not self.table else tuple(str(i) for i in range(max(self.table.values()) + 1))
        folders: list[str] = []
        first = loose = None
        for path in self.walk():
            first = first or path
            folder, inside, _ = path.partition("/")
            if not inside:
                loose = loose or path
            elif not folders or folders[-1] != folder:
                folders.append(folder)
        if first is None:
            raise UserError(f"{self.name} holds no images; put them in one folder per class, such as {self.name}/cats/1.png")
        if folders and loose:
            raise UserError(f"{self.name} holds {loose} beside class folders; move it into one of them")
        return tuple(folders) or (Path(self.name).stem,)

    def listing(self) -> Iterator[tuple[str, int | None]]:
        number = {name: i for i, name in enumerate(self.label_names)}
        by_folder, listed, path = self.read_labels() is None, 0, ""
        for path in self.walk():
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
        import fsspec

        self.name = name.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(name)
            is_folder = self.files.isdir(self.root)
        except Exception as error:  # each storage has errors of its own: no such bucket, no credentials, no network
            raise not_opened(name, error) from error
        self.root = self.root.rstrip("/")
        if not is_folder:
            raise UserError(f"{name} is not a folder; give a folder of class folders")

    def walk(self) -> Iterator[str]:
        yield from self._walk(self.root, "")

    def _walk(self, folder: str, inside: str) -> Iterator[str]:
        try:
            entries = self.files.ls(folder, detail=True)
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be read ({error.strerror or error}); make it readable or remove it"
            ) from error
        found = []
        for entry in entries:
            base = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            is_folder = entry["type"] == "directory" or (entry["type"] == "other" and self.files.isdir(entry["name"]))
            if not base.startswith(".") and (is_folder or base.lower().endswith(self.suffixes)):
                found.append((base, is_folder))
        for base, is_folder in sorted(found):
            if is_folder:
                if inside.count("/") > DEEPEST:
                    raise UserError(f"{folder} is more than {DEEPEST} folders deep; remove the link that leads back up")
                yield from self._walk(f"{folder}/{base}", f"{inside}{base}/")
            else:
                yield inside + base

    def read(self, key: str) -> bytes:
        try:
            return bytes(self.files.cat_file(f"{self.root}/{key}"))
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"cannot be read: {error.strerror or error}") from error
        except Exception as error:  # of the storage's own kind
            raise error if isinstance(error, OSError) else OSError(f"{self.root}/{key}: {error}") from error

    def read_labels(self) -> bytes | None:
        file = f"{self.root}/{LABELS_FILE}"
        return bytes(self.files.cat_file(file)) if self.files.isfile(file) else None


class ZipSource(_Files):
    """A zip file; a folder that holds everything in it does not count."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open()

    def _open(self) -> None:
        import fsspec

        try:
            self.zip = zipfile.ZipFile(fsspec.open(self.name, "rb").open())
        except zipfile.BadZipFile as error:
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
        wrapped = len(tops) == 1 and all(not name.lower().endswith(SUFFIXES) or "/" in name for name in inner)
        self.prefix = f"{tops.pop()}/" if wrapped and names else ""

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["name"])  # type: ignore[misc]

    def walk(self) -> Iterator[str]:
        names = (name.removeprefix(self.prefix) for name in self.zip.namelist() if not hidden(name))
        yield from sorted((name for name in names if name.lower().endswith(SUFFIXES)), key=lambda name: name.split("/"))

    def read(self, key: str) -> bytes:
        try:
            return self.zip.read(self.prefix + key)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError) as error:  # RuntimeError: encrypted
            raise UserError(f"cannot be read: {error}") from error

    def read_labels(self) -> bytes | None:
        try:
            return self.zip.read(self.prefix + LABELS_FILE)
        except KeyError:
            return None


def not_opened(name: str, error: Exception) -> ValueError:
    """What is said of a source that cannot be opened."""
    why = " ".join(str(error).split())[:200]
    if not isinstance(error, ImportError):
        return ValueError(f"{name} cannot be opened ({why})")
    scheme = name.partition("://")[0]
    remedy = f"install it with: pip install {DRIVERS[scheme]}" if scheme in DRIVERS else why
    return ValueError(f"{scheme}:// needs a package that is not installed; {remedy}")


def hidden(path: str) -> bool:
    """Whether a file or a folder around it has a name that starts with a dot, or is what macOS adds to zip files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


class DatasetSource:
    """A data set of `datasets`: a folder that it wrote, a folder of Parquet files, or an id on the hub."""

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name, self.options = name, options
        self._open()

    def _open(self) -> None:
        import datasets

        path = Path(self.name)
        try:
            if path.is_dir() and parquet_files(path):
                loaded: Any = datasets.load_dataset("parquet", data_files=parquet_files(path), split="train")
            elif path.is_dir():
                loaded = datasets.load_from_disk(self.name)
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

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
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

    def listing(self) -> Iterator[tuple[str, int | None]]:
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
            if not stat.S_ISREG(Path(picture["path"]).stat().st_mode):
                raise UserError(f"{picture['path']} is not a file")
            return Path(picture["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read: {error}") from error
