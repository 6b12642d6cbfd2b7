"""elasticize: an unmodified transformer of diffusers, changed in place into `[*head, latent core, *tail]`."""

import dataclasses
import inspect
from typing import Annotated, Any, NamedTuple, get_args

import torch
from annotated_types import Ge, Le
from diffusers.hooks._helpers import TransformerBlockRegistry  # private: tests hold it to what is needed of it
from diffusers.hooks.hooks import HookRegistry

from elit.backbones.hosts.budgets import CORE, BudgetHook
from elit.backbones.hosts.core import ElasticList, HostCore
from elit.backbones.hosts.table import PAGE, Host, host_named
from elit.elastic.anchors import Anchor, Anchors
from elit.elastic.grid import Window
from elit.elastic.interface import Read, Write, init_interface
from elit.errors import UserError
from elit.records import Count, Positive, Whole, check_fields, record

Side = Annotated[int, Ge(1), Le(2**12)]
Layers = Annotated[int, Ge(1), Le(64)]
HOOK = "elit_budget"
MOST_LATENTS = 2**12  # of a window


class Sizes(NamedTuple):
    """What of a transformer its interface has to fit."""

    transformer: str
    depth: int  # blocks of the lists that a core can span
    width: int
    heads: int


@record
class HostConfig:
    """How a transformer was made elastic: the arguments of `elasticize`, and what they hold for."""

    transformer: str
    depth: Count
    width: Count
    heads: Count
    head: Whole
    tail: Whole
    window: tuple[Side, Side, Side]
    anchor: Anchor
    read_depth: Layers
    write_depth: Layers
    mlp_ratio: Positive

    def __post_init__(self) -> None:
        check_fields(self)


def sizes(transformer: Any) -> Sizes:
    """Those of a host."""
    host, config = host_named(type(transformer).__name__), transformer.config
    depth = sum(len(getattr(transformer, blocks)) for blocks in host.lists)
    heads = config.num_attention_heads
    return Sizes(host.transformer, depth, heads * config.attention_head_dim, heads)


def elasticize(
    transformer: Any,
    head: int,
    tail: int,
    window: int | tuple[int, ...],
    anchor: Anchor = "sharp",
    *,
    read_depth: int = 1,
    write_depth: int = 1,
    mlp_ratio: float = 1.0,
    seed: int = 0,
) -> Any:
    """Makes a transformer of diffusers elastic, in place, and returns it.

    Its blocks but the first `head` and the last `tail` run on latents from now on, `elit.budget` says on how many. With
    `anchor="sharp"` the full budget computes what the transformer did before; with "cells" too, and low budgets start from
    means instead of single tokens; "pyramid" has the means of halves at every budget; "none" is the paper's interface, which
    has to be trained first. Where a transformer has two lists of blocks, head
    and tail are counted over both; Flux2's are within its single-stream list.

    window: the side of the square of tokens that is read together, or (rows, columns), or (frames, rows, columns). It need
    not divide the grid. read_depth, write_depth, mlp_ratio: layers of Read and Write, and the hidden width of their MLPs.
    seed: of the interface's fresh weights. They are of the transformer's dtype and device.

    Raises UserError for a transformer that is no host, and for a split or a window that it cannot have.
    """
    host = host_named(type(transformer).__name__)
    _check(host, transformer, head, tail)
    frames, rows, columns = _window(window)
    if anchor not in get_args(Anchor):
        raise UserError(f"anchor is {', '.join(get_args(Anchor))}, not {anchor}")
    config = HostConfig(
        **sizes(transformer)._asdict(),
        head=head,
        tail=tail,
        window=(frames, rows, columns),
        anchor=anchor,
        read_depth=read_depth,
        write_depth=write_depth,
        mlp_ratio=float(mlp_ratio),
    )
    lists, depth = [getattr(transformer, name) for name in host.lists], config.depth
    first_block = [block for blocks in lists for block in blocks][head]
    with torch.random.fork_rng(devices=[]), torch.device("meta" if transformer.device.type == "meta" else "cpu"):
        torch.manual_seed(seed)
        core = make_core(config, type(first_block))
    core.to(device=transformer.device, dtype=transformer.dtype).train(transformer.training)
    made, start, leads = [], 0, True
    for name, blocks in zip(host.lists, lists, strict=True):
        first, end = (min(max(n - start, 0), len(blocks)) for n in (head, depth - tail))
        made.append(ElasticList(blocks, core, first, end, leads and end > first))
        leads, start = leads and end == first, start + len(blocks)
        setattr(transformer, name, made[-1])
    core.lists, core.config = tuple(made), config
    setattr(transformer, CORE, core)
    names = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
    core.hook = BudgetHook(core, names)
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(core.hook, HOOK)
    return transformer


