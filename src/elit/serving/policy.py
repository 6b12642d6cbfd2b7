"""Who is served next, and with how many latents: pure functions of what is known now.

A request is due at a time. Work is done in the order in which it is due, which meets all due times whenever anything can.
Budgets are as large as that order allows: of the requests due by some time, all the work that is left must fit before it.
The time by which that is hardest decides the budgets of all that is due until then, evenly among clients; what is due
later shares what is left, in the same way (so are speeds found by Yao, Demers and Shenker, 1995). All is decided anew at
every step, so a request may be lowered and raised again while it runs.

Times are milliseconds on one clock. A level is told by its number, 0 for the lowest.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray

from elit.files import open_regular
from elit.records import Count, NotNegative, Whole, parse_json, record

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Policy = Literal["deadline", "fifo"]
CORRECTED = 0.1  # of what a step's time tells of all later ones
FARTHEST = 16.0  # times slower or quicker than measured at the start, at most
WORTH = 0.05  # of a call's time, its own cost: below, more rows in it save nothing
MARGIN = 0.05  # of the time that is left, kept for what no cost model knows
LOWERED = np.linspace(1, 0, 9)  # shares of what is above the lowest levels, tried for those that share a call
LINE_BYTES = 2**22  # of a trace


@record
class Costs:
    """What one call of the model takes: ms(rows) = scale (call + the sum over its rows of row[level]).

    scale is corrected while serving; the rest is measured at the start.
    """

    call: NotNegative
    row: tuple[Annotated[float, Gt(0)], ...]
    scale: Annotated[float, Gt(0)] = 1.0

    def ms(self, rows: Sequence[int]) -> float:
        """Milliseconds of a call with a row of each of these levels."""
        return self.scale * (self.call + sum(self.row[level] for level in rows))

    def corrected(self, predicted: float, took: float) -> "Costs":
        """The costs after a step that was predicted to take so long, and took so long."""
        scale = self.scale * (took / predicted) ** CORRECTED if predicted > 0 and took > 0 else self.scale
        return replace(self, scale=min(max(scale, 1 / FARTHEST), FARTHEST))


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

    @property
    def rows(self) -> int:
        """Rows of its next call, at most."""
        return self.samples * (2 if self.guided else 1)


@record
class Turn:
    """A request that makes its next call now, and the level of it."""

    id: Whole
    level: Whole


@record
class Decision:
    """What was known, and who makes the next call."""

    now: float
    jobs: tuple[Job, ...]
    costs: Costs
    most_rows: Count
    policy: Policy
    turns: tuple[Turn, ...]


@record
class Admission:
    """Whether a request is taken, which waiting ones of greedier clients give way, and after how long to ask again."""

    taken: bool
    evicted: tuple[int, ...] = ()
    retry_ms: float = 0.0


class Table(NamedTuple):
    """The same of many jobs, a column (J,) each; weak is -1 where it is the main level."""

    id: Array
    samples: Array
    asks: Array
    guided: Array
    weak: Array
    arrived: Array
    due: Array
    lowest: Array
    highest: Array

    @staticmethod
    def of(jobs: Sequence[Job]) -> "Table":
        rows = [
            (j.id, j.samples, j.asks, j.guided, -1 if j.weak is None else j.weak, j.arrived, j.due, j.lowest, j.highest)
            for j in jobs
        ]
        return Table(*np.array(rows, dtype=np.float64).T)

    def ordered(self, order_J: Indices) -> "Table":
        return Table(*(column[order_J] for column in self))

    def work(self, costs: Costs, level: Indices) -> Array:
        """Milliseconds, without the calls' own, of every job at levels (J,) or (J, U)."""
        row_L = costs.scale * np.array(costs.row)
        samples, asks, guided, weak = (
            column.reshape(-1, *[1] * (level.ndim - 1)) for column in (self.samples, self.asks, self.guided, self.weak)
        )
        main = row_L[level]
        second = main if (self.weak < 0).all() else np.where(weak < 0, main, row_L[weak.astype(np.intp)])
        return samples * (asks * main + guided * second)

    def calls(self, now: float, costs: Costs, most_rows: int) -> Array:
        """Milliseconds of the calls themselves until each job is done: as few as the rows up to it can be put in.

        A call has no more rows, at the lowest levels, than each of those who share it can wait for.
        """
        pace_J = (1 - MARGIN) * (self.due - now) / np.maximum(self.asks, 1) / costs.scale - costs.call
        low_J = np.array(costs.row)[self.lowest.astype(np.intp)]
        rows_J = np.clip(pace_J / low_J, self.samples * np.where(self.guided > 0, 2, 1), max(most_rows, 1))
        needed_J = np.cumsum(self.samples * (self.asks + self.guided)) / np.minimum.accumulate(rows_J)
        return costs.scale * costs.call * np.maximum(np.maximum.accumulate(self.asks), needed_J)

    def alone(self, costs: Costs, level: Indices) -> Array:
        """Milliseconds that each takes where it is alone."""
        return self.work(costs, level) + costs.scale * costs.call * self.asks


