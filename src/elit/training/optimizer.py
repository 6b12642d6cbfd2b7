"""The optimisers of a run and their schedule: AdamW alone, or Muon for the hidden matrices and AdamW for the rest."""

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from elit.elastic.model import ElasticModel
from elit.training.config import OptimizerConfig
from elit.training.muon import Muon

Anyone = TypeVar("Anyone", bound=Optimizer)


# What an optimiser keeps of every parameter, in the parameter's shape; beside it AdamW counts its steps.
MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {AdamW: ("exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


def make_optimizers(
    model: ElasticModel, config: OptimizerConfig, projector: nn.Module | None = None
) -> tuple[Optimizer, ...]:
    """The optimisers that share the model's parameters which learn, and AdamW those of a projector, their moments zero.

    Every group knows its peak learning rate.
    """

    def adamw(parameters: list[Tensor]) -> AdamW:
        groups = [{"params": parameters, "peak": config.lr}]
        betas = (config.beta1, config.beta2)
        return with_moments(AdamW(groups, config.lr, betas, weight_decay=config.weight_decay, fused=True))

    own: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    parameters = [*own, *(projector.parameters() if projector is not None else ())]
    if config.name == "adamw":
        return (adamw(parameters),)
    matrices = [p for p in model.hidden_matrices() if p.requires_grad]
    by_muon = {id(p) for p in matrices}
    groups = [{"params": matrices, "peak": config.muon_lr}]
    muon = Muon(groups, config.muon_lr, weight_decay=config.weight_decay, momentum=config.muon_momentum)
    return with_moments(muon), adamw([p for p in parameters if id(p) not in by_muon])


def with_moments(optimizer: Anyone) -> Anyone:
    """The optimiser with the state that its first step would make, so that there is always one to save and to fill."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {key: torch.zeros_like(p) for key in MOMENTS[type(optimizer)]}
    set_updates(optimizer, 0)
    return optimizer


def set_updates(optimizer: Optimizer, count: int, parameters: Iterable[Tensor] | None = None) -> None:
    """Tells AdamW how many steps it has made, of all parameters or of some."""
    if isinstance(optimizer, AdamW):
        for p in optimizer.state if parameters is None else parameters:
            optimizer.state[p]["step"] = torch.tensor(float(count), device=p.device)


def step_where(optimizer: Optimizer, finite: Tensor) -> None:
    """A step that changes nothing where `finite`, a truth value on the device, is false.

    The optimisers are told as torch's GradScaler tells its own: by `found_inf`, which they read on the device.
    """
    optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()


def lr_scale(config: OptimizerConfig, step: int, steps: int) -> float:
    """The share of the peak: a linear warm-up to 1, then constant, half a cosine, or constant with a linear end."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "trapezoid":
        return min(1.0, (steps - step) / max(1, config.decay_steps))
    return 1.0
