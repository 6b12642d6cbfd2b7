"""Budgets of hosts: what `with elit.budget(...)` asks for, and the hook that tells it to the core at every forward.

What is asked for is kept in a ContextVar, so threads and tasks have budgets of their own. Compiled graphs cannot read one;
they read a copy that is kept per thread, in which a level is a number that a graph takes as an input.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, CacheContext, ModelHook, StateManager
from torch import Tensor, nn

from elit.backbones.hosts.core import Call, HostCore
from elit.backbones.hosts.table import PAGE, Told, check_call
from elit.elastic.grid import Grid
from elit.elastic.levels import Budget, Level, PerSample
from elit.elastic.schedule import OverTime
from elit.errors import UserError

try:  # a number that a graph takes as an input
    from torch.fx.experimental.sym_node import DynamicInt
except ImportError:  # before torch 2.10
    DynamicInt = int  # type: ignore[misc, assignment]

CORE = "elit"  # a transformer's attribute
WHOLE_GRAPHS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)  # older ones miss what a thread keeps
KEEPING = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig", "TaylorSeerCacheConfig")  # of attention outputs


@dataclass(frozen=True)
class Asked:
    """What one `with elit.budget(...)` asks for.

    budget: of every pass, a fraction, one per sample, or over time. unconditional: of the unconditional pass, where it is
    another. grid: where the tokens sit, if told.
    """

    budget: Budget | OverTime
    unconditional: float | OverTime | None = None
    grid: Grid | None = None


_asked: ContextVar[Mapping[int, Asked] | None] = ContextVar("elit_budgets", default=None)  # by the id of a core


class Standing(threading.local):
    """A copy, per thread, of what is asked for of a core, and the pass that a pipeline is in.

    level: of this pass, where it is one number.
    """

    asked: Asked | None = None
    name: str | None = None
    level: int | None = None


class Passes(StateManager):
    """Notes which pass a pipeline is in, as `cache_context` tells it."""

    def __init__(self, hook: "BudgetHook") -> None:
        super().__init__(BaseState())
        self.hook = hook

    def set_context(self, context: CacheContext | None) -> None:
        """Called by diffusers when a pass begins and, with None, when it ends."""
        self.hook.stand(self.hook.standing.asked, None if context is None else context.name)


class BudgetHook(ModelHook):
    """Tells the core of a transformer its grid and its level at every forward.

    names: the arguments of the transformer's forward, in order.
    """

    _is_stateful = True  # so that diffusers tells `passes` of its contexts

    def __init__(self, core: HostCore, names: tuple[str, ...]) -> None:
        super().__init__()
        self.core, self.names = core, names
        self.standing = Standing()
        self.passes = Passes(self)

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward, of which its core is told."""
        told = {**dict(zip(self.names[: len(args)], args, strict=True)), **kwargs}
        self.core.calls.now = self.call(module, told)
        try:
            return self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]  # set when it is registered
        finally:
            self.core.calls.now = None

    def call(self, module: Any, told: Told) -> Call:
        """What this forward tells the core. Raises UserError for what an elastic host cannot do."""
        check_call(self.core.host, told)
        compiling = torch.compiler.is_compiling()
        if compiling and not WHOLE_GRAPHS:
            raise UserError(
                f"a graph of the whole transformer needs torch 2.12, and this is {torch.__version__}; compile blocks with"
                " compile_repeated_blocks()"
            )
        asked = self.standing.asked if compiling else (_asked.get() or {}).get(id(self.core))
        if module._parallel_config is not None and module._parallel_config.context_parallel_config is not None:
            raise UserError(f"context parallelism cuts the tokens before the latent core reads them; see {PAGE}")
        grid = asked.grid if asked is not None and asked.grid is not None else self.core.host.grid(told, module.config)
        level = self.level(asked, told, compiling)
        if level != self.core.levels.latents:
            self.check_cache(module)
        return Call(grid, level, torch.is_grad_enabled() and module.gradient_checkpointing)

    def level(self, asked: Asked | None, told: Told, compiling: bool) -> Level:
        """The level of this forward: one, or one per sample where a batch holds both passes."""
        levels, host, batch = self.core.levels, self.core.host, len(told["hidden_states"])
        if asked is None:
            return levels.latents
        if compiling and self.standing.level is not None:
            return self.standing.level
        main = at_time(asked.budget, lambda: self.time(told))
        if asked.unconditional is None:
            return levels.resolve(main, batch)
        weak = levels.of(at_time(asked.unconditional, lambda: self.time(told)))
        strong = levels.of(main)
        if host.halves is None or self.standing.name in ("cond", "uncond"):
            return weak if self.standing.name == "uncond" else strong
        if batch % 2:
            raise UserError(
                f"unconditional= is of a batch of pairs, and {batch} samples came; leave it out where guidance is off"
            )
        halves = (weak, strong) if host.halves == "unconditional first" else (strong, weak)
        return weak if weak == strong else PerSample(tuple(k for k in halves for _ in range(batch // 2)))

    def time(self, told: Told) -> float:
        """The sampler's time of this forward, 1 = noise."""
        if torch.compiler.is_compiling():
            raise UserError(
                "a graph of the whole transformer cannot read the time, which a schedule of budgets asks for; give"
                " elit.budget what torch.compile(transformer) returned, or compile blocks with compile_repeated_blocks()"
            )
        timestep = told["timestep"]
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        return min(max(value / self.core.host.noise, 0.0), 1.0)

    def check_cache(self, module: Any) -> None:
        """Raises UserError for a cache that keeps what another budget makes of another length."""
        cache = type(getattr(module, "_cache_config", None)).__name__
        if cache in KEEPING:
            raise UserError(
                f"{cache.removesuffix('Config')} keeps outputs of attention, whose number follows the budget; run the full"
                " budget, or disable_cache(), or take FirstBlockCache"
            )

    def stand(self, asked: Asked | None, name: str | None) -> None:
        """Notes what compiled graphs read: what is asked for, in which pass."""
        self.standing.asked, self.standing.name, self.standing.level = asked, name, None
        if isinstance(wanted := self.wanted(), float | int):
            self.standing.level = DynamicInt(self.core.levels.of(wanted))

    def wanted(self) -> Budget | OverTime:
        """What is asked for of this pass, None where its batch holds both."""
        asked, name = self.standing.asked, self.standing.name
        if asked is None or (self.core.host.halves is not None and asked.unconditional is not None):
            return None
        return asked.unconditional if name == "uncond" and asked.unconditional is not None else asked.budget

    def read_time(self, compiled: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the level that a schedule asks for now, ahead of a compiled transformer's forward, whose graph reads it."""
        if isinstance(wanted := self.wanted(), OverTime):
            told = {**dict(zip(self.names[: len(args)], args, strict=True)), **kwargs}
            self.standing.level = DynamicInt(self.core.levels.of(wanted.at(self.time(told))))

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Nothing is kept from one forward to the next."""
        return module


def at_time(budget: Any, time: Callable[[], float]) -> Any:
    """A budget, or what one over time is now."""
    return budget.at(time()) if isinstance(budget, OverTime) else budget


def core_of(transformer: Any) -> HostCore:
    """The core of a transformer that was made elastic, compiled or not. Raises UserError for any other."""
    while not isinstance(getattr(transformer, CORE, None), HostCore):
        inner = getattr(transformer, "_orig_mod", None) or getattr(transformer, "module", None)
        if not isinstance(inner, nn.Module):
            raise UserError(
                f"{type(transformer).__name__} has no latent core, so no budget; make it elastic with"
                f" elit.elasticize(transformer, head=8, tail=8, window=8); see {PAGE}"
            )
        transformer = inner
    core = getattr(transformer, CORE)
    assert isinstance(core, HostCore)
    return core


@contextmanager
def budget(
    transformer: nn.Module,
    budget: Budget | OverTime = None,
    *,
    unconditional: float | OverTime | None = None,
    grid: tuple[int, ...] | None = None,
) -> Iterator[None]:
    """Within it, the transformer's forwards in this thread or task run at a budget; outside, at the full one.

    budget: a fraction in (0, 1], one per sample, or a `Schedule` over the sampler's time; None is the full one.
    unconditional: of the unconditional pass of guidance. Where a pipeline puts both passes into one batch it is half of it,
    so leave it out where guidance is off. grid: rows and columns of the image's tokens, frames first in a video; needed by
    Flux where a graph of the whole transformer is compiled, else read from its arguments.

    Raises UserError for a budget that is none, and for a transformer that is not elastic.
    """
    core = core_of(transformer)
    with _asking(core, _checked(core, budget, unconditional, grid)), _time_read(core, transformer):
        yield


@contextmanager
def _time_read(core: HostCore, transformer: nn.Module) -> Iterator[None]:
    """Within it, a schedule's time is read before each forward of a compiled transformer, outside of the graph."""
    if getattr(transformer, "_orig_mod", None) is None:  # which a compiled one has
        yield
        return
    with transformer.register_forward_pre_hook(core.hook.read_time, with_kwargs=True):
        yield


@contextmanager
def at_level(core: HostCore, level: Level, grid: Grid) -> Iterator[None]:
    """Within it, forwards of a core's transformer run at a level, or at one per sample, on tokens of a grid."""
    with _asking(core, Asked(level / core.levels.latents if isinstance(level, int) else level, grid=grid)):
        yield


@contextmanager
def _asking(core: HostCore, asked: Asked) -> Iterator[None]:
    """Within it, this is asked for of a core."""
    hook: BudgetHook = core.hook
    before = hook.standing.asked, hook.standing.name
    token = _asked.set({**(_asked.get() or {}), id(core): asked})
    hook.stand(asked, hook.standing.name)
    try:
        yield
    finally:
        hook.stand(*before)
        _asked.reset(token)


def _checked(core: HostCore, budget: Any, unconditional: Any, grid: tuple[int, ...] | None) -> Asked:
    """What is asked for, each budget known to the core's levels."""
    if isinstance(budget, Tensor):
        budget = budget.tolist()
    several = isinstance(budget, list | tuple)
    for one in budget if several else [1.0 if budget is None else budget]:
        if not isinstance(one, OverTime):
            core.levels.of(one)
    if unconditional is not None:
        if several:
            raise UserError("unconditional= goes with one budget for all samples; with one per sample, list them all")
        if not isinstance(unconditional, OverTime):
            core.levels.of(unconditional)
    if grid is not None:
        if len(grid) not in (2, 3):
            raise UserError(f"grid is (rows, columns) or (frames, rows, columns) of tokens, not {grid}")
        sides = (1, *grid) if len(grid) == 2 else grid
        return Asked(budget, unconditional, Grid(frames=sides[0], height=sides[1], width=sides[2]))
    return Asked(1.0 if budget is None else budget, unconditional)
