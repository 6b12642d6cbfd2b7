"""Prepared data at a URL, streamed: every row once an epoch, shared by the processes, and trained on."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from elit.cli import main
from elit.codec import Pixels
from elit.data.dataset import DataInfo, PreparedData
from elit.data.opening import open_data
from elit.data.prepare import ImageSettings, prepare_images
from elit.data.shards import Preparation
from elit.data.stream import StreamedData, share_of_epoch
from elit.seeding import generator_for

URL = "memory://bucket/data"


@pytest.fixture
def upload() -> Iterator[Callable[[Path], str]]:
    """Puts a folder into storage, where nothing but its URL leads to it."""
    storage = fsspec.filesystem("memory")

    def put(folder: Path) -> str:
        storage.put(str(folder), URL.removeprefix("memory:/"), recursive=True)
        return URL

    yield put
    storage.store.clear()
    storage.pseudo_dirs[:] = [""]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upload: Callable[[Path], str]) -> str:
    """Twelve pictures of 8 x 8 in two classes, the i-th of which is i everywhere, in several shards."""
    for i in range(12):
        file = tmp_path / "pictures" / "ab"[i // 7] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(file)
    monkeypatch.setattr("elit.data.shards.SHARD_BYTES", 1)
    monkeypatch.setattr(ImageSettings, "part_rows", 3)
    prepare_images(ImageSettings(str(tmp_path / "pictures"), size=8), tmp_path / "images", workers=1)
    assert len(list((tmp_path / "images").glob("*.arrow"))) == 4
    return upload(tmp_path / "images")


def numbers(data: StreamedData, count: int) -> tuple[list[int], Tensor]:
    """Which pictures the next rows are, and their labels."""
    x, labels = data.read(torch.arange(count), [torch.Generator()] * count)
    return (x[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist(), labels


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(images: str) -> None:
    data = open_data(images, 0)
    assert isinstance(data, StreamedData) and not data.exact and (len(data), data.shape) == (12, (3, 8, 8))
    epochs = [numbers(data, 12) for _ in range(3)]
    for order, labels in epochs:
        assert sorted(order) == list(range(12)) and order != sorted(order)
        assert labels.tolist() == [int(i >= 7) for i in order]
    assert epochs[0][0] != epochs[1][0] != epochs[2][0]
    data.begin("another", 3)
    assert numbers(data, 12)[0] != epochs[0][0]
    data.begin(0)
    assert numbers(data, 12)[0] == epochs[0][0]


def test_processes_share_an_epoch(images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not they divide the shards, or are more than there are: together every row once."""
    for world in (2, 3, 8):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        seen = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            share = 12 // world + (rank < 12 % world)
            seen += numbers(StreamedData(images), share)[0]
        assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(("shards", "world"), [(4, 2), (5, 2), (7, 3), (2, 5), (1, 4), (6, 6)])
def test_shares_of_an_epoch(shards: int, world: int) -> None:
    """No process reads more than one shard that others read too, and every row of every shard has one reader."""
    order = torch.randperm(shards).tolist()
    shares = [share_of_epoch(order, rank, world) for rank in range(world)]
    assert all(len(share) <= shards // world + 1 for share in shares)
    rows = [(shard, row) for share in shares for shard, part, parts in share for row in range(60) if row % parts == part]
    assert sorted(rows) == [(shard, row) for shard in range(shards) for row in range(60)]


def test_the_classes_of_a_stream_are_known(images: str) -> None:
    """As those of every other data are: how many rows each label has."""
    assert StreamedData(images).label_counts == (7, 5) and StreamedData(images).encoding == Pixels()


def test_latents_are_those_of_the_folder(tmp_path: Path, upload: Callable[[Path], str]) -> None:
    """Mirrored or not, and with the noise, as each row's generator says; a row without a label has -1."""
    info = DataInfo("latents", 0, (2, 3), channels=4, values="moments", scale=0.5, shift=0.25, mirror=True)
    rng = np.random.default_rng(0)
    stored = {name: rng.normal(size=(5, 48)).astype(np.float16) for name in ("latent", "mirrored")}
    columns = {name: pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), 48) for name, v in stored.items()}
    with Preparation(tmp_path / "latents", {}) as work:
        work.write(0, info.schema, {"label": [None] * 5, "key": list("abcde"), **columns})
        work.finish(info, 1)
    folder, data = PreparedData(tmp_path / "latents"), StreamedData(upload(tmp_path / "latents"))

    def generators() -> list[torch.Generator]:
        return [generator_for("row", i) for i in range(20)]

    x, labels = data.read(torch.zeros(20), generators())
    assert labels.tolist() == [-1] * 20
    for epoch in range(4):
        found = set()
        for place in range(5 * epoch, 5 * epoch + 5):
            same = [folder.read(torch.tensor([row]), [generators()[place]])[0][0] for row in range(5)]
            found |= {row for row in range(5) if torch.equal(same[row], x[place])}
        assert found == set(range(5))


def test_a_run_on_a_stream_trains_and_says_that_it_is_not_exact(
    images: str, arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *arguments(steps=4, data__source=images, log__checkpoint_every=2, out=tmp_path / "run")]
    assert main(command) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    assert main(command) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "its data is a stream, which begins anew: this is not the run it would have been" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data__workers": 2}, "a stream is read by one thread, not by 2 processes; set data.workers 1"),
        (
            {"evaluate__every": 2},
            "a stream, or pictures of several sizes, is no reference of evaluate.every; set evaluate.reference",
        ),
        ({"model__num_classes": 1}, "labels go up to 1; set model.num_classes 2"),
        ({"data__source": "memory://nowhere"}, "memory://nowhere"),
        ({"data__source": "s3x://nowhere"}, "s3x"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(
    images: str,
    arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    options: dict[str, object],
    sentence: str,
) -> None:
    assert main(["train", *arguments(**{"data__source": images, **options})]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said and "Traceback" not in said


def test_data_that_cannot_be_streamed_is_named(images: str, tmp_path: Path) -> None:
    """Unfinished, with buckets, or cut short while it is read."""
    storage = fsspec.filesystem("memory")
    where = URL.removeprefix("memory:/") + "/elit-data.json"
    text = storage.cat_file(where)
    storage.pipe_file(
        where,
        text.replace(b'"size": [\n    8,\n    8\n  ]', b'"size": null').replace(b'"buckets": []', b'"buckets": [[8, 8]]'),
    )
    with pytest.raises(ValueError, match="has buckets, whose batches are drawn by number; bring it to this machine"):
        StreamedData(images)
    storage.rm_file(where)
    with pytest.raises(ValueError, match=r"cannot be streamed .* write it there whole with elit prepare"):
        StreamedData(images)
    storage.pipe_file(where, text)
    data = StreamedData(images)
    for shard in data.shards:
        storage.rm_file(shard)
    with pytest.raises(ValueError, match=r"memory://bucket/data can no longer be read"):
        numbers(data, 12)
