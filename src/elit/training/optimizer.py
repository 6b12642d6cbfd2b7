"""The optimisers of a run and their schedule: AdamW alone, or Muon for the hidden matrices and AdamW for the rest."""

import math

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from elit.training.config import OptimizerConfig

# What an optimiser keeps of every parameter.
MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
}


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The linears inside a model's blocks, Read and Write among them, without the modulations, which start at zero."""
    return [
        module.weight
        for name, module in model.named_modules()
        if name.startswith("blocks.") and isinstance(module, nn.Linear) and not name.endswith(".modulation")
    ]


def make_optimizers(model: nn.Module, config: OptimizerConfig, projector: nn.Module | None = None) -> tuple[Optimizer, ...]:
    """The optimisers that share the model's parameters and a projector's, which are AdamW's; groups know their peak rate."""

    def adamw(parameters: list[Tensor]) -> AdamW:
        groups = [{"params": parameters, "peak": config.lr}]
        return AdamW(groups, config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay, fused=True)

    parameters: list[Tensor] = [*model.parameters(), *(projector.parameters() if projector is not None else ())]
    if config.name == "adamw":
        return (adamw(parameters),)
    matrices = hidden_matrices(model)
    own = {id(p) for p in matrices}
    groups = [{"params": matrices, "peak": config.muon_lr}]
    muon = Muon(groups, config.muon_lr, weight_decay=config.weight_decay, momentum=config.muon_momentum)
    return muon, adamw([p for p in parameters if id(p) not in own])


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
