"""LatentCore: the middle of a backbone, run on latents. It is itself a block.

It takes and returns what one of its host's blocks does, so an elastic model is the host's own stack with its middle
replaced: `[*head, LatentCore(read, trunk, write), *tail]`.

Shapes: B batch, N tokens, G groups, S tokens in a group, J latents in a group, K latents kept, C width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elit.elastic.anchors import Anchors
from elit.elastic.constants import made_once
from elit.elastic.grid import Grid, Region, Window, regions
from elit.elastic.grouping import cut, group, joined, token_index, ungroup
from elit.elastic.interface import Read, Write
from elit.elastic.levels import Chosen, Level, Levels, PerSample
from elit.elastic.rope import places, rope_table


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


class HostPart(nn.Module):
    """A part of a host that is no block, such as a long skip.

    canonical: its name whatever the split, as `ElasticModel.canonical_names` has it.
    """

    canonical: str


class Trunk(nn.ModuleList):
    """A host's middle as a plain stack: trunk(x_BNC, c_BC, layout) runs its blocks one after another."""

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        for block in self:
            x_BNC = block(x_BNC, c_BC, layout)
        return x_BNC


class Seats(NamedTuple):
    """Who is there in the windows of a region, which may be cut short: numbers of tokens and latents of the whole window.

    Where the window is whole the first ones are, of which a count tells, and nothing is gathered.
    """

    tokens: slice | Tensor  # of the whole window, in row-major order
    made: int | Tensor  # the latents
    kept: int  # of these, how many the core processes
    seated: int | Tensor  # which of the region's tokens those latents sit on

    @property
    def latents(self) -> slice | Tensor:
        """The latents made, as an index."""
        return slice(self.made) if isinstance(self.made, int) else self.made

    @property
    def places(self) -> slice | Tensor:
        """The tokens that they sit on, as an index."""
        return slice(self.seated) if isinstance(self.seated, int) else self.seated


class Part(NamedTuple):
    """A region of the grid between Read and Write."""

    region: Region
    seats: Seats
    tokens_BGSC: Tensor  # noqa: N815
    latents_BGJC: Tensor  # noqa: N815


def kept_latents(parts: list[Part]) -> Tensor:
    """The latents (B, N, C) that the core processes: those of all regions, one behind another."""
    return joined([part.latents_BGJC[:, :, : part.seats.kept].flatten(1, 2) for part in parts])


def level_by_level(level: PerSample, device: torch.device, run: Callable[[Tensor, int], Tensor]) -> Tensor:
    """What `run` makes of the samples of each level (their numbers, the level), in the order of the batch."""
    order = sorted(range(len(level.levels)), key=level.levels.__getitem__)
    made = []
    for k in sorted({*level.levels, *level.always}):
        rows = torch.tensor([i for i in order if level.levels[i] == k], dtype=torch.long, device=device)
        made.append(run(rows, k))
    return torch.cat(made)[torch.tensor(order, device=device).argsort()]


