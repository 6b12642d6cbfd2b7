"""Pixels: uint8 values and the numbers in [-1, 1] that models see."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 pixels, rounded to the nearest."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_tensor(image: Image.Image) -> Tensor:
    """A PIL image to (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