def decide(now: float, jobs: Sequence[Job], costs: Costs, most_rows: int, policy: Policy = "deadline") -> Decision:
    """Who makes the next call, with which level.

    A call is shared by those that come first, as many as have `most_rows` rows, and at least one; but by no more than make
    the call's own cost small, since whoever shares a call waits for all of it.
    """
    if not jobs:
        return Decision(now, (), costs, most_rows, policy, ())
    table = Table.of(jobs)
    order_J = np.lexsort((table.id, table.arrived)) if policy == "fifo" else due_order(now, table, costs)
    order, table = [jobs[i] for i in order_J.tolist()], table.ordered(order_J)
    count = _sharing(order, costs, most_rows)
    if policy == "fifo":
        levels = [job.highest for job in order[:count]]
    else:
        levels = largest_levels(now, table, [job.client for job in order], costs, most_rows, count)
        levels = _in_step(now, table, levels, costs)
    turns = tuple(Turn(job.id, level) for job, level in zip(order, levels, strict=False))
    return Decision(now, tuple(jobs), costs, most_rows, policy, turns)


def due_order(now: float, table: Table, costs: Costs) -> Indices:
    """First what is due first; what is late whatever happens comes last, so that it makes nothing else late."""
    late = now + table.alone(costs, table.lowest.astype(np.intp)) > table.due
    return np.lexsort((table.id, table.arrived, table.due, late))


def _sharing(order: Sequence[Job], costs: Costs, most_rows: int) -> int:
    """How many of the first jobs share the next call: until its own cost is less than `WORTH` of what it takes."""
    rows, ms = 0, costs.call
    for count, job in enumerate(order):
        rows += job.rows
        if count and (rows > most_rows or costs.call < WORTH * ms):
            return count
        ms += job.rows * costs.row[job.lowest]
    return len(order)


def _in_step(now: float, table: Table, levels: list[int], costs: Costs) -> list[int]:
    """The levels of those of the first jobs that share a call: lowered until none that could be in time is made late.

    All that share a call wait for it, so one that needs so many calls can afford so much for each. Where even the lowest
    levels are too much for one, the last leave.
    """
    if len(levels) == 1:
        return levels
    table = Table(*(column[: len(levels)] for column in table))
    low_J, top_J = table.lowest.astype(np.intp), np.array(levels)
    slack_J = (1 - MARGIN) * (table.due - now)
    able_J = table.alone(costs, low_J) <= slack_J
    pace_J = np.minimum.accumulate(np.where(able_J, slack_J / np.maximum(table.asks, 1), np.inf))
    once = table._replace(asks=np.ones(len(levels)), guided=np.minimum(table.guided, 1))
    tried_JS = low_J[:, None] + ((top_J - low_J)[:, None] * LOWERED).astype(np.intp)
    call_JS = costs.scale * costs.call + np.cumsum(once.work(costs, tried_JS), axis=0)
    fits_JS = call_JS <= pace_J[:, None]
    fitting = np.flatnonzero(fits_JS.any(1))
    if not len(fitting) or fitting[-1] == 0:
        return levels[:1]
    last = int(fitting[-1])
    return tried_JS[: last + 1, int(np.argmax(fits_JS[last]))].tolist()


def largest_levels(
    now: float, table: Table, clients: Sequence[str], costs: Costs, most_rows: int, count: int | None = None
) -> list[int]:
    """The levels of the first `count` jobs, or of all, of those that are done in this order: the largest with which all
    are done when they are due.

    A job's level rises from its lowest to its highest with a number u, the same for all jobs of one client; clients' u
    are inversely proportional to the samples that they have here, so that they share evenly. For every job, the work up
    to it must be done when it is due. The job that allows the least u decides u for itself and all before it; then the
    rest is treated in the same way.
    """
    count = len(clients) if count is None else count
    slack_J = (1 - MARGIN) * (table.due - now) - table.calls(now, costs, most_rows)
    highest_J = table.highest.astype(np.intp)
    if (np.cumsum(table.work(costs, highest_J)) <= slack_J).all():
        return highest_J[:count].tolist()
    levels_JU = _levels_by_share(table, clients)
    work_JU = table.work(costs, levels_JU)
    chosen: list[int] = []
    spent = 0.0
    while (first := len(chosen)) < count:
        done_JU = spent + np.cumsum(work_JU[first:], axis=0)
        allowed_J = np.maximum((done_JU <= slack_J[first:, None]).sum(1) - 1, 0)
        last = len(allowed_J) - 1 - int(np.argmin(allowed_J[::-1]))  # the last of those that allow the least
        chosen += levels_JU[first : first + last + 1, allowed_J[last]].tolist()
        spent = float(done_JU[last, allowed_J[last]])
    return chosen[:count]


