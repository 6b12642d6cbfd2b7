"""Prepared data on disk: what `elit prepare` writes, and how training reads it.

A prepared folder is a `datasets` folder (`datasets.load_from_disk` opens it) with one more file:

DIR/elit-data.json             what the rows are: the fields of `DataInfo`
DIR/data-00000-of-00004.arrow  shards of about 500 MB, memory-mapped; dataset_info.json and state.json list them
DIR/settings.json              what the folder was asked to hold, so that another request is refused
DIR/skipped.json               [[key, why], ...] of the pictures that could not be read

Columns: label (int64 with names, null where there is none), key (the picture's path in its source), with buckets bucket
(int64, an index into `DataInfo.buckets`), and either

image    a PNG (`datasets.Image`), of a clip with its frames one below another, or
latent   float16, row-major (stored channels, h, w), of a clip (stored channels, frames, h, w), flat:
         `List(float16, length)`, without a length where there are buckets; with `mirror` also mirrored, the same of the
         picture mirrored left to right; and for each named feature
         feature.NAME, float16 (rows, columns, width) of its tokens, flat, with `mirror` also mirrored.feature.NAME.
"""

import dataclasses
import io
import json
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor

from elit.autoencoders import Factor
from elit.codec import DataEncoding, Latents, Pixels, Values, moments_to_latents
from elit.data.loader import NewGenerators, Stored, column_of, counts_of
from elit.errors import UserError
from elit.files import open_regular, read_bytes
from elit.pixels import as_tensor, to_float, to_uint8
from elit.records import Whole, checked, parse_json, read_json, record

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

INFO_FILE, SETTINGS_FILE, SKIPPED_FILE = "elit-data.json", "settings.json", "skipped.json"
PREPARED_KEYS = {"crop", "prepare"}  # of settings.json, which folders of elit sample have too
FORMAT, INFO_BYTES = 1, 64 * 2**20


Side = Annotated[int, Ge(1), Le(2**20)]  # in pixels, latent cells or tokens


