"""Weights that make every path of a model count: none zero, none shared between tensors."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def randomised(model: Model, seed: int = 0) -> Model:
    """The model with every parameter drawn anew: linears at unit gain, the rest away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and not name.endswith("bias"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 2 and name.endswith("weight"):
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model
