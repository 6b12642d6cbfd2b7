"""Where pictures come from: every kind of source lists the same pictures, labels and bytes."""

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import content, textured, write_pictures

from elit.data.sources import SourceOptions, open_source

CLASSES = {"b": 2, "a": 3, "c d": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes; one of them with a folder in it, and files that are no pictures."""
    folder = write_pictures(tmp_path / "photos", CLASSES)
    (folder / "a" / "more").mkdir()
    (folder / "a" / "more" / "x.JPG").write_bytes(content(textured(9, 9, 99), "jpeg"))
    (folder / "a" / "notes.txt").write_text("no picture")
    (folder / "a" / "._000.png").write_bytes(b"of another system")
    (folder / "empty").mkdir()
    return folder


def pictures_of(name: str | Path, options: SourceOptions = SourceOptions()) -> list[tuple[str | None, bytes]]:
    """(label name, bytes) of every picture, in order, read as another process would."""
    source = open_source(str(name), options)
    names = source.label_names
    elsewhere = pickle.loads(pickle.dumps(source))
    return [(None if label is None else names[label], elsewhere.read(key)) for key, label in source.listing()]


def files_of(folder: Path) -> list[tuple[str | None, bytes]]:
    keys = ["a/000.png", "a/001.png", "a/002.png", "a/more/x.JPG", "b/000.png", "b/001.png", "c d/000.png"]
    return [(key.split("/")[0], (folder / key).read_bytes()) for key in keys]


@pytest.fixture
def in_memory() -> Iterator[str]:
    """An object storage's URL."""
    yield "memory://bucket/photos"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_class_folders(folder: Path) -> None:
    """Labels follow the sorted names of the outermost folders, order the sorted paths; what is no picture is left."""
    assert pictures_of(folder) == files_of(folder)
    assert open_source(str(folder)).label_names == ("a", "b", "c d")
    assert pictures_of(f"file://{folder}/") == files_of(folder)


def test_class_folders_may_be_links(folder: Path, tmp_path: Path) -> None:
    """As a subset of a large set is made; a link that leads back up is refused."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in CLASSES:
        (linked / name).symlink_to(folder / name)
    assert pictures_of(linked) == files_of(folder)
    (folder / "a" / "up").symlink_to(folder)
    with pytest.raises(ValueError, match="more than 32 folders deep; remove the link that leads back up"):
        list(open_source(str(folder)).listing())


def test_object_storage(folder: Path, in_memory: str) -> None:
    fsspec.filesystem("memory").put(f"{folder}/", "/bucket/photos/", recursive=True)
    assert pictures_of(in_memory) == files_of(folder)


@pytest.mark.parametrize("wrapped", ["", "my photos/"])
def test_zip(folder: Path, tmp_path: Path, wrapped: str) -> None:
    """With or without one folder around all; in the same order as a folder, whatever the order in the zip."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, wrapped + str(path.relative_to(folder)))
        file.writestr("__MACOSX/a/000.png", b"of another system")
    assert pictures_of(tmp_path / "photos.zip") == files_of(folder)


def test_a_zip_of_one_class_keeps_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("cats/1.png", content(textured(4, 4)))
    assert [label for label, _ in pictures_of(tmp_path / "z.zip")] == ["cats"]


def test_a_folder_without_class_folders_is_one_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"cats": 3})
    assert [label for label, _ in pictures_of(tmp_path / "cats")] == ["cats"] * 3


