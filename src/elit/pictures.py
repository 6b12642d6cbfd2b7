"""Images for people: captioned sheets of samples and single pictures, as PNG files."""

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from elit.errors import UserError
from elit.files import written_whole
from elit.pixels import to_uint8
from elit.words import one_line

CELL = 96  # pixels of an image's longer side on a sheet, at least; larger images keep their own
LETTERS = 0.16  # height of the captions' letters, of an image's width
SMALLEST, LARGEST = 11, 32  # of those letters, in pixels
LINES = 3  # of a caption below an image, at most
REPEATED = 6  # rows of a sheet from which on the columns' names stand above it too
INK = (27, 27, 31)


def mosaic(images_NCHW: Tensor, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Images in [-1, 1], row by row, on white and without captions; each pixel enlarged `scale` times."""
    pixels = enlarged(images_NCHW, scale)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    out = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        out[:, top : top + height, left : left + width] = image
    return Image.fromarray(out.permute(1, 2, 0).numpy())


def enlarged(images_NCHW: Tensor, scale: int) -> Tensor:
    """Images in [-1, 1] as uint8, each pixel a square of `scale` pixels."""
    return to_uint8(images_NCHW).repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def sheet(
    images_NCHW: Tensor,
    columns: Sequence[str],
    rows: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell: int = CELL,
) -> Image.Image:
    """Images in [-1, 1] on white, row by row, with their names written beside them.

    Args:
        columns: one name for each column, written below the last row, and above the first where there are many rows;
            empty names leave their place out.
        rows: one name for each row, on the left; its lines are kept. captions: one name for each image, below it.
        cell: pixels of an image's longer side, at least: small images are enlarged by a whole number.

    Names keep their lines; longer ones than their column are broken, at spaces and hyphens where that is possible.
    """
    height, width = images_NCHW.shape[-2:]
    pixels = enlarged(images_NCHW, max(1, cell // max(height, width)))
    height, width = pixels.shape[-2:]
    size = min(LARGEST, max(SMALLEST, round(LETTERS * width)))
    letters, line = font(size), round(1.25 * size)
    gap = max(4, width // 16)
    count = -(-len(pixels) // len(columns))
    under = [wrapped(name, letters, width + gap - 2) for name in columns]
    below = [wrapped(name, letters, width + gap - 2) for name in captions]
    beside = [name.split("\n") for name in rows]
    left = round(max((letters.getlength(text) for lines in beside for text in lines), default=-gap)) + 2 * gap
    head = line * max(map(len, under)) if count >= REPEATED else 0
    caption = line * max(map(len, below), default=0)
    down = height + caption + gap
    foot = line * max(map(len, under))
    total = (left + len(columns) * (width + gap), gap + head + count * down + foot + gap)
    out = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(out)

    def write(lines: Sequence[str], middle: float, top: float) -> None:
        for i, text in enumerate(lines):
            draw.text((middle, top + (i + 0.5) * line), text, INK, letters, anchor="mm")

    for i, image in enumerate(pixels):
        x, y = left + i % len(columns) * (width + gap), gap + head + i // len(columns) * down
        out.paste(Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())), (x, y))
        if below:
            write(below[i], x + width / 2, y + height)
    for i, lines in enumerate(under):
        middle = left + i * (width + gap) + width / 2
        write(lines, middle, gap + head + count * down)
        if head:
            write(lines, middle, gap + head - line * len(lines))
    for i, lines in enumerate(beside):
        for j, text in enumerate(lines):
            middle = gap + head + i * down + height / 2 + (j - (len(lines) - 1) / 2) * line
            draw.text((left - gap, middle), text, INK, letters, anchor="rm")
    return out


def moving_sheet(
    clips_NCTHW: Tensor, columns: Sequence[str], rows: Sequence[str] = (), captions: Sequence[str] = (), cell: int = CELL
) -> list[Image.Image]:
    """The sheet of each frame of clips in [-1, 1]; arguments as of `sheet`."""
    return [sheet(frame_NCHW, columns, rows, captions, cell) for frame_NCHW in clips_NCTHW.unbind(2)]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings, with letters of so many pixels."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.submodule_search_locations
    return ImageFont.truetype(Path(found.submodule_search_locations[0]) / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def wrapped(name: str, letters: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A name in lines no wider than so many pixels, the last of them cut where they would be too many."""
    lines = [line for own in name.splitlines() for line in _wrapped(one_line(own), letters, width)]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1][:-1]}…"]


def _wrapped(name: str, letters: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The lines of a name that is one line."""
    lines: list[str] = []
    for piece in re.split(r"(?<=[-/ ])", name):
        if lines and letters.getlength((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
            continue
        while letters.getlength(piece.rstrip()) > width and len(piece) > 1:
            fits = next(n for n in range(len(piece) - 1, 0, -1) if n == 1 or letters.getlength(piece[:n]) <= width)
            lines.append(piece[:fits])
            piece = piece[fits:]
        lines.append(piece)
    return [text.strip() for text in lines if text.strip()]


class Row(NamedTuple):
    """A row of a sheet: its name, and an image for each column (columns, C, H, W)."""

    name: str
    images: Tensor


def pairs(left_NCHW: Tensor, right_NCHW: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Images side by side without a gap, such as a sample | the nearest real picture; the pairs row by row."""
    if left_NCHW.shape != right_NCHW.shape:
        raise UserError(f"pairs are of one size, not {tuple(left_NCHW.shape)} and {tuple(right_NCHW.shape)}")
    return mosaic(torch.cat([left_NCHW, right_NCHW], dim=3), columns, scale, gap=4 * scale)


def to_image(image_CHW: Tensor) -> Image.Image:
    """One image in [-1, 1] as a picture."""
    return Image.fromarray(to_uint8(image_CHW).permute(1, 2, 0).numpy())


def save_png(image: Image.Image, file: Path, optimize: bool = True, made_by: str | None = None) -> None:
    """Writes a PNG, whole or not at all; `optimize` makes it a little smaller in several times the time.

    made_by: the name of the program, for the file's own notes.
    """
    with written_whole(file) as part:
        image.save(part, format="PNG", optimize=optimize, pnginfo=notes(made_by))


def notes(made_by: str | None) -> PngImagePlugin.PngInfo | None:
    """The notes of a PNG that name the program which made it."""
    if made_by is None:
        return None
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", made_by)
    return info
