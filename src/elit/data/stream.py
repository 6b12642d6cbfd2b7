"""Prepared data in object storage, read as a stream: nothing is kept on this machine but a buffer of rows.

A row cannot be asked for by its number, so a run that goes on does not see the rows it would have seen.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from elit.codec import Encoding
from elit.data.dataset import INFO_FILE, latent_input, parse_info, shard_names, stored_picture, takes_mirrored
from elit.data.loader import NewGenerators
from elit.data.sources import FolderSource
from elit.distributed import rank, world_size
from elit.errors import UserError
from elit.pixels import to_float, to_uint8
from elit.seeding import generator_for

BUFFER = 4096  # rows that the next one is drawn from


class StreamedData:
    """A folder that `elit prepare` wrote, at a URL that fsspec opens, such as s3://bucket/data.

    Each process reads its own share of the shards, in a new random order each epoch, and the rows through a buffer that
    shuffles them. Raises UserError for a folder that cannot be read, is unfinished, or has buckets.
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
    def encoding(self) -> Encoding:
        return self.info.encoding

    def stored_features(self, encoder: str) -> None:
        """None: a vision encoder looks at the pictures. Raises UserError for latents, whose features are read by number."""
        if self.info.kind == "latents":
            raise UserError("streamed latents are not aligned; bring the data to this machine, or leave alignment out")

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        """The pictures (B, 3, H, W) uint8 that were read, which alignment looks at."""
        return to_uint8(x_BCHW)

    def _input(self, row: Any, generator: torch.Generator) -> Tensor:
        if self.info.kind == "images":
            return to_float(stored_picture(row["image"][0].as_py()["bytes"], f"{row['key'][0]} of {self.url}"))
        name = "mirrored" if takes_mirrored(self.info, generator) else "latent"
        stored = row[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        assert self.info.values is not None
        return latent_input(stored, self.shape, self.info.values, self.info.scale, self.info.shift, generator)

    def _endless(self, seed: int) -> Iterator[Any]:
        """Epoch after epoch of this process's rows, each an Arrow table."""
        import datasets
        from datasets.distributed import split_dataset_by_node

        try:
            whole = datasets.load_dataset("arrow", data_files={"train": self.shards}, split="train", streaming=True)
            rows = split_dataset_by_node(whole.shuffle(seed, buffer_size=BUFFER), rank(), world_size()).with_format("arrow")
            for epoch in itertools.count():
                rows.set_epoch(epoch)
                yield from rows
        except OSError as error:
            raise UserError(f"{self.url} can no longer be read ({error}); the same command goes on") from error
