"""How a model is sampled: one recipe for the pipeline, samples in any number, evaluation and reports."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from elit.cost import count_flops
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.flow import FlowPath
from elit.guidance import Guidance
from elit.samplers import even_times, sde_times
from elit.sampling import MOST_STEPS, sample

LARGEST_TILE = 4096


@dataclass(frozen=True)
class Recipe:
    """All that, with a model and the labels, decides the pixels of image i.

    sampler, steps, budget, guidance and path are those of `elit.sample`. seed: image i's noise comes from (seed, i). tile:
    how many images go through the model at once, since matrix products differ in the last bit with the batch's size.
    Raises UserError for counts of steps, and tiles, that cannot be.
    """

    sampler: str = "euler"
    steps: int = 25
    budget: float | Schedule = 1.0
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    path: FlowPath | str = FlowPath.LINEAR
    tile: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(
                f"a sampler takes at least 1 step and at most {MOST_STEPS:,}, not {self.steps:,}; give --steps 25"
            )
        if not 1 <= self.tile <= LARGEST_TILE:
            raise UserError(f"a tile holds at least 1 image and at most {LARGEST_TILE:,}, not {self.tile:,}; give --tile 8")

    def draw(
        self,
        model: ElasticModel,
        labels: Tensor | Sequence[int],
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
        )

    def forwards(self) -> Iterator[float]:
        """The budget of each forward of the model: at every time that the sampler asks for, one, or with guidance two."""
        for t in self._times():
            main = self.budget.at(t) if isinstance(self.budget, Schedule) else self.budget
            yield main
            if self.guidance.active(t):
                yield main if self.guidance.weak_budget is None else self.guidance.weak_budget

    def _times(self) -> list[float]:
        """The times at which the sampler asks for a velocity."""
        if self.sampler == "euler_maruyama":
            return sde_times(self.steps)[:-1]
        times = even_times(self.steps)
        if self.sampler == "heun":  # a step's two ends, and the last step's beginning alone
            return [*itertools.chain.from_iterable(itertools.pairwise(times[:-1])), times[-2]]
        return times[:-1]

    def gflops_per_step(self, model: ElasticModel) -> float:
        """GFLOPs of a step for one image, all its forwards together: the mean over the steps."""
        counted = Counter(self.forwards())
        return sum(count * count_flops(model, budget) for budget, count in counted.items()) / self.steps / 1e9
