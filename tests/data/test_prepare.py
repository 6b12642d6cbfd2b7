"""`elit prepare images`: the same bytes however the work was split or interrupted, and nothing lost to a bad picture."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import textured, write_pictures
from PIL import Image

from elit.data.crops import crop_adm
from elit.data.dataset import INFO_FILE, PreparedData
from elit.data.prepare import ImageSettings, prepare_images, write_folder
from elit.data.publish import publish
from elit.data.shards import Preparation
from elit.data.sources import SourceOptions, open_source
from elit.pixels import to_float

CLASSES = {"cats": 40, "dogs": 35}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("source") / "photos", CLASSES)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts of a few pictures; processes that are started inherit it."""
    monkeypatch.setattr(ImageSettings, "part_rows", 8)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def no_generators(count: int) -> list[torch.Generator]:
    return [torch.Generator()] * count


def test_rows_are_the_crops_in_the_order_of_the_source(photos: Path, tmp_path: Path) -> None:
    info = prepare_images(ImageSettings(str(photos), 8), tmp_path / "out", workers=1)
    assert (info.count, info.size, info.label_names, info.label_counts) == (75, (8, 8), ("cats", "dogs"), (40, 35))
    data = PreparedData(tmp_path / "out")
    files = sorted(photos.rglob("*.png"))
    assert data.labels.tolist() == [("cats", "dogs").index(file.parent.name) for file in files]
    rows = torch.tensor([74, 0, 41])
    x, labels = data.read(rows, no_generators(3))
    assert labels.tolist() == [1, 0, 1]
    for image, row in zip(x, rows.tolist(), strict=True):
        with Image.open(files[row]) as picture:
            wanted = torch.from_numpy(np.array(crop_adm(picture, 8))).permute(2, 0, 1)
        assert torch.equal(image, to_float(wanted))
    assert json.loads((tmp_path / "out" / "skipped.json").read_text()) == []
    assert data.table["key"].to_pylist() == [str(file.relative_to(photos)) for file in files]


def test_others_open_the_folder_with_datasets(photos: Path, tmp_path: Path) -> None:
    import datasets

    prepare_images(ImageSettings(str(photos), 8), tmp_path / "out", workers=1)
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert loaded.features["label"].names == ["cats", "dogs"]
    assert loaded[70]["image"].size == (8, 8)
    data = PreparedData(tmp_path / "out")
    assert np.array_equal(np.array(loaded[70]["image"]), data.image(70).permute(1, 2, 0).numpy())


