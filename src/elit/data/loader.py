"""Which rows of the data a step trains on, and the random numbers of each sample: functions of (seed, step, index) alone."""

import torch
from torch import Tensor

from elit.seeding import generator_for


def rows_of_step(seed: int, count: int, batch_size: int, step: int) -> Tensor:
    """(batch_size,): the rows of a step. Each epoch is a new random order of all `count` rows; epochs follow gaplessly."""
    place = torch.arange(batch_size * step, batch_size * (step + 1))
    epochs, index = place // count, place % count
    return torch.cat([_epoch_order(seed, int(epoch), count)[index[epochs == epoch]] for epoch in epochs.unique()])


def sample_generators(name: str, seed: int, step: int, first: int, last: int) -> list[torch.Generator]:
    """A generator of its own for each sample first..last-1 of a step's batch, whichever rank or micro-batch holds it."""
    return [generator_for(name, seed, step, index) for index in range(first, last)]


def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator_for("epoch", seed, epoch))
