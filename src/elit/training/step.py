"""The state of a run and one step of it: gradients of the whole batch, clipped, then the optimisers and the EMA.

A step whose loss or gradient is not finite in any process changes no weight in any of them, and is counted. All of that
is decided on the device: a step waits for nothing, and what it tells is read when it is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from elit.data.loader import Stored
from elit.distributed import (
    gathered,
    hold_gradients,
    make_mesh,
    mesh_size,
    own_part,
    shard_model,
    sum_over_ranks,
    together,
    world_size,
)
from elit.elastic.model import ElasticModel
from elit.flow import FlowPath
from elit.precision import fast_bfloat16
from elit.training.batch import Batch
from elit.training.config import OptimizerConfig, ParallelConfig
from elit.training.finetune import hold_all_but_interface
from elit.training.flows import path_of
from elit.training.objective import Aims, Objective, make_objective
from elit.training.optimizer import lr_scale, make_optimizers, step_where
from elit.weights import filled, outline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Products:
    """Where a run computes, and in which precision its matrix products."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def products_of(dtype: str, device: torch.device) -> Products:
    """Those of a configuration's dtype; float32 for bf16 where the device has no fast products of it."""
    slow = dtype == "bf16" and not fast_bfloat16(device)
    return Products(device, torch.float32 if slow else DTYPES[dtype])


class Origin(Protocol):
    """Where a run's model comes from."""

    def make(self, path: FlowPath, fresh: bool, distilled: bool) -> tuple[ElasticModel, ElasticModel | None]:
        """The model, what nothing else gives drawn from the global generator, and where it is `distilled` its original.

        path: of the flow that it learns. fresh: whether it begins here, or a checkpoint replaces what it learns. Raises
        UserError where there is no such model.
        """


@dataclass(frozen=True)
class Start:
    """What a state is made of.

    seed: of the weights. checkpointing: whether activations are computed twice.
    """

    origin: Origin
    seed: int
    checkpointing: bool
    aims: Aims
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    products: Products


@dataclass(frozen=True)
class Rules:
    """How each step is taken.

    batch_size: over all processes. accumulate: parts that each computes its share in. steps: of the whole run, which the
    learning rate's schedule ends with. interface_first: steps in which Read and Write alone learn.
    """

    batch_size: int
    accumulate: int
    steps: int
    interface_first: int
    optimizer: OptimizerConfig
    products: Products


def no_scaler() -> GradScaler:
    return GradScaler("cpu", enabled=False)


def learning(model: ElasticModel) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a model that are not frozen, by name."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@dataclass
class TrainState:
    """What training changes: the model, the EMA of its weights that learn, by name, the optimisers, and the number of steps
    done.

    scaler: of the loss, for fp16. objective: what is minimised; alignment's projector learns too. counts: int64 on the
    device, (3,): the steps that were skipped, those of them that are the last ones in a row, and the updates of Read and
    Write alone; to read `skipped`, `skipped_in_row` and `held` waits for the device.
    """

    model: ElasticModel
    ema: dict[str, Tensor]
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    scaler: GradScaler = field(default_factory=no_scaler)
    objective: Objective = field(default_factory=Objective)
    counts: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))

    @property
    def skipped(self) -> int:
        return int(self.counts[0])

    @property
    def skipped_in_row(self) -> int:
        return int(self.counts[1])

    @property
    def held(self) -> int:
        return int(self.counts[2])

    def set_counts(self, skipped: int, skipped_in_row: int, held: int) -> None:
        self.counts = torch.tensor([skipped, skipped_in_row, held], device=self.counts.device)

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that learns, by name: the model's parameters that are not frozen, then the projector's."""
        yield from learning(self.model)
        if self.objective.projector is not None:
            yield from self.objective.projector.named_parameters(prefix="projector")

    @property
    def optimizer_of(self) -> dict[Tensor, torch.optim.Optimizer]:
        """The optimiser that each parameter belongs to."""
        return {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}

    def update_ema(self, decay: float, finite: Tensor) -> None:
        """ema <- decay ema + (1 - decay) weights; at first the decay is (1 + step) / (10 + step), if that is lower.

        Nothing changes where `finite`, a truth value on the device, is false.
        """
        weight = finite * (1 - min(decay, (1 + self.step) / (10 + self.step)))
        for name, p in learning(self.model):
            own_part(self.ema[name]).lerp_(own_part(p.detach()), weight)


@dataclass(frozen=True)
class Taken:
    """What a step tells, as tensors of the device, which nobody has waited for.

    loss: of the whole batch. norm: of the gradient, before it was clipped. raised: how many processes raised each of the
    flags that they were asked for. summands: of the loss on this process's share, by name.
    """

    loss: Tensor
    norm: Tensor
    raised: Tensor
    summands: dict[str, Tensor]


def make_state(start: Start, stored: Stored | None = None, fresh: bool = True) -> TrainState:
    """A model initialised from the seed or from `init_from`, sharded over the processes, its EMA, optimisers and objective.

    `stored`: of the data, for alignment (see `stored_features`). fresh: whether the weights of `init_from` are taken, which
    a checkpoint's replace. Every process calls this; raises UserError, in all of them, where one cannot make it.
    """
    model, objective = together(lambda: make_parts(start, stored, fresh))
    device, dtype, parallel = start.products.device, start.products.dtype, start.parallel
    mesh = make_mesh(*mesh_size(parallel.replicate, parallel.shard), device, timedelta(seconds=parallel.timeout))
    shard_model(model, model.units(), mesh, dtype)  # a unit at a time goes to the device
    model.to(device)
    if objective.projector is not None:
        shard_model(objective.projector, (), mesh, dtype)
    ema = {name: p.detach().clone() for name, p in learning(model)}
    scaler = GradScaler(device.type, enabled=dtype == torch.float16)
    optimizers = make_optimizers(model, start.optimizer, objective.projector)
    state = TrainState(model, ema, optimizers, scaler=scaler, objective=objective)
    state.counts = state.counts.to(device)
    return state


def make_parts(start: Start, stored: Stored | None, fresh: bool) -> tuple[ElasticModel, Objective]:
    """The whole model and the objective of a run, drawn from its seed, in this process alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start.seed)
        model, teacher = start.origin.make(path_of(start.aims.flow), fresh, start.aims.distill > 0)
        objective = make_objective(start.aims, model, teacher, start.products.device, stored)
    model.set_checkpointing(start.checkpointing)
    return model, objective


