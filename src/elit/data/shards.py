"""Writing prepared data: parts of a few rows, whole or absent, joined in their order into shards.

A part depends on the source and the settings alone, so any number of processes may write parts in any order, a kill loses
only unfinished parts, and the shards are the same bytes in the end.
"""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from elit.data.dataset import INFO_FILE, SETTINGS_FILE, SKIPPED_FILE, DataInfo
from elit.errors import UserError
from elit.files import write_whole, written_whole

SHARD_BYTES, BATCH_BYTES = 500_000_000, 16_000_000
JOINERS = 2  # threads that join parts, with a batch in memory each
PLAN_FILE = "shards.json"  # there from the moment that parts are joined until the folder is finished


class Preparation:
    """A folder while it is being prepared; enter it, write every missing part, finish it.

    settings: what decides the rows; a folder of other settings is refused. exclusive: whether this process holds the
    folder's lock (with several ranks, the main one). Raises UserError where another preparation is at work in the
    folder, its settings differ, or it holds something else.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], exclusive: bool = True) -> None:
        self.out, self.settings, self.exclusive = Path(out), json.loads(json.dumps(settings)), exclusive
        self.parts = self.out / "parts"
        self._lock: int | None = None

    def __enter__(self) -> "Preparation":
        file = self.out / SETTINGS_FILE
        if self.out.is_file() or (
            self.out.is_dir() and any(p.suffix != ".part" for p in self.out.iterdir()) and not file.is_file()
        ):
            raise UserError(f"{self.out} exists and holds no prepared data; give another folder with --out")
        self.out.mkdir(parents=True, exist_ok=True)
        if self.exclusive:
            self._take_lock()
        try:
            for left in self.out.glob(".*.part") if self.exclusive else ():  # by a run that was killed
                left.unlink()
            if file.is_file():
                check_settings(file, self.settings)
            else:
                write_whole(file, json.dumps(self.settings, indent=2) + "\n")
            if not self.is_finished:
                self.parts.mkdir(exist_ok=True)
            elif self.exclusive:
                (self.out / PLAN_FILE).unlink(missing_ok=True)
        except BaseException:
            self._release_lock()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release_lock()
        if error is not None:
            with full_disk_told(self.out):
                raise error

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        """A lock on the folder itself, which ends with the process."""
        self._lock = os.open(self.out, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._release_lock()
            raise UserError(f"another elit prepare is writing to {self.out}; wait for it, or give another --out") from error

    @property
    def is_finished(self) -> bool:
        return (self.out / INFO_FILE).is_file()

    def has(self, part: int) -> bool:
        """Whether a part is written, or already joined into a shard."""
        return (self.out / PLAN_FILE).is_file() or self._note(part).is_file()

    def write(
        self, part: int, schema: pa.Schema, columns: dict[str, Any], skipped: Sequence[tuple[str, str]] = (), **notes: Any
    ) -> None:
        """One part: the columns of `DataInfo.schema`, as lists or Arrow arrays, which may be empty.

        skipped: (key, why) of what could not be read. notes: JSON values that `notes()` gives back.
        """
        batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)
        with written_whole(self._file(part)) as beside, new_stream(beside, schema) as writer:
            writer.write_batch(batch)
        note = {"rows": batch.num_rows, "bytes": self._file(part).stat().st_size, "skipped": list(skipped), **notes}
        write_whole(self._note(part), json.dumps(note) + "\n")

    def notes(self, count: int) -> Iterator[dict[str, Any]]:
        """What was written beside each of the first `count` parts: rows, bytes and further notes."""
        if (self.out / PLAN_FILE).is_file():
            yield from json.loads((self.out / PLAN_FILE).read_text(encoding="utf8"))["notes"]
            return
        for part in range(count):
            yield json.loads(self._note(part).read_text(encoding="utf8"))

    def finish(self, info: DataInfo, parts: int) -> DataInfo:
        """Joins all parts into shards, writes the folder's descriptions and removes the parts; `info` with its count.

        Raises UserError where no part has a row.
        """
        plan_file = self.out / PLAN_FILE
        if not plan_file.is_file():
            notes = list(self.notes(parts))
            skipped = [entry for note in notes for entry in note.pop("skipped")]
            write_whole(self.out / SKIPPED_FILE, json.dumps(skipped, indent=1, ensure_ascii=False) + "\n")
            shards = plan_shards([note["bytes"] for note in notes], SHARD_BYTES)
            plan = {"count": sum(note["rows"] for note in notes), "shards": shards, "notes": notes}
            write_whole(plan_file, json.dumps(plan) + "\n")
        plan = json.loads(plan_file.read_text(encoding="utf8"))
        if not plan["count"]:
            raise UserError(
                f"none of the pictures could be read; {self.out / SKIPPED_FILE} says why of each:"
                " mend them, and give another --out"
            )
        shards = plan["shards"]
        names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
        schema = info.schema
        with ThreadPoolExecutor(JOINERS) as pool:
            joined = [
                pool.submit(self._join, self.out / name, schema, range(first, last))
                for name, (first, last) in zip(names, shards, strict=True)
            ]
            for future in joined:
                future.result()
        info = dataclasses.replace(info, count=plan["count"])
        self._describe(info, names)
        shutil.rmtree(self.parts, ignore_errors=True)
        write_whole(self.out / INFO_FILE, info.to_json())
        plan_file.unlink()
        return info

    def _join(self, shard: Path, schema: pa.Schema, parts: range) -> None:
        if not shard.is_file():
            with written_whole(shard) as beside, new_stream(beside, schema) as writer:
                for batch in larger(self._batches(parts)):
                    writer.write_batch(batch)
        for part in parts:
            self._file(part).unlink(missing_ok=True)

    def _batches(self, parts: range) -> Iterator[pa.RecordBatch]:
        for part in parts:
            with pa.memory_map(str(self._file(part))) as source, pa.ipc.open_stream(source) as reader:
                yield from reader

    def _describe(self, info: DataInfo, names: list[str]) -> None:
        """The files by which `datasets.load_from_disk` knows the folder."""
        from datasets import DatasetInfo

        DatasetInfo(features=info.columns()).write_to_directory(str(self.out))
        identity = hashlib.sha256(json.dumps([self.settings, info.to_json()], sort_keys=True).encode()).hexdigest()
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": identity[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_whole(self.out / "state.json", json.dumps(state, indent=2) + "\n")

    def _file(self, part: int) -> Path:
        return self.parts / f"{part:06d}.arrow"

    def _note(self, part: int) -> Path:
        return self.parts / f"{part:06d}.json"


@contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """Says, where there is no room for `out`, what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"there is no room for {out} ({os.strerror(error.errno)}); what is finished is kept:"
            " make room and run the same command again"
        ) from error


