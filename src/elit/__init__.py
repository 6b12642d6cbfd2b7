"""ELIT: elastic diffusion transformers. One model, many budgets."""

from elit.backbones.dit import DiT, DiTConfig
from elit.backbones.presets import create_model, preset_names
from elit.bundled import load_bundled
from elit.elastic.budget import Schedule
from elit.evaluation.cost import count_flops
from elit.flow import Path, TimeLaw
from elit.guidance import Guidance
from elit.pipeline import ElitPipeline
from elit.published import load_published
from elit.sampling import sample
from elit.target import Budget
from elit.weights import load_model

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "DiT",
    "DiTConfig",
    "ElitPipeline",
    "Guidance",
    "Path",
    "Schedule",
    "TimeLaw",
    "__version__",
    "count_flops",
    "create_model",
    "load_bundled",
    "load_model",
    "load_published",
    "preset_names",
    "sample",
]
