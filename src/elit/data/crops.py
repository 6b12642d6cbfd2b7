"""From a picture file's bytes to RGB, and from RGB to the size that a model takes."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from elit.errors import UserError
from elit.seeding import generator_for

CROPS = ("center-crop-adm", "center-crop", "random-crop", "wide", "buckets")
# Whatever a file's name says; never EPS, which PIL has another program run.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
MOST_PIXELS = 2**26  # of an enlarged picture; longer and thinner ones are refused
Box = tuple[float, float, float, float]


def decode(content: bytes) -> Image.Image:
    """RGB, upright as its EXIF data say, transparent parts on white, 16 bits a channel scaled to 8, the first frame.

    Raises UserError for what cannot be read to the end as a picture, saying why.
    """
    try:
        with warnings.catch_warnings(action="ignore"), open_picture(content) as image:  # what matters is raised
            return upright(image)
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes PIL's readers raise nearly anything
        why = " ".join(str(error).split()).replace(repr(error), "")[:200]
        raise UserError("cannot identify image file" if "cannot identify" in why else why or type(error).__name__) from error


def open_picture(content: bytes) -> Image.Image:
    """A picture of one of FORMATS, whose pixels are not read yet; PIL's errors for another."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF data say, with what is transparent on white."""
    return on_white(ImageOps.exif_transpose(image))


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent composited on white.

    Raises UserError for pixels without a known range: whole or real numbers of 32 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("I", "F"):
        raise UserError(f"its pixels are numbers without a known range (mode {image.mode})")
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255, not scale them
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def crop_adm(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop (Dhariwal and Nichol, 2021): halved by averaging while the short side is at least twice `size`, then
    resampled (bicubic) so that the short side is `size`, then the central square."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MOST_PIXELS:
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
