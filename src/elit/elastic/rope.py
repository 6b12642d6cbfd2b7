"""Rotary positions (RoPE) along several axes: of tokens on their grid, and of latents in their groups.

Each axis turns an equal share of the head's channel pairs, with frequencies 10000^(-i/n); what the division leaves over is
not turned. Tokens have the axes of their grid: (row, column), with the frame first in a video. Latents have one more in
front, the index in their group, and then the place of the group.

Shapes: N tokens, A axes, H heads, D head width.
"""

import torch
from torch import Tensor

from elit.elastic.grid import Grid


def rope_table(place_NA: Tensor, head_width: int) -> Tensor:
    """(2, N, D / 2) float32 cosines and sines of the angles of every place."""
    axes, pairs = place_NA.shape[1], head_width // 2
    each = pairs // axes
    frequency = 10000.0 ** (-torch.arange(each, device=place_NA.device, dtype=torch.float32) / each)
    angle = (place_NA.float()[:, :, None] * frequency).flatten(1)
    angle = torch.nn.functional.pad(angle, (0, pairs - axes * each))
    return torch.stack([angle.cos(), angle.sin()])


def apply_rope(x_BHND: Tensor, rope: Tensor) -> Tensor:
    """Turns channel i with channel i + D / 2 by the i-th angle of the token's place, in float32."""
    cos, sin = rope
    a, b = x_BHND.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BHND.dtype)


def token_rope(grid: Grid, head_width: int, device: torch.device) -> Tensor:
    """Rotations (2, N, D / 2) of the tokens of an image (row, column) or a video (frame, row, column)."""
    return rope_table(places(grid.axes[1:] if grid.frames == 1 else grid.axes, device), head_width)


def places(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """(N, A) coordinates of a grid in row-major order."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in sides)).view(-1, len(sides))
