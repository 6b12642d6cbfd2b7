"""Pictures to test with."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth colour ramp with noise on it, so that every crop and every filter gives other pixels."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    ramp = np.stack([x, y, 1 - x * y], axis=2) * 200 + rng.integers(0, 56, (height, width, 3))
    return Image.fromarray(ramp.astype(np.uint8))


def content(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_pictures(folder: Path, classes: dict[str, int], width: int = 20, height: int = 14) -> Path:
    """Class folders with so many textured PNGs each, all of them different."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            textured(width + i % 3, height + i % 2, seed=1000 * c + i).save(folder / name / f"{i:03d}.png")
    return folder
