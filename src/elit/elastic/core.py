"""LatentCore: the middle of a backbone, run on latents. It is itself a block.

It takes and returns what one of its host's blocks does, so an elastic model is the host's own stack with its middle
replaced: `[*head, LatentCore(read, core, write), *tail]`.

Shapes: B batch, N tokens, G groups, S tokens in a group, J latents in a group, K latents kept, C width.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elit.elastic.budget import Level
from elit.elastic.grouping import Grid, Window, group, token_index, ungroup
from elit.elastic.interface import Read, Write
from elit.elastic.rope import latent_rope


class Layout(NamedTuple):
    """What a block is told of its tokens beside their values."""

    grid: Grid  # where the tokens sit
    rope: Tensor | None = None  # (2, N, D / 2) cosines and sines, or None without RoPE
    level: Level | None = None  # latents kept per group, one for all or one per sample; only a LatentCore asks


class LatentCore(nn.Module):
    """Read, the host's own middle blocks on the latents, and Write (figure 2 of the paper).

    Args:
        read, blocks, write: the interface and the host's blocks, called as block(x_BNC, c_BC, layout).
        window: the tokens of one group.
        head_width: D, where the latents' positions are RoPE; None where they are the rows of Read's table.
        write_sees_dropped: False: dropped latents do not exist. True: Read makes all J, and Write attends to the K
            processed ones and to the J - K unprocessed, as the published weights were trained.
    """

    def __init__(
        self,
        read: Read,
        blocks: Iterable[nn.Module],
        write: Write,
        window: Window,
        head_width: int | None = None,
        write_sees_dropped: bool = False,
    ) -> None:
        super().__init__()
        self.read, self.blocks, self.write = read, nn.ModuleList(blocks), write
        self.window, self.head_width, self.write_sees_dropped = window, head_width, write_sees_dropped
        # Levels that run even for no sample at all, where processes must make the same calls whatever their samples.
        self.always: tuple[int, ...] = ()

    @property
    def latents(self) -> int:
        """J, the latents of a group."""
        return self.window.size

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C), at `layout.level` latents per group: one level, or one per sample."""
        level = self.latents if layout.level is None else layout.level
        if isinstance(level, int):
            if not self.always:
                return self.at_level(x_BNC, c_BC, layout.grid, level)
            level = (level,) * len(x_BNC)
        order = sorted(range(len(level)), key=level.__getitem__)
        parts = []
        for k in sorted({*level, *self.always}):
            rows = torch.tensor([i for i in order if level[i] == k], dtype=torch.long, device=x_BNC.device)
            parts.append(self.at_level(x_BNC[rows], c_BC[rows], layout.grid, k))
        return torch.cat(parts)[torch.tensor(order, device=x_BNC.device).argsort()]

    def at_level(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid, keep: int) -> Tensor:
        """The whole batch with the first `keep` latents of each group."""
        tokens_BGSC = group(x_BNC, grid, self.window) + self.read.token_positions  # kept: Write starts from here
        made = self.latents if self.write_sees_dropped else keep
        latents_BGJC = self.read(tokens_BGSC, c_BC, made)
        if self.read.latent_positions is not None:
            where_GJ = token_index(grid, self.window, x_BNC.device)[:, :made]
            latents_BGJC = latents_BGJC + self.read.latent_positions[where_GJ]

        groups = latents_BGJC.shape[1]
        core_BNC = latents_BGJC[:, :, :keep].flatten(1, 2)
        layout = Layout(Grid(groups, keep), self.rope(grid, keep, x_BNC.device))
        for block in self.blocks:
            core_BNC = block(core_BNC, c_BC, layout)
        latents_BGKC = core_BNC.unflatten(1, (groups, keep))

        if keep < made:
            latents_BGKC = torch.cat([latents_BGKC, latents_BGJC[:, :, keep:]], dim=2)
        return ungroup(self.write(tokens_BGSC, latents_BGKC), grid, self.window)

    def rope(self, grid: Grid, keep: int, device: torch.device) -> Tensor | None:
        """The latents' rotations (2, G K, D / 2), or None where a table holds their positions."""
        if self.head_width is None:
            return None
        return latent_rope(self.window.groups(grid), keep, self.head_width, device)
