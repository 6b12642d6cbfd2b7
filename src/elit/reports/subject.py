"""What a report is about: a model of any kind, how to sample it, and the labels whose images are shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elit.card import Card, load_card
from elit.codec import makes_pixels
from elit.data.emoji import Emoji, load_emoji
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.labels import label_index
from elit.pixels import to_float
from elit.recipe import Recipe
from elit.weights import load_model
from elit.words import spread

DEMO_LABELS = (
    "country-flag",
    "time",
    "face-smiling",
    "heart",
    "animal-mammal",
    "food-fruit",
    "transport-ground",
    "keycap",
    "arrow",
    "person-role",
    "plant-flower",
    "zodiac",
)


@dataclass(frozen=True)
class Subject:
    """A model and its card, the data it was made for where that is known, and labels by number and by name."""

    name: str
    model: ElasticModel
    card: Card
    data: Emoji | None
    labels: list[int]
    label_names: list[str]
    seed: int

    @property
    def recipe(self) -> Recipe:
        """The full budget, sampled as the card says, from the noise of the subject's seed."""
        return replace(self.card.recipe, seed=self.seed)

    def describe(self) -> str:
        """The model and how it is sampled, in two sentences."""
        model, sampling = self.model, self.card.sampling
        count = sum(p.numel() for p in model.parameters())
        size = " x ".join(str(n) for n in model.input.shape)
        return (
            f"Model {self.name}: {count / 1e6:.2f} M parameters, inputs of {size}, {model.config.grid} tokens,"
            f" {model.latents} budget(s). Images: Euler's method, {sampling.steps} steps, seed {self.seed}."
        )

    def results(self) -> dict[str, Any]:
        """What every results.json begins with."""
        sampling = asdict(self.card.sampling)
        return {"model": self.name, "seed": self.seed, "sampling": sampling, "labels": self.label_names}

    def notes(self) -> list[str]:
        """What a reader must know of a model whose data are not known."""
        out = []
        if self.data is None:
            out.append("The model's data are not known here, so there are no real pictures and no measured quality.")
        if not makes_pixels(self.card.encoding, self.model.input.channels):
            out.append(
                f"The model makes latents of {self.model.input.channels} channels and not RGB. Its first three are shown,"
                " on one scale; to see pictures, decode them with the codec that made its training data."
            )
        return out

    def real_examples(self, count: int) -> Tensor:
        """(count, L, 3, H, W) real pictures of each label, spread over those there are."""
        assert self.data is not None
        columns = []
        for label in self.labels:
            found = (self.data.labels == label).nonzero()[:, 0]
            columns.append(to_float(self.data.images[found[[i * len(found) // count for i in range(count)]]]))
        return torch.stack(columns, dim=1)


def load_subject(folder: Path, labels: Sequence[str] | None = None, seed: int = 0, steps: int | None = None) -> Subject:
    """The subject of a model folder. `labels`: names or numbers, a dozen if None. `steps`: instead of the card's.

    Raises UserError for a folder that is no model's, or a label that it does not have.
    """
    model, card = load_model(folder), load_card(folder)
    if steps is not None:
        if steps < 1:
            raise UserError(f"{steps} steps are too few; give at least 1")
        card = replace(card, sampling=replace(card.sampling, steps=steps))
    data = known_data(model)
    chosen = chosen_labels(model, data, labels)
    names = [str(i) if data is None else data.label_names[i] for i in chosen]
    return Subject(folder.name or str(folder), model, card, data, chosen, names, seed)


def known_data(model: ElasticModel) -> Emoji | None:
    """The embedded pictures, where the model has their size and classes; None for every other model."""
    if model.input.channels != 3 or model.input.shape[1:] != (32, 32):
        return None
    data = load_emoji()
    return data if model.null_class == len(data.label_names) else None


def require_emoji(subject: Subject) -> None:
    """Raises UserError for a model that was not made for the emoji."""
    if subject.data is None:
        config = subject.model.config
        raise UserError(
            "the demo needs a model of the 99 emoji classes at 3 x 32 x 32; the one given has"
            f" {config.num_classes} classes and inputs of {config.in_channels} x {subject.model.input.shape[1:]}:"
            " use elit report budgets"
        )


def chosen_labels(model: ElasticModel, data: Emoji | None, labels: Sequence[str] | None) -> list[int]:
    """Class indices of labels given by name, where the data are known, or by number.

    Raises UserError, naming close ones, for a label that is not there.
    """
    names = () if data is None else data.label_names
    if labels is None:
        return list(spread(len(DEMO_LABELS), model.null_class)) if data is None else [names.index(n) for n in DEMO_LABELS]
    return [label_index(label, model.null_class, names) for label in labels]
