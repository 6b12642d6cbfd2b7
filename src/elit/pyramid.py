"""Decomposable flow matching: a Laplacian pyramid whose stages flow one after another (Haji-Ali et al., 2025).

An image is a small one and what every doubling of it misses. Each of these stages has a flow time of its own, and one model
predicts the velocities of all. Sampling is one ODE over a global time from 1 to 0, in which every stage has a speed: stage i
runs from noise to a threshold while the earlier ones go on beside it, and the later ones wait.

Shapes: B batch, S stages, C channels of an image; a packed pyramid is (B, C (1 + 4 + ... + 4^(S-1)), h, w).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elit.errors import UserError
from elit.flow import FlowPath, FlowSample, TimeLaw

NEARLY_CLEAN = -2.0  # where the normal lies whose sigmoid is the time of an earlier stage in training


@dataclass(frozen=True)
class Pyramid:
    """A Laplacian pyramid of `stages` images of `channels`, the coarsest first, each twice as large as the one before.

    One tensor holds it, on the grid of the coarsest stage: the 2^i x 2^i pixels that stage i has in a place of that grid
    are channels there. So a pyramid is an image for all that takes images, and noise of its shape is noise of every stage.
    """

    channels: int
    stages: int

    @property
    def widths(self) -> list[int]:
        """The channels that each stage has in the packed tensor."""
        return [self.channels * 4**i for i in range(self.stages)]

    def decompose(self, x_BCHW: Tensor) -> Tensor:
        """The packed pyramid of images whose sides are multiples of 2^(S-1): a bilinear half, and what its double misses."""
        stages: list[Tensor] = []
        for _ in range(self.stages - 1):
            smaller = halved(x_BCHW)
            stages.append(x_BCHW - doubled(smaller))
            x_BCHW = smaller
        return self.pack([x_BCHW, *reversed(stages)])

    def recompose(self, packed: Tensor) -> Tensor:
        """The images (B, C, H, W) of a packed pyramid: the inverse of `decompose`."""
        first, *rest = self.unpack(packed)
        for stage in rest:
            first = doubled(first) + stage
        return first

    def pack(self, stages: Sequence[Tensor]) -> Tensor:
        """Images (B, C, 2^i h, 2^i w), the coarsest first, as one tensor."""
        return torch.cat([F.pixel_unshuffle(stage, 2**i) for i, stage in enumerate(stages)], dim=1)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """The inverse of `pack`."""
        return [F.pixel_shuffle(stage, 2**i) for i, stage in enumerate(packed.split(self.widths, dim=1))]

    def spread(self, values: Sequence[float], like: Tensor) -> Tensor:
        """(1, packed channels, 1, 1): a number for each stage, in each of its channels."""
        each = [value for value, width in zip(values, self.widths, strict=True) for _ in range(width)]
        return torch.tensor(each, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def halved(x_BCHW: Tensor) -> Tensor:
    """Half as large, bilinear, without antialiasing: the mean of every 2 x 2 pixels."""
    return F.interpolate(x_BCHW, scale_factor=0.5, mode="bilinear", align_corners=False, antialias=False)


def doubled(x_BCHW: Tensor) -> Tensor:
    """Twice as large, bilinear."""
    return F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Stage:
    """The part of the ODE in which stage `number` (from 0) of a pyramid runs from noise to its threshold.

    thresholds: one for each stage that is sampled, falling to 0. Stages after these wait at noise for ever. The global time
    of this part runs over an equal share of [0, 1]; a stage's clock is its own flow time.
    """

    pyramid: Pyramid
    number: int
    thresholds: tuple[float, ...]

    @property
    def start(self) -> float:
        """The global time at which this part begins."""
        return 1 - self.number / len(self.thresholds)

    def times(self, steps: int) -> list[float]:
        """The global times of evenly spaced steps through this part."""
        end = 1 - (self.number + 1) / len(self.thresholds)
        return [self.start + (end - self.start) * k / steps for k in range(steps + 1)]

    def spans(self) -> list[tuple[float, float]]:
        """The clock of every stage where this part begins and where it ends."""
        i, end = self.number, self.thresholds[self.number]
        before = [(self.thresholds[i - 1], end)] * i
        return [*before, (1.0, end), *[(1.0, 1.0)] * (self.pyramid.stages - i - 1)]

    def clocks(self, t: float) -> list[float]:
        """The flow time of every stage at the global time t; 1 for those that wait."""
        gone = (self.start - t) * len(self.thresholds)
        return [begin + (end - begin) * gone for begin, end in self.spans()]

    def speeds(self) -> list[float]:
        """How fast every clock runs against the global time; 0 for those that wait."""
        return [(begin - end) * len(self.thresholds) for begin, end in self.spans()]

    def seen(self, packed: Tensor) -> Tensor:
        """What the model sees of a state: zeros in place of the stages that wait."""
        shown = sum(self.pyramid.widths[: self.number + 1])
        return torch.cat([packed[:, :shown], torch.zeros_like(packed[:, shown:])], dim=1)


def sampled_stages(pyramid: Pyramid, thresholds: Sequence[float] | None = None, count: int | None = None) -> list[Stage]:
    """The parts of the ODE, one after another.

    thresholds: the times at which each stage but the last makes room for the next, falling; None for the usual ones.
    count: only the first so many stages, which end at 0. Raises UserError for what does not fit the pyramid.
    """
    chosen = default_thresholds(pyramid.stages) if thresholds is None else tuple(thresholds)
    check_thresholds(chosen, pyramid.stages)
    count = pyramid.stages if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= pyramid.stages:
        raise UserError(f"{count!r} stages were asked for; the model has {pyramid.stages}, so give 1 to {pyramid.stages}")
    ends = (*chosen[: count - 1], 0.0)
    return [Stage(pyramid, i, ends) for i in range(count)]


def default_thresholds(stages: int) -> tuple[float, ...]:
    """0.1 before the last stage, and 0.1 more before each earlier one; a model has 8 stages at most."""
    return tuple((stages - 1 - i) / 10 for i in range(stages - 1))


def check_thresholds(thresholds: Sequence[float], stages: int) -> None:
    """Raises UserError for thresholds that are not one for each stage but the last, falling within (0, 1)."""
    listed = ", ".join(f"{threshold:g}" for threshold in thresholds) or "none"
    if len(thresholds) != stages - 1:
        raise UserError(f"stage thresholds {listed} are {len(thresholds)}; {stages} stages have {stages - 1}")
    if any(not 0 < later < earlier for earlier, later in zip((1.0, *thresholds), thresholds, strict=False)):
        raise UserError(f"stage thresholds {listed} do not fall from below 1 to above 0; give such as 0.2, 0.1")


def steps_by_stage(steps: int | Sequence[int], stages: int) -> list[int]:
    """The steps of every stage. Of one number, each stage but the first gets a fifth, rounded: 50 is 40 and 10.

    Raises UserError for too few, and for a list that has not one for each stage.
    """
    if not isinstance(steps, int):
        if len(steps) != stages or any(type(count) is not int or count < 1 for count in steps):
            listed = ", ".join(map(str, steps))
            raise UserError(f"steps {listed} are not {stages} whole numbers of at least 1, one for each stage")
        return list(steps)
    if steps < stages:
        raise UserError(f"{steps} steps are too few for {stages} stages; give at least {stages}")
    later = max(1, min(round(steps / 5), (steps - 1) // max(1, stages - 1)))
    return [steps - later * (stages - 1), *[later] * (stages - 1)]


@dataclass(frozen=True)
class PyramidFlow:
    """The flow of a pyramid in training. weights: the chance of a step to train the first stage alone, the first two, ..."""

    pyramid: Pyramid
    weights: tuple[float, ...]
    path: FlowPath = FlowPath.LINEAR

    def __post_init__(self) -> None:
        check_weights(self.weights, self.pyramid.stages)

    def draw_active(self, generator: torch.Generator) -> int:
        """How many stages a step trains: one number for all of its samples."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return 1 + int(torch.multinomial(weights, 1, generator=generator))

    def draw_times(self, active: int, law: TimeLaw, generator: torch.Generator) -> Tensor:
        """(active,) times of one sample: the last active stage by the law, the earlier ones nearly clean."""
        last = law.draw(1, self.path, generator)
        earlier = (torch.randn(active - 1, generator=generator) + NEARLY_CLEAN).sigmoid()
        return torch.cat([earlier, last])

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> FlowSample:
        """The points on the stages' paths between images x (B, C, H, W) and packed noise, at times t (B, active).

        Stages that are not active are zeros at time 1, with a velocity of 0.
        """
        clean, active = self.pyramid.decompose(x).split(self.pyramid.widths, dim=1), t.shape[1]
        noises = noise.split(self.pyramid.widths, dim=1)
        parts = [self.path.interpolate(clean[i], noises[i], t[:, i]) for i in range(active)]
        idle = [torch.zeros_like(stage) for stage in noises[active:]]
        return FlowSample(
            x_t=torch.cat([*(part.x_t for part in parts), *idle], dim=1),
            velocity=torch.cat([*(part.velocity for part in parts), *idle], dim=1),
            t=F.pad(t, (0, self.pyramid.stages - active), value=1.0),
            active=active,
        )

    def loss(self, velocity: Tensor, sample: FlowSample) -> Tensor:
        """The sum over the active stages of their mean squared errors, in float32."""
        errors = (velocity.float() - sample.velocity).square().split(self.pyramid.widths, dim=1)
        return torch.stack([error.mean() for error in errors[: sample.active]]).sum()

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Raises UserError: the stages have no common SDE here."""
        raise UserError("euler_maruyama samples a flow of one stage; give --sampler euler or heun")


def default_weights(stages: int) -> tuple[float, ...]:
    """0.1 for all stages together, and the rest shared evenly by the coarser ones: 0.9, 0.1 of two."""
    return (*[0.9 / (stages - 1)] * (stages - 1), 0.1) if stages > 1 else (1.0,)


def check_weights(weights: Sequence[float], stages: int) -> None:
    """Raises UserError for chances of stages that are not one for each, at least 0, and together 1."""
    listed = ", ".join(f"{weight:g}" for weight in weights) or "none"
    if len(weights) != stages:
        raise UserError(f"stage weights {listed} are {len(weights)}; give one for each of {stages} stages")
    if any(weight < 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"stage weights {listed} are not chances that make 1 together; give such as 0.9, 0.1")
