"""A DiT of decomposable flow matching (Haji-Ali et al., 2025): the stages of a pyramid share tokens and blocks.

Each stage has its own patch embedding, timestep embedding and output head, with its own modulation. The embeddings are
summed over the stages. All stages have the same grid, for a stage half as large has patches half as large. The blocks, and
the latent core among them, are those of the DiT.

Shapes: B batch, S stages, N tokens, C width; the input is a packed pyramid (see `elit.pyramid`).
"""

from typing import cast

import torch
from torch import Tensor, nn

from elit.backbones.config import DFMConfig, pair
from elit.backbones.dit import DiT
from elit.backbones.layers import FinalLayer, TimestepEmbedding, patchify, unpatchify
from elit.elastic.grid import Extent, Grid
from elit.elastic.model import Input
from elit.pyramid import Pyramid


class StageTimes(nn.ModuleList):
    """The sum of a timestep embedding of every stage: t (B, S), or (B,) where all stages have one time, to (B, C)."""

    def forward(self, t: Tensor) -> Tensor:
        columns = t.unbind(1) if t.ndim == 2 else [t] * len(self)
        return torch.stack([embedding(t_B) for embedding, t_B in zip(self, columns, strict=True)]).sum(0)


class DFM(DiT):
    """v = model(x, t, y, budget) of a packed pyramid x, at times t (B, S), or (B,) where every stage has the same."""

    config: DFMConfig

    @property
    def stages(self) -> int:
        return self.config.stages

    @property
    def samples(self) -> Input:
        return Input(self.config.in_channels, Extent(*pair(self.config.input_size)), self.config.patch_size)

    @property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.config.in_channels, self.config.stages)

    @property
    def patches(self) -> list[int]:
        """The side of a patch in each stage, the coarsest first."""
        return [self.config.patch_size // 2**i for i in reversed(range(self.stages))]

    def make_first(self) -> None:
        config, (height, width) = self.config, pair(self.config.input_size)
        halvings = 2 ** (config.stages - 1)
        extent = Extent(height // halvings, width // halvings)
        self.input = Input(sum(self.pyramid.widths), extent, config.patch_size // halvings)
        self.patch_embedding = nn.ModuleList(
            nn.Linear(patch**2 * config.in_channels, config.width) for patch in self.patches
        )
        self.time_embedding = StageTimes(TimestepEmbedding(config.width) for _ in self.patches)

    def make_last(self) -> None:
        width, channels = self.config.width, self.config.in_channels
        self.final = nn.ModuleList(FinalLayer(width, patch**2 * channels) for patch in self.patches)

    def embed(self, x: Tensor) -> Tensor:
        stages = zip(cast(nn.ModuleList, self.patch_embedding), self.pyramid.unpack(x), self.patches, strict=True)
        return torch.stack([embedding(patchify(stage, patch)) for embedding, stage, patch in stages]).sum(0)

    def predict(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid) -> Tensor:
        heads = zip(cast(nn.ModuleList, self.final), self.patches, strict=True)
        return self.pyramid.pack([unpatchify(final(x_BNC, c_BC), grid, patch) for final, patch in heads])