@pytest.mark.parametrize("as_zip", [False, True])
def test_dataset_json(folder: Path, tmp_path: Path, as_zip: bool) -> None:
    """Labels of the authors' layout go before folders; a picture that is not listed, or null, has none."""
    entries = [["a/000.png", 6], ["b/001.png", 0], ["c d/000.png", 2]]
    name = folder
    (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
    if as_zip:
        name = tmp_path / "z.zip"
        with zipfile.ZipFile(name, "w") as file:
            for path in folder.rglob("*"):
                file.write(path, "images/" + str(path.relative_to(folder)))
    assert [label for label, _ in pictures_of(name)] == ["6", None, None, None, None, "0", "2"]
    assert open_source(str(name)).label_names == tuple("0123456")


def test_a_dataset_json_that_names_no_file_here_is_refused(folder: Path) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": [["images/a/000.png", 1]]}))
    with pytest.raises(ValueError, match=r"names none of its files, such as c d/000\.png; write it again"):
        list(open_source(str(folder)).listing())


def test_dataset_json_without_labels(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"labels": null}')
    assert [label for label, _ in pictures_of(folder)] == [None] * 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"labels": [["a/000.png", -1]]}', "labels from 0 on (in it: labels.0.1 is -1; it should be"),
        ('{"labels": [["a/000.png", "cat"]]}', "labels.0.1 is 'cat'"),
        ('{"labels": [["a/000.png", 10000000]]}', "labels.0.1 is 10000000"),
        ('{"labels": 3}', 'is not {"labels": [["00000/img.png", 6], ...]}'),
        ("[", 'is not {"labels"'),
        ("[" * 100_000, 'is not {"labels"'),
    ],
)
def test_wrong_dataset_json(folder: Path, text: str, said: str) -> None:
    (folder / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        list(open_source(str(folder)).listing())


def a_dataset(folder: Path, labels: list[object], feature: object) -> object:
    from datasets import Dataset, Features, Image

    rows = {"photo": [{"bytes": data, "path": None} for _, data in files_of(folder)][: len(labels)], "label": labels}
    return Dataset.from_dict(rows, features=Features({"photo": Image(), "label": feature}))


def test_data_sets(folder: Path, tmp_path: Path) -> None:
    """A folder that `datasets` wrote, with splits or without, or Parquet files; labels: classes, names or numbers."""
    from datasets import ClassLabel, DatasetDict, Value

    classes = a_dataset(folder, [0, 1, None], ClassLabel(names=["x", "y"]))
    classes.save_to_disk(str(tmp_path / "disk"))
    DatasetDict({"train": classes, "test": classes.select([1])}).save_to_disk(str(tmp_path / "splits"))
    data = [content for _, content in files_of(folder)]
    wanted = list(zip(["x", "y", None], data[:3], strict=True))
    assert pictures_of(tmp_path / "disk") == wanted
    assert pictures_of(tmp_path / "splits") == wanted
    assert pictures_of(tmp_path / "splits", SourceOptions("test")) == wanted[1:2]
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    a_dataset(folder, ["dog", "cat"], Value("string")).to_parquet(str(tmp_path / "parquet" / "data" / "train-0.parquet"))
    assert pictures_of(tmp_path / "parquet") == list(zip(["dog", "cat"], data[:2], strict=True))
    assert open_source(str(tmp_path / "parquet")).label_names == ("cat", "dog")
    a_dataset(folder, [2, 0], Value("int64")).save_to_disk(str(tmp_path / "numbers"))
    assert [label for label, _ in pictures_of(tmp_path / "numbers")] == ["2", "0"]


def test_data_sets_that_name_files(tmp_path: Path) -> None:
    """A file that is gone, one that is none, and nothing at all are errors of their pictures, not of the data set."""
    import datasets

    textured(8, 8).save(tmp_path / "here.png")
    paths = (str(tmp_path / "here.png"), str(tmp_path / "gone.png"), "/dev/zero")
    pictures = [*({"bytes": None, "path": path} for path in paths), None]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    table = pa.table({"image": pictures, "label": [0, 1, 0, 1]}, schema=features.arrow_schema)
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    source = open_source(str(tmp_path / "set"))
    assert [label for _, label in source.listing()] == [0, 1, 0, 1]
    assert source.read("00000000") == (tmp_path / "here.png").read_bytes()
    for key, said in (("00000001", "cannot be read"), ("00000002", "is not a plain file"), ("00000003", "has no picture")):
        with pytest.raises(ValueError, match=said):
            source.read(key)
    for options, said in (
        (SourceOptions(image_column="label"), "the column label of .* holds no pictures"),
        (SourceOptions(label_column="image"), "the column image of .* holds no labels"),
    ):
        with pytest.raises(ValueError, match=said):
            list(open_source(str(tmp_path / "set"), options).listing())


def test_wrong_data_sets(folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset, Value

    a_dataset(folder, [2, -4], Value("int64")).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(ValueError, match=r"holds \[2, -4\]; labels are names, or whole numbers from 0 on"):
        pictures_of(tmp_path / "numbers")
    for options, said in (
        (SourceOptions("test"), "split 'test', cannot be loaded"),
        (SourceOptions(image_column="x"), "no image column 'x'; name one of photo, label with --image-column"),
        (SourceOptions(label_column="x"), "no label column 'x'; name one of photo, label with --label-column"),
    ):
        if options.split == "test":
            from datasets import DatasetDict

            DatasetDict({"train": a_dataset(folder, [1], Value("int64"))}).save_to_disk(str(tmp_path / "splits"))
        with pytest.raises(ValueError, match=said):
            open_source(str(tmp_path / ("splits" if options.split == "test" else "numbers")), options)
    Dataset.from_dict({"text": ["no picture"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(ValueError, match="no image column; name one of text"):
        open_source(str(tmp_path / "text"))


def test_emoji_is_a_source() -> None:
    """The same pictures and classes as training's embedded data."""
    from elit.data.emoji import load_emoji

    source = open_source("emoji")
    data = load_emoji(8)
    assert source.label_names == data.label_names
    listed = list(source.listing())
    assert sorted(label for _, label in listed if label is not None) == sorted(data.labels.tolist())
    assert all(source.read(key).startswith(b"\x89PNG") for key, _ in listed[::100])


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./nowhere.zip"])
def test_missing_source(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"there is no file or folder {name}; give a folder of class folders")):
        open_source(name)


def test_no_such_data_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, an id that is not in the cache is refused in one sentence."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="the data set 'nobody/nothing', split 'train', cannot be loaded"):
        open_source("nobody/nothing")


def test_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3:// and gs:// without their packages say how to install them."""
    for scheme, driver in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, driver, None)
        with pytest.raises(ValueError, match=f"{scheme}:// needs a package that is not installed; .*pip install {driver}"):
            open_source(f"{scheme}://bucket/photos")
    with pytest.raises(ValueError, match=r"cannot be opened|needs a package"):
        open_source("nonsense://bucket/photos")


def test_empty_sources(tmp_path: Path, in_memory: str) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "cats" / "notes.txt").write_text("no picture")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    fsspec.filesystem("memory").touch("/bucket/photos/notes.txt")
    for name in (str(tmp_path / "photos"), str(tmp_path / "empty.zip"), in_memory):
        with pytest.raises(ValueError, match=re.escape(f"{name} holds no images")):
            _ = open_source(name).label_names
    with pytest.raises(ValueError, match="memory://bucket/nowhere is not a folder"):
        open_source("memory://bucket/nowhere")


def test_what_is_no_source(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match=r"broken\.zip is not a whole zip file"):
        open_source(str(tmp_path / "broken.zip"))
    with pytest.raises(ValueError, match="is a file and no zip file"):
        open_source(str(folder / "a" / "000.png"))
    (folder / "loose.png").write_bytes(content(textured(4, 4)))
    with pytest.raises(ValueError, match=r"holds loose\.png beside class folders; move it into one of them"):
        _ = open_source(str(folder)).label_names


def test_an_unreadable_class_folder_is_named(folder: Path) -> None:
    """As another user than root, whom nothing stops."""
    (folder / "b").chmod(0)
    user = os.geteuid()
    for parent in folder.parents:
        if user == 0 and parent.owner() == "root" and parent != Path("/tmp") and "pytest" in str(parent):
            parent.chmod(0o755)
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(ValueError, match=re.escape(f"the folder {folder / 'b'} cannot be read (Permission denied)")):
            list(open_source(str(folder)).listing())
    finally:
        os.seteuid(user)
        (folder / "b").chmod(0o755)


def test_a_zip_of_one_picture(tmp_path: Path) -> None:
    """At its root, where it is no folder's name."""
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as file:
        file.writestr("x.png", content(textured(4, 4)))
    assert pictures_of(tmp_path / "one.zip") == [("one", content(textured(4, 4)))]


def test_files_that_never_end(tmp_path: Path) -> None:
    """A pipe or a device in place of a zip or of dataset.json is refused at once."""
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "zero.zip").symlink_to("/dev/zero")
    for name in ("pipe.zip", "zero.zip"):
        with pytest.raises(ValueError, match=f"{name} is not a plain file"):
            open_source(str(tmp_path / name))
    folder = write_pictures(tmp_path / "photos", {"a": 1})
    os.mkfifo(folder / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset\.json is not a plain file"):
        list(open_source(str(folder)).listing())


def test_a_large_member_of_a_zip_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elit.data.sources.PICTURE_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/bomb.png", bytes(2**21))
    source = open_source(str(tmp_path / "z.zip"))
    with pytest.raises(ValueError, match="it is larger than 1 MiB"):
        source.read("a/bomb.png")


def test_splits_of_parquet_files(folder: Path, tmp_path: Path) -> None:
    """The files of the split that was asked for; also in a folder whose name is a pattern."""
    from datasets import Value

    mine = tmp_path / "dd[a]"
    mine.mkdir()
    for split, label in (("train", "dog"), ("test", "cat")):
        a_dataset(folder, [label], Value("string")).to_parquet(str(mine / f"{split}-00000-of-00001.parquet"))
    assert [label for label, _ in pictures_of(mine)] == ["dog"]
    assert [label for label, _ in pictures_of(mine, SourceOptions("test"))] == ["cat"]
    with pytest.raises(ValueError, match=r"none of the Parquet files of .* is of the split 'validation'"):
        open_source(str(mine), SourceOptions("validation"))


def test_options_that_nobody_uses_are_refused(folder: Path) -> None:
    for name in (str(folder), "emoji"):
        with pytest.raises(ValueError, match=r"a split or a column is of a data set, and .* is none; leave it out"):
            open_source(name, SourceOptions("test"))


def test_names_of_the_classes_in_dataset_json(folder: Path) -> None:
    """As elit sample writes them; too few are not used."""
    file = folder / "dataset.json"
    for names, wanted in ((["x", "y", "z"], ("x", "y", "z")), (["x"], ("0", "1", "2"))):
        file.write_text(json.dumps({"labels": [["a/000.png", 2]], "label_names": names}))
        assert open_source(str(folder)).label_names == wanted
