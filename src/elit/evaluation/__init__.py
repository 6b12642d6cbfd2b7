"""How good samples are, beside real images."""

from elit.evaluation import metrics

__all__ = ["metrics"]
