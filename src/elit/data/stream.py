"""Prepared data in object storage, read as a stream: nothing is kept on this machine but a buffer of rows.

A row cannot be asked for by its number, so a run that goes on does not see the rows it would have seen.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from elit.codec import DataEncoding
from elit.data.dataset import (
    INFO_FILE,
    check_alignable,
    latent_input,
    parse_info,
    shard_names,
    stored_picture,
    takes_mirrored,
)
from elit.data.loader import NewGenerators
from elit.data.sources import FolderSource
from elit.distributed import rank, world_size
from elit.errors import UserError
from elit.pixels import to_float, to_uint8
from elit.seeding import generator_for

BUFFER = 4096  # rows that the next one is drawn from


class StreamedData:
    """A folder that `elit prepare` wrote, at a URL that fsspec opens, such as s3://bucket/data.

    Each process reads its own share of the shards, in a new random order each epoch (see `share_of_epoch`), and the rows
    through a buffer that shuffles them. Raises UserError for a folder that cannot be read, is unfinished, or has buckets.
    """

    exact = False
    members: tuple[Tensor, ...] = ()

    def __init__(self, url: str) -> None:
        files = FolderSource(url)
        try:
            self.info = parse_info(files.read(INFO_FILE), f"{files.name}/{INFO_FILE}")
            self.shards = [f"{files.name}/{name}" for name in shard_names(files.read("state.json"), files.name)]
        except (OSError, UserError) as error:
            raise UserError(f"{url} cannot be streamed ({error}); write it there whole with elit prepare") from error
        if self.info.size is None:
            raise UserError(f"{url} has buckets, whose batches are drawn by number; bring it to this machine")
        if self.info.label_names and not self.info.label_counts:
            raise UserError(f"{url} does not say how many rows each label has; prepare the data again")
        if self.info.count < world_size():
            raise UserError(
                f"{url} has {self.info.count} rows, fewer than the {world_size()} processes; give more, or run fewer"
            )
        self.url, self.shape, self.label_names = url, self.info.shape(), self.info.label_names
        self.label_counts = self.info.label_counts
        self.begin(0)

    def __len__(self) -> int:
        return self.info.count

    def begin(self, *key: str | int) -> None:
        """Begins anew, in an order that depends on the key and is the same in every process, as their shares need."""
        self._rows = self._endless(generator_for("stream", *key).initial_seed())

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """The next rows of this process, whichever were asked for: inputs and labels as `PreparedData.read` gives them."""
        x, labels = torch.empty(len(rows), *self.shape), torch.empty(len(rows), dtype=torch.long)
        for i, generator in enumerate(generators):
            row = next(self._rows)
            label = row["label"][0].as_py()
            x[i], labels[i] = self._input(row, generator), -1 if label is None else label
        return x, labels

    @property
    def encoding(self) -> DataEncoding:
        return self.info.encoding

    def stored_features(self, encoder: str) -> None:
        """None: a vision encoder looks at the pictures. Raises UserError for latents, whose features are read by number."""
        check_alignable(self.info)
        if self.info.kind == "latents":
            raise UserError("streamed latents are not aligned; bring the data to this machine, or leave alignment out")

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        """The pictures (B, 3, H, W) uint8 that were read, which alignment looks at."""
        return to_uint8(x_BCHW)

    def _input(self, row: pa.Table, generator: torch.Generator) -> Tensor:
        if self.info.kind != "latents":
            picture = stored_picture(row["image"][0].as_py()["bytes"], f"{row['key'][0]} of {self.url}")
            return to_float(self.info.in_frames(picture))
        name = "mirrored" if takes_mirrored(self.info, generator) else "latent"
        stored = row[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        assert self.info.values is not None
        return latent_input(stored, self.shape, self.info.values, self.info.scale, self.info.shift, generator)

    def _endless(self, seed: int) -> Iterator[pa.Table]:
        """Epoch after epoch of this process's rows, each a table of one row."""
        for epoch in itertools.count():
            order = torch.randperm(len(self.shards), generator=generator_for("stream shards", seed, epoch)).tolist()
            share = share_of_epoch(order, rank(), world_size())
            rows = itertools.chain.from_iterable(self._rows_of(*part) for part in share)
            yield from shuffled(rows, generator_for("stream rows", seed, epoch, rank()).initial_seed())

    def _rows_of(self, shard: int, part: int, parts: int) -> Iterator[pa.Table]:
        """Every row of a shard whose number, modulo `parts`, is `part`: copies, so that no batch is kept for one of them."""
        import fsspec

        number = itertools.count()
        try:
            with fsspec.open(self.shards[shard], "rb") as file, pa.ipc.open_stream(file) as batches:
                for batch in batches:
                    mine = [i for i in range(batch.num_rows) if next(number) % parts == part]
                    yield from (pa.Table.from_batches([batch.take(pa.array([i]))]) for i in mine)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.url} can no longer be read ({error}); the same command goes on") from error


def share_of_epoch(order: Sequence[int], rank: int, world: int) -> list[tuple[int, int, int]]:
    """(shard, part, parts) that a process reads of shards in the epoch's order: together, all read every row once.

    Each has as many shards of its own as all can have; of those that are left, each process reads one, which it shares.
    """
    whole, left = len(order) // world, len(order) % world
    own = [(shard, 0, 1) for shard in order[rank * whole : (rank + 1) * whole]]
    if not left:
        return own
    shared = rank % left
    return [*own, (order[whole * world + shared], rank // left, len(range(shared, world, left)))]


def shuffled(rows: Iterator[pa.Table], seed: int) -> Iterator[pa.Table]:
    """The rows through a buffer of BUFFER, from which each next one is drawn."""
    draw, held = random.Random(seed), list(itertools.islice(rows, BUFFER))
    for row in rows:
        place = draw.randrange(BUFFER)
        yield held[place]
        held[place] = row
    draw.shuffle(held)
    yield from held
