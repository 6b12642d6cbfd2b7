"""What one step trains on, from (seed, step) alone: the same samples, noise and times for any number of ranks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elit.data.loader import Data, rows_of_step, sample_generators
from elit.elastic.budget import draw_budget
from elit.flow import FlowSample, TimeLaw, interpolate
from elit.flow import Path as FlowPath
from elit.training.config import TrainConfig


@dataclass(frozen=True)
class Batch:
    """What one step trains on: points on paths, labels (B,) with some dropped to the null class, and the budget."""

    flow: FlowSample
    labels: Tensor
    budget: float | None

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, parts: int) -> "list[Batch]":
        """So many batches of one after another, as even as can be."""
        flow = self.flow
        pieces = (tensor.tensor_split(parts) for tensor in (flow.x_t, flow.velocity, flow.t, self.labels))
        return [
            replace(self, flow=FlowSample(x_t, velocity, t), labels=labels)
            for x_t, velocity, t, labels in zip(*pieces, strict=True)
        ]

    def to(self, device: torch.device) -> "Batch":
        flow = FlowSample(self.flow.x_t.to(device), self.flow.velocity.to(device), self.flow.t.to(device))
        return replace(self, flow=flow, labels=self.labels.to(device))


def draw_batch(config: TrainConfig, data: Data, step: int, share: range | None = None) -> Batch:
    """The batch of a step, or those of its samples that are in `share`. Images come in a new random order each epoch.

    Every sample's noise, time and dropped label come from (seed, step, place in the batch), so a share is a slice.
    """
    share = range(config.batch_size) if share is None else share
    rows = rows_of_step(config.seed, len(data), config.batch_size, step, data.members)[share.start : share.stop]
    x, labels = data.read(rows, sample_generators("data", config.seed, step, share.start, share.stop))
    path, law = FlowPath(config.flow.path), TimeLaw(config.flow.time_law)
    noise, t, dropped = torch.empty_like(x), torch.empty(len(share)), torch.empty(len(share))
    for i, generator in enumerate(sample_generators("sample", config.seed, step, share.start, share.stop)):
        t[i] = law.draw(1, path, generator)[0]
        torch.rand((), generator=generator, out=dropped[i])
        torch.randn(x.shape[1:], generator=generator, out=noise[i])
    labels = torch.where((dropped < config.flow.label_dropout) | (labels < 0), config.model.num_classes, labels)
    return Batch(interpolate(path, x, noise, t), labels, step_budget(config, step))


def step_budget(config: TrainConfig, step: int) -> float | None:
    """The budget of a step, the same on every rank without a word between them; None for a dense model."""
    if config.model.window is None:
        return None
    return draw_budget(config.seed, step, config.budget.lowest, config.budget.highest, config.model.window.size)
