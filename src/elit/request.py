"""What is asked for in words, such as on a command line: a model by name, labels, a budget; and the samples made of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from elit.card import load_card
from elit.codec import load_codec
from elit.console import say
from elit.distributed import from_main, is_main, local_device, process_group
from elit.generation import check_count, fitting_tile, generate
from elit.guidance import Guidance
from elit.hub import find_model
from elit.labels import parse_labels
from elit.recipe import Recipe
from elit.target import Budget
from elit.weights import load_model

USUAL_COUNT = 16  # of images, where neither a number nor labels are given


@dataclass(frozen=True)
class Wishes:
    """How to sample, where it is said: None leaves a thing to the model's card. Fields are those of Recipe and Guidance."""

    sampler: str = "euler"
    steps: int | tuple[int, ...] | None = None
    scale: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    weak_budget: float | None = None
    weak_label: Literal["null", "same"] | int = "null"
    seed: int = 0
    tile: int | None = None
    thresholds: tuple[float, ...] | None = None
    stages: int | None = None

    def over(self, recipe: Recipe) -> Recipe:
        """A card's recipe with what is wished for in its place. Raises UserError for what is out of range."""
        scale = recipe.guidance.scale if self.scale is None else self.scale
        return replace(
            recipe,
            sampler=self.sampler,
            steps=recipe.steps if self.steps is None else self.steps,
            guidance=Guidance(scale, self.interval, self.weak_budget, self.weak_label),
            seed=self.seed,
            tile=recipe.tile if self.tile is None else self.tile,
            thresholds=recipe.thresholds if self.thresholds is None else self.thresholds,
            stages=self.stages,
        )


@dataclass(frozen=True)
class Request:
    """Samples of one model, to be made in a folder.

    model: as `find_model` finds it. labels: as `parse_labels` reads them. budget: as
    `Budget.parse` does. count: None is one of each listed label, or 16. codec: as `load_codec` finds it. batch, npz: as
    `generate` takes them.
    """

    out: Path
    wishes: Wishes
    model: str | None = None
    labels: str = "uniform"
    budget: str = "1"
    count: int | None = None
    codec: str | None = None
    dtype: torch.dtype = torch.float32
    device: str = "auto"
    batch: int = 1
    npz: bool = False

    def make(self) -> tuple[int, Path]:
        """The number of images that are there now, and their folder. Every process of a torchrun calls this.

        Raises UserError for what does not fit the model or cannot be read, and OSError for what cannot be written.
        """
        source = find_model(self.model)
        card, device = load_card(source), local_device(self.device)
        model = load_model(source, str(device)).to(self.dtype)
        labels = parse_labels(self.labels, model.null_class, card.label_names)
        count = (len(labels.values) or USUAL_COUNT) if self.count is None else self.count
        check_count(count)
        recipe = self.wishes.over(card.recipe)
        recipe = recipe if self.wishes.tile is not None else replace(recipe, tile=min(recipe.tile, count))
        recipe = replace(recipe, budget=Budget.parse(self.budget, model, recipe.tile))
        if is_main() and isinstance(recipe.budget, float) and not self.budget[-1:].isdigit():  # a cost was given
            say(f"budget {self.budget}: {model.levels.of(recipe.budget)}/{model.latents} of the latents")
        codec = load_codec(self.codec, model.samples.channels, device, card.encoding)
        with process_group():
            if self.wishes.tile is None:
                recipe = from_main(lambda: fitting_tile(model, recipe, labels, codec, self.out))
            return count, generate(model, recipe, labels, count, self.out, codec, self.batch, self.npz, card.label_names)
