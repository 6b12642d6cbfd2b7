"""ElasticModel: what every backbone can do, given its blocks and `run(x, t, condition, level)`.

The model answers questions about itself, so that nobody outside parses the names of its parameters or asks for the kind of
its blocks.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elit.condition import Condition, Labels
from elit.elastic.core import HostBlock, HostPart, LatentCore
from elit.elastic.grid import Extent, Grid
from elit.elastic.interface import ReadLayer, WriteLayer
from elit.elastic.levels import Budget, Level, Levels
from elit.errors import UserError

Around = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]  # tokens, and what runs the blocks on them -> tokens


@dataclass(frozen=True)
class Input:
    """What a model takes: channels, the sides (in values) that it was made for, and the side of one patch."""

    channels: int
    extent: Extent
    patch: int

    @property
    def of_clips(self) -> bool:
        """Whether it is a video, and not an image."""
        return self.extent.frames > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W), or (C, T, H, W) for video."""
        frames, height, width = self.extent.axes
        return (self.channels, height, width) if frames == 1 else (self.channels, frames, height, width)


class ElasticModel(nn.Module):
    """Predicts the velocity of a flow: v = model(x, t, y, budget).

    A backbone sets `config`, `input` and `null_class`, has its blocks and at most one `LatentCore` in `blocks`, and writes
    `run`. A model without a core is dense: its one budget is the full one.
    """

    config: Any  # the backbone's own, a frozen dataclass
    input: Input
    time_embedding: nn.Module  # of t: the change from one time to another tells how much the velocity changes
    null_class: int  # the label that stands for no label; those of classes are below it
    label_sizes: tuple[int, ...]  # the values of each factor of a label, one where labels are one thing
    blocks: nn.ModuleList
    tokens: int = 0  # of a text, where a model that is told texts is counted and timed

    @property
    def stages(self) -> int:
        """The images of the pyramid that the model's input is (see `elit.pyramid`); 1 where it is one image."""
        return 1

    @property
    def samples(self) -> Input:
        """What is sampled: the form of the images, of which the input is one unless it is a pyramid."""
        return self.input

    @property
    def grid(self) -> Grid:
        """Where the tokens sit of inputs of the size that the model was made for."""
        made: Grid = self.config.grid
        return made

    def made_of(self) -> list[object] | None:
        """What the model is made of, as plain values; None where that is what `config` holds."""
        return None

    def outline(self) -> "ElasticModel":
        """What FLOPs are counted of: the model itself, whose tensors can be stood in for."""
        return self

    def reset_positions(self) -> None:
        """(Re)computes fixed tables that no file holds, after weights were made without values; a backbone may have some."""

    def run(self, x: Tensor, t: Tensor, condition: Condition, level: Level, around: Around | None = None) -> Tensor:
        """`forward` of a condition at a level (latents per group): what a backbone writes."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | Condition, budget: Budget = None, around: Around | None = None
    ) -> Tensor:
        """The velocity at x (B, C, H, W), or clips (B, C, T, H, W), of its shape, and times t (B,) in [0, 1] with 1 = noise.

        y: labels (B,) int, of which `null_class` is the null class; instead any `Condition` that the model knows. budget:
        None (full), a fraction in (0, 1], or one per sample: a ceiling on the share of latents that the core runs.
        around: given the tokens and what runs all blocks on them, it may leave that out (see `elit.step_cache`). Raises
        UserError for a budget, label, time or size that the model does not have.
        """
        if self.core is None and not (budget is None or (isinstance(budget, float | int) and budget == 1)):
            raise UserError(f"budget {budget} was asked of a dense model, which has the full budget alone")
        condition = Labels(y, self.null_class) if isinstance(y, Tensor) or not isinstance(y, Condition) else y
        return self.run(x, t, condition, self.levels.resolve(budget, len(x)), around)

    @property
    def core(self) -> LatentCore | None:
        """The latent core, or None in a dense model."""
        return next((block for block in self.blocks if isinstance(block, LatentCore)), None)

    @property
    def levels(self) -> Levels:
        """The levels that the model has: one for a dense model, whose only budget is the full one."""
        return Levels(1) if self.core is None else self.core.levels

    @property
    def latents(self) -> int:
        """J, the latents of a group at the full budget; 1 for a dense model."""
        return self.levels.latents

    def fixed(self, *, level: int | None = None, budget: float | None = None) -> "FixedBudget":
        """The model at one level as a module of static shapes, (x, t, y) -> v, for torch.export and torch.compile.

        Give `level`, a count of latents per group, or `budget`, a fraction in (0, 1]. Weights are shared. Raises UserError
        for neither, both, or what the model does not have.
        """
        if (level is None) == (budget is None):
            raise UserError("give fixed() a level or a budget, such as fixed(level=4) or fixed(budget=0.25)")
        if budget is not None:
            return FixedBudget(self, self.levels.of(budget))
        assert level is not None
        if isinstance(level, bool) or not isinstance(level, int) or level not in self.levels.counts():
            known = self.levels.counts()
            every = f", in steps of {known.step}" if known.step > 1 else ""
            raise UserError(f"{level} latents per group were asked for; the model has {known[0]} to {known[-1]}{every}")
        return FixedBudget(self, level)

    def at_budget(self, k: float) -> "FixedBudget":
        """The former name of `fixed`: an int is a level, a float a budget."""
        warnings.warn(
            "at_budget(k) is now fixed(level=k) or fixed(budget=k), and will be gone in the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.fixed(level=k) if isinstance(k, int) else self.fixed(budget=k)

    def example(self, batch: int = 1, device: torch.device | str | None = None) -> tuple[Tensor, Tensor, Any]:
        """(x, t, y) that the model takes, all zeros: for counting, timing and tracing."""
        device = next(self.parameters()).device if device is None else device
        x = torch.zeros(batch, *self.input.shape, device=device)
        return x, torch.zeros(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device)

    def host_blocks(self) -> list[str]:
        """The names of the host's own blocks, first to last, whether in the core or outside: block i is what i names."""
        return [name for name, module in self.named_modules() if isinstance(module, HostBlock)]

    def units(self) -> list[nn.Module]:
        """The modules that do the work, one after another: blocks, and the layers of Read and Write.

        Each is compiled, sharded and recomputed as one.
        """
        return [module for module in self.modules() if isinstance(module, HostBlock | HostPart | ReadLayer | WriteLayer)]

    def compile_blocks(self, **options: Any) -> None:
        """torch.compile unit by unit: quicker to compile than the whole, and one graph serves every block and budget.

        Of each its forward alone, so that hooks, with which FSDP gathers weights, stay outside the graph. options: of
        torch.compile.
        """
        for module in self.units():
            module.forward = torch.compile(module.forward, **options)

    def set_checkpointing(self, on: bool = True) -> None:
        """Recompute every block, those of the core too, in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, HostBlock):
                module.checkpointing = on

    def _interface_prefixes(self) -> tuple[str, ...]:
        """How the names of Read's and Write's parameters begin."""
        core = next((name for name, module in self.named_modules() if isinstance(module, LatentCore)), None)
        return () if core is None else tuple(f"{core}.{part}." for part in ("read", "write", "anchors"))

    def interface_parameters(self) -> dict[str, nn.Parameter]:
        """Read's and Write's parameters, by name; none in a dense model."""
        prefixes = self._interface_prefixes()
        return {name: p for name, p in self.named_parameters() if prefixes and name.startswith(prefixes)}

    def hidden_matrices(self) -> list[Tensor]:
        """The weights of the linears inside the units, Read's and Write's among them, without the modulations."""
        return [
            module.weight
            for unit in self.units()
            for name, module in unit.named_modules()
            if isinstance(module, nn.Linear) and name != "modulation"
        ]

    def canonical_names(self) -> dict[str, str]:
        """A name for every tensor that does not depend on the split (host.3.mlp.fc1.weight), with the model's own name."""
        moved = {f"{name}.": f"host.{i}." for i, name in enumerate(self.host_blocks())}
        moved |= {f"{name}.": f"{part.canonical}." for name, part in self.named_modules() if isinstance(part, HostPart)}
        moved |= {prefix: f"{prefix.split('.')[-2]}." for prefix in self._interface_prefixes()}
        out = {}
        for name in self.state_dict():
            prefix = next((prefix for prefix in moved if name.startswith(prefix)), "")
            out[moved.get(prefix, "") + name.removeprefix(prefix)] = name
        return out


class FixedBudget(nn.Module):
    """A model at one level."""

    def __init__(self, model: ElasticModel, level: int) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model.run(x, t, Labels(y, self.model.null_class), self.level)
