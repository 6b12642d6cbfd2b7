"""Reading any picture as RGB, and the crops, against statements of their own."""

import io
import itertools
import math
import struct

import numpy as np
import pytest
from pictures import content, textured
from PIL import Image

from elit.data.crops import (
    crop,
    crop_adm,
    crop_center,
    crop_random,
    crop_wide,
    decode,
    decode_told,
    default_buckets,
    nearest_bucket,
)


def resampled(pixels: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Rows to `size` rows by the weights of a filter that widens when it shrinks; float64, rounded to whole pixels."""
    support, function = {
        "box": (0.5, lambda x: float(-0.5 < x <= 0.5)),
        "bicubic": (2.0, bicubic),
    }[kernel]
    scale = len(pixels) / size
    wide = max(scale, 1.0)
    out = []
    for i in range(size):
        middle = (i + 0.5) * scale
        first = max(0, int(middle - support * wide + 0.5))
        last = min(len(pixels), int(middle + support * wide + 0.5))
        weights = np.array([function((j + 0.5 - middle) / wide) for j in range(first, last)])
        out.append(np.tensordot(weights / weights.sum(), pixels[first:last].astype(float), 1))
    return np.floor(np.clip(np.stack(out), 0, 255) + 0.5)


def bicubic(x: float) -> float:
    """Keys' cubic convolution with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def adm(pixels: np.ndarray, size: int) -> np.ndarray:
    """The crop of Dhariwal and Nichol stated in numpy: columns are resampled first, then rows."""

    def resize(values: np.ndarray, height: int, width: int, kernel: str) -> np.ndarray:
        return resampled(resampled(values.transpose(1, 0, 2), width, kernel).transpose(1, 0, 2), height, kernel)

    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resize(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, "box")
    scale = size / min(pixels.shape[:2])
    pixels = resize(pixels, round(pixels.shape[0] * scale), round(pixels.shape[1] * scale), "bicubic")
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(("width", "height"), [(16, 16), (33, 16), (31, 47), (67, 64), (129, 70), (9, 12), (1, 1)])
def test_adm_crop_is_the_recipe(width: int, height: int) -> None:
    """Nearly every pixel is the float64 statement's, and none is further than one step of PIL's fixed-point sums."""
    image = textured(width, height)
    cropped = np.array(crop_adm(image, 16)).astype(float)
    wanted = adm(np.array(image), 16)
    assert cropped.shape == (16, 16, 3)
    assert np.abs(cropped - wanted).max() <= 1
    assert (cropped == wanted).mean() > 0.99


def test_adm_crop_is_pixel_for_pixel_what_pil_makes_of_the_recipe() -> None:
    """Two halvings, from 70 to 17, then bicubic and a crop, written out for one picture."""
    image = textured(129, 70)
    by_hand = image.resize((64, 35), Image.Resampling.BOX).resize((32, 17), Image.Resampling.BOX)
    by_hand = by_hand.resize((30, 16), Image.Resampling.BICUBIC).crop((7, 0, 23, 16))
    assert crop_adm(image, 16).tobytes() == by_hand.tobytes()


def test_adm_crop_refuses_what_would_fill_the_memory() -> None:
    with pytest.raises(ValueError, match="too long and thin, 9000 x 1"):
        crop_adm(Image.new("RGB", (9000, 1)), 256)


@pytest.mark.parametrize(("width", "height"), [(21, 10), (10, 21), (10, 10)])
def test_center_crop_is_the_central_square(width: int, height: int) -> None:
    image = textured(width, height)
    left, top = (width - 10) // 2, (height - 10) // 2
    assert crop_center(image, 10, 10).tobytes() == image.crop((left, top, left + 10, top + 10)).tobytes()


def test_random_crop_depends_on_seed_and_key_alone() -> None:
    image = textured(90, 40)
    one = crop_random(image, 20, 0, "a/1.png").tobytes()
    assert crop_random(image, 20, 0, "a/1.png").tobytes() == one
    assert crop_random(image, 20, 1, "a/1.png").tobytes() != one
    assert crop_random(image, 20, 0, "a/2.png").tobytes() != one


def test_random_crop_is_of_places_all_over_the_picture_and_of_sides_from_four_fifths() -> None:
    """Red is the column and green the row, so that a crop's mean tells its middle and its range the side."""
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    crops = [np.array(crop_random(image, 50, 0, str(i))).astype(float) for i in range(200)]
    sides = np.array([(c[25, -1, 0] - c[25, 0, 0]) * 50 / 49 for c in crops])
    assert 78 < sides.min() < 83 and 97 < sides.max() < 102
    middles = np.array([c[..., 0].mean() for c in crops])
    assert middles.min() < 55 and middles.max() > 145
    assert abs(middles.mean() - 99.5) < 6  # 3.5 standard errors of a uniform middle
    heights = np.array([c[..., 1].mean() for c in crops])
    assert heights.max() - heights.min() > 12


@pytest.mark.parametrize(
    ("width", "height", "box"), [(64, 36, (0, 0, 64, 36)), (64, 64, (0, 14, 64, 50)), (100, 36, (18, 0, 82, 36))]
)
def test_wide_crop_is_nine_sixteenths_high_on_black(width: int, height: int, box: tuple[int, int, int, int]) -> None:
    image = textured(width, height)
    cropped = crop_wide(image, 32)
    assert cropped.size == (32, 32)
    assert cropped.crop((0, 7, 32, 25)).tobytes() == image.crop(box).resize((32, 18), Image.Resampling.LANCZOS).tobytes()
    assert not np.array(cropped)[:7].any() and not np.array(cropped)[25:].any()


def test_buckets_have_about_one_area_and_cover_the_ratios() -> None:
    buckets = default_buckets(256)
    assert (256, 256) in buckets and {(w, h) for h, w in buckets} == set(buckets)
    assert all(h % 16 == 0 and w % 16 == 0 and max(h, w) <= 2 * min(h, w) for h, w in buckets)
    assert all(abs(h * w / 256**2 - 1) < 0.06 for h, w in buckets)
    ratios = sorted(math.log(w / h) for h, w in buckets)
    assert max(b - a for a, b in itertools.pairwise(ratios)) < 0.2  # so nothing is cut by more than a tenth
    assert default_buckets(20, 16) == ((16, 16),)


def test_a_picture_goes_to_the_bucket_of_the_nearest_ratio() -> None:
    buckets = ((16, 32), (24, 24), (32, 16))
    assert [nearest_bucket(w, h, buckets) for w, h in ((200, 100), (150, 100), (140, 100), (100, 100), (100, 900))] == [
        *(0, 0, 1, 1, 2)
    ]
    cropped, bucket = crop(textured(64, 40), "buckets", 24, 0, "", buckets)
    assert (cropped.size, bucket) == ((32, 16), 0)
    assert cropped.tobytes() == textured(64, 40).crop((0, 4, 64, 36)).resize((32, 16), Image.Resampling.LANCZOS).tobytes()


def only_colour(image: Image.Image) -> tuple[int, ...]:
    """The colour of an image of one colour."""
    assert image.mode == "RGB"
    colours = image.getcolors(1_000_000)
    assert len(colours) == 1
    return colours[0][1]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (200, 100, 40, 102)), (233, 193, 169)),  # 0.4 colour + 0.6 white
        (Image.new("RGB", (8, 8), (200, 100, 40)).quantize(4), (200, 100, 40)),
        (Image.new("LA", (8, 8), (100, 51)), (224, 224, 224)),
        (Image.new("L", (1, 1), 7), (7, 7, 7)),
        (Image.fromarray(np.full((8, 8), 100 * 257, dtype=np.uint16)), (100, 100, 100)),
    ],
    ids=["alpha", "palette", "grey alpha", "1x1", "16 bit"],
)
def test_every_kind_becomes_rgb_on_white(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert only_colour(decode(content(image))) == expected


def test_cmyk_becomes_rgb() -> None:
    picture = decode(content(Image.new("CMYK", (8, 8), (55, 155, 215, 0)), "jpeg", quality=100))
    assert only_colour(picture) == pytest.approx((200, 100, 40), abs=3)


def test_exif_rotation_is_applied() -> None:
    """Orientation 6: the camera was turned, so the picture stands on its left side in the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = textured(12, 8)
    assert decode(content(image, exif=exif)).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_what_other_programs_would_read_is_no_picture() -> None:
    """PostScript, which PIL hands to Ghostscript; and numbers of 32 bits, whose range nobody knows."""
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode(content(Image.new("RGB", (8, 8)), "eps"))
    for mode, value in (("I", 40_000), ("F", 0.5)):
        with pytest.raises(ValueError, match=f"numbers without a known range .mode {mode}"):
            decode(content(Image.new(mode, (8, 8), value), "tiff"))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert only_colour(decode(content(frames[0], "gif", save_all=True, append_images=frames[1:]))) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    whole = content(textured(40, 40), kind)
    for share in (0, 0.1, 0.5, 0.9):
        with pytest.raises(ValueError, match=r"\w"):
            decode(whole[: int(len(whole) * share)])


def test_a_broken_picture_is_a_value_error_or_a_picture() -> None:
    """Whatever byte is wrong: a corrupt file never stops a preparation."""
    whole = content(textured(9, 9), "tiff")
    for i in range(len(whole)):
        try:
            assert decode(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :]).mode == "RGB"
        except ValueError as error:
            assert str(error)


def exif(*fields: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of (tag, type, count, four bytes of value) each."""
    entries = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in fields)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)


