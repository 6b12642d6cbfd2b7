"""Tiny models of every kind that the contract holds for, and inputs for them."""

import dataclasses

import torch
from torch import Tensor

from elit import DiTConfig
from elit.backbones.table import BACKBONES, build_model
from elit.elastic.model import ElasticModel
from elit.weights import outline
from randomised import randomised

DENSE = DiTConfig(input_size=8, num_classes=3, width=32, depth=4, heads=2, head_depth=1, tail_depth=1)
ELASTIC = dataclasses.replace(DENSE, group_size=2)


def elastic(**fields: object) -> DiTConfig:
    return dataclasses.replace(ELASTIC, **fields)


CONFIGS = {
    "dense": DENSE,
    "dense, rope, qk_norm": dataclasses.replace(DENSE, rope=True, qk_norm=True),
    "dense, oblong": dataclasses.replace(DENSE, input_size=(8, 4)),
    "elastic": ELASTIC,
    "sees dropped": elastic(write_sees_dropped=True),
    "rope": elastic(rope=True),
    "rope, sees dropped, qk_norm": elastic(rope=True, write_sees_dropped=True, qk_norm=True),
    "qk_norm": elastic(qk_norm=True),
    "oblong input": elastic(input_size=(8, 12)),
    "oblong input and group, rope": elastic(input_size=(4, 12), group_size=(2, 3), rope=True),
    "oblong group, sees dropped": elastic(group_size=(1, 4), write_sees_dropped=True),
    "one group": elastic(group_size=4),
    "two Write layers": elastic(write_depth=2),
    "two Read layers": elastic(read_depth=2),
    "interface MLP of 4": elastic(interface_mlp_ratio=4.0),
    "patch of 1, three channels": elastic(input_size=4, patch_size=1, in_channels=3),
    "no head, no tail": elastic(depth=2, head_depth=0, tail_depth=0),
    "ragged": elastic(group_size=3),
    "ragged, sharp, rope": elastic(group_size=3, rope=True, anchor="sharp"),
    "sharp": elastic(anchor="sharp"),
    "pyramid, rope": elastic(anchor="pyramid", rope=True),
    "cells, rope": elastic(anchor="cells", rope=True),
}
# what a row of the table needs beside the fields that all share, and where its levels differ the window
OF_ITS_OWN: dict[str, dict[str, object]] = {
    "HDiT": {"fold": (1, 3), "group_size": 4},
    "VideoDiT": {"frames": 4, "input_size": (4, 8)},
    "Padded": {"padding": 1, "rope": True},
}
for backbone in BACKBONES:
    if backbone.config is not DiTConfig:
        fields = {field.name: getattr(ELASTIC, field.name) for field in dataclasses.fields(DiTConfig)}
        own = OF_ITS_OWN.get(backbone.architecture, {})
        CONFIGS[backbone.architecture] = backbone.config(**(fields | own))
        CONFIGS[f"{backbone.architecture}, rope"] = backbone.config(**(fields | own | {"rope": True}))
        CONFIGS[f"{backbone.architecture}, dense"] = backbone.config(**(fields | own | {"group_size": None}))


def made(config: DiTConfig) -> ElasticModel:
    """A model whose every weight counts, in eval mode."""
    return randomised(build_model(config)).eval()


def inputs_of(config: DiTConfig, batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and y: every class, the null class too, is among the labels of a batch of four."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, *outline(config).input.shape, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.arange(batch) % (config.num_classes + 1)
