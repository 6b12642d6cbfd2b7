"""A model's card: what is known of it beside its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elit.errors import UserError
from elit.files import write_whole
from elit.flow import FlowPath
from elit.guidance import Guidance
from elit.recipe import Recipe

CARD_FILE = "card.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """Steps of the Euler sampler and scale of classifier-free guidance, as measured best for a model."""

    steps: int = 25
    guidance_scale: float = 2.0

    @property
    def guidance(self) -> Guidance:
        return Guidance(scale=self.guidance_scale)


@dataclass(frozen=True)
class Card:
    """What is known of a model beside its weights.

    sampling: how to sample it. quality: as measured (see `evaluation.quality`). licence, source: of weights that
    others made. path: of the flow that the model was trained on. label_names: of its classes, in order.
    """

    sampling: SamplingDefaults = SamplingDefaults()
    quality: dict[str, Any] | None = None
    licence: str | None = None
    source: str | None = None
    path: FlowPath = FlowPath.LINEAR
    label_names: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """How to sample the model at its full budget, along the flow that it was trained on."""
        return Recipe(steps=self.sampling.steps, guidance=self.sampling.guidance, path=self.path)


def load_card(folder: Path) -> Card:
    """The card of a model folder, or a card of defaults where it has none."""
    file = folder / CARD_FILE
    if not file.is_file():
        return Card()
    try:
        values = json.loads(file.read_text(encoding="utf8"))
        values["sampling"] = SamplingDefaults(**values["sampling"])
        values["path"] = FlowPath(values.get("path", FlowPath.LINEAR))
        values["label_names"] = tuple(str(name) for name in values.get("label_names", ()))
        return Card(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a model's card ({error}); fetch or write it again") from error


def save_card(card: Card, folder: Path) -> None:
    write_whole(folder / CARD_FILE, json.dumps(asdict(card), indent=2) + "\n")
