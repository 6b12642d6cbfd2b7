"""What a claim is made of, without torch: trainings, what is measured of them, comparisons, and a scale for all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from elit.records import Count, record


@record
class Scale:
    """How large everything is.

    width, depth, heads, patch: of every model; one block is before Read and one after Write. batch: samples of a step.
    steps: of the dense model; their FLOPs are what a training of 1 unit has. seeds: trainings of each kind. pictures: held
    out, of which losses are measured. samples, sampler_steps: of what is drawn.
    """

    width: Count
    depth: Count
    heads: Count
    patch: Count
    batch: Count
    steps: Count
    seeds: Count
    pictures: Count
    samples: Count
    sampler_steps: Count


@dataclass(frozen=True)
class Run:
    """A kind of training.

    keys: of the configuration, beside those of the scale. units: its FLOPs, in those of the dense model's steps. like:
    instead, as many steps as a share of another run's.
    """

    keys: tuple[str, ...]
    units: float = 1.0
    like: tuple[str, float] | None = None


@dataclass(frozen=True)
class Trained:
    """The averaged weights of a run after a share of its steps, or as many as are a share of the steps of `like`."""

    run: str
    share: float = 1.0
    like: str | None = None


@dataclass(frozen=True)
class HeldOut:
    """The flow's loss on held-out pictures at a budget, or a schedule of them, such as "1/4" or "1/2@t>0.5,1"."""

    model: Trained
    budget: str = "1"


@dataclass(frozen=True)
class Drawn:
    """The kernel distance of samples to the pictures that the model was trained on, with the labels of held-out ones.

    steps: of the sampler, as a share of the scale's. paid: instead, as many as the FLOPs of that arm pay for, rounded.
    weak_label, weak_budget: of guidance, as `elit.Guidance` takes them; scale 1 is none.
    """

    model: Trained
    budget: str = "1"
    steps: float = 1.0
    paid: "Drawn | None" = None
    scale: float = 1.0
    weak_budget: float | None = None
    weak_label: Literal["null", "same"] = "null"


@dataclass(frozen=True)
class Seen:
    """The share of Read's attention that is on the picture, and not on the zeros around it."""

    model: Trained


@dataclass(frozen=True)
class Given:
    """A number to compare with."""

    value: float


Arm = HeldOut | Drawn | Seen  # what is measured
Side = tuple[Arm, ...] | Given  # of a comparison: the best of several arms is meant


@dataclass(frozen=True)
class Comparison:
    """That a is lower than b, or lies above it by less than `margin`, a share of b.

    says: in words. decides: whether the claim stands or falls with it; otherwise it is told beside.
    """

    says: str
    a: Side
    b: Side
    margin: float = 0.0
    decides: bool = True


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is tried.

    name: on the command line. title: a heading. paper: what is claimed. here: what is run. x: what the figure's curves go
    over, by name: "budget", "TFLOPs of training", "guidance scale" or "GFLOPs of an image". curves: arms by name.
    """

    name: str
    title: str
    paper: str
    here: str
    comparisons: tuple[Comparison, ...]
    x: str
    curves: Mapping[str, tuple[Arm, ...]] = field(default_factory=dict)

    def arms(self) -> list[Arm]:
        """Everything that is measured for it, each once, in the order of need."""
        sides = [side for one in self.comparisons for side in (one.a, one.b) if not isinstance(side, Given)]
        return list(dict.fromkeys(arm for arms in (*sides, *self.curves.values()) for arm in arms))

    def models(self) -> list[Trained]:
        """The models that are measured."""
        return list(dict.fromkeys(model for arm in self.arms() for model in _models(arm)))


def _models(arm: Arm) -> Iterator[Trained]:
    yield arm.model
    if isinstance(arm, Drawn) and arm.paid is not None:
        yield from _models(arm.paid)
