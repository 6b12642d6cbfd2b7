"""Muon (Jordan et al., 2024): momentum whose update is made orthogonal, for the hidden matrices of a model.

The update of a matrix is U V^T of its momentum's singular value decomposition, nearly: five steps of a quintic
Newton-Schulz iteration, in bfloat16 where the device multiplies it fast, and in float32 elsewhere.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from elit.distributed import gathered, own_part, sharded_like
from elit.precision import fast_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration: the steepest slope at zero
STEPS = 5
LEAST_NORM = 1e-7


class Muon(Optimizer):
    """Muon of matrices, which may be sharded: momentum is kept in shards, and what orthogonalisation asks for is gathered.

    Sharded, every rank gathers the whole of one update after another, and orthogonalises it: the arithmetic is repeated on
    every rank.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None  # 1, on the device, where a step is to change nothing; as AdamW's

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step: Nesterov momentum, orthogonalised, at a rate that grows with the root of rows / columns.

        Gradients need not be finite where `found_inf` is 1: no weight and no momentum changes then.
        """
        finite = None if self.found_inf is None else self.found_inf == 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:  # held
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                momentum = state["momentum_buffer"]
                if finite is not None:  # a gradient that is the momentum leaves the momentum as it is
                    grad = own_part(p.grad)
                    grad.copy_(torch.where(finite, grad, own_part(momentum)))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                dtype = torch.bfloat16 if fast_bfloat16(p.device) else torch.float32
                update = orthogonal(gathered(p.grad.lerp(momentum, group["momentum"]).to(dtype)))
                self._move(p, update, group["lr"], group["weight_decay"], finite)

    def _move(self, p: Tensor, update: Tensor, lr: float, weight_decay: float, finite: Tensor | None) -> None:
        """p <- (1 - lr weight_decay) p - rate update, where finite."""
        rate = lr * math.sqrt(max(1, p.shape[0] / p.shape[1]))
        own, step = own_part(p), own_part(sharded_like(update, p))
        moved = (own * (1 - lr * weight_decay)).add_(step, alpha=-rate)
        own.copy_(moved if finite is None else torch.where(finite, moved, own))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values moved near 1 (0.7 to 1.2), in its own dtype."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=LEAST_NORM)  # no singular value above 1
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
