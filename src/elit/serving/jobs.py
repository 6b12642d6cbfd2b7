"""What is known of requests and of what calls of the model take: the quantities of the policy.

Times are milliseconds on one clock. A level is told by its number, 0 for the lowest.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from annotated_types import Gt

from elit.records import Count, NotNegative, Whole, record

CORRECTED = 0.1  # of what a step's time tells of all later ones
FARTHEST = 16.0  # times slower or quicker than measured at the start, at most
VARIED = 0.05  # of how far a step was from what was predicted, told of all later ones
WIDEST = 0.5  # the largest spread that is believed
MARGIN = 0.02  # of the time that work takes, kept for costs that are not quite right
DEVIATIONS = 2.5  # times how far calls are from what is predicted, kept for that


@record
class Costs:
    """What one call of the model takes: ms(rows) = scale (call + the sum over its rows of row[level]).

    scale is corrected while serving; spread is by how much of that, on average, a call is longer or shorter. The rest is
    measured at the start.
    """

    call: NotNegative
    row: tuple[Annotated[float, Gt(0)], ...]
    scale: Annotated[float, Gt(0)] = 1.0
    spread: NotNegative = 0.05

    def ms(self, rows: Sequence[int]) -> float:
        """Milliseconds of a call with a row of each of these levels."""
        return self.scale * (self.call + sum(self.row[level] for level in rows))

    def corrected(self, predicted: float, took: float) -> "Costs":
        """The costs after a step that was predicted to take so long, and took so long."""
        if not (predicted > 0 and took > 0):
            return self
        off = math.log(took / predicted)
        scale = min(max(self.scale * math.exp(CORRECTED * off), 1 / FARTHEST), FARTHEST)
        return replace(self, scale=scale, spread=self.spread + VARIED * (min(abs(off), WIDEST) - self.spread))

    def with_margin(self, ms: float, calls: int) -> float:
        """The time to allow for so many calls that are predicted to take `ms` in all.

        Calls are longer or shorter on their own, so that of n the sum strays by their spread over the root of n.
        """
        return ms * (1 + MARGIN + DEVIATIONS * self.spread / math.sqrt(calls or 1))


@record
class Job:
    """What is known of a request.

    samples: its images. asks: calls of the model that each still needs. guided: how many of these need a second, weak row,
    of the level `weak`, or of the main one where that is None. arrived, due: times. lowest, highest: levels that it may be
    given. running: whether it has begun.
    """

    id: Whole
    client: str
    samples: Count
    asks: Whole
    guided: Whole
    weak: Whole | None
    arrived: float
    due: float
    lowest: Whole
    highest: Whole
    running: bool = False

    def work(self, costs: Costs, level: int) -> float:
        """Milliseconds, without the calls' own, that it still takes at a level."""
        weak = costs.row[level if self.weak is None else self.weak]
        return costs.scale * self.samples * (self.asks * costs.row[level] + self.guided * weak)

    def alone(self, costs: Costs, level: int) -> float:
        """Milliseconds that it still takes at a level where no other shares its calls."""
        return self.work(costs, level) + costs.scale * costs.call * self.asks

    @property
    def rows(self) -> int:
        """Rows of its next call, at most."""
        return self.samples * (2 if self.guided else 1)