def test_any_number_of_processes_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    settings = ImageSettings(str(photos), 16, "random-crop")
    prepare_images(settings, tmp_path / "one", workers=1)
    prepare_images(settings, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert not (tmp_path / "two" / "parts").exists()


KILLED = """
import sys
from elit.data.prepare import ImageSettings, prepare_images
ImageSettings.part_rows = 8
prepare_images(ImageSettings(sys.argv[1], 64, "buckets"), sys.argv[2], workers=2)
"""


def test_a_killed_preparation_goes_on_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    """Killed when some parts are there; what they hold is not made again."""
    settings, out = ImageSettings(str(photos), 64, "buckets"), tmp_path / "killed"
    prepare_images(settings, tmp_path / "whole", workers=1)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(photos), str(out)], stderr=subprocess.DEVNULL)
    while len(list(out.glob("parts/*.json"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "elit-data.json").exists()
    with pytest.raises(ValueError, match="not prepared to the end; run its elit prepare command again"):
        PreparedData(out)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("parts/*.json")}
    assert 2 <= len(kept) < 10
    made: list[int] = []
    write = Preparation.write

    def recording(self: Preparation, part: int, *args: object, **notes: object) -> None:
        made.append(part)
        write(self, part, *args, **notes)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preparation, "write", recording)
        prepare_images(settings, out, workers=1)
    assert len(made) <= 10 - len(kept)  # the killed one's own processes may have ended another part
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_kill_while_parts_are_joined_loses_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The join is cut short after each of its steps, again and again."""
    import elit.data.shards as shards

    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000)
    settings = ImageSettings(str(photos), 16)
    prepare_images(settings, tmp_path / "whole", workers=1)
    assert len(list((tmp_path / "whole").glob("data-*.arrow"))) > 2

    class CutError(Exception):
        pass

    original_write, original_join = shards.write_whole, Preparation._join
    for allowed in range(40):
        steps = iter(range(allowed))

        def cut(*_: object, steps: object = steps) -> None:
            if next(steps, None) is None:  # type: ignore[call-overload]
                raise CutError

        def join(self: Preparation, *arguments: object, cut: object = cut) -> None:
            cut()  # type: ignore[operator]
            original_join(self, *arguments)  # type: ignore[arg-type]

        def write(file: Path, text: str, cut: object = cut) -> None:
            if file.parent.name != "parts":
                cut()  # type: ignore[operator]
            original_write(file, text)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Preparation, "_join", join)
            patch.setattr(shards, "write_whole", write)
            try:
                prepare_images(settings, tmp_path / "cut", workers=1)
            except CutError:
                continue
        break
    assert allowed > 3
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert PreparedData(tmp_path / "cut").info.count == 75


def test_a_kill_at_the_very_end_asks_for_no_picture_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are gone and only the last description is missing: no part is made a second time."""
    import elit.data.shards as shards

    settings = ImageSettings(str(photos), 16)
    prepare_images(settings, tmp_path / "whole", workers=1)

    class CutError(Exception):
        pass

    original = shards.write_whole

    def write(file: Path, text: str) -> None:
        if file.name == INFO_FILE:
            raise CutError
        original(file, text)

    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(shards, "write_whole", write)
        prepare_images(settings, tmp_path / "cut", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("elit.data.prepare._Worker.write", lambda *_: pytest.fail("a part is made again"))
        prepare_images(settings, tmp_path / "cut", workers=1)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_bad_pictures_are_left_out_and_listed(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    write_pictures(source, {"cats": 3, "dogs": 3})
    (source / "cats" / "000.png").write_bytes((source / "cats" / "000.png").read_bytes()[:200])
    (source / "cats" / "003.jpg").write_bytes(b"no picture at all")
    Image.new("RGB", (9000, 1)).save(source / "dogs" / "thin.png")
    (source / "dogs" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    info = prepare_images(ImageSettings(str(source), 128), tmp_path / "out", workers=1)
    assert info.label_counts == (2, 3)
    listed = dict(json.loads((tmp_path / "out" / "skipped.json").read_text()))
    assert list(listed) == ["cats/000.png", "cats/003.jpg", "dogs/gone.png", "dogs/thin.png"]
    assert listed["cats/003.jpg"] == "cannot identify image file"
    assert "truncated" in listed["cats/000.png"] and "too long and thin" in listed["dogs/thin.png"]
    assert PreparedData(tmp_path / "out").table["key"].to_pylist() == [
        *("cats/001.png", "cats/002.png", "dogs/000.png", "dogs/001.png", "dogs/002.png")
    ]


def test_no_picture_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"none of the pictures could be read; .*skipped.json says why"):
            prepare_images(ImageSettings(str(tmp_path / "photos"), 8), tmp_path / "out", workers=1)


def test_pictures_without_labels(photos: Path, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "photos", {"a": 2})
    (source / "dataset.json").write_text('{"labels": null}')
    prepare_images(ImageSettings(str(source), 8), tmp_path / "out", workers=1)
    data = PreparedData(tmp_path / "out")
    assert (data.labels.tolist(), data.label_names) == ([-1, -1], ())


def test_buckets(tmp_path: Path) -> None:
    """Each picture has its bucket's size, and a read takes the rows of one bucket."""
    source = write_pictures(tmp_path / "photos", {"wide": 3}, 40, 20)
    write_pictures(source, {"tall": 2}, 20, 40)
    prepare_images(ImageSettings(str(source), 16, "buckets", bucket_step=4), tmp_path / "out", workers=1)
    data = PreparedData(tmp_path / "out")
    assert data.info.buckets == ((12, 20), (16, 16), (20, 12)) and data.info.size is None
    read = {tuple(data.read(rows, no_generators(len(rows)))[0].shape): rows.tolist() for rows in data.members}
    assert read == {(2, 3, 20, 12): [0, 1], (3, 3, 12, 20): [2, 3, 4]}


def test_a_folder_of_other_settings_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_images(ImageSettings(str(photos), 8), out, workers=1)
    before = bytes_of(out)
    assert prepare_images(ImageSettings(str(photos), 8), out, workers=1).count == 75
    with pytest.raises(
        ValueError, match=r"prepared with other settings \(size is 8 there and 16 now\); give another folder"
    ):
        prepare_images(ImageSettings(str(photos), 16), out, workers=1)
    source = write_pictures(tmp_path / "photos", {"cats": 2})
    prepare_images(ImageSettings(str(source), 8), tmp_path / "two", workers=1)
    textured(9, 9).save(source / "cats" / "more.png")
    with pytest.raises(ValueError, match="pictures is 2 there and 3 now"):
        prepare_images(ImageSettings(str(source), 8), tmp_path / "two", workers=1)
    with pytest.raises(ValueError, match="exists and holds no prepared data"):
        prepare_images(ImageSettings(str(photos), 8), photos, workers=1)
    assert bytes_of(out) == before


HOLDING = """
import sys
from elit.data.shards import Preparation
with Preparation(sys.argv[1], {"a": 1}):
    print("held", flush=True)
    input()
"""


def test_two_preparations_in_one_folder(tmp_path: Path) -> None:
    """The lock ends with its holder, also where that is killed."""
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=r"another process is preparing in .*out"), Preparation(out, {"a": 1}):
        pass
    other.kill()
    other.communicate()
    with Preparation(out, {"a": 1}):
        pass
    assert not (out / ".lock").exists()


def test_a_folder_that_was_killed_before_it_had_settings_is_new(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on another machine")
    with Preparation(tmp_path, {"a": 1}):
        pass


def test_the_same_source_spelled_otherwise_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slash at the end, another working directory; not another folder with the same names."""
    prepare_images(ImageSettings(str(photos), 8, count=3), tmp_path / "out", workers=1)
    monkeypatch.chdir(photos.parent)
    for name in (f"{photos}/", "photos", "./photos"):
        assert prepare_images(ImageSettings(name, 8, count=3), tmp_path / "out", workers=1).count == 3
    twin = write_pictures(tmp_path / "photos", CLASSES)
    with pytest.raises(ValueError, match=r"source is .* there and .* now"):
        prepare_images(ImageSettings(str(twin), 8, count=3), tmp_path / "out", workers=1)


def test_a_long_name_of_the_temporary_folder(photos: Path, tmp_path: Path) -> None:
    """Longer than a socket's name may be: processes meet elsewhere."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    environment = {**os.environ, "TMPDIR": str(long)}
    command = [sys.executable, "-m", "elit", "prepare", "images", str(photos), "--size", "8", "--count", "9"]
    done = subprocess.run([*command, "--workers", "2", "--out", str(tmp_path / "out")], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert PreparedData(tmp_path / "out").info.count == 9


@pytest.mark.parametrize("file", ["settings.json", "shards.json", "parts/000000.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "3", '{"count": -1}', ""])
def test_records_of_a_preparation_that_are_damaged(photos: Path, tmp_path: Path, file: str, text: str) -> None:
    """Each is one sentence with the file."""
    settings, out = ImageSettings(str(photos), 8, count=3), tmp_path / "out"
    prepare_images(settings, out, workers=1)
    (out / "elit-data.json").unlink()
    (out / "parts").mkdir()
    (out / "parts" / "000000.json").write_text(json.dumps({"rows": 3, "bytes": 9}))
    (out / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(out))):
        prepare_images(settings, out, workers=1)


def test_what_a_killed_run_left_beside_is_removed(photos: Path, tmp_path: Path) -> None:
    """Half a shard; and where nothing but such a part is there, the folder counts as new."""
    (tmp_path / "data").mkdir()
    for name in (".settings.json.99.part", ".data-00000-of-00001.arrow.99.part"):
        (tmp_path / "data" / name).write_bytes(b"half")
    prepare_images(ImageSettings(str(photos), 8), tmp_path / "data", workers=1)
    assert not list((tmp_path / "data").glob(".*"))


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(photos: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's; the join is what goes over it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match=r"could not be written .*; make room, and give the same command again"):
            prepare_images(ImageSettings(str(photos), 32), tmp_path / "out", workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    prepare_images(ImageSettings(str(photos), 32), tmp_path / "out", workers=1)
    prepare_images(ImageSettings(str(photos), 32), tmp_path / "whole", workers=1)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_published_parquet_and_card(photos: Path, tmp_path: Path) -> None:
    """`datasets` opens it by its card; it is a source again; nothing is written over."""
    import datasets
    import yaml

    prepare_images(ImageSettings(str(photos), 8, count=60), tmp_path / "out", workers=1)
    publish(tmp_path / "out", tmp_path / "mine")
    rows = datasets.load_dataset(str(tmp_path / "mine"), split="train", cache_dir=str(tmp_path / "cache"))
    assert (len(rows), rows.features["label"].names) == (60, ["cats", "dogs"])
    data = PreparedData(tmp_path / "out")
    assert np.array_equal(np.array(rows[59]["image"]), data.image(59).permute(1, 2, 0).numpy())
    text = (tmp_path / "mine" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["size_categories"] == ["n<1K"] and header["configs"][0]["data_files"][0]["split"] == "train"
    assert "| 0 | cats | 40 |\n| 1 | dogs | 20 |" in text and "8 x 8" in text and str(tmp_path) not in text
    source = open_source(str(tmp_path / "mine"))
    assert source.label_names == ("cats", "dogs") and len(list(source.listing())) == 60
    with pytest.raises(ValueError, match="exists"):
        publish(tmp_path / "out", tmp_path / "mine")


def test_a_prepared_folder_is_a_source(photos: Path, tmp_path: Path) -> None:
    prepare_images(ImageSettings(str(photos), 16), tmp_path / "large", workers=1)
    info = prepare_images(ImageSettings(str(tmp_path / "large"), 8, options=SourceOptions()), tmp_path / "small", workers=1)
    assert (info.count, info.label_names, info.label_counts) == (75, ("cats", "dogs"), (40, 35))


def test_write_folder(photos: Path, tmp_path: Path) -> None:
    """A source's own files, by class; again a source."""
    count = write_folder(open_source(str(photos)), tmp_path / "some", ["dogs"], 4)
    files = sorted((tmp_path / "some").rglob("*.*"))
    assert count == 4 and [str(f.relative_to(tmp_path / "some")) for f in files] == [f"dogs/{i:06d}.png" for i in range(4)]
    assert files[3].read_bytes() == (photos / "dogs" / "003.png").read_bytes()
    with pytest.raises(ValueError, match="exists"):
        write_folder(open_source(str(photos)), tmp_path / "some", [], None)
    with pytest.raises(ValueError, match="there is no label 'cow'"):
        write_folder(open_source(str(photos)), tmp_path / "more", ["cow"], None)
    with pytest.raises(ValueError, match="count is -1; it must be at least 1"):
        write_folder(open_source(str(photos)), tmp_path / "more", [], -1)
    assert not (tmp_path / "more").exists()
    both = open_source(str(write_pictures(tmp_path / "alike", {"C+": 1, "C#": 1})))
    with pytest.raises(ValueError, match="two of the classes would have one folder's name"):
        write_folder(both, tmp_path / "more", [], None)
    assert write_folder(both, tmp_path / "more", ["C#"], None) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"count": 0}, "count is 0"),
        ({"crop": "middle"}, "there is no crop 'middle'; choose one of center-crop-adm"),
        ({"buckets": ((8, 8),)}, "buckets are given and the crop is center-crop-adm"),
    ],
)
def test_wrong_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageSettings("photos", **settings)  # type: ignore[arg-type]


def test_no_workers(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers is 0"):
        prepare_images(ImageSettings(str(photos), 8), tmp_path / "out", workers=0)


def test_write_folder_leaves_out_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pictures(tmp_path / "photos", {"cats": 2})
    (source / "cats" / "gone.png").symlink_to("/nowhere")
    assert write_folder(open_source(str(source)), tmp_path / "out", [], None) == 2
    assert "1 unreadable: cannot be read: No such file or directory (cats/gone.png)" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/out", "loop/out", "loop"])
def test_a_place_that_cannot_be_written_is_told_at_once(photos: Path, tmp_path: Path, place: str) -> None:
    """Before any picture is read, in one sentence with the place."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=rf"{place} could not be written \(.*\); give a folder that you may write to"):
        prepare_images(ImageSettings(str(photos), 8), tmp_path / place, workers=1)
    with pytest.raises(OSError, match=r"could not be written \(.*\); give a folder that you may write to"):
        write_folder(open_source(str(photos)), tmp_path / place, [], None)
