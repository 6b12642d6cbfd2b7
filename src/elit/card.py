"""A model's card: what is known of it beside its weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NotRequired

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from elit.codec import DataEncoding
from elit.errors import UserError
from elit.files import write_whole
from elit.flow import FlowPath
from elit.front import Front
from elit.guidance import Guidance
from elit.recipe import Recipe
from elit.records import Count, Shift, Whole, read_json, record
from elit.sampling import MOST_STEPS
from elit.weights import CARD_FILE

Steps = Annotated[int, Ge(1), Le(MOST_STEPS)]  # of a sampler


Figures = dict[str, float]  # by their names, such as frechet and frechet_std: see `evaluation.quality`


class SamplingFacts(TypedDict):
    """How samples were drawn, as `SamplingDefaults` has it."""

    steps: Steps | tuple[Steps, ...]
    guidance_scale: float
    thresholds: NotRequired[tuple[float, ...]]
    shift: NotRequired[Shift]


class Latency(TypedDict):
    """Milliseconds of one forward at each budget, and what they were measured on."""

    cpu: str
    threads: Count
    budgets: list[Figures]


class Provenance(TypedDict, total=False):
    """Which weights a model has and, of a checkpoint of `elit train`, what its training took."""

    weights: str
    parameters: Count
    steps: Whole
    batch_size: Count
    training_pflops: float


class DenseTwin(TypedDict, total=False):
    """The quality of a dense model sampled alike, what a forward of it costs, and which one it is."""

    frechet: float
    frechet_std: float
    frechet_squeezenet: float
    frechet_squeezenet_std: float
    kernel: float
    kernel_std: float
    precision: float
    precision_std: float
    recall: float
    recall_std: float
    accuracy: float
    accuracy_std: float
    gflops: float
    latency_ms: float
    latency_ms_q1: float
    latency_ms_q3: float
    samples: Count
    seeds: list[int]
    sampling: SamplingFacts
    provenance: Provenance


class Quality(TypedDict):
    """What was measured of a model.

    real: of the pictures that it is compared with. budgets: a row for each, with its `budget`. rank_correlation, separation:
    see `evaluation.quality.verdict`. copies: see `reports.scorecard.copies`.
    """

    features: str
    samples: Count
    seeds: list[int]
    real: Figures
    budgets: list[Figures]
    dtype: NotRequired[str]
    neighbours: NotRequired[Count]
    sampling: NotRequired[SamplingFacts]
    rank_correlation: NotRequired[float]
    separation: NotRequired[float]
    latency: NotRequired[Latency]
    dense: NotRequired[DenseTwin]
    copies: NotRequired[Figures]


for _kind in (Quality, DenseTwin, Latency, Provenance, SamplingFacts):  # another version's card may say more
    setattr(_kind, "__pydantic_config__", {"extra": "allow", "allow_inf_nan": False})  # noqa: B010


@record
class SamplingDefaults:
    """Steps of the Euler sampler and scale of classifier-free guidance, as measured best for a model.

    steps: one number, or one for each stage. thresholds: of the stages (see `elit.pyramid`); null for the usual ones.
    shift: of the times of the steps (see `elit.sample`).
    """

    steps: Steps | tuple[Steps, ...] = 25
    guidance_scale: float = 2.0
    thresholds: tuple[float, ...] | None = None
    shift: Shift = 1.0

    @property
    def guidance(self) -> Guidance:
        return Guidance(scale=self.guidance_scale)

    def told(self) -> dict[str, object]:
        """Plain values, without thresholds where there are none, and without a shift that moves nothing."""
        usual = {"thresholds": None, "shift": 1.0}
        return {name: value for name, value in asdict(self).items() if name not in usual or value != usual[name]}


@record
class Card:
    """What is known of a model beside its weights.

    sampling: how to sample it. quality: as measured (see `evaluation.quality`). licence, source: of weights that
    others made. path: of the flow that the model was trained on. label_names: of its classes, in order.
    encoding: whether it makes pixels or latents, and of which codec, where that is known. label_counts: how many pictures
    of each class it was trained on, where that is known. front: what budgets, steps and caches together buy, as measured.
    """

    sampling: SamplingDefaults = SamplingDefaults()
    quality: Quality | None = None
    licence: str | None = None
    source: str | None = None
    path: FlowPath = FlowPath.LINEAR
    label_names: tuple[str, ...] = ()
    encoding: DataEncoding | None = None
    label_counts: tuple[Whole, ...] = ()
    front: Front | None = None

    @property
    def recipe(self) -> Recipe:
        """How to sample the model at its full budget, along the flow that it was trained on."""
        sampling = self.sampling
        return Recipe(
            steps=sampling.steps,
            guidance=sampling.guidance,
            path=self.path,
            thresholds=sampling.thresholds,
            shift=sampling.shift,
        )


def load_card(folder: Path) -> Card:
    """The card of a model folder, or one of defaults. Raises UserError, naming the field, for a bad one."""
    file = folder / CARD_FILE
    card = read_json(file, Card) if file.exists() else Card()
    if card.quality is not None and not all("budget" in row for row in card.quality["budgets"]):
        raise UserError(f"{file}: a row of quality.budgets has no budget; measure again with elit results")
    return card


def save_card(card: Card, folder: Path) -> None:
    """Writes a card as card.json. Raises WriteError, as of a full disk."""
    values = {**asdict(card), "sampling": card.sampling.told()}
    if card.front is None:  # as in cards before there was one
        del values["front"]
    write_whole(folder / CARD_FILE, json.dumps(values, indent=2) + "\n")
