"""Pixels and folders of images."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from elit.data.crops import on_white
from elit.data.images import SUFFIXES, load_folder, load_square
from elit.data.opening import load_images
from elit.pixels import as_tensor, to_float, to_uint8

COLOUR = (200, 100, 40)


def write(file: Path, image: Image.Image, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


def plain(size: tuple[int, int] = (8, 8), colour: tuple[int, ...] = COLOUR, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def textured(width: int, height: int) -> Image.Image:
    """A picture of which every pixel is another colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def only_colour(image: Tensor) -> list[int]:
    """The colour of an image of one colour."""
    values = image.flatten(1)
    assert (values == values[:, :1]).all()
    return values[:, 0].tolist()


def test_pixels_to_floats_and_back() -> None:
    """0 is -1, 255 is 1, in steps of 2/255, and every pixel value survives the way there and back."""
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(pixels)
    expected = torch.tensor([-1 + 2 * i / 255 for i in range(256)])
    torch.testing.assert_close(floats, expected)
    assert torch.equal(to_uint8(floats), pixels)


def test_to_uint8_rounds_to_the_nearest_and_clamps() -> None:
    """Values between two pixels take the nearer, values beyond the range its end."""
    values = torch.tensor([-7.0, -1.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 1 - 1.1 / 255, 1.0, 7.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 254, 255, 255]


def test_class_folders_are_labels(tmp_path: Path) -> None:
    """Labels follow the sorted names of the folders; images are (N, 3, size, size) uint8, channels in order."""
    colours = {"b": (10, 20, 30), "a": (40, 50, 60), "c": (70, 80, 90)}
    for name, colour in colours.items():
        for i in range(2):
            write(tmp_path / name / f"{i}.png", plain(colour=colour))
    data = load_folder(tmp_path, 4)
    assert data.images.dtype == torch.uint8
    assert data.label_names == ("a", "b", "c")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels.dtype == torch.int64
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        assert image.shape == (3, 4, 4)
        assert only_colour(image) == list(colours[data.label_names[label]])


def test_every_kind_of_file_is_read_and_others_are_not(tmp_path: Path) -> None:
    """Suffixes in any case; notes and folders without images make neither an image nor a label."""
    for suffix in SUFFIXES:
        write(tmp_path / "cats" / f"low{suffix}", plain())
        write(tmp_path / "cats" / f"up{suffix.upper()}", plain())
    (tmp_path / "cats" / "notes.txt").write_text("not an image")
    (tmp_path / "dogs").mkdir()
    data = load_images(str(tmp_path), 8)
    assert len(data) == 2 * len(SUFFIXES)
    assert data.label_names == ("cats",)
    assert (data.images.float() - torch.tensor(COLOUR).view(3, 1, 1)).abs().max() <= 4  # JPEG and WebP lose a little


def grey_of(colour: tuple[int, int, int]) -> int:
    """ITU-R 601 luma, as PIL's grey images hold it."""
    return round(sum(weight * value for weight, value in zip((0.299, 0.587, 0.114), colour, strict=True)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (plain(), list(COLOUR)),
        (plain(mode="RGBA", colour=(*COLOUR, 255)), list(COLOUR)),
        (plain(mode="RGBA", colour=(*COLOUR, 0)), [255, 255, 255]),
        (plain(mode="RGBA", colour=(*COLOUR, 102)), [233, 193, 169]),  # 0.4 colour + 0.6 white
        (plain().quantize(4), list(COLOUR)),
        (plain().convert("L"), [grey_of(COLOUR)] * 3),
        (Image.new("LA", (8, 8), (100, 51)), [224, 224, 224]),  # 0.2 * 100 + 0.8 * 255
        (Image.new("1", (8, 8), 0), [0, 0, 0]),
        (Image.fromarray(np.full((8, 8), 100 * 257, dtype=np.uint16)), [100, 100, 100]),  # 16 bits a pixel
    ],
    ids=["RGB", "opaque", "clear", "half clear", "palette", "grey", "grey alpha", "bits", "16-bit grey"],
)
def test_modes_of_png(tmp_path: Path, image: Image.Image, expected: list[int]) -> None:
    """Whatever a PNG holds becomes RGB on white."""
    pixels = load_square(write(tmp_path / "x.png", image), 8)
    assert only_colour(pixels) == pytest.approx(expected, abs=1)


def test_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    """A palette's transparent entry is white, the others keep their colours."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (4, 0, 8, 8))
    pixels = load_square(write(tmp_path / "x.png", image, transparency=0), 8)
    assert only_colour(pixels[:, :, :4]) == [255, 255, 255]
    assert only_colour(pixels[:, :, 4:]) == [40, 50, 60]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """Inks subtract from white: c of cyan leaves (255 - c) of red."""
    image = Image.new("CMYK", (8, 8), (55, 155, 215, 0))
    pixels = load_square(write(tmp_path / "x.jpg", image, quality=100), 8)
    assert only_colour(pixels) == pytest.approx([200, 100, 40], abs=3)


@pytest.mark.parametrize(("width", "height"), [(21, 10), (10, 21), (11, 10), (10, 10)])
def test_crop_is_the_central_square(tmp_path: Path, width: int, height: int) -> None:
    """A picture that is not square loses equally much at both ends (the odd pixel at the far one), and is not bent."""
    image = textured(width, height)
    pixels = load_square(write(tmp_path / "x.png", image), 10)
    left, top = (width - 10) // 2, (height - 10) // 2
    expected = torch.from_numpy(np.array(image)[top : top + 10, left : left + 10]).permute(2, 0, 1)
    assert torch.equal(pixels, expected)


def test_resampling_averages(tmp_path: Path) -> None:
    """Shrinking is antialiased: a fine chessboard becomes grey, not black or white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    file = write(tmp_path / "x.png", Image.fromarray(board.astype(np.uint8)))
    assert (load_square(file, 8).float() - 127.5).abs().max() <= 2


def test_on_white_keeps_the_picture_given() -> None:
    """Opaque pixels are untouched, and the result owns its pixels."""
    image = textured(5, 7)
    pixels = as_tensor(on_white(image))
    assert pixels.shape == (3, 7, 5)
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(np.array(image)))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'nowhere'} is not a folder")):
        load_images(str(tmp_path / "nowhere"), 8)
    file = write(tmp_path / "one.png", plain())
    with pytest.raises(ValueError, match=re.escape(f"{file} is not a folder")):
        load_images(str(file), 8)


