"""U-ViT (Bao et al., 2023), with DiT's blocks: long skips join early blocks to late ones, symmetrically.

The output of block i meets the input of block B - 1 - i of B, where a block lies between: the two are put side by side and
a linear makes them one again. The elastic form is cut symmetrically, so that a skip joins two blocks of tokens or two of
latents.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elit.backbones.config import UViTConfig
from elit.backbones.dit import DiT
from elit.backbones.layers import Block
from elit.elastic.core import HostPart, Layout


class LongSkip(HostPart):
    """A linear of (B, N, 2C), what comes in and what came out of block `pair`, to (B, N, C)."""

    def __init__(self, width: int, pair: int) -> None:
        super().__init__()
        self.canonical = f"skip.{pair}"
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x_BNC: Tensor, early_BNC: Tensor) -> Tensor:
        return self.linear(torch.cat([x_BNC, early_BNC], dim=-1))


def run_with_skips(
    blocks: Sequence[nn.Module], skips: Sequence[nn.Module], x_BNC: Tensor, c_BC: Tensor, layout: Layout
) -> Tensor:
    """Tokens through blocks of which the i-th and the i-th from the end are joined by the i-th skip."""
    early: list[Tensor] = []
    for i, block in enumerate(blocks):
        mirror = len(blocks) - 1 - i
        if mirror < len(skips):
            x_BNC = skips[mirror](x_BNC, early[mirror])
        x_BNC = block(x_BNC, c_BC, layout)
        if i < len(skips):
            early.append(x_BNC)
    return x_BNC


class SkipTrunk(nn.Module):
    """The middle of a U-ViT: its blocks with the skips among them. first: the number of its first block in the whole."""

    def __init__(self, blocks: Sequence[nn.Module], width: int, first: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.skips = nn.ModuleList(LongSkip(width, first + i) for i in range((len(self.blocks) - 1) // 2))

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        return run_with_skips(list(self.blocks), list(self.skips), x_BNC, c_BC, layout)


class UViT(DiT):
    """A DiT with long skips."""

    config: UViTConfig

    def make_stack(self, blocks: list[Block]) -> list[nn.Module]:
        stack = super().make_stack(blocks)
        self.skips = nn.ModuleList(LongSkip(self.config.width, i) for i in range((len(stack) - 1) // 2))
        return stack

    def make_trunk(self, blocks: list[Block]) -> nn.Module:
        return SkipTrunk(blocks, self.config.width, self.config.head_depth)

    def run_stack(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        return run_with_skips(list(self.blocks), list(self.skips), x_BNC, c_BC, layout)