def test_a_mistyped_exif_field_costs_no_picture() -> None:
    """Turned by the orientation alone, as it says six: a quarter to the right."""
    picture = content(textured(12, 8), "jpeg")
    wrong = [(0x100, 2, 4, b"abc\0"), (0x9000, 3, 1, b"\1\0\0\0"), (0x10E, 3, 2, b"\1\0\2\0")]
    data = exif((0x112, 3, 1, b"\6\0\0\0"), *wrong)
    turned = picture[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + picture[2:]
    wanted = decode(picture).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.array(decode(turned)), np.array(wanted))


def test_grey_of_16_bits() -> None:
    """A PNG's transparent value is white, and no other; a PGM's range is its own."""
    values = np.array([[5000, 5001, 65535, 0]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", transparency=5000)
    found = decode_told(buffer.getvalue())
    assert np.array(found.picture)[0, :, 0].tolist() == [255, 19, 255, 0] and found.was == "with transparency"
    for most in (65535, 1000):
        pgm = b"P5 2 1 %d\n" % most + np.array([most, most // 2], ">u2").tobytes()
        assert np.array(decode(pgm))[0].tolist() == [[255] * 3, [127] * 3]


def test_pictures_of_many_pixels_are_refused_in_words() -> None:
    header = b"P5 20000 10000 255\n"
    with pytest.raises(ValueError, match="exceeds limit"):
        decode(header + bytes(10))


def test_large_sides_are_no_thin_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a square of the asked size needs is allowed, however large the size."""
    monkeypatch.setattr("elit.data.crops.MOST_PIXELS", 64)
    assert crop_adm(textured(40, 20), 16).size == (16, 16)
    with pytest.raises(ValueError, match="too long and thin"):
        crop_adm(textured(100, 20), 16)
