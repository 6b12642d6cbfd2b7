"""Prepared data in object storage, read as a stream: nothing is kept on this machine but a buffer of rows.

A row cannot be asked for by its number, so a run that goes on does not see the rows it would have seen.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elit.data.dataset import INFO_FILE, latent_input, parse_info, stored_picture, takes_mirrored
from elit.data.sources import FolderSource
from elit.distributed import rank, world_size
from elit.errors import UserError
from elit.pixels import to_float
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
            listed = json.loads(files.read("state.json"))["_data_files"]
            self.shards = [f"{files.name}/{Path(entry['filename']).name}" for entry in listed]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{url} cannot be streamed ({error}); write it there whole with elit prepare") from error
        if self.info.size is None:
            raise UserError(f"{url} has buckets, whose batches are drawn by number; bring it to this machine")
        self.url, self.shape, self.label_names = url, self.info.shape(), self.info.label_names
        self.labels = torch.tensor([len(self.label_names) - 1])  # of which only the largest is known
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
