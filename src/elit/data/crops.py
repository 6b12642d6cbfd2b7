"""From a picture file's bytes to RGB, and from RGB to the size that a model takes."""

import io
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from elit.errors import UserError
from elit.seeding import generator_for
from elit.words import one_line

CROPS = ("center-crop-adm", "center-crop", "random-crop", "wide", "buckets")
# Whatever a file's name says; never EPS, which PIL has another program run.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
MOST_PIXELS = 2**26  # of a resampled picture, or four squares; longer and thinner ones are refused
ORIENTATION = 0x0112  # the EXIF field
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Was: TypeAlias = Literal["", "grey or of a palette", "with transparency"]


class Decoded(NamedTuple):
    """A picture as RGB, and what it was before, for a note; "" where it was opaque RGB."""

    picture: Image.Image
    was: Was


def decode(content: bytes) -> Image.Image:
    """RGB, upright as its EXIF data say, transparent parts on white, 16 bits a channel scaled to 8, the first frame.

    Raises UserError for what cannot be read to the end as a picture, saying why.
    """
    return decode_told(content).picture


def decode_told(content: bytes) -> Decoded:
    """The same, and what the picture was."""
    try:
        with warnings.catch_warnings(action="ignore"), open_picture(content) as image:  # what matters is raised
            return Decoded(upright(image), was(image))
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes PIL's readers raise nearly anything
        why = one_line(str(error)).replace(repr(error), "")[:200]
        raise UserError("cannot identify image file" if "cannot identify" in why else why or type(error).__name__) from error


def was(image: Image.Image) -> Was:
    """What an opened picture holds."""
    if image.has_transparency_data:
        return "with transparency"
    return "" if image.mode == "RGB" else "grey or of a palette"


def open_picture(content: bytes) -> Image.Image:
    """A picture of one of FORMATS, whose pixels are not read yet; PIL's errors for another."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF data say, with what is transparent on white."""
    if image.format == "TIFF":  # PIL turns these while it loads them, and reads all their fields for that
        return on_white(image)
    turn = orientation(image)
    flat = on_white(image)
    return flat if turn is None else flat.transpose(turn)


def orientation(image: Image.Image) -> Image.Transpose | None:
    """How its EXIF data say that it is to be turned; None where they say nothing that can be read."""
    image.load()  # some formats have their EXIF data behind the pixels
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of a field that is not what its type says: the pixels are whole
        return None


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent composited on white; pixels of 16 bits are scaled to 8.

    Raises UserError for pixels without a known range: whole or real numbers of 32 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # Netpbm's are of 16 bits
        raise UserError(f"its pixels are numbers without a known range (mode {image.mode})")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255, not scale them
        return _of_16_bits(image)
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:  # its pixels were cut to 8 bits
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _of_16_bits(image: Image.Image) -> Image.Image:
    """RGB of grey pixels of 16 bits; those of the transparent value are white."""
    values = np.asarray(image)
    grey = (values // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def crop_adm(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop (Dhariwal and Nichol, 2021): halved by averaging while the short side is at least twice `size`, then
    resampled (bicubic) so that the short side is `size`, then the central square."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > max(MOST_PIXELS, 4 * size * size):
        raise UserError(f"it is too long and thin, {image.width} x {image.height}")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def crop_center(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of the shape `height` : `width`, resampled (Lanczos) to that size."""
    part_width = min(image.width, max(1, round(image.height * width / height)))
    part_height = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - part_width) // 2, (image.height - part_height) // 2
    part = image.crop((left, top, left + part_width, top + part_height))
    return part.resize((width, height), Image.Resampling.LANCZOS)


def crop_random(image: Image.Image, size: int, seed: int, key: str) -> Image.Image:
    """A square whose side is 0.8 to 1 times the short side, at a random place, resampled (Lanczos) to `size`.

    Side and place are uniform, drawn from (seed, key) alone.
    """
    share, across, down = torch.rand(3, generator=generator_for("crop", seed, key)).tolist()
    side = max(1, round(min(image.size) * (0.8 + 0.2 * share)))
    left = min(int(across * (image.width - side + 1)), image.width - side)
    top = min(int(down * (image.height - side + 1)), image.height - side)
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def crop_wide(image: Image.Image, size: int) -> Image.Image:
    """The largest central part of the shape 9 : 16, resampled (Lanczos) to full width, on a black square.

    It is round(9 / 16 size) high, with equal bars above and below, the odd row below.
    """
    height = max(1, round(size * 9 / 16))
    square = Image.new("RGB", (size, size))
    square.paste(crop_center(image, height, size), (0, (size - height) // 2))
    return square


def default_buckets(size: int, step: int = 16) -> tuple[tuple[int, int], ...]:
    """(height, width) pairs, multiples of `step`, of about size^2 pixels, from 1 : 2 to 2 : 1, widest first.

    For each height up to the square's the width nearest to size^2 / height, and each pair turned round.
    """
    square = max(step, round(size / step) * step)
    found = {(square, square)}
    for short in range(step, square, step):
        long = round(size * size / short / step) * step
        if square < long <= 2 * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def nearest_bucket(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> int:
    """The index of the bucket whose ratio of sides is nearest to the picture's, as a factor; the first of equals."""

    def factor(bucket: tuple[int, int]) -> float:
        ratio = (width * bucket[0]) / (height * bucket[1])
        return max(ratio, 1 / ratio)

    return min(range(len(buckets)), key=lambda index: factor(buckets[index]))


def crop(
    image: Image.Image, how: str, size: int, seed: int, key: str, buckets: Sequence[tuple[int, int]]
) -> tuple[Image.Image, int]:
    """The picture as a crop named in CROPS makes it, and the index of its bucket (0 where there are none)."""
    if how == "center-crop-adm":
        return crop_adm(image, size), 0
    if how == "center-crop":
        return crop_center(image, size, size), 0
    if how == "random-crop":
        return crop_random(image, size, seed, key), 0
    if how == "wide":
        return crop_wide(image, size), 0
    bucket = nearest_bucket(image.width, image.height, buckets)
    return crop_center(image, *buckets[bucket]), bucket
