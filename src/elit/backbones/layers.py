"""Layers that the backbones share: patches, embeddings, self-attention, the adaLN-Zero block and the final layer.

Shapes: B batch, N tokens, C width, H heads, D head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.condition import factors_of
from elit.elastic.attention import attention
from elit.elastic.core import HostBlock
from elit.elastic.grid import Grid
from elit.elastic.interface import MLP, modulate
from elit.elastic.rope import apply_rope, places


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) to tokens (B, N, patch * patch * C); a token's values are ordered (row, column, channel)."""
    batch, channels, height, width = x_BCHW.shape
    x = x_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(x_BNC: Tensor, grid: Grid, patch: int) -> Tensor:
    """The inverse of `patchify`."""
    x = x_BNC.reshape(x_BNC.shape[0], grid.height, grid.width, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(x_BNC.shape[0], -1, grid.height * patch, grid.width * patch)


def sincos_table(grid: Grid, width: int) -> Tensor:
    """(N, C) fixed positions, on the CPU: an even share of the channels encodes the column, the next the row, in a
    video the next the frame; what the division leaves over is zero.

    Each share is all sines, then all cosines, with frequencies 10000^(-i / n) for its n = C / 4 or, in a video, C / 6.
    """
    axes = grid.axes[1:] if grid.frames == 1 else grid.axes
    each = width // (2 * len(axes))
    frequency = 10000.0 ** (-torch.arange(each, dtype=torch.float64, device="cpu") / each)
    angles = [place_N.double()[:, None] * frequency for place_N in reversed(places(axes, frequency.device).unbind(1))]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, width - table.shape[1])).float()


class TimestepEmbedding(nn.Module):
    """256 sinusoids of t in [0, 1], unscaled (all cosines, then all sines), through a two-layer SiLU MLP."""

    def __init__(self, width: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.fc1 = nn.Linear(sinusoids, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t_B: Tensor) -> Tensor:
        half = self.sinusoids // 2
        frequency = 10000.0 ** (-torch.arange(half, device=t_B.device, dtype=torch.float32) / half)
        angle = t_B.float()[:, None] * frequency
        y = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(y)))


class LabelEmbedding(nn.Embedding):
    """An embedding of each factor of a label, summed; of one factor, a row a label and one for the null class."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__(sum(sizes) + len(sizes), width)
        self.sizes = tuple(sizes)

    def forward(self, y_B: Tensor) -> Tensor:
        first, out = 0, []
        for size, value_B in zip(self.sizes, factors_of(y_B, self.sizes), strict=True):
            out.append(super().forward(first + value_B))
            first += size + 1
        return torch.stack(out).sum(0)


class SelfAttention(nn.Module):
    """Multi-head self-attention, with RoPE where the layout brings it and an affine LayerNorm per head where asked."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-5) if qk_norm else None
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-5) if qk_norm else None
        self.out = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, rope: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))


class Block(HostBlock):
    """The adaLN-Zero transformer block of DiT (Peebles and Xie, 2023): six chunks of modulation from c.

    told: the width of c; the block's own where none is given.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool, told: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width, heads, qk_norm)
        self.mlp = MLP(width, mlp_ratio)
        self.modulation = nn.Linear(told or width, 6 * width)

    def compute(self, x_BNC: Tensor, c_BC: Tensor, rope: Tensor | None) -> Tensor:
        chunks = self.modulation(F.silu(c_BC))[:, None].chunk(6, dim=-1)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = chunks
        x = x_BNC + gate_attention * self.attention(modulate(self.norm(x_BNC), shift_attention, scale_attention), rope)
        return x + gate_mlp * self.mlp(modulate(self.norm(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """LayerNorm, two chunks of modulation, and a linear to the values of each patch."""

    def __init__(self, width: int, patch_values: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, patch_values)

    def forward(self, x_BNC: Tensor, c_BC: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(c_BC))[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x_BNC), shift, scale))
