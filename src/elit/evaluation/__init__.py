"""What a model costs and how good its samples are."""

from elit.evaluation import cost, metrics

__all__ = ["cost", "metrics"]
