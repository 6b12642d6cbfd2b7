"""Reading a prepared folder: what it says of itself is checked, and rows come from the files without copies."""

import io
import json
import os
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import write_pictures
from PIL import Image, PngImagePlugin

from elit.data.dataset import DataInfo, PreparedData, stored_picture
from elit.data.opening import open_data
from elit.data.prepare import ImageSettings, prepare_images
from elit.data.shards import Preparation, plan_shards
from elit.errors import UserError
from elit.seeding import generator_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare_images(
        ImageSettings(str(write_pictures(tmp_path / "photos", {"a": 5, "b": 4})), 8), tmp_path / "data", workers=1
    )
    return tmp_path / "data"


@pytest.mark.parametrize("buckets", [(), ((2, 3), (3, 2))])
def test_rows_lie_in_the_files_where_their_columns_say(tmp_path: Path, buckets: tuple[tuple[int, int], ...]) -> None:
    """Of several shards and record batches: a row's value, its bytes in the file, and what was written agree."""
    info = DataInfo("latents", 0, None if buckets else (2, 3), channels=4, buckets=buckets, values="samples")
    latents = np.arange(10 * 24, dtype=np.float16).reshape(10, 24)
    with Preparation(tmp_path / "data", {}) as work:
        for part in range(5):
            rows = latents[2 * part : 2 * part + 2]
            columns = {"label": [0, None], "key": ["a", "b"], "latent": list(rows), "bucket": [0, 0]}
            work.write(part, info.schema, columns)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("elit.data.shards.SHARD_BYTES", 3000)
            patch.setattr("elit.data.shards.BATCH_BYTES", 1)
            work.finish(info, 5)
    assert len(list((tmp_path / "data").glob("data-*.arrow"))) > 1
    data = PreparedData(tmp_path / "data")
    column = data._column("latent")
    for row in range(10):
        file, start, end = column.span(row)
        assert column.value(row).tolist() == latents[row].tolist()
        assert file[start:end] == latents[row].tobytes()
    x, labels = data.read(torch.tensor([9, 0]), [torch.Generator()] * 2)
    assert torch.equal(x, torch.from_numpy(latents[[9, 0]]).float().view(2, 4, 2, 3))
    assert labels.tolist() == [-1, 0]


def test_a_row_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """To the last bit, in any place of any batch: shapes whose sizes no vector of the processor divides."""
    info = DataInfo("latents", 0, (3, 5), channels=3, values="moments", scale=0.7, shift=0.1)
    latents = np.random.default_rng(0).normal(size=(7, 90)).astype(np.float16)
    with Preparation(tmp_path / "data", {}) as work:
        work.write(
            0,
            info.schema,
            {"label": [0] * 7, "key": ["a"] * 7, "latent": pa.array(list(latents), pa.list_(pa.float16(), 90))},
        )
        work.finish(info, 1)
    data = PreparedData(tmp_path / "data")

    def read(rows: list[int]) -> torch.Tensor:
        return data.read(torch.tensor(rows), [generator_for("row", row) for row in rows])[0]

    whole = read(list(range(7)))
    for rows in ([3], [6, 3], [0, 2, 3, 5]):
        assert torch.equal(read(rows), whole[rows])


def test_data_pickle_as_their_place(folder: Path) -> None:
    """Another process opens the files itself."""
    data = PreparedData(folder)
    before = data.read(torch.tensor([2, 8]), [torch.Generator()] * 2)
    text = pickle.dumps(data)
    assert len(text) < 5_000
    after = pickle.loads(text).read(torch.tensor([2, 8]), [torch.Generator()] * 2)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_open_data_knows_a_prepared_folder(folder: Path) -> None:
    data = open_data(str(folder), 999)
    assert isinstance(data, PreparedData) and data.shape == (3, 8, 8) and data.label_names == ("a", "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "its format is 2, and this version of elit reads 1"),
        ({"kind": "videos"}, "kind is 'videos'; it should be 'images', "),
        ({"size": "[" * 100}, "size is '[[["),
        ({"kind": "latents"}, "do not fit together"),
        ({"count": 10}, "holds 9 rows"),
        ({"size": [16, 8.5]}, "size.1 is 8.5"),
        ({"kind": "latents", "values": "moments"}, "says 9 rows of ['label', 'key', 'latent']"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"label_names": ["a"]}, "has the label 1 and 1 label names"),
    ],
)
def test_a_description_that_is_wrong(folder: Path, change: dict[str, object], said: str) -> None:
    file = folder / "elit-data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=re.escape(said)):
        PreparedData(folder)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_shard_that_is_cut_short(folder: Path, share: float) -> None:
    shard = next(folder.glob("data-*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="prepare the data again"):
        PreparedData(folder)


def test_files_that_are_missing_or_elsewhere(folder: Path, tmp_path: Path) -> None:
    """A list of files that points outside of the folder is not followed."""
    shard = next(folder.glob("data-*.arrow"))
    shard.rename(tmp_path / "elsewhere.arrow")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "../elsewhere.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="cannot be read"):
        PreparedData(folder)
    with pytest.raises(ValueError, match=r"is not a prepared folder: it holds no elit-data\.json"):
        PreparedData(tmp_path)


def test_shards_take_parts_until_they_are_full() -> None:
    assert plan_shards([3, 3, 3, 9, 1, 1], 6) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert plan_shards([99], 6) == [(0, 1)]


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "null", "{}", '{"_data_files": 3}', '{"_data_files": [{}]}', ""])
@pytest.mark.parametrize("name", ["elit-data.json", "state.json"])
def test_descriptions_of_wrong_shapes(folder: Path, name: str, text: str) -> None:
    """One sentence with the file; a pipe in its place neither."""
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{folder / name}")):
        PreparedData(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=re.escape(f"{folder}")):
        PreparedData(folder)


def test_a_stored_picture_that_is_none_is_told_by_its_name() -> None:
    """Cut short, of no kind, of more pixels than memory holds, and with a text that grows without end."""
    info, out, long = PngImagePlugin.PngInfo(), io.BytesIO(), io.BytesIO()
    info.add_text("a", "x" * 3_000_000, zip=True)
    Image.new("RGB", (1, 1)).save(out, format="PNG")
    Image.new("RGB", (1, 1)).save(long, format="PNG", pnginfo=info)
    whole = out.getvalue()
    huge = whole[:16] + (40_000).to_bytes(4) * 2 + whole[24:29]
    huge += zlib.crc32(huge[12:]).to_bytes(4) + whole[33:]
    assert stored_picture(whole, "row 3").tolist() == [[[0]]] * 3
    for content in (b"", whole[:40], huge, long.getvalue()):
        with pytest.raises(UserError, match=r"row 3 is not a picture .*prepare the data again"):
            stored_picture(content, "row 3")
