"""LatentCore: the middle of a backbone, run on latents. It is itself a block.

It takes and returns what one of its host's blocks does, so an elastic model is the host's own stack with its middle
replaced: `[*head, LatentCore(read, trunk, write), *tail]`.

Shapes: B batch, N tokens, G groups, S tokens in a group, J latents in a group, K latents kept, C width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elit.elastic.grid import Grid, Window
from elit.elastic.grouping import group, token_index, ungroup
from elit.elastic.interface import Read, Write
from elit.elastic.levels import Level, Levels, PerSample
from elit.elastic.rope import latent_rope


class Layout(NamedTuple):
    """What a block is told of its tokens beside their values."""

    grid: Grid  # where the tokens sit
    rope: Tensor | None = None  # (2, N, D / 2) cosines and sines, or None without RoPE
    level: Level | None = None  # latents kept per group, one for all or one per sample; only a LatentCore asks


class HostBlock(nn.Module):
    """A host's own block: block(x_BNC, c_BC, layout) -> (B, N, C), written as `compute(x_BNC, c_BC, rope)`.

    `checkpointing` recomputes the block in the backward pass instead of keeping its activations.
    """

    checkpointing = False

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.compute, x_BNC, c_BC, layout.rope, use_reentrant=False)
        return self.compute(x_BNC, c_BC, layout.rope)

    def compute(self, x_BNC: Tensor, c_BC: Tensor, rope: Tensor | None) -> Tensor:
        """The block itself."""
        raise NotImplementedError


class Trunk(nn.ModuleList):
    """A host's middle as a plain stack: trunk(x_BNC, c_BC, layout) runs its blocks one after another."""

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        for block in self:
            x_BNC = block(x_BNC, c_BC, layout)
        return x_BNC


class LatentCore(nn.Module):
    """Read, the host's own middle on the latents, and Write (figure 2 of the paper).

    Args:
        read, write: the interface.
        trunk: the host's middle blocks, called as trunk(x_BNC, c_BC, layout); files know it as `blocks`.
        window: the tokens of one group.
        head_width: D, where the latents' positions are RoPE; None where they are the rows of Read's table.
        write_sees_dropped: False: dropped latents do not exist. True: Read makes all J, and Write attends to the K
            processed ones and to the J - K unprocessed, as the published weights were trained.
        step: of the levels that the trunk can run, which are its multiples.
    """

    def __init__(
        self,
        read: Read,
        trunk: nn.Module,
        write: Write,
        window: Window,
        head_width: int | None = None,
        write_sees_dropped: bool = False,
        step: int = 1,
    ) -> None:
        super().__init__()
        self.read, self.blocks, self.write = read, trunk, write
        self.window, self.head_width, self.write_sees_dropped = window, head_width, write_sees_dropped
        self.levels = Levels(window.size, step)

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C), at `layout.level` latents per group: one level, or one per sample."""
        level = self.levels.latents if layout.level is None else layout.level
        if not isinstance(level, PerSample):
            return self.at_level(x_BNC, c_BC, layout.grid, level)
        order = sorted(range(len(level.levels)), key=level.levels.__getitem__)
        parts = []
        for k in sorted({*level.levels, *level.always}):
            rows = torch.tensor([i for i in order if level.levels[i] == k], dtype=torch.long, device=x_BNC.device)
            parts.append(self.at_level(x_BNC[rows], c_BC[rows], layout.grid, k))
        return torch.cat(parts)[torch.tensor(order, device=x_BNC.device).argsort()]

    def at_level(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid, keep: int) -> Tensor:
        """The whole batch with the first `keep` latents of each group."""
        tokens_BGSC = group(x_BNC, grid, self.window) + self.read.token_positions  # kept: Write starts from here
        made = self.levels.latents if self.write_sees_dropped else keep
        latents_BGJC = self.read(tokens_BGSC, c_BC, made)
        if self.read.latent_positions is not None:
            where_GJ = token_index(grid, self.window, x_BNC.device)[:, :made]
            latents_BGJC = latents_BGJC + self.read.latent_positions[where_GJ]

        groups = latents_BGJC.shape[1]
        core_BNC = latents_BGJC[:, :, :keep].flatten(1, 2)
        core_BNC = self.blocks(core_BNC, c_BC, Layout(Grid(groups, keep), self.rope(grid, keep, x_BNC.device)))
        latents_BGKC = core_BNC.unflatten(1, (groups, keep))

        if keep < made:
            latents_BGKC = torch.cat([latents_BGKC, latents_BGJC[:, :, keep:]], dim=2)
        return ungroup(self.write(tokens_BGSC, latents_BGKC), grid, self.window)

    def rope(self, grid: Grid, keep: int, device: torch.device) -> Tensor | None:
        """The latents' rotations (2, G K, D / 2), or None where a table holds their positions."""
        if self.head_width is None:
            return None
        return latent_rope(self.window.groups(grid), keep, self.head_width, device)
