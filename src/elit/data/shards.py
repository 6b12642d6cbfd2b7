"""Writing prepared data: parts of a few rows, whole or absent, joined in their order into shards.

A part depends on the source and the settings alone, so any number of processes may write parts in any order, a kill loses
only unfinished parts, and the shards are the same bytes in the end.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import field
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from elit.data.dataset import INFO_FILE, SETTINGS_FILE, SKIPPED_FILE, DataInfo
from elit.errors import UserError
from elit.files import LOCK_FILE, check_writable, locked, remove_leftovers, told, write_whole, written_whole
from elit.records import Whole, read_json, record

SHARD_BYTES, BATCH_BYTES = 500_000_000, 16_000_000
JOINERS = 2  # threads that join parts, with a batch in memory each
PLAN_BYTES = 2**30
PLAN_FILE = "shards.json"  # there from the moment that parts are joined until the folder is finished


@record
class Note:
    """What is kept beside a part: its rows and bytes, what could not be read, and what the preparation wants to know again.

    skipped: (key, why). labels: the rows of each label of pictures. psnr: of latents, in dB, of some rows.
    """

    rows: Whole
    bytes: Whole
    skipped: list[tuple[str, str]] = field(default_factory=list)
    labels: dict[str, Whole] = field(default_factory=dict)
    psnr: list[float] = field(default_factory=list)


@record
class Plan:
    """What shards.json holds: all rows, the first and last + 1 of the parts of each shard, and the parts' notes."""

    count: Whole
    shards: list[tuple[Whole, Whole]]
    notes: list[Note]


class Preparation:
    """A folder while it is being prepared; enter it, write every missing part, finish it.

    settings: what decides the rows; a folder of other settings is refused. exclusive: whether this process holds the
    folder's lock (with several ranks, the main one). Raises UserError where another preparation is at work in the
    folder, its settings differ, or it holds something else; WriteError where it cannot be written.
    """

    def __init__(self, out: str | Path, settings: dict[str, object], exclusive: bool = True) -> None:
        self.out, self.settings, self.exclusive = Path(out), json.loads(json.dumps(settings)), exclusive
        self.parts = self.out / "parts"
        self._held = ExitStack()

    def __enter__(self) -> "Preparation":
        file = self.out / SETTINGS_FILE
        if self.out.exists() and not file.is_file() and (not self.out.is_dir() or any(map(is_foreign, self.out.iterdir()))):
            raise UserError(f"{self.out} exists and holds no prepared data; give another folder with --out")
        if not self.is_finished:
            check_writable(self.out)
        with self._held:
            if self.exclusive and not self.is_finished:
                self._held.enter_context(locked(self.out, "preparing"))
                remove_leftovers(self.out, everyones=True)
            if file.is_file():
                check_settings(file, self.settings)
            else:
                write_whole(file, json.dumps(self.settings, indent=2) + "\n")
            with told(self.out):
                if not self.is_finished:
                    self.parts.mkdir(exist_ok=True)
                elif self.exclusive:
                    (self.out / PLAN_FILE).unlink(missing_ok=True)
            self._held = self._held.pop_all()  # held until this is left
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    @property
    def is_finished(self) -> bool:
        return (self.out / INFO_FILE).is_file()

    def has(self, part: int) -> bool:
        """Whether a part is written, or already joined into a shard."""
        return (self.out / PLAN_FILE).is_file() or self._note(part).is_file()

    def write(
        self,
        part: int,
        schema: pa.Schema,
        columns: Mapping[str, object],
        skipped: Sequence[tuple[str, str]] = (),
        **notes: object,
    ) -> None:
        """One part: the columns of `DataInfo.schema`, as lists or Arrow arrays, which may be empty.

        skipped: (key, why) of what could not be read. notes: JSON values that `notes()` gives back.
        """
        batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)
        with written_whole(self._file(part)) as beside, new_stream(beside, schema) as writer:
            writer.write_batch(batch)
        note = {"rows": batch.num_rows, "bytes": self._file(part).stat().st_size, "skipped": list(skipped), **notes}
        write_whole(self._note(part), json.dumps(note) + "\n")

    def notes(self, count: int) -> list[Note]:
        """What was written beside each of the first `count` parts."""
        if (self.out / PLAN_FILE).is_file():
            return self._plan().notes
        return [read_json(self._note(part), Note) for part in range(count)]

    def _plan(self) -> Plan:
        return read_json(self.out / PLAN_FILE, Plan, PLAN_BYTES)

    def finish(self, info: DataInfo, parts: int) -> DataInfo:
        """Joins all parts into shards, writes the folder's descriptions and removes the parts; `info` with its count.

        Raises UserError where no part has a row.
        """
        plan_file = self.out / PLAN_FILE
        if not plan_file.is_file():
            notes = self.notes(parts)
            skipped = [entry for note in notes for entry in note.skipped]
            write_whole(self.out / SKIPPED_FILE, json.dumps(skipped, indent=1, ensure_ascii=False) + "\n")
            kept = [dataclasses.replace(note, skipped=[]) for note in notes]
            plan = Plan(sum(note.rows for note in notes), plan_shards([note.bytes for note in notes], SHARD_BYTES), kept)
            write_whole(plan_file, json.dumps(dataclasses.asdict(plan)) + "\n")
        plan = self._plan()
        if not plan.count:
            raise UserError(
                f"none of the pictures could be read; {self.out / SKIPPED_FILE} says why of each:"
                " mend them, and give another --out"
            )
        shards = plan.shards
        names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
        schema = info.schema
        with ThreadPoolExecutor(JOINERS) as pool:
            joined = [
                pool.submit(self._join, self.out / name, schema, range(first, last))
                for name, (first, last) in zip(names, shards, strict=True)
            ]
            for future in joined:
                future.result()
        info = dataclasses.replace(info, count=plan.count)
        with told(self.out):
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
        state: dict[str, object] = {
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


def is_foreign(file: Path) -> bool:
    """Whether a file is none of those that a preparation may leave behind before it has settings."""
    return file.suffix != ".part" and file.name != LOCK_FILE


def check_settings(file: Path, settings: dict[str, object]) -> None:
    """Raises UserError, naming the difference, where a folder was prepared with other settings.

    A source may be spelled otherwise, where it is the same place.
    """
    old = read_json(file, dict[str, object])
    differing = [
        f"{key} is {old.get(key)} there and {settings.get(key)} now"
        for key in settings | old
        if old.get(key) != settings.get(key) and not (key == "source" and same_place(old.get(key), settings.get(key)))
    ]
    if differing:
        raise UserError(
            f"{file.parent} is prepared with other settings ({'; '.join(differing[:3])}); give another folder with --out"
        )


def same_place(one: object, other: object) -> bool:
    """Whether two names are of one file or folder of this machine."""
    if not isinstance(one, str) or not isinstance(other, str) or "://" in one + other:
        return False
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()
