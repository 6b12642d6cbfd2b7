"""Images for people: grids of samples with labels, as PNG files."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from elit.errors import UserError
from elit.files import written_whole
from elit.pixels import to_uint8


def tile(images_NCHW: Tensor, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Images in [-1, 1], row by row, on white; each pixel enlarged `scale` times."""
    pixels = to_uint8(images_NCHW).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def pairs(left_NCHW: Tensor, right_NCHW: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Images side by side without a gap, such as a sample | the nearest real picture; the pairs row by row."""
    if left_NCHW.shape != right_NCHW.shape:
        raise UserError(f"pairs are of one size, not {tuple(left_NCHW.shape)} and {tuple(right_NCHW.shape)}")
    return tile(torch.cat([left_NCHW, right_NCHW], dim=3), columns, scale, gap=4 * scale)


def to_image(image_CHW: Tensor) -> Image.Image:
    """One image in [-1, 1] as a picture."""
    return Image.fromarray(to_uint8(image_CHW).permute(1, 2, 0).numpy())


def save_png(image: Image.Image, file: Path, optimize: bool = True) -> None:
    """Writes a PNG, whole or not at all; `optimize` makes it a little smaller in several times the time."""
    with written_whole(file) as part:
        image.save(part, format="PNG", optimize=optimize)
