"""TeaCache: steps that reuse what the blocks did in an earlier one (Liu et al., 2025; appendix B of the paper).

The relative L1 change of the timestep embedding from call to call, rescaled by a polynomial, is added up. While the sum is
below a threshold, the blocks are left out, and what they changed when they last ran is added again; where it reaches the
threshold they run, and it begins anew. The polynomial is fitted on the model at hand: it tells, of a change of the
embedding, how much the model's velocity changes. So a threshold of 0.1 lets a velocity grow out of date by about a tenth.

The embedding depends on the time alone, so that which calls are reused is known before any is made, and is the same for any
batch, precision or device. Each path of guidance has a memory of its own.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elit.elastic.levels import Level
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.words import shown

DEGREE = 4  # of the polynomial, where there are steps enough
Clocks = float | Sequence[float]  # the time of a call, or that of every stage


@dataclass(frozen=True)
class StepCache:
    """When a step may reuse an earlier one.

    threshold: the rescaled change that may add up, above 0. coefficients: of the polynomial, the constant first; those of a
    `Fit`, or the identity. Raises UserError for a threshold that cannot be.
    """

    threshold: float
    coefficients: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def rescaled(self, change: float) -> float:
        """How much the velocity changes, as far as the change of the embedding tells; never below 0."""
        return max(0.0, sum(c * change**power for power, c in enumerate(self.coefficients)))


def check_threshold(threshold: object) -> None:
    """Raises UserError for what is no finite number above 0."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
        raise UserError(f"a cache's threshold is a number above 0, such as 0.1, not {shown(threshold)}")


class TimeChange:
    """The relative L1 change of a model's timestep embedding between two times, on the CPU in float32.

    expected: times that will be asked for. They are embedded at once, which is much quicker than one by one.
    """

    def __init__(self, model: ElasticModel, expected: Sequence[Clocks] = ()) -> None:
        self.embedding = copy.deepcopy(model.time_embedding).float().cpu()
        self.known: dict[tuple[float, ...], NDArray[np.float32]] = {}
        if expected:
            self.embed([listed(clocks) for clocks in expected])

    @torch.no_grad()
    def embed(self, times: Sequence[tuple[float, ...]]) -> None:
        """Notes the embedding (C,) of each time, or of the times of all stages."""
        t = torch.tensor(times)
        self.known |= zip(times, self.embedding(t[:, 0] if t.shape[1] == 1 else t).numpy(), strict=True)

    def at(self, clocks: Clocks) -> NDArray[np.float32]:
        """The embedding (C,) of a time, or of the times of all stages."""
        if (key := listed(clocks)) not in self.known:
            self.embed([key])
        return self.known[key]

    def __call__(self, before: Clocks, now: Clocks) -> float:
        first, second = self.at(before), self.at(now)
        return float(np.abs(second - first).sum() / np.abs(first).sum())


def listed(clocks: Clocks) -> tuple[float, ...]:
    """The times of all stages; of one stage its own."""
    return (float(clocks),) if isinstance(clocks, int | float) else tuple(clocks)


@dataclass
class Memory:
    """What one path remembers of its last call and of the last one whose blocks ran.

    reuse: whether the call that was last decided on reuses. change: of what the blocks did, (B, N, C), when they last ran.
    """

    cache: StepCache
    changes: TimeChange
    clocks: Clocks | None = None
    level: Level | None = None
    sum: float = 0.0
    reuse: bool = False
    change: Tensor | None = None

    def decide(self, clocks: Clocks, level: Level) -> bool:
        """Whether the next call, at these times and this level, reuses. A first call, or one of another level, runs."""
        before, self.clocks = self.clocks, clocks
        if before is None or level != self.level:
            self.sum = math.inf
        else:
            self.sum += self.cache.rescaled(self.changes(before, clocks))
        self.level, self.reuse = level, self.sum < self.cache.threshold
        if not self.reuse:
            self.sum = 0.0
        return self.reuse

    def around(self, x_BNC: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens after the blocks, as was decided: run, or what they changed before added to what comes in now."""
        if self.reuse:
            assert self.change is not None
            return x_BNC + self.change
        out = run(x_BNC)
        self.change = out - x_BNC
        return out


@dataclass
class Together:
    """The memories of two paths that run as one batch, one behind the other, both decided alike."""

    first: Memory
    second: Memory

    def around(self, x_BNC: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        both = replace(self.first)
        if both.reuse:
            assert self.first.change is not None and self.second.change is not None
            both.change = torch.cat([self.first.change, self.second.change])
        out = both.around(x_BNC, run)
        if not both.reuse:
            assert both.change is not None
            self.first.change, self.second.change = both.change.chunk(2)
        return out


def fit_polynomial(changes: Sequence[float], velocities: Sequence[float]) -> tuple[tuple[float, ...], float]:
    """The least-squares polynomial of velocities' changes over embeddings' changes, and the root mean square it misses.

    Its degree is 4, or what the number of points allows. Raises UserError for fewer than two.
    """
    if len(changes) < 2:
        raise UserError("a cache is calibrated on at least 3 steps; give more with --steps")
    x, y = np.asarray(changes, dtype=np.float64), np.asarray(velocities, dtype=np.float64)
    degree = min(DEGREE, len(set(changes)) - 1)
    fitted = np.polynomial.Polynomial.fit(x, y, degree)
    error = float(np.sqrt(np.mean((fitted(x) - y) ** 2)))
    return tuple(float(c) for c in fitted.convert().coef), error
