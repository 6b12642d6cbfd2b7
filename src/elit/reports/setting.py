"""A setting: one way to sample a model, with what it draws and what it costs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from elit.console import progress_bar
from elit.cost import count_flops
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.guidance import Guidance
from elit.samplers import even_times
from elit.sampling import sample


@dataclass(frozen=True)
class Setting:
    """Euler's method in `steps` steps, at a budget that may follow the time, under guidance."""

    steps: int
    guidance: Guidance = field(default_factory=Guidance)
    budget: float | Schedule = 1.0

    def draw(
        self,
        model: ElasticModel,
        labels: Tensor | Sequence[int],
        seed: int = 0,
        noise: Tensor | None = None,
        done: Callable[[], None] | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) on the CPU, as `elit.sample` draws them; `done` is called after every step."""

        def called(step: int, t: float, x: Tensor) -> None:
            if done is not None:
                done()

        return sample(
            model,
            labels,
            steps=self.steps,
            budget=self.budget,
            guidance=self.guidance,
            seed=seed,
            noise=noise,
            callback_on_step_end=called,
        ).cpu()

    def forwards(self, t: float) -> list[float]:
        """The budget of each forward of the step from time t: one, or with guidance two."""
        main = self.budget.at(t) if isinstance(self.budget, Schedule) else self.budget
        if not self.guidance.active(t):
            return [main]
        return [main, main if self.guidance.weak_budget is None else self.guidance.weak_budget]

    def gflops_per_step(self, model: ElasticModel) -> float:
        """GFLOPs of a step for one image, the weak path's included: the mean over the steps."""
        forwards = Counter(budget for t in even_times(self.steps)[:-1] for budget in self.forwards(t))
        return sum(count * count_flops(model, budget) for budget, count in forwards.items()) / self.steps / 1e9


def draw_all(model: ElasticModel, settings: Sequence[Setting], labels: Sequence[int], seed: int) -> list[Tensor]:
    """The images (B, C, H, W) of every setting from the same noise, under a progress bar; equal settings run once."""
    different, images = dict.fromkeys(settings), {}
    with progress_bar() as bar:
        total = sum(setting.steps for setting in different)
        task = bar.add_task("sampling", total=total, unit="image steps", per_step=len(labels))
        for setting in different:
            images[setting] = setting.draw(model, labels, seed, done=lambda: bar.advance(task))
    return [images[setting] for setting in settings]


def budget_name(budget: float, model: ElasticModel) -> str:
    """ "4/16": the level that a budget stands for."""
    return model.levels.name(model.levels.of(budget))