def test_folder_without_class_folders(tmp_path: Path) -> None:
    """An empty folder is told how to be laid out; pictures outside of class folders are one class, as when prepared."""
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no images; put them in one folder per class")):
        load_folder(tmp_path, 8)
    write(tmp_path / "one.png", plain())
    data = load_folder(tmp_path, 8)
    assert (len(data), data.labels.tolist(), data.label_names) == (1, [0], (tmp_path.name,))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    textured(12, 12).save(buffer, kind)
    return buffer.getvalue()


def refusal(file: Path, content: bytes) -> str | None:
    """The ValueError of a file that holds `content`, or None where it loads; any other error is the test's."""
    file.write_bytes(content)
    try:
        pixels = load_square(file, 12)
    except ValueError as error:
        return str(error)
    assert pixels.shape == (3, 12, 12)
    return None


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_truncated_image_is_named(tmp_path: Path, kind: str) -> None:
    """Cut anywhere but in the bytes after the last pixel, an image is a ValueError that names the file."""
    file, content = tmp_path / f"broken.{kind}", encoded(kind)
    refusals = [refusal(file, content[:end]) for end in range(len(content) - 24)]
    assert all(text is not None and str(file) in text for text in refusals)
    assert refusal(file, content) is None


def test_flipped_byte_is_named_or_harmless(tmp_path: Path) -> None:
    """A PNG with any one byte wrong either loads or is a ValueError that names the file."""
    file, content = tmp_path / "broken.png", encoded("png")
    flipped = [content[:i] + bytes([byte ^ 0xFF]) + content[i + 1 :] for i, byte in enumerate(content)]
    refusals = [refusal(file, wrong) for wrong in flipped]
    assert all(str(file) in text for text in refusals if text is not None)
    assert sum(text is not None for text in refusals) > len(content) / 2


def test_a_broken_image_of_a_folder_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As preparation does it; a folder in which nothing can be read is refused."""
    write(tmp_path / "cats" / "1.png", plain())
    broken = tmp_path / "dogs" / "2.png"
    write(broken, plain()).write_bytes(encoded("png")[:100])
    data = load_folder(tmp_path, 8)
    assert (len(data), data.label_names, data.label_counts) == (1, ("cats", "dogs"), (1, 0))
    said = " ".join(capsys.readouterr().err.split())
    assert f"passed over in {tmp_path}: 1 unreadable: " in said and "(dogs/2.png)" in said
    (tmp_path / "cats" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no images that can be read"):
        load_folder(tmp_path, 8)
