"""What one step trains on, from (seed, step) alone: the same samples, noise and times for any number of ranks."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elit.data.images import LabelledImages
from elit.data.loader import rows_of_step, sample_generators
from elit.elastic.budget import draw_budget
from elit.flow import FlowSample, TimeLaw, interpolate
from elit.flow import Path as FlowPath
from elit.training.config import TrainConfig

AHEAD = 2  # batches drawn before they are asked for


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


def draw_batch(config: TrainConfig, data: LabelledImages, step: int, share: range | None = None) -> Batch:
    """The batch of a step, or those of its samples that are in `share`. Images come in a new random order each epoch.

    Every sample's noise, time and dropped label come from (seed, step, place in the batch), so a share is a slice.
    """
    share = range(config.batch_size) if share is None else share
    rows = rows_of_step(config.seed, len(data), config.batch_size, step)[share.start : share.stop]
    x, labels = data.read(rows, sample_generators("data", config.seed, step, share.start, share.stop))
    path, law = FlowPath(config.flow.path), TimeLaw(config.flow.time_law)
    noise, t, dropped = torch.empty_like(x), torch.empty(len(share)), torch.empty(len(share))
    for i, generator in enumerate(sample_generators("sample", config.seed, step, share.start, share.stop)):
        t[i] = law.draw(1, path, generator)[0]
        torch.rand((), generator=generator, out=dropped[i])
        torch.randn(x.shape[1:], generator=generator, out=noise[i])
    labels = torch.where(dropped < config.flow.label_dropout, config.model.num_classes, labels)
    return Batch(interpolate(path, x, noise, t), labels, step_budget(config, step))


def step_budget(config: TrainConfig, step: int) -> float | None:
    """The budget of a step, the same on every rank without a word between them; None for a dense model."""
    if config.model.window is None:
        return None
    return draw_budget(config.seed, step, config.budget.lowest, config.budget.highest, config.model.window.size)


def drawn_ahead(draw: Callable[[int], Batch], first: int, last: int) -> Generator[Batch, None, None]:
    """draw(first) .. draw(last - 1), the next ones drawn in a thread of its own while one is used."""
    with ThreadPoolExecutor(1, "draw") as pool:
        pending: list[Future[Batch]] = [pool.submit(draw, step) for step in range(first, min(first + AHEAD, last))]
        for step in range(first, last):
            batch = pending.pop(0).result()
            if step + AHEAD < last:
                pending.append(pool.submit(draw, step + AHEAD))
            yield batch
