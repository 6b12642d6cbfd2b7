"""Images to evaluate: read as they are, in their order, from every kind of source; and refused with the reason."""

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit import DiT, UserError
from elit.codec import PixelCodec
from elit.data.dataset import PreparedData
from elit.data.prepare import ImageSettings, prepare_images
from elit.evaluation.sources import Sampled, image_files, open_images, prefetched
from elit.generation import generate, tile_images
from elit.labels import LabelRule
from elit.pixels import to_uint8
from elit.recipe import Recipe
from elit.words import spread

UNIFORM = LabelRule("uniform", 7)


def pixels_of(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of 9 x 6 in two folders."""
    for i in range(10):
        file = tmp_path / "pictures" / "ab"[i // 5] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(i)).save(file)
    return tmp_path / "pictures"


def test_folders_and_arrays_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    """All below a folder in order of names; `arr_0` from the disk, compressed or not, in either order of memory."""
    expected = torch.from_numpy(np.stack([pixels_of(i) for i in range(10)])).permute(0, 3, 1, 2)
    array = expected.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "plain.npz", arr_0=array, arr_1=np.arange(10))
    np.savez_compressed(tmp_path / "packed.npz", arr_0=array)
    np.savez(tmp_path / "fortran.npz", arr_0=np.asfortranarray(array))
    for name in (folder, tmp_path / "plain.npz", tmp_path / "packed.npz", tmp_path / "fortran.npz"):
        source = open_images(str(name))
        assert (source.count, source.size, source.notes()) == (10, (6, 9), [])
        assert torch.equal(source.read(0, 10), expected)
        assert torch.equal(source.read(7, 9), expected[7:9])
        few = open_images(str(name), count=4)
        assert torch.equal(few.read(0, 4), expected[[0, 2, 5, 7]])  # spread over both folders
        with pytest.raises(ValueError, match=r"holds 10 images, so 11 cannot be taken"):
            open_images(str(name), count=11)
    assert isinstance(np.load(tmp_path / "plain.npz")["arr_0"], np.ndarray)


def test_grey_and_transparent_pictures_are_made_rgb_and_told(folder: Path) -> None:
    """Grey is repeated; what is transparent lies on white; the notes count both."""
    grey = pixels_of(20)[:, :, 0]
    Image.fromarray(grey).save(folder / "a" / "1.png")
    rgba = np.concatenate([pixels_of(21), np.zeros((6, 9, 1), dtype=np.uint8)], axis=2)
    rgba[:, 4:, 3] = 255
    Image.fromarray(rgba).save(folder / "a" / "2.png")
    source = open_images(str(folder))
    images = source.read(0, 10)
    assert torch.equal(images[1], torch.from_numpy(grey).expand(3, -1, -1))
    assert bool((images[2, :, :, :4] == 255).all())
    assert torch.equal(images[2, :, :, 4:], torch.from_numpy(rgba[:, 4:, :3]).permute(2, 0, 1))
    assert source.notes() == [
        "1 images grey or of a palette were made RGB, transparency on white",
        "1 images with transparency were made RGB, transparency on white",
    ]


def test_pictures_of_another_size_are_refused_or_resized(folder: Path) -> None:
    Image.fromarray(pixels_of(30, 12, 8)).save(folder / "b" / "7.png")
    source = open_images(str(folder))
    with pytest.raises(ValueError, match=r"b/7\.png is 8 x 12, and 0\.png is 9 x 6: .* give --size N"):
        source.read(5, 9)
    resized = open_images(str(folder), square=4)
    assert resized.size == (4, 4)
    assert resized.read(5, 9).shape == (4, 3, 4, 4)


def test_a_sample_folder_lists_its_images(tiny: DiT, tmp_path: Path) -> None:
    """The sheet is none of them; the folder above is taken where it holds one sample, and refused where it holds several."""
    recipe = Recipe(steps=2, tile=4)
    folder = generate(tiny, recipe, UNIFORM, 6, tmp_path)
    source = open_images(str(folder))
    assert (source.count, source.size) == (6, (8, 8))
    assert image_files(tmp_path) == image_files(folder)
    sampled = Sampled("m", tiny, recipe, UNIFORM, PixelCodec(), 6)
    assert (sampled.grain, sampled.size) == (4, (8, 8))
    assert torch.equal(sampled.read(0, 6), source.read(0, 6))
    assert torch.equal(sampled.read(3, 5), source.read(3, 5))
    generate(tiny, Recipe(steps=3, tile=4), UNIFORM, 2, tmp_path)
    with pytest.raises(ValueError, match="holds 2 samples of different settings; give one, such as"):
        open_images(str(tmp_path))


def test_the_emoji_come_in_the_size_of_the_samples() -> None:
    source = open_images("emoji", count=5, like=(16, 16))
    assert (source.count, source.size, source.read(0, 5).dtype) == (5, (16, 16), torch.uint8)


def test_a_corrupt_picture_is_left_out_and_told(folder: Path) -> None:
    """Cut short, or with a broken chunk; also where a thread of its own reads it. The others are then read again."""
    whole = (folder / "b" / "6.png").read_bytes()
    for broken in (whole[:60], whole[:30] + b"\xff" * 8 + whole[38:], b""):
        (folder / "b" / "6.png").write_bytes(broken)
        source = open_images(str(folder))
        count = source.count
        list(prefetched(source.read, [(0, 4), (4, 8), (8, count)], False))
        assert source.leave_out_broken() and not source.leave_out_broken()
        assert source.count == count - 1 and "b/6.png" not in [source.label(i) for i in range(source.count)]
        assert source.notes()[-1].startswith("passed over: 1 unreadable: ") and "b/6.png" in source.notes()[-1]


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images \(it is empty\); give a folder"):
        open_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"there are no images at nowhere; give a folder, an \.npz with arr_0, or emoji"):
        open_images("nowhere")
    file = tmp_path / "x.npz"
    for array, said in (
        (np.zeros((2, 4, 4, 3)), r"is \(2, 4, 4, 3\) float64; images are \(N, H, W, 3\) uint8"),
        (np.zeros((2, 4, 4, 1), dtype=np.uint8), r"is \(2, 4, 4, 1\) uint8; images are"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), r"is \(0, 4, 4, 3\) uint8; images are"),
        (np.array([None, {}]), "cannot be read .*Python objects"),
    ):
        np.savez(file, arr_0=array)
        with pytest.raises(ValueError, match=said):
            open_images(str(file))
    np.savez(file, images=np.zeros(3))
    with pytest.raises(ValueError, match="holds no images: it has images and no arr_0"):
        open_images(str(file))
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is not an \.npz"):
        open_images(str(file))


def test_prefetching_keeps_the_order_and_reads_ahead() -> None:
    """Whatever run is read first; the next ones are read before they are asked for, and not all at once."""
    release, started = threading.Event(), []

    def read(first: int, last: int) -> torch.Tensor:
        started.append(first)
        if first == 0:
            assert release.wait(10)
        return torch.arange(first, last)

    def runs() -> Iterator[tuple[int, int]]:
        for first in range(0, 60, 2):
            if first == 8:
                release.set()
            yield first, first + 2

    found = prefetched(read, runs(), False)
    first, values = next(found)
    assert (first, values.tolist()) == (0, [0, 1])
    assert 1 < len(started) < 12
    rest = list(found)
    assert [first for first, _ in rest] == list(range(2, 60, 2))
    assert torch.cat([values, *(v for _, v in rest)]).tolist() == list(range(60))


def test_samples_are_rounded_as_files_are(tiny: DiT) -> None:
    recipe = Recipe(steps=2, tile=2)
    assert torch.equal(
        Sampled("m", tiny, recipe, UNIFORM, PixelCodec(), 4).read(2, 4),
        to_uint8(tile_images(tiny, recipe, UNIFORM, PixelCodec(), 1)),
    )


def members(file: Path, **content: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, some in content.items():
            archive.writestr(name.replace("_npy", ".npy"), some)
    return file


def array_bytes(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue() + content


def encrypted(file: Path) -> Path:
    """Marks the entry as encrypted, in its own header and in the list of all."""
    content = bytearray(members(file, arr_0_npy=array_bytes((1, 1, 1, 3), b"abc")).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    return file


def packed_unknown(file: Path) -> Path:
    content = bytearray(members(file, arr_0_npy=array_bytes((1, 1, 1, 3), b"abc")).read_bytes())
    content[8], content[content.index(b"PK\x01\x02") + 10] = 77, 77
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (encrypted, "cannot be read .*encrypted"),
        (packed_unknown, "compressed in a way that cannot be read here"),
        (lambda file: members(file, arr_0_npy=array_bytes((-1, 4, 4, 3), b"x" * 48)), "no array of the shape it says"),
        (lambda file: members(file, arr_0_npy=array_bytes((2**50, 4, 4, 3), b"x")), "no array of the shape it says"),
        (lambda file: members(file, arr_0_npy=array_bytes((1, 4, 4, 3), b"x" * 40)), "no array of the shape it says"),
        (lambda file: members(file, arr_0_npy=b"nothing"), "cannot be read"),
        (lambda file: members(file, arr_0=array_bytes((1, 1, 1, 3), b"abc")), r"it has arr_0 and no arr_0\.npy"),
        (lambda file: members(file), "it has nothing and no arr_0"),
        (lambda file: os.mkfifo(file) or file, "is not a plain file"),
    ],
)
def test_arrays_that_cannot_be_are_refused(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    """At once, in a sentence that names the file."""
    file = make(tmp_path / "bad.npz")
    with pytest.raises(UserError, match=said) as error:
        open_images(str(file))
    assert "bad.npz" in str(error.value)


def test_a_packed_array_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "packed.npz"
    np.savez_compressed(file, arr_0=np.zeros((4, 8, 8, 3), dtype=np.uint8))
    assert open_images(str(file)).count == 4
    monkeypatch.setattr("elit.evaluation.arrays._memory", lambda: 700)
    with pytest.raises(UserError, match="takes 768 bytes of memory, more than the 700"):
        open_images(str(file))


def test_a_prepared_folder_is_a_set_of_images(folder: Path, tmp_path: Path) -> None:
    """As its rows are; resized as files are; its latents, and an unfinished one, are told so."""
    prepare_images(ImageSettings(str(folder), 8), tmp_path / "data", workers=1)
    data, source = PreparedData(tmp_path / "data"), open_images(str(tmp_path / "data"), count=4)
    assert (source.count, source.size) == (4, (8, 8)) and not source.leave_out_broken() and source.notes() == []
    wanted = torch.stack([data.image(row) for row in spread(4, len(data))])
    assert (
        torch.equal(source.read(0, 4), wanted) and source.label(1) == f"row {spread(4, len(data))[1]} of {tmp_path / 'data'}"
    )
    assert open_images(str(tmp_path / "data"), square=4).read(0, 2).shape == (2, 3, 4, 4)
    info = tmp_path / "data" / "elit-data.json"
    text = info.read_text()
    info.unlink()
    with pytest.raises(ValueError, match="is not prepared to the end"):
        open_images(str(tmp_path / "data"))
    info.write_text(text.replace('"values": null', '"values": "samples"').replace('"kind": "images"', '"kind": "latents"'))
    with pytest.raises(ValueError, match=r"prepare the data again|holds latents"):
        open_images(str(tmp_path / "data"))


def test_pictures_of_several_sizes_need_one(folder: Path, tmp_path: Path) -> None:
    settings = ImageSettings(str(folder), 8, "buckets", buckets=((8, 8), (8, 16)))
    prepare_images(settings, tmp_path / "data", workers=1)
    with pytest.raises(ValueError, match="has pictures of several sizes; give --size N"):
        open_images(str(tmp_path / "data"))
    assert open_images(str(tmp_path / "data"), square=8).size == (8, 8)


def test_a_sample_that_lost_an_image_is_refused(tiny: DiT, tmp_path: Path) -> None:
    """dataset.json lists what was made; more than that is told."""
    folder = generate(tiny, Recipe(steps=2, tile=4), LabelRule("uniform", 7), 4, tmp_path)
    (folder / "00000" / "more.png").write_bytes((folder / "00000" / "000000.png").read_bytes())
    source = open_images(str(folder))
    assert source.count == 4
    assert source.notes()[-1] == "passed over: 1 not listed in dataset.json (00000/more.png)"
    (folder / "00000" / "000003.png").unlink()
    with pytest.raises(ValueError, match=r"has no 00000/000003\.png, which its dataset\.json lists; give its elit sample"):
        open_images(str(folder))