@record
class DataInfo:
    """What the rows of a prepared folder are.

    label_counts: the rows of each label, of those that have one. size: (height, width) of one model input, in pixels or
    latent cells; None where `buckets` lists the sizes there are.
    channels: of one model input; latents of "moments" (mean, log-variance) and "mean-std" (mean, standard deviation)
    store twice as many, "samples" as many. A model input is scale (z - shift) with z = mean + standard deviation x noise;
    scale, shift: one number, or one for each channel. codec: the autoencoder that z belongs to; psnr: in dB, of
    decode(encode(x)) over some pictures, if it was measured. features: {name: (rows, columns, width)} of a vision encoder's
    tokens. frames: of a clip, or of its latents; 1 of pictures. Raises UserError where these do not fit together.
    """

    kind: Literal["images", "latents", "clips"]
    count: Whole
    size: tuple[Side, Side] | None
    label_names: tuple[str, ...] = ()
    label_counts: tuple[Whole, ...] = ()
    channels: Annotated[int, Ge(1), Le(4096)] = 3
    buckets: tuple[tuple[Side, Side], ...] = ()
    source: str = ""
    crop: str = ""
    values: Literal["moments", "mean-std", "samples"] | None = None
    scale: Factor = 1.0
    shift: Factor = 0.0
    codec: str = ""
    psnr: float | None = None
    mirror: bool = False
    features: dict[str, tuple[Side, Side, Side]] = field(default_factory=dict)
    frames: Annotated[int, Ge(1), Le(4096)] = 1

    def __post_init__(self) -> None:
        if self.frames == 1 if self.kind == "clips" else self.frames > 1 and self.kind == "images":
            raise UserError("its kind and frames do not fit together")
        if not {len(factor) for factor in (self.scale, self.shift) if isinstance(factor, tuple)} <= {self.channels}:
            raise UserError(f"its scale and shift are not of its {self.channels} channels")
        if (self.size is None) == (not self.buckets) or (self.kind == "latents") == (self.values is None):
            raise UserError("its kind, size, buckets and values do not fit together")

    @property
    def encoding(self) -> DataEncoding:
        """What a model input is: pixels, or latents of a codec."""
        return Pixels() if self.kind != "latents" else Latents(self.scale, self.shift, self.codec)

    @property
    def stored_channels(self) -> int:
        """Channels of a latent on disk."""
        return self.channels * (2 if self.values in ("moments", "mean-std") else 1)

    def shape(self, bucket: int = 0) -> tuple[int, ...]:
        """(channels, height, width) of one model input, (channels, frames, height, width) of a clip."""
        height, width = self.buckets[bucket] if self.size is None else self.size
        return (self.channels, height, width) if self.frames == 1 else (self.channels, self.frames, height, width)

    def in_frames(self, picture: Tensor) -> Tensor:
        """A stored picture (3, H, W) as it is, and of a clip, whose frames lie one below another, (3, T, H, W)."""
        return picture if self.kind != "clips" else picture.unflatten(1, (self.frames, -1))

    def columns(self) -> "datasets.Features":
        """The columns of the table, as `datasets` types."""
        from datasets import ClassLabel, Features, Image, List, Value

        length = -1 if self.size is None else self.stored_channels * self.frames * self.size[0] * self.size[1]
        label = ClassLabel(names=list(self.label_names)) if self.label_names else Value("int64")
        columns: dict[str, object] = {"label": label, "key": Value("string")}
        if self.size is None:
            columns["bucket"] = Value("int64")
        if self.kind != "latents":
            columns["image"] = Image()
        for name in ("latent", "mirrored")[: 1 + self.mirror] if self.kind == "latents" else ():
            columns[name] = List(Value("float16"), length=length)
        for name, shape in self.features.items():
            for column in (f"feature.{name}", f"mirrored.feature.{name}")[: 1 + self.mirror]:
                columns[column] = List(Value("float16"), length=math.prod(shape))
        return Features(columns)

    @property
    def schema(self) -> "pa.Schema":
        """The columns, as Arrow's."""
        return self.columns().arrow_schema

    def to_json(self) -> str:
        """The text of elit-data.json."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        if self.frames == 1:  # as it was before there were clips
            del values["frames"]
        return json.dumps(values, indent=2) + "\n"


def is_prepared(folder: Path) -> bool:
    """Whether `elit prepare` wrote a folder, to the end or not yet."""
    if (folder / INFO_FILE).is_file():
        return True
    file = folder / SETTINGS_FILE
    return file.is_file() and not PREPARED_KEYS.isdisjoint(read_json(file, dict[str, object]))


def read_info(folder: Path) -> DataInfo:
    """What a prepared folder holds. Raises UserError where it is unfinished, or not of this format."""
    file = folder / INFO_FILE
    if not file.is_file():
        if (folder / SETTINGS_FILE).is_file():
            raise UserError(f"{folder} is not prepared to the end; run its elit prepare command again, which goes on")
        raise UserError(f"{folder} is not a prepared folder: it holds no {INFO_FILE}; write one with elit prepare")
    return parse_info(read_bytes(file, INFO_BYTES), file)


def parse_info(text: bytes, file: Path | str) -> DataInfo:
    """What the text of elit-data.json says. Raises UserError, naming the file, where that is not of this format."""
    try:
        values = parse_json(text, dict[str, object], "in it")
        version = values.pop("format", None)
        if version != FORMAT:
            raise UserError(f"its format is {version}, and this version of elit reads {FORMAT}")
        return checked(values, DataInfo, "in it")
    except UserError as error:
        raise UserError(f"{file} does not describe prepared data ({error}); prepare the data again") from error


class PreparedData:
    """The rows of a prepared folder, memory-mapped; `read` gives model inputs.

    Pickles as its folder's name, so that loader processes open the files themselves. Raises UserError where the files
    are not what elit-data.json says.
    """

    exact = True  # the same row and generator give the same bits, in any process and batch

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self._table: pa.Table | None = None
        self._files: list[MappedFile] = []
        self._places: dict[str, _Column] = {}
        self.labels = self._integers("label")
        self.members: tuple[Tensor, ...] = ()  # the rows of each size there is, where there are several
        if self.info.size is None:
            self.buckets = self._integers("bucket")
            if not 0 <= int(self.buckets.min()) <= int(self.buckets.max()) < len(self.info.buckets):
                raise UserError(f"{self.folder} has rows of buckets that its {INFO_FILE} does not list")
            self.members = tuple((self.buckets == bucket).nonzero()[:, 0] for bucket in self.buckets.unique())
        if self.info.count and self.info.label_names and int(self.labels.max()) >= len(self.info.label_names):
            raise UserError(
                f"{self.folder} has the label {int(self.labels.max())} and {len(self.info.label_names)} label names"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_table": None, "_files": [], "_places": {}}

    def __len__(self) -> int:
        return self.info.count

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.info.label_names

    @property
    def label_counts(self) -> tuple[int, ...]:
        """The rows of each label."""
        return counts_of(self.labels, len(self.label_names))

    @property
    def encoding(self) -> DataEncoding:
        return self.info.encoding

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one model input, as `DataInfo.shape` has it; of the first bucket where there are buckets."""
        return self.info.shape()

    @property
    def table(self) -> "pa.Table":
        """The Arrow table, memory-mapped."""
        if self._table is None:
            self._table, self._files = open_table(self.folder, self.info)
        return self._table

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """x (B, *shape) float32 model inputs and labels (B,) int64, -1 where a row has none.

        Pixels are in [-1, 1]. Latents are scale (mean + standard deviation x noise - shift): row i draws from generators[i]
        alone, first whether it is mirrored (one uniform number, where mirrored latents are stored), then the noise.
        With buckets, all rows must be of one bucket.
        """
        labels = self.labels[rows]
        shape = self.info.shape(int(self.buckets[rows[0]]) if self.members else 0)
        x = torch.empty(len(rows), *shape)
        self._fetch("latent" if self.info.kind == "latents" else "image", rows)
        if self.info.kind != "latents":
            for row, into in zip(rows.tolist(), x, strict=True):
                into.copy_(to_float(self.info.in_frames(self.image(row))))
            return x, labels
        for i, (row, generator) in enumerate(zip(rows.tolist(), generators, strict=True)):
            x[i] = self._latent(row, generator, shape)
        return x, labels

    def image(self, row: int) -> Tensor:
        """(3, H, W) uint8 of one picture, or of a clip's frames one below another."""
        return stored_picture(self._column("image").value(row).tobytes(), f"row {row} of {self.folder}")

    def feature(self, name: str, rows: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """(B, tokens, width) float32 of a stored feature, row by row of its grid.

        Of the mirrored picture where `read` takes the mirrored latents: generators are new ones, as `read` gets them.
        """
        if name not in self.info.features:
            raise UserError(
                f"{self.folder} holds no features of {name!r}, but {list(self.info.features) or 'none'};"
                " store them with elit prepare latents --features"
            )
        names = [f"mirrored.feature.{name}" if takes_mirrored(self.info, g) else f"feature.{name}" for g in generators]
        stored = np.stack([self._column(name).value(row) for name, row in zip(names, rows.tolist(), strict=True)])
        return torch.from_numpy(stored).float().unflatten(1, (-1, self.info.features[name][2]))

    def stored_features(self, encoder: str) -> Stored | None:
        """(rows, columns, width) of an encoder's features; None for pictures, whose features are computed.

        Raises UserError for latents without features of that encoder.
        """
        check_alignable(self.info)
        if self.info.kind == "images":
            return None
        name = column_of(encoder)
        if name not in self.info.features:
            raise UserError(
                f"{self.folder} holds no features of {encoder}, but {', '.join(self.info.features) or 'none'};"
                " set alignment.encoder, or store them with elit prepare latents --features"
            )
        return self.info.features[name]

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        """What alignment looks at: the pictures (B, 3, H, W) uint8, or the encoder's stored features (B, T, D)."""
        return to_uint8(x_BCHW) if self.info.kind == "images" else self.feature(column_of(encoder), rows, generators())

    def _fetch(self, name: str, rows: Tensor) -> None:
        """Lets the disk read all rows of a batch at once, which then come from memory one by one."""
        column = self._column(name)
        for row in rows.tolist():
            column.fetch(row)

    def _latent(self, row: int, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        assert self.info.values is not None
        name = "mirrored" if takes_mirrored(self.info, generator) else "latent"
        return latent_input(
            self._column(name).value(row), shape, self.info.values, self.info.scale, self.info.shift, generator
        )

    def _integers(self, name: str) -> Tensor:
        values = self.table[name].combine_chunks().fill_null(-1)
        return torch.from_numpy(values.to_numpy().copy())

    def _column(self, name: str) -> "_Column":
        if name not in self._places:
            _ = self.table  # opens the files
            self._places[name] = _Column(self._files, name)
        return self._places[name]


def check_alignable(info: DataInfo) -> None:
    """Raises UserError for clips, which no vision encoder here looks at."""
    if info.frames > 1:
        raise UserError("alignment looks at pictures, and the data are clips; set alignment.enabled false")


def stored_picture(content: bytes, name: str) -> Tensor:
    """(3, H, W) uint8 of a stored PNG. Raises UserError, with its name, for what is none."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            return as_tensor(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is not a picture ({error}); prepare the data again") from error


def takes_mirrored(info: DataInfo, generator: torch.Generator) -> bool:
    """Whether a row is taken mirrored: its generator's first number, where mirrored latents are stored."""
    return info.mirror and float(torch.rand((), generator=generator)) < 0.5


def latent_input(
    stored: np.ndarray, shape: tuple[int, ...], values: Values, scale: Factor, shift: Factor, generator: torch.Generator
) -> Tensor:
    """(C, h, w), or of a clip (C, t, h, w), the model input of one stored latent, its noise drawn from the generator.

    One row at a time, so that no bit depends on its batch; torch starts no threads for so few numbers. Raises UserError
    where it is of another shape.
    """
    channels = shape[0] if values == "samples" else 2 * shape[0]
    if stored.size != channels * math.prod(shape[1:]):
        raise UserError(f"a stored latent is not {' x '.join(map(str, (channels, *shape[1:])))}; prepare the data again")
    moments = torch.from_numpy(np.array(stored)).float().view(1, channels, *shape[1:])
    noise = torch.zeros(1, *shape) if values == "samples" else torch.randn((1, *shape), generator=generator)
    return moments_to_latents(moments, noise, values, scale, shift)[0]


@dataclass(frozen=True)
class MappedFile:
    """A file of rows in memory, and the Arrow table that lies in it."""

    mapped: mmap.mmap
    table: "pa.Table"


class _Column:
    """Values of one column by row, without copies: the bytes of a picture, or a flat float16 latent."""

    def __init__(self, files: Sequence[MappedFile], name: str) -> None:
        import pyarrow as pa

        chunks = [(file, chunk) for file in files for chunk in file.table[name].chunks]
        self.starts = np.cumsum([0] + [len(chunk) for _, chunk in chunks])
        self.values: list[np.ndarray] = []
        self.bounds: list[np.ndarray] = []  # where each row's values begin, and the last ones end
        self.maps = [file.mapped for file, _ in chunks]
        for _, chunk in chunks:
            if name == "image":
                _, offsets, content = chunk.field("bytes").buffers()
                self.values.append(np.frombuffer(content, np.uint8))
                self.bounds.append(np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1])
                continue
            self.values.append(chunk.values.to_numpy(zero_copy_only=True))
            fixed = pa.types.is_fixed_size_list(chunk.type)
            bounds = np.arange(len(chunk) + 1) * chunk.type.list_size if fixed else chunk.offsets.to_numpy()
            self.bounds.append(bounds)
        # where each chunk's values lie in their file
        self.offsets = [
            int(values.ctypes.data) - pa.py_buffer(mapped).address
            for values, mapped in zip(self.values, self.maps, strict=True)
        ]

    def value(self, row: int) -> np.ndarray:
        """What a row holds."""
        chunk, start, end = self._find(row)
        return self.values[chunk][start:end]

    def fetch(self, row: int) -> None:
        """Asks the system to read a row from the disk now, without waiting for it."""
        file, start, end = self.span(row)
        aligned = start - start % mmap.PAGESIZE
        file.madvise(mmap.MADV_WILLNEED, aligned, end - aligned)

    def span(self, row: int) -> tuple[mmap.mmap, int, int]:
        """The file that holds a row, and the first and last + 1 of its bytes there."""
        chunk, start, end = self._find(row)
        size = self.values[chunk].itemsize
        return self.maps[chunk], self.offsets[chunk] + start * size, self.offsets[chunk] + end * size

    def _find(self, row: int) -> tuple[int, int, int]:
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        index = row - int(self.starts[chunk])
        return chunk, int(self.bounds[chunk][index]), int(self.bounds[chunk][index + 1])


def open_table(folder: Path, info: DataInfo) -> tuple["pa.Table", list[MappedFile]]:
    """The memory-mapped rows of a prepared folder, and their files; UserError where they are not what `info` says."""
    import pyarrow as pa

    try:
        maps = [map_file(folder / name) for name in shard_names(read_bytes(folder / "state.json", INFO_BYTES), folder)]
        files = [MappedFile(mapped, pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()) for mapped in maps]
        table = pa.concat_tables(file.table for file in files)
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"the rows of {folder} cannot be read ({error}); prepare the data again") from error
    schema = info.schema
    if table.num_rows != info.count or not table.schema.equals(schema):
        raise UserError(
            f"{folder} holds {table.num_rows} rows of {table.schema.names}, and its {INFO_FILE} says {info.count} rows"
            f" of {schema.names} of certain sizes; prepare the data again"
        )
    return table, files


def shard_names(text: bytes, folder: Path | str) -> list[str]:
    """The files that a folder's state.json lists, without their folders."""
    origin = f"{folder}/state.json"
    listed = parse_json(text, dict[str, object], origin).get("_data_files")
    return [Path(entry.filename).name for entry in checked(listed, list[Shard], origin)]


@record
class Shard:
    """An entry of state.json, which `datasets` reads too."""

    filename: str


def map_file(file: Path) -> mmap.mmap:
    """A file in memory, of which only the pages asked for are read: rows come in random order."""
    with open_regular(file) as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped
