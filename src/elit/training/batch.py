"""What one step trains on, from (seed, step) alone: the same samples, noise and times for any number of ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elit.condition import Prompts, opened
from elit.data.loader import Data, read_part, sample_generators
from elit.data.prompts import told
from elit.elastic.levels import Chosen
from elit.flow import FlowPath, FlowSample, TimeLaw
from elit.training.alignment import alignment_target
from elit.training.budgets import step_budget
from elit.training.config import AlignmentConfig, BudgetConfig, FlowConfig, Trained
from elit.training.flows import active_stages, draw_times, global_times, make_flow, noise_shape


@dataclass(frozen=True)
class Draws:
    """What decides a run's batches beside its data: their size over all processes, and the laws that they are drawn by."""

    seed: int
    batch_size: int
    model: Trained
    flow: FlowConfig
    budget: BudgetConfig
    alignment: AlignmentConfig


@dataclass(frozen=True)
class Batch:
    """What one step trains on: points on paths, labels (B,) with some dropped to the null class, and budgets.

    labels: or what a host is told of prompts. budget: one for all, one per sample, or which latents. target: what alignment
    looks at (see `alignment_target`), None without it.
    """

    flow: FlowSample
    labels: Tensor | Prompts
    budget: float | Tensor | Chosen | None
    target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, parts: int) -> "list[Batch]":
        """So many batches of one after another, as even as can be."""

        def pieces(values: float | Tensor | Prompts | Chosen | None) -> Sequence[Any]:
            """What has a row per sample cut up, and what is one for all as often as needed."""
            if isinstance(values, Prompts):
                return [values.rows(rows) for rows in torch.arange(len(values)).tensor_split(parts)]
            return values.tensor_split(parts) if isinstance(values, Tensor) else [values] * parts

        flow = self.flow
        cut = (flow.x_t, flow.velocity, flow.t, self.labels, self.budget, self.target)
        return [
            Batch(FlowSample(x_t, velocity, t, flow.active), labels, budget, target)
            for x_t, velocity, t, labels, budget, target in zip(*map(pieces, cut), strict=True)
        ]

    def to(self, device: torch.device) -> "Batch":
        """On a device. Copies to a GPU are begun and not waited for, from memory that it reads by itself."""

        def moved(values: Tensor) -> Tensor:
            pinned = device.type == "cuda" and values.device.type == "cpu"
            return values.pin_memory().to(device, non_blocking=True) if pinned else values.to(device)

        flow = FlowSample(moved(self.flow.x_t), moved(self.flow.velocity), moved(self.flow.t), self.flow.active)
        target = None if self.target is None else moved(self.target)
        labels = moved(self.labels) if isinstance(self.labels, Tensor) else self.labels.to(device)
        return replace(self, flow=flow, labels=labels, target=target)


def drop_labels(labels: Tensor, u_B: Tensor, dropout: float, sizes: Sequence[int]) -> Tensor:
    """Labels (B,) for training: none where there is none (-1), and where u (B,), uniform in [0, 1), says so.

    The whole label is dropped with the chance `dropout`; of a label of several factors each one alone with as much again.
    """
    null = math.prod(size + 1 for size in sizes) - 1
    kept = torch.where((u_B < dropout) | (labels < 0), null, labels)
    for i in range(len(sizes) if len(sizes) > 1 else 0):
        alone = (u_B >= (i + 1) * dropout) & (u_B < (i + 2) * dropout) & (kept != null)
        kept = torch.where(alone, opened(kept, sizes, i), kept)
    return kept


def draw_batch(draws: Draws, data: Data, step: int, share: range | None = None) -> Batch:
    """The batch of a step, or those of its samples that are in `share`. Images come in a new random order each epoch.

    Every sample's noise, time and dropped label come from (seed, step, place in the batch), so a share is a slice.
    """
    share = range(draws.batch_size) if share is None else share
    rows, x, labels = read_part(data, draws.seed, draws.batch_size, step, share)

    def generators() -> list[torch.Generator]:
        return sample_generators("data", draws.seed, step, share.start, share.stop)

    target = alignment_target(draws.alignment, data, rows, x, generators)
    flow, law = make_flow(draws.flow, draws.model), TimeLaw(draws.flow.time_law)
    active = active_stages(flow, draws.seed, step)
    noise = x.new_empty(len(share), *noise_shape(flow, x.shape[1:]))
    t, dropped = torch.empty(len(share), active), torch.empty(len(share))
    for i, generator in enumerate(sample_generators("sample", draws.seed, step, share.start, share.stop)):
        t[i] = draw_times(flow, active, law, generator, draws.flow.shift)
        torch.rand((), generator=generator, out=dropped[i])
        torch.randn(noise.shape[1:], generator=generator, out=noise[i])
    labels = drop_labels(labels, dropped, draws.flow.label_dropout, draws.model.label_sizes)
    budget = step_budget(draws.budget, draws.model, draws.seed, step, global_times(flow, t), share)
    sample = flow.interpolate(x, noise, t[:, 0] if isinstance(flow, FlowPath) else t)
    return Batch(sample, told(data, labels), budget, target)
