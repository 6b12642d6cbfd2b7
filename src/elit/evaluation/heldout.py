"""The flow's loss on held-out pictures at drawn points that stay the same: cheap, paired between models, and precise.

Every picture meets the same noise at the same times for every model and budget, so that two models are told apart by far
fewer pictures than a Fréchet distance needs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elit.data.loader import Data
from elit.data.prompts import PromptedData, told
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.flow import FlowPath
from elit.sampling import image_noise
from elit.seeding import generator_for

TIMES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True)
class Loss:
    """The losses (N,) of N pictures, each the mean over the times: their mean, and how sure it is."""

    of_each: Tensor

    @property
    def mean(self) -> float:
        return float(self.of_each.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return float(self.of_each.std()) / math.sqrt(len(self.of_each))

    def above(self, other: "Loss") -> tuple[float, float]:
        """How much higher than another loss on the same pictures, as a share of that; and its standard error, paired."""
        apart = self.of_each - other.of_each
        return float(apart.mean()) / other.mean, float(apart.std()) / math.sqrt(len(apart)) / other.mean


@torch.no_grad()
def heldout_loss(
    model: ElasticModel,
    data: Data,
    count: int,
    budgets: Sequence[float | Schedule],
    times: Sequence[float] = TIMES,
    path: FlowPath = FlowPath.LINEAR,
    batch: int = 16,
    done: Callable[[int], None] | None = None,
) -> list[Loss]:
    """The mean squared error of the model's velocity on `count` pictures at each budget, with their own labels.

    A schedule's budget is that of each time. The pictures are spread evenly over the data; picture i meets noise of (0, i)
    alone. done: is told the forwards of one sample that were made. Raises UserError where there are fewer pictures.
    """
    if not 2 <= count <= len(data):
        raise UserError(f"{count} held-out pictures were asked for; give 2 to {len(data)}, as many as there are")
    device = next(model.parameters()).device
    rows = torch.arange(count) * len(data) // count
    losses = torch.zeros(len(budgets), count, dtype=torch.float64)
    for places in torch.arange(count).split(batch):
        x, y = data.read(rows[places], [generator_for("held out", int(i)) for i in places])
        y = y if isinstance(data, PromptedData) else torch.where(y < 0, model.null_class, y)
        noise = image_noise(0, x.shape, "held out noise", int(places[0]))
        for time in times:
            sample = path.interpolate(x, noise, torch.full((len(x),), time))
            x_t, t, known = sample.x_t.to(device), sample.t.to(device), told(data, y).to(device)
            for row, budget in zip(losses, budgets, strict=True):
                at_time = budget.at(time) if isinstance(budget, Schedule) else budget
                velocity = model(x_t, t, known, at_time).float().cpu()
                row[places] += (velocity - sample.velocity).square().flatten(1).mean(1).double() / len(times)
                if done is not None:
                    done(len(x))
    return [Loss(row) for row in losses]