def averaged_weights(state: TrainState, wanted: bool = True) -> dict[str, Tensor]:
    """The averaged weights, whole, on the CPU; {} where they are not wanted. All ranks call this."""
    weights = {}
    for name, tensor in state.ema.items():
        whole = gathered(tensor)
        if wanted:
            weights[name] = whole.cpu()
    return weights


def model_of(state: TrainState, weights: dict[str, Tensor], device: torch.device) -> ElasticModel:
    """A model of its own with these weights, in eval mode."""
    return filled(outline(state.model.config), weights).to(device)


def batch_loss(products: Products, state: TrainState, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of some samples, what training minimises, and what it is the sum of, for the log."""
    batch = batch.to(products.device)
    with products.autocast():
        parts = state.objective.summands(state.model, batch)
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}


def train_step(rules: Rules, state: TrainState, batch: Batch, flags: Sequence[bool] = ()) -> Taken:
    """One step; `batch` is this process's share. Tells the loss of the whole batch, the same on every rank.

    The share runs in `rules.accumulate` parts, each weighted by its samples: FSDP averages over the ranks, hence their
    number in the weight. flags: what a rank has to tell the others, which goes with the loss.
    """
    loss, summands = backward(rules, state, batch)
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    if state.step < rules.interface_first:
        hold_all_but_interface(state.model)
    norm = gathered(torch.nn.utils.get_total_norm([p.grad for _, p in state.trained() if p.grad is not None]))
    told = torch.tensor([0.0, *(float(flag) for flag in flags)]).to(rules.products.device, non_blocking=True)
    told[0] += loss
    told = sum_over_ranks(told)
    state.step += 1
    update(rules, state, norm, finite=told[0].isfinite() & norm.isfinite())
    return Taken(told[0], norm, told[1:], summands)


def backward(rules: Rules, state: TrainState, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradients of this process's share, and its part of the loss and of what that is the sum of."""
    loss = torch.zeros((), device=rules.products.device)
    summands: dict[str, Tensor] = {}
    parts = batch.split(rules.accumulate)
    for i, part in enumerate(parts):
        for module in (state.model, state.objective.projector):
            hold_gradients(module, i + 1 < len(parts))
        weight = len(part) / rules.batch_size
        part_loss, part_summands = batch_loss(rules.products, state, part)
        state.scaler.scale(part_loss * (weight * world_size())).backward()
        loss += weight * part_loss.detach()
        for name, value in part_summands.items():
            summands[name] = summands.get(name, 0) + value * (len(part) / len(batch))
    return loss, summands


def update(rules: Rules, state: TrainState, norm: Tensor, finite: Tensor) -> None:
    """The optimisers and the EMA, from gradients of that norm, where `finite`; `state.step` counts the step already."""
    torch.nn.utils.clip_grads_with_norm_([p for _, p in state.trained()], rules.optimizer.clip, norm)
    scale = lr_scale(rules.optimizer, state.step - 1, rules.steps)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak"]
        step_where(optimizer, finite)
        optimizer.zero_grad()
    state.update_ema(rules.optimizer.ema_decay, finite)
    held = state.step <= rules.interface_first
    skipped, in_row, held_before = state.counts
    state.counts = torch.stack([skipped + ~finite, (in_row + 1) * ~finite, held_before + finite * held])
    state.scaler.update()
