"""The backbones: one literal table that `create_model`, model folders, training and the contract test read."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from elit.backbones.config import DFMConfig, DiTConfig, HDiTConfig, PaddedConfig, UViTConfig, VideoConfig
from elit.backbones.dfm import DFM
from elit.backbones.dit import DiT
from elit.backbones.hdit import HDiT
from elit.backbones.padded import PaddedDiT
from elit.backbones.uvit import UViT
from elit.backbones.video import VideoDiT
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.words import suggest

# size: depth, width, heads, (head, core, tail) blocks of the elastic form (table 5 of the paper)
SIZES = {
    "S": (12, 384, 6, (2, 8, 2)),
    "B": (12, 768, 12, (2, 8, 2)),
    "L": (24, 1024, 16, (4, 16, 4)),
    "XL": (28, 1152, 16, (4, 20, 4)),
}
PATCHES = {"2": 2, "4": 4, "8": 8}  # by how a name has them
GROUP_SIZE = 4  # of an elastic preset, in tokens


@dataclass(frozen=True)
class Backbone:
    """A row of the table.

    architecture: its name in config.json. config, model: the classes; model(config) is a freshly initialised model.
    presets: fields of the config by the name that `create_model` knows, such as "ELIT-SiT-XL/2".
    """

    architecture: str
    config: type[DiTConfig]
    model: type[ElasticModel]
    presets: dict[str, dict[str, Any]]


# size: blocks before the fold of an HDiT, and before its end
FOLDS = {"S": (4, 8), "B": (4, 8), "L": (7, 17), "XL": (8, 20)}


def _presets(family: str, patches: dict[str, int] = PATCHES) -> dict[str, dict[str, Any]]:
    """The presets of a family of models, dense and elastic, in every size and patch."""
    presets: dict[str, dict[str, Any]] = {}
    for kind in ("", "ELIT-"):
        for size, (depth, width, heads, (head, _, tail)) in SIZES.items():
            split = {"group_size": GROUP_SIZE, "head_depth": head, "tail_depth": tail} if kind else {}
            fold = {"fold": FOLDS[size]} if family == "HDiT" else {}
            for name, patch in patches.items():
                fields = {"patch_size": patch, "depth": depth, "width": width, "heads": heads, **split, **fold}
                presets[f"{kind}{family}-{size}/{name}"] = fields
    return presets


BACKBONES = (
    Backbone("DiT", DiTConfig, DiT, _presets("SiT")),
    Backbone("DFM", DFMConfig, DFM, _presets("DFM-SiT")),
    Backbone("UViT", UViTConfig, UViT, _presets("UViT", patches={"2": 2})),
    Backbone("HDiT", HDiTConfig, HDiT, _presets("HDiT", patches={"2": 2})),
    Backbone("VideoDiT", VideoConfig, VideoDiT, _presets("SiT", patches={"1x2x2": 2})),
    Backbone("Padded", PaddedConfig, PaddedDiT, {}),
)


def preset_names() -> list[str]:
    """Every name that `create_model` knows."""
    return [name for backbone in BACKBONES for name in backbone.presets]


def preset_config(name: str, **overrides: Any) -> DiTConfig:
    """The configuration of a preset, with fields of it overridden.

    Raises UserError, naming close ones, for an unknown name or field.
    """
    backbone = next((backbone for backbone in BACKBONES if name in backbone.presets), None)
    if backbone is None:
        raise UserError(f"unknown model {name!r}; {suggest(str(name), preset_names(), 'elit info lists the presets')}")
    fields = [field.name for field in dataclasses.fields(backbone.config)]
    for key in overrides:
        if key not in fields:
            raise UserError(f"unknown model option {key!r}; {suggest(key, fields)}")
    return backbone.config(**(backbone.presets[name] | overrides))


def create_model(name: str, **overrides: Any) -> ElasticModel:
    """A freshly initialised model, e.g. `create_model("ELIT-SiT-B/2", input_size=32, num_classes=1000, group_size=4)`.

    `overrides` are fields of the backbone's config, such as `DiTConfig`. Raises UserError, naming close ones, for an
    unknown name or field.
    """
    return build_model(preset_config(name, **overrides))


def build_model(config: DiTConfig) -> ElasticModel:
    """A freshly initialised model of a configuration."""
    return backbone_of(config).model(config)


def backbone_of(config: DiTConfig) -> Backbone:
    """The row of the table whose configuration this is."""
    return next(backbone for backbone in BACKBONES if backbone.config is type(config))


def backbone_named(architecture: object) -> Backbone | None:
    """The row of an architecture's name in config.json, or None."""
    return next((backbone for backbone in BACKBONES if backbone.architecture == architecture), None)
