"""The samples that a report shows, and the names of their budgets."""

from collections.abc import Sequence

from torch import Tensor

from elit.condition import Condition
from elit.console import progress_bar
from elit.elastic.model import ElasticModel
from elit.recipe import Recipe


def draw_all(model: ElasticModel, recipes: Sequence[Recipe], labels: Sequence[int] | Condition) -> list[Tensor]:
    """The images (B, C, H, W) of every recipe, on the CPU, under a progress bar; equal recipes run once."""
    different, images = dict.fromkeys(recipes), {}
    with progress_bar() as bar:
        total = sum(recipe.total_steps for recipe in different)
        task = bar.add_task("sampling", total=total, unit="image steps", per_step=len(labels))
        for recipe in different:
            images[recipe] = recipe.draw(model, labels, done=lambda: bar.advance(task)).cpu()
    return [images[recipe] for recipe in recipes]


def budget_name(budget: float, model: ElasticModel) -> str:
    """ "4/16": the level that a budget stands for."""
    return model.levels.name(model.levels.of(budget))
