"""How a model is sampled: one recipe for the pipeline, samples in any number, evaluation and reports."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from elit.condition import Condition
from elit.cost import count_flops
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.flow import FlowPath
from elit.guidance import Guidance, guidance_weights, path_memories
from elit.pyramid import Stage
from elit.sampling import MOST_STEPS, check_shift, sample, staged_steps, step_times
from elit.step_cache import StepCache

LARGEST_TILE = 4096


def steps_text(steps: int | tuple[int, ...]) -> str:
    """Steps as people read them: "1 step", "25 steps", "40 + 10 steps"."""
    listed = steps if isinstance(steps, tuple) else (steps,)
    return f"{' + '.join(map(str, listed))} step{'' if listed == (1,) else 's'}"


@dataclass(frozen=True)
class Recipe:
    """All that, with a model and the labels, decides the pixels of image i.

    sampler, steps, budget, guidance, path, thresholds, stages, cache and shift are those of `elit.sample`. seed: image i's
    noise comes from (seed, i). tile: how many images go through the model at once, since matrix products differ in the last
    bit with the batch's size. Raises UserError for counts of steps, tiles and shifts that cannot be.
    """

    sampler: str = "euler"
    steps: int | tuple[int, ...] = 25
    budget: float | Schedule = 1.0
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    path: FlowPath | str = FlowPath.LINEAR
    tile: int = 8
    thresholds: tuple[float, ...] | None = None
    stages: int | None = None
    cache: StepCache | None = None
    shift: float = 1.0

    def __post_init__(self) -> None:
        for count in self.counts:
            if not 1 <= count <= MOST_STEPS:
                raise UserError(
                    f"a sampler takes at least 1 step and at most {MOST_STEPS:,}, not {count:,}; give --steps 25"
                )
        check_shift(self.shift)
        if not 1 <= self.tile <= LARGEST_TILE:
            raise UserError(f"a tile holds at least 1 image and at most {LARGEST_TILE:,}, not {self.tile:,}; give --tile 8")

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of steps that are told: one, or one for each stage."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,)

    @property
    def total_steps(self) -> int:
        """The steps of all stages that are sampled."""
        return sum(self.counts[: self.stages])

    def draw(
        self,
        model: ElasticModel,
        labels: Tensor | Sequence[int] | Condition,
        noise: Tensor | None = None,
        sde_noise: Tensor | None = None,
        done: Callable[[], None] | None = None,
    ) -> Tensor:
        """(B, C, H, W) float32 on the model's device, as `elit.sample` draws one for each label.

        noise, sde_noise: instead of those of the seed. done: called after every step.
        """

        def called(step: int, t: float, x: Tensor) -> None:
            if done is not None:
                done()

        return sample(
            model,
            labels,
            self.sampler,
            self.steps,
            self.budget,
            self.guidance,
            self.seed,
            noise=noise,
            sde_noise=sde_noise,
            path=self.path,
            callback_on_step_end=called,
            thresholds=self.thresholds,
            stages=self.stages,
            cache=self.cache,
            shift=self.shift,
        )

    def forwards(self, model: ElasticModel) -> Iterator[tuple[float, bool]]:
        """Of each forward of the model its budget, and whether a cache leaves its blocks out.

        At every time that the sampler asks for there is one, or with guidance two.
        """
        for stage, times in self.parts(model):
            paths = path_memories(model, self.cache, times, stage)
            for t in self.asked(times):
                main = self.budget.at(t) if isinstance(self.budget, Schedule) else self.budget
                budgets = [main]
                if any(weight != 1 for weight in guidance_weights(self.guidance, t, stage)):
                    budgets.append(main if self.guidance.weak_budget is None else self.guidance.weak_budget)
                clocks = t if stage is None else stage.clocks(t)
                for path, budget in zip(paths, budgets, strict=False):
                    yield budget, path is not None and path.decide(clocks, model.levels.of(budget))

    def reused(self, model: ElasticModel) -> tuple[int, int]:
        """How many forwards a cache leaves the blocks out of, and how many forwards there are."""
        reuses = [reuse for _, reuse in self.forwards(model)]
        return sum(reuses), len(reuses)

    def parts(self, model: ElasticModel) -> list[tuple[Stage | None, list[float]]]:
        """The times that the sampler steps through, stage by stage; a model of one stage has one part."""
        if model.stages > 1 or not isinstance(self.steps, int) or (self.thresholds, self.stages) != (None, None):
            return [*staged_steps(model, self.sampler, self.steps, self.thresholds, self.stages)]
        return [(None, step_times(self.sampler, self.steps, self.shift))]

    def asked(self, times: list[float]) -> list[float]:
        """The times, of those that it steps through, at which the sampler asks for a velocity, in order."""
        if self.sampler == "heun":  # a step's two ends, and the last step's beginning alone
            return [*itertools.chain.from_iterable(itertools.pairwise(times[:-1])), times[-2]]
        return times[:-1]

    def gflops_per_step(self, model: ElasticModel) -> float:
        """GFLOPs of a step for one image, all its forwards together: the mean over the steps."""
        return self.gflops(model) / self.total_steps

    def gflops(self, model: ElasticModel) -> float:
        """GFLOPs of an image: all its forwards together, those of the codec left out."""
        counted = Counter(self.forwards(model))
        return sum(n * count_flops(model, budget, blocks=not reuse) for (budget, reuse), n in counted.items()) / 1e9
