"""ELIT: elastic diffusion transformers. One model, many budgets.

Importing `elit` loads nothing: every public name is fetched from its module when it is first used.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elit.backbones.config import DiTConfig
    from elit.backbones.dit import DiT
    from elit.backbones.hosts.budgets import budget
    from elit.backbones.hosts.elasticize import elasticize
    from elit.backbones.table import create_model, preset_names
    from elit.bundled import load_bundled
    from elit.cost import count_flops
    from elit.elastic.block import ElasticBlock
    from elit.elastic.schedule import Schedule
    from elit.errors import UserError
    from elit.flow import FlowPath, TimeLaw
    from elit.guidance import Guidance
    from elit.host_folders import load_elastic, save_elastic
    from elit.host_models import load_host_model
    from elit.pipeline import ElitPipeline
    from elit.prompt_tables import open_prompts
    from elit.published import load_published
    from elit.sampling import sample
    from elit.step_cache import StepCache
    from elit.target import Budget
    from elit.weights import load_model

__version__ = "0.1.0"

_HOMES = {
    "Budget": "elit.target",
    "DiT": "elit.backbones.dit",
    "DiTConfig": "elit.backbones.config",
    "ElasticBlock": "elit.elastic.block",
    "ElitPipeline": "elit.pipeline",
    "FlowPath": "elit.flow",
    "Guidance": "elit.guidance",
    "Schedule": "elit.elastic.schedule",
    "StepCache": "elit.step_cache",
    "TimeLaw": "elit.flow",
    "UserError": "elit.errors",
    "budget": "elit.backbones.hosts.budgets",
    "count_flops": "elit.cost",
    "create_model": "elit.backbones.table",
    "elasticize": "elit.backbones.hosts.elasticize",
    "load_bundled": "elit.bundled",
    "load_elastic": "elit.host_folders",
    "load_host_model": "elit.host_models",
    "load_model": "elit.weights",
    "load_published": "elit.published",
    "open_prompts": "elit.prompt_tables",
    "preset_names": "elit.backbones.table",
    "save_elastic": "elit.host_folders",
    "sample": "elit.sampling",
}

__all__ = [
    "Budget",
    "DiT",
    "DiTConfig",
    "ElasticBlock",
    "ElitPipeline",
    "FlowPath",
    "Guidance",
    "Schedule",
    "StepCache",
    "TimeLaw",
    "UserError",
    "__version__",
    "budget",
    "count_flops",
    "create_model",
    "elasticize",
    "load_bundled",
    "load_elastic",
    "load_host_model",
    "load_model",
    "load_published",
    "open_prompts",
    "preset_names",
    "sample",
    "save_elastic",
]


def __getattr__(name: str) -> Any:
    if name == "Path":  # the former name of FlowPath
        warnings.warn(
            "elit.Path is now elit.FlowPath, and will be gone in the next version", DeprecationWarning, stacklevel=2
        )
        name = "FlowPath"
    if name == "evaluation":
        return importlib.import_module("elit.evaluation")
    if name not in _HOMES:
        raise AttributeError(f"module 'elit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
