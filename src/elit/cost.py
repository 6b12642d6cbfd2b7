"""What a forward pass costs: FLOPs and activation memory counted on meta tensors, and time measured."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from elit.backbones.config import DiTConfig
from elit.elastic.core import HostBlock, Layout
from elit.elastic.levels import Budget, Level
from elit.elastic.model import ElasticModel
from elit.errors import UserError


def meta_call(
    model: ElasticModel, batch: int, budget: Budget, grad: bool = False, device: str = "meta", blocks: bool = True
) -> Callable[[], Tensor]:
    """A forward of the model on meta tensors, which have shapes and no data; the model itself is left alone.

    blocks: whether they run, and not only what is around them.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device, requires_grad=grad)
        for name, tensor in named.items()
    }
    inputs = model.example(batch, device)
    if not blocks:
        return lambda: functional_call(model, state, (*inputs, budget, lambda tokens, run: tokens))
    return lambda: functional_call(model, state, (*inputs, budget))


def count_flops(
    model: Any,
    budget: Budget = None,
    inputs: Mapping[str, Any] | None = None,
    grid: tuple[int, ...] | None = None,
    *,
    blocks: bool = True,
) -> int:
    """FLOPs of one forward at batch 1: every matrix product, adaLN and embeddings included, a multiply-add as 2.

    Norms, activations and additions are not counted, as in the paper's tables. A model that its configuration tells wholly
    is counted once at a level. blocks: whether they run, which a cache may leave out.

    inputs: the arguments of a transformer of diffusers, which was made, elastic or not, on the device "meta", and which are
    there too. grid: as `elit.budget` takes it; Flux needs it. Raises UserError for a transformer on another device.
    """
    if inputs is not None:
        return _counted_call(model, budget, inputs, grid)
    if not isinstance(model.config, DiTConfig) or (model.core is None and budget is not None):
        return _counted(model, budget, blocks)
    key = (type(model), model.config, model.levels.resolve(budget, 1), blocks)
    if key not in _KNOWN:
        _KNOWN[key] = _counted(model, budget, blocks)
    return _KNOWN[key]


_KNOWN: dict[tuple[type[ElasticModel], DiTConfig, Level, bool], int] = {}


def _counted(model: ElasticModel, budget: Budget, blocks: bool) -> int:
    model = model.outline()
    forward = meta_call(model, 1, budget, blocks=blocks)
    with FlopCounterMode(display=False) as counter, _alike_once(model, counter) as left_out:
        forward()
    return int(counter.get_total_flops()) + sum(left_out)


@contextmanager
def _alike_once(model: ElasticModel, counter: FlopCounterMode) -> Iterator[list[int]]:
    """Of blocks that are alike, one runs, and the others hand on their tokens; the list gets the FLOPs of each of those."""
    known: dict[tuple[object, ...], int] = {}
    left_out: list[int] = []

    def once(kind: str, run: Callable[[Tensor, Tensor, Layout], Tensor]) -> Callable[[Tensor, Tensor, Layout], Tensor]:
        def forward(x_BNC: Tensor, c_BC: Tensor, layout: Layout) -> Tensor:
            key = (kind, x_BNC.shape, c_BC.shape, layout.rope is None)
            if key in known:
                left_out.append(known[key])
                return x_BNC
            before = counter.get_total_flops()
            made = run(x_BNC, c_BC, layout)
            known[key] = counter.get_total_flops() - before
            return made

        return forward

    blocks: list[nn.Module] = [module for module in model.modules() if isinstance(module, HostBlock)]
    own = [vars(block).get("forward") for block in blocks]  # of blocks that are compiled
    for block in blocks:
        block.forward = once(f"{type(block)} {block}", block.forward)
    try:
        yield left_out
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _counted_call(transformer: Any, budget: Budget, inputs: Mapping[str, Any], grid: tuple[int, ...] | None) -> int:
    """FLOPs of a transformer of diffusers."""
    from elit.backbones.hosts.budgets import CORE  # only who counts hosts loads diffusers
    from elit.backbones.hosts.budgets import budget as running_at

    if transformer.device.type != "meta":
        raise UserError('FLOPs are counted without values: make the transformer within torch.device("meta")')
    dense = budget is None and not hasattr(transformer, CORE)
    with (
        torch.no_grad(),
        nullcontext() if dense else running_at(transformer, budget, grid=grid),
        FlopCounterMode(display=False) as counter,
    ):
        transformer(**inputs)
    return int(counter.get_total_flops())


def flops_by_level(model: ElasticModel) -> dict[int, int]:
    """FLOPs of one forward at batch 1 for every level, lowest first.

    Where every window is whole, latents attend to each other and all else is linear in their number, so the cost is
    quadratic in the level: the three lowest levels tell all others exactly, and the highest confirms it. Windows cut short
    at the edge of a grid have no more latents from some level on; then every level is counted.
    """
    model = model.outline()
    levels = model.levels.counts()
    counted = {level: count_flops(model, level / model.latents) for level in {*levels[:3], levels[-1]}}
    if len(levels) > 3:
        a, b, c = (counted[level] for level in levels[:3])
        told = {level: a + n * (b - a) + n * (n - 1) // 2 * (c - 2 * b + a) for n, level in enumerate(levels)}
        if told[levels[-1]] == counted[levels[-1]]:
            return told
    return {level: counted.get(level) or count_flops(model, level / model.latents) for level in levels}


def activation_bytes(model: ElasticModel, batch: int, budget: Budget = None, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that autograd keeps for the backward pass of one batch, weights left out, under autocast to `dtype`."""
    storages: dict[int, tuple[int, Tensor]] = {}
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # such as tables that were made before
    with fake:
        forward = meta_call(model, batch, budget, grad=True, device="cpu")

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not tensor.is_leaf:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with (
        fake,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        out = forward()
    del out
    return sum(nbytes for nbytes, _ in storages.values())


def time_forward(
    run: Callable[[], object], device: torch.device | None = None, repeats: int = 5, warm_up: int = 1
) -> list[float]:
    """Seconds of each of `repeats` calls, after a warm-up, with what they started on `device` done."""

    def wait() -> None:
        if device is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)

    for _ in range(warm_up):
        run()
    wait()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def cpu_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