SPLIT = ("head", "tail", "window", "anchor", "read_depth", "write_depth", "mlp_ratio")  # what `elasticize` is told


def elasticize_as(transformer: Any, config: Any, seed: int = 0) -> Any:
    """`elasticize` by a record that has its arguments as fields, such as the `HostConfig` of another transformer."""
    return elasticize(transformer, **{name: getattr(config, name) for name in SPLIT}, seed=seed)


def _check(host: Host, transformer: Any, head: int, tail: int) -> None:
    """Raises UserError for a transformer that cannot be made elastic, or not with this head and tail."""
    name = host.transformer
    if hasattr(transformer, CORE):
        raise UserError(f"this {name} is elastic already; load it anew for another head, tail or window")
    if (why := host.unfit(transformer.config)) is not None:
        raise UserError(f"this {name} cannot be made elastic: {why}; see {PAGE}")
    depth = sizes(transformer).depth
    for argument, value in (("head", head), ("tail", tail)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"{argument} counts blocks, so it is a whole number of at least 0, not {value}")
    if head + tail >= depth:
        raise UserError(f"head {head} + tail {tail} leave no core in the {depth} blocks of this {name}; give fewer")


def _window(window: int | tuple[int, ...]) -> tuple[int, int, int]:
    """The sides (frames, rows, columns) of a window as it may be given. Raises UserError for none."""
    sides = (window, window) if isinstance(window, int) else tuple(window)
    if len(sides) not in (2, 3):
        raise UserError(f"window is a side, (rows, columns) or (frames, rows, columns) of tokens, not {window}")
    frames, rows, columns = (1, *sides) if len(sides) == 2 else sides
    made = Window(frames=frames, height=rows, width=columns)
    if made.size > MOST_LATENTS:
        raise UserError(f"a window of {made} tokens is too large; {MOST_LATENTS} tokens is the most")
    return made.axes


def make_core(config: HostConfig, block: type) -> HostCore:
    """A fresh core for a host of this configuration, of the class that stands for its kind of block."""
    host = host_named(config.transformer)
    frames, rows, columns = config.window
    window = Window(frames=frames, height=rows, width=columns)
    read = Read(config.width, config.heads, window.size, config.read_depth, config.mlp_ratio)
    write = Write(config.width, config.heads, window.size, config.write_depth, config.mlp_ratio)
    anchors = None if config.anchor == "none" else Anchors(window, config.anchor)
    init_interface(read, write, anchors)
    return _core_class(block, host)(read, write, window, anchors, host)


_core_classes: dict[type, type[HostCore]] = {}  # by the class of the blocks that they stand for


def _core_class(block: type, host: Host) -> type[HostCore]:
    """A class of cores that caches of diffusers treat as they do blocks of a class.

    A core is called as a block of the list in which it stands, and returns what that does.
    """
    if block not in _core_classes:
        made = type(f"Elastic{block.__name__}", (HostCore,), {})
        metadata = dataclasses.replace(TransformerBlockRegistry.get(block))
        TransformerBlockRegistry.register(made, metadata)
        metadata._cached_parameter_indices = {name: place for place, name in enumerate(host.arguments)}
        _core_classes[block] = made
    return _core_classes[block]
