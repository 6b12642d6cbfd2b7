"""Names of models: one literal table of sizes (table 5 of the paper) and `create_model`."""

import dataclasses
import difflib
from typing import Any

from elit.backbones.dit import DiT, DiTConfig

# size: depth, width, heads, (head, core, tail) blocks of the elastic form
SIZES = {
    "S": (12, 384, 6, (2, 8, 2)),
    "B": (12, 768, 12, (2, 8, 2)),
    "L": (24, 1024, 16, (4, 16, 4)),
    "XL": (28, 1152, 16, (4, 20, 4)),
}
PATCHES = (2, 4, 8)
GROUP_SIZE = 4  # of an elastic preset, in tokens


def preset_names() -> list[str]:
    """Every name that `create_model` knows."""
    return [f"{kind}SiT-{size}/{patch}" for kind in ("", "ELIT-") for size in SIZES for patch in PATCHES]


def preset_config(name: str, **overrides: Any) -> DiTConfig:
    """The configuration of a preset, with fields of `DiTConfig` overridden.

    Raises ValueError, naming close ones, for an unknown name or field.
    """
    names = preset_names()
    if name not in names:
        raise ValueError(f"unknown model {name!r}; {suggest(name, names)}")
    fields = [field.name for field in dataclasses.fields(DiTConfig)]
    for key in overrides:
        if key not in fields:
            raise ValueError(f"unknown model option {key!r}; {suggest(key, fields)}")
    kind, rest = name.split("SiT-")
    size, patch = rest.split("/")
    depth, width, heads, (head, _, tail) = SIZES[size]
    values: dict[str, Any] = {"patch_size": int(patch), "depth": depth, "width": width, "heads": heads}
    if kind:
        values |= {"group_size": GROUP_SIZE, "head_depth": head, "tail_depth": tail}
    return DiTConfig(**(values | overrides))


def create_model(name: str, **overrides: Any) -> DiT:
    """A freshly initialised model, e.g. `create_model("ELIT-SiT-B/2", input_size=32, num_classes=1000, group_size=4)`.

    `overrides` are fields of `DiTConfig`. Raises ValueError, naming close ones, for an unknown name or field.
    """
    return DiT(preset_config(name, **overrides))


def suggest(wrong: str, known: list[str]) -> str:
    """The end of an error about an unknown name: the nearest known ones, or all."""
    folded = {name.lower(): name for name in known}
    near = [folded[name] for name in difflib.get_close_matches(wrong.lower(), folded, n=4, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
