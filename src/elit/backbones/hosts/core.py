"""The latent core of a host, which takes and returns what the host's own blocks do.

A host's list of blocks becomes an `ElasticList`: iterated, it yields `[*head, core, *tail]`, so that the host's own forward
runs the elastic stack. The blocks stay its children, under their names, so files, adapters and `blocks[0]` find them where
they were.

Shapes: B batch, N tokens, G groups, S tokens in a group, J latents in a group, K latents kept, C width.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elit.backbones.hosts.table import Host, Told
from elit.elastic.anchors import Anchors, anchor_places
from elit.elastic.core import LatentCore, Part, kept_latents, level_by_level
from elit.elastic.grid import Grid, Window
from elit.elastic.grouping import token_index
from elit.elastic.interface import Read, Write
from elit.elastic.levels import Chosen, Level, PerSample
from elit.elastic.rope import places
from elit.errors import UserError


class Call(NamedTuple):
    """What one forward of a transformer tells its core."""

    grid: Grid
    level: Level
    checkpointing: bool  # whether blocks are run again in the backward pass


class Calls(threading.local):
    """The forward that is running on a thread, if any."""

    now: Call | None = None


class HostCore(LatentCore):
    """Read, a host's own middle blocks on the latents, and Write.

    Latents take the rotations of the tokens that they stand on, and text passes through the core's blocks untouched.
    """

    places: Tensor
    config: Any  # how it was made, a HostConfig
    hook: Any  # that tells it of every forward: a BudgetHook, of a file that imports this one

    def __init__(self, read: Read, write: Write, window: Window, anchors: Anchors | None, host: Host) -> None:
        super().__init__(read, nn.Identity(), write, window, anchors=anchors)
        self.host = host
        self.calls = Calls()
        self.lists: tuple[ElasticList, ...] = ()  # of the host, whose children its blocks are
        if anchors is None:
            at = places(window.axes, torch.device("cpu"))
        else:  # the middle of a cell moves with the level: its latent stands where the first one of it does
            at = anchor_places(window, "sharp" if anchors.anchor == "cells" else anchors.anchor)
        self.register_buffer("places", at.long(), persistent=False)  # (J, 3), of the middle of what a latent stands for

    def middle(self) -> list[nn.Module]:
        """The host's blocks that run on latents, first to last."""
        return [block for blocks in self.lists for block in blocks.middle()]

    def forward(self, *args: Any, call: Call | None = None, **kwargs: Any) -> Any:
        """What a block of the host takes and returns. Raises UserError outside of the host's forward."""
        if call is None:
            raise UserError("a host's latent core runs within its transformer's forward alone; call the transformer")
        by_place = self.host.arguments[: len(args)]
        told = {**dict(zip(by_place, args, strict=True)), **kwargs}
        if isinstance(call.level, PerSample):
            made = self.sample_by_sample(told, by_place, call, call.level)
        else:
            made = self.at(told, by_place, call, call.level)
        returned = tuple(made[name] for name in self.host.returns)
        return returned if len(returned) > 1 else returned[0]

    def at(self, told: Told, by_place: Sequence[str], call: Call, keep: int | Chosen) -> Told:
        """A block's arguments and what it returns, the whole batch with the first `keep` latents of each group."""
        x_BNC, grid, inner = told["hidden_states"], call.grid, dict(told)
        front = x_BNC.shape[1] - grid.size
        if front and not self.host.text_in_front:
            raise UserError(f"{x_BNC.shape[1]} image tokens came, and {grid} of the grid are {grid.size}")
        blocks = self.middle()
        c_BC = self.host.condition(told, blocks[0], x_BNC.shape[2]).to(self.read.queries.dtype)
        parts = self.read_in(x_BNC[:, front:], c_BC, grid, keep)
        cuts = {name: cut for name, cut in self.host.cut.items() if told.get(name) is not None}
        if cuts:
            at = self.tokens_under(parts, grid)
            inner |= {name: cut(told[name], at, grid.size) for name, cut in cuts.items()}
        latents_BNC = kept_latents(parts)
        inner["hidden_states"] = torch.cat([x_BNC[:, :front], latents_BNC], dim=1) if front else latents_BNC
        for block in blocks:
            made = run_block(block, inner, by_place, call.checkpointing)
            inner.update(zip(self.host.returns, made if isinstance(made, tuple) else (made,), strict=True))
        core_BNC = inner["hidden_states"]
        written_BNC = self.write_back(parts, core_BNC[:, front:], grid)
        inner["hidden_states"] = torch.cat([core_BNC[:, :front], written_BNC], dim=1) if front else written_BNC
        return inner

    def sample_by_sample(self, told: Told, by_place: Sequence[str], call: Call, level: PerSample) -> Told:
        """`at`, with a level per sample."""
        host, batch = self.host, len(told["hidden_states"])
        for name, value in told.items():
            if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
                raise UserError(f"{name} holds tensors, which a budget per sample cannot share out; give one budget")

        def of_rows(value: Any, rows: Tensor) -> Any:
            if isinstance(value, tuple):
                return tuple(of_rows(item, rows) for item in value)
            return value[rows] if isinstance(value, Tensor) and len(value) == batch else value

        def run(rows: Tensor, k: int) -> Tensor:
            if not len(rows):  # only so that all processes make the same calls; blocks of diffusers take no empty batch
                return run(rows.new_zeros(1), k)[:0]
            some = {name: of_rows(value, rows) if name in host.samples else value for name, value in told.items()}
            made = self.at(some, by_place, call, k)
            text = made["encoder_hidden_states"] if "encoder_hidden_states" in host.returns else None
            return made["hidden_states"] if text is None else torch.cat([text, made["hidden_states"]], dim=1)

        x_BNC = level_by_level(level, told["hidden_states"].device, run)
        text = x_BNC.shape[1] - told["hidden_states"].shape[1]
        return {**told, "encoder_hidden_states": x_BNC[:, :text] if text else None, "hidden_states": x_BNC[:, text:]}

    def tokens_under(self, parts: list[Part], grid: Grid) -> Tensor:
        """(N) numbers, in the whole grid, of the tokens that the kept latents stand on: in the middle of what each is of."""
        numbers = []
        for region, seats, _, _ in parts:
            at_K3 = self.places[seats.latents][: seats.kept]
            inside_K3 = torch.minimum(at_K3, torch.tensor(region.window.axes, device=at_K3.device) - 1)
            frame_K, row_K, column_K = inside_K3.unbind(1)
            inside_K = (frame_K * region.window.height + row_K) * region.window.width + column_K
            numbers.append(token_index(grid, region, at_K3.device)[:, inside_K].flatten())
        return torch.cat(numbers)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise UserError(
            "a transformer made elastic cannot be copied, for its copy would run the first one's blocks; make a second"
            " one, copy the weights with load_state_dict, and make it elastic"
        )