class LatentCore(nn.Module):
    """Read, the host's own middle on the latents, and Write (figure 2 of the paper).

    The grid may be of any size. Where the window does not divide it, groups at the edges are smaller: tokens that are not
    there are never read, and a latent that sits on such a token does not exist. Latent j sits on the j-th token of its
    group, or anchored on the j-th of the anchors' order.

    Args:
        read, write: the interface.
        trunk: the host's middle blocks, called as trunk(x_BNC, c_BC, layout); files know it as `blocks`.
        window: the tokens of one group.
        head_width: D, where the latents' positions are RoPE; None where they are the rows of Read's table.
        write_sees_dropped: False: dropped latents do not exist. True: Read makes all J, and Write attends to the K
            processed ones and to the J - K unprocessed, as the published weights were trained.
        step: of the levels that the trunk can run, which are its multiples.
        anchors: latents that start from tokens (see `elit.elastic.anchors`); None for the paper's interface.
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
        anchors: Anchors | None = None,
    ) -> None:
        super().__init__()
        self.read, self.blocks, self.write = read, trunk, write
        self.anchors = anchors
        self.window, self.head_width, self.write_sees_dropped = window, head_width, write_sees_dropped
        self.levels = Levels(window.size, step)

    def forward(self, x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C), at `layout.level` latents per group: one level, or one per sample."""
        level = self.levels.latents if layout.level is None else layout.level
        if not isinstance(level, PerSample):
            return self.at_level(x_BNC, c_BC, layout.grid, level)
        return level_by_level(level, x_BNC.device, lambda rows, k: self.at_level(x_BNC[rows], c_BC[rows], layout.grid, k))

    def at_level(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid, keep: int | Chosen) -> Tensor:
        """The whole batch with the first `keep` latents of each group, or with those that are chosen."""
        parts = self.read_in(x_BNC, c_BC, grid, keep)
        core_BNC = kept_latents(parts)
        shape = (parts[0].latents_BGJC.shape[1], parts[0].seats.kept) if len(parts) == 1 else (1, core_BNC.shape[1])
        core_BNC = self.blocks(core_BNC, c_BC, Layout(Grid(*shape), self.rope(parts, grid)))
        return self.write_back(parts, core_BNC, grid)

    def read_in(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid, keep: int | Chosen) -> list[Part]:
        """Every region's tokens in their groups, and the latents that read them."""
        return [self.read_region(x_BNC, c_BC, grid, region, keep) for region in regions(grid, self.window)]

    def write_back(self, parts: list[Part], core_BNC: Tensor, grid: Grid) -> Tensor:
        """The tokens (B, N, C) with what the core made of the kept latents of all regions, one behind another."""
        after = core_BNC.split([part.latents_BGJC.shape[1] * part.seats.kept for part in parts], dim=1)
        written = [self.write_region(part, made) for part, made in zip(parts, after, strict=True)]
        return joined(written, grid, [part.region for part in parts])

    def read_region(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid, region: Region, keep: int | Chosen) -> Part:
        """A region's tokens in their groups, and the latents that exist there."""
        seats = self.seats(region.window, keep, x_BNC.device)
        tokens_BGSC = group(cut(x_BNC, grid, region), region.grid, region.window)
        tokens_BGSC = tokens_BGSC + self.read.token_positions[seats.tokens]  # kept: Write starts from here
        start = None if self.anchors is None else self.anchors.start(tokens_BGSC, seats.latents, seats.tokens)
        latents_BGJC = self.read(tokens_BGSC, c_BC, seats.latents, start)
        if self.read.latent_positions is not None:
            where_GS = token_index(grid, region, x_BNC.device)
            latents_BGJC = latents_BGJC + self.read.latent_positions[where_GS[:, seats.places]]
        return Part(region, seats, tokens_BGSC, latents_BGJC)

    def write_region(self, part: Part, core_BNC: Tensor) -> Tensor:
        """A region's tokens (B, N, C), with what the core made of its latents written into them."""
        region, seats, tokens_BGSC, latents_BGJC = part
        latents_BGKC = core_BNC.unflatten(1, (latents_BGJC.shape[1], seats.kept))
        if self.anchors is not None:
            change_BGKC = latents_BGKC - latents_BGJC[:, :, : seats.kept]
            tokens_BGSC = tokens_BGSC + self.anchors.spread(change_BGKC, seats.latents, seats.tokens)
        if seats.kept < latents_BGJC.shape[2]:
            latents_BGKC = torch.cat([latents_BGKC, latents_BGJC[:, :, seats.kept :]], dim=2)
        return ungroup(self.write(tokens_BGSC, latents_BGKC, seats.tokens), region.grid, region.window)

    def seats(self, window: Window, keep: int | Chosen, device: torch.device) -> Seats:
        """Who is there in a window, the whole one or one cut short, at a level."""
        if isinstance(keep, Chosen):
            others = tuple(j for j in range(self.levels.latents) if j not in keep.latents)
            chosen = keep.latents + (others if self.write_sees_dropped else ())
            return _seats(self.window, window, self.order, chosen, len(keep.latents), device)
        made = self.levels.latents if self.write_sees_dropped else keep
        anchored = self.anchors is not None
        if window == self.window and not (anchored and self.read.latent_positions is not None):
            return Seats(slice(None), made, keep, made)
        return _seats(self.window, window, self.order, tuple(range(made)), keep, device)

    @property
    def order(self) -> tuple[int, ...]:
        """The token of its window that each latent sits on."""
        return self.anchors.order if self.anchors is not None else tuple(range(self.window.size))

    def rope(self, parts: list[Part], grid: Grid) -> Tensor | None:
        """The kept latents' rotations (2, G K, D / 2), or None where a table holds their positions.

        Those of a latent are turned by (its number, its group's row, its group's column); anchored, by the place of what
        it stands for among all tokens, so that at the full budget it turns as its token does.
        """
        if self.head_width is None:
            return None
        at = [self.latent_places(part, grid.frames > 1) for part in parts]
        return rope_table(joined([place[None] for place in at])[0], self.head_width)

    def latent_places(self, part: Part, video: bool) -> Tensor:
        """(G K, A) coordinates of the kept latents of a region, group by group."""
        region, seats = part.region, part.seats
        device = part.latents_BGJC.device
        axes = range(0 if video else 1, 3)
        groups_GA = places(tuple(region.window.groups(region.grid)[axis] for axis in axes), device)
        numbers_K = torch.arange(self.levels.latents, device=device)[seats.latents][: seats.kept]
        inside_KA = None if self.anchors is None else self.anchors.middles(numbers_K, seats.tokens)
        columns = [] if self.anchors is not None else [numbers_K.expand(len(groups_GA), -1)]
        for group_G, axis in zip(groups_GA.unbind(1), axes, strict=True):
            if inside_KA is None:
                first = region.corner[axis] // self.window.axes[axis]
                columns.append((group_G + first)[:, None].expand(-1, len(numbers_K)))
            else:
                tokens_G = group_G * region.window.axes[axis] + region.corner[axis]
                columns.append(tokens_G[:, None] + inside_KA[:, axis])
        return torch.stack(columns, dim=-1).flatten(0, 1)


@made_once
def _seats(
    whole: Window, window: Window, order: tuple[int, ...], made: tuple[int, ...], keep: int, device: torch.device
) -> Seats:
    """The seats of the latents of these numbers, of which the first `keep` are kept, as far as they exist in a window."""
    inside = Region((0, 0, 0), Grid(window.height, window.width, window.frames), window).inside(whole)
    there = {token: place for place, token in enumerate(inside)}
    latents = [j for j in made if order[j] in there]
    kept = sum(order[j] in there for j in made[:keep])
    tensors = (torch.tensor(values, device=device) for values in (inside, latents, [there[order[j]] for j in latents]))
    tokens, made_latents, seated = tensors
    return Seats(tokens, made_latents, kept, seated)