@contextmanager
def new_stream(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    """An Arrow stream to write record batches to."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def larger(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about BATCH_BYTES, for a table is read faster the fewer batches it has."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        if held and sum(b.nbytes for b in held) + batch.nbytes > BATCH_BYTES:
            yield pa.concat_batches(held)
            held = []
        if batch.num_rows:
            held.append(batch)
    if held:
        yield pa.concat_batches(held)


def plan_shards(sizes: Sequence[int], shard_bytes: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the parts of each shard: consecutive parts until the next would go over `shard_bytes`."""
    shards: list[tuple[int, int]] = []
    first, total = 0, 0
    for part, size in enumerate(sizes):
        if total and total + size > shard_bytes:
            shards.append((first, part))
            first, total = part, 0
        total += size
    return [*shards, (first, len(sizes))]


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Raises UserError, naming the difference, where a folder was prepared with other settings."""
    try:
        old = json.loads(file.read_text(encoding="utf8"))
        differing = [
            f"{key} is {old.get(key)} there and {settings.get(key)} now"
            for key in settings | old
            if old.get(key) != settings.get(key)
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is not a preparation's settings ({error}); give another folder with --out") from error
    if differing:
        raise UserError(
            f"{file.parent} is prepared with other settings ({'; '.join(differing[:3])}); give another folder with --out"
        )