def run_block(block: nn.Module, told: Told, by_place: Sequence[str], again: bool) -> Any:
    """A host's block on its arguments, of which the first are given by place; `again`: it is run again for the gradients."""
    args = [told[name] for name in by_place]
    kwargs = {name: value for name, value in told.items() if name not in by_place}
    return checkpoint(block, *args, use_reentrant=False, **kwargs) if again else block(*args, **kwargs)


class BoundCore:
    """A core within one forward of its host, to be called as a block."""

    def __init__(self, core: HostCore, call: Call) -> None:
        self.core, self.call = core, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.core(*args, call=self.call, **kwargs)


class ElasticList(nn.ModuleList):
    """A host's list of blocks, of which those from `first` to before `end` run on latents.

    Iterated, it yields the others, and where `leads`, the core in the place of those it holds. All else is of the blocks.
    """

    def __init__(self, blocks: nn.ModuleList, core: HostCore, first: int, end: int, leads: bool) -> None:
        super().__init__(blocks)
        self.cores = (core,) if leads else ()  # in a tuple: no child of the list
        self.first, self.end = first, end

    def middle(self) -> list[nn.Module]:
        """The blocks that run on latents."""
        return list(self._modules.values())[self.first : self.end]

    def __iter__(self) -> Iterator[Any]:
        blocks = list(self._modules.values())
        cores = []
        for core in self.cores:
            call = core.calls.now
            cores.append(core if call is None else BoundCore(core, call))
        return iter([*blocks[: self.first], *cores, *blocks[self.end :]])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # a plain list of the blocks themselves
            return nn.ModuleList(list(self._modules.values())[index])
        return super().__getitem__(index)