def _levels_by_share(table: Table, clients: Sequence[str]) -> Indices:
    """(J, U) the level of every job for rising u: 0 is its lowest, and its highest comes last."""
    samples = Counter[str]()
    for client, count in zip(clients, table.samples.tolist(), strict=True):
        samples[client] += int(count)
    weight_J = min(samples.values()) / np.array([samples[client] for client in clients], dtype=np.float64)
    span_J = table.highest - table.lowest
    u_U = _shares(int(span_J.max()), math.ceil(math.log2(1 / weight_J.min())))
    raised_JU = np.minimum(np.outer(weight_J, u_U), 1) * span_J[:, None]
    return (table.lowest[:, None] + np.floor(raised_JU + 1e-9)).astype(np.intp)


@cache
def _shares(span: int, doublings: int) -> Array:
    """The u that are tried: every level of the client with the fewest samples, then finer than by a tenth."""
    even = np.linspace(0, 1, max(span, 1) + 1)
    return np.concatenate([even, 2 ** np.linspace(0, doublings, 8 * doublings + 1)[1:]])


def lateness(now: float, jobs: Sequence[Job], costs: Costs, most_rows: int) -> float:
    """By how many milliseconds the latest job is late where all have their lowest level, done in order; 0 for none.

    What is late on its own counts for nothing.
    """
    if not jobs:
        return 0.0
    table = Table.of(jobs)
    table = table.ordered(due_order(now, table, costs))
    low_J = table.lowest.astype(np.intp)
    done_J = np.cumsum(table.work(costs, low_J)) + table.calls(now, costs, most_rows)
    late_J = np.where(now + table.alone(costs, low_J) > table.due, 0.0, done_J - (1 - MARGIN) * (table.due - now))
    return max(0.0, float(late_J.max()))


def admit(
    now: float, jobs: Sequence[Job], new: Job, costs: Costs, most_rows: int, most_waiting: int, policy: Policy = "deadline"
) -> Admission:
    """Whether a new request is taken beside those that are here.

    It is where all can still be done when due, at their lowest levels, and no more than `most_waiting` wait. Otherwise the
    newest waiting requests of the client that has most here, more than the new one's with it, give way to it; and where
    that does not help, it is refused.
    """
    here = list(jobs)
    evicted: list[int] = []
    before = lateness(now, here, costs, most_rows) if policy == "deadline" else 0.0

    def room() -> bool:
        waiting = sum(not job.running for job in here)
        if waiting >= most_waiting:
            return False
        return policy == "fifo" or lateness(now, [*here, new], costs, most_rows) <= before

    while not room():
        victim = None if policy == "fifo" else _greediest(here, new)
        if victim is None:
            late = max(lateness(now, [*jobs, new], costs, most_rows) - before, costs.ms([new.lowest]) * new.asks)
            return Admission(False, (), late)
        here.remove(victim)
        evicted.append(victim.id)
    return Admission(True, tuple(evicted))


def _greediest(jobs: Sequence[Job], new: Job) -> Job | None:
    """The newest waiting job of the client with most samples here, if these are more than the new one's has."""
    samples = Counter[str]({new.client: new.samples})
    for job in jobs:
        samples[job.client] += job.samples
    waiting = [job for job in jobs if not job.running and samples[job.client] > samples[new.client]]
    return max(waiting, key=lambda job: (samples[job.client], job.arrived, job.id), default=None)


def trace_line(decision: Decision) -> str:
    """A decision as a line of a trace."""
    return json.dumps(asdict(decision)) + "\n"


def read_trace(file: Path) -> Iterator[Decision]:
    """The decisions of a trace. Raises UserError, naming the line, for what is none."""
    with open_regular(file) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), start=1):
            yield parse_json(line, Decision, f"line {number} of {file}")


def replay(file: Path) -> tuple[int, list[int]]:
    """How many decisions a trace holds, and the numbers of the lines whose decision would be another now, if any."""
    count, differing = 0, []
    for number, told in enumerate(read_trace(file), start=1):
        count += 1
        again = decide(told.now, told.jobs, told.costs, told.most_rows, told.policy)
        if again.turns != told.turns:
            differing.append(number)
    return count, differing
