"""Who is served next, and with how many latents: pure functions of what is known now.

A request is due at a time. Work is done in the order in which it is due, which meets all due times whenever anything can.
What comes of all requests at their lowest levels is known (`elit.serving.outlook`); the time that this leaves before each is
due is spent on higher levels, evenly over all calls until then and evenly among clients. The request that leaves the least
decides (so are speeds found by Yao, Demers and Shenker, 1995). All is decided anew at every step, so a request may be
lowered and raised again while it runs. A request is taken if all can be in time with it at the lowest levels. One that is
late all the same is due again some time later.

Some time is kept for requests that have yet to come: as much as makes refusals rare, learnt from refusals.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from elit.files import open_regular
from elit.records import Count, NotNegative, Whole, parse_json, record
from elit.serving.jobs import Costs, Job
from elit.serving.outlook import End, Load, client_weights, even_share, load, outlook, raised

Policy = Literal["deadline", "fifo"]
REFUSED = 0.02  # of requests, that may be refused before budgets fall to take more
FOLLOWED = 0.05  # of a refused request's time until it was due, told of later ones
LINE_BYTES = 2**22  # of a trace
NEVER = float("inf")


@record
class Reserve:
    """Time that is kept for requests that have yet to come: `ms` of work that must fit into `left` from now.

    lent: milliseconds that calls have taken, since there was last nothing to do, beyond what the lowest levels take.
    """

    ms: NotNegative = 0.0
    left: NotNegative = 0.0
    lent: NotNegative = 0.0

    def after(self, answer: "Admission", job: Job, costs: Costs) -> "Reserve":
        """The reserve after a request was taken or refused: it grows until lower budgets would have spared no more than
        `REFUSED` of all requests their refusal. What nothing would have spared it says nothing, and nor does the time that
        those were given who were taken: it may be for ever.
        """
        grown, left = -REFUSED if answer.taken else 1 - REFUSED, self.left
        if answer.evicted or answer.late_ms > self.lent:
            grown = 0.0
        elif not answer.taken:
            given = job.due - job.arrived
            left = left + FOLLOWED * (given - left) if left else given
        ms = self.ms + grown * job.alone(costs, job.lowest)
        return replace(self, ms=min(max(ms, 0.0), left), left=left)

    def lending(self, ms: float, ended: bool) -> "Reserve":
        """The reserve after a call that took so much more than at the lowest levels; ended: there is nothing left to do."""
        return replace(self, lent=0.0 if ended else self.lent + ms)


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
    reserve: Reserve = Reserve()


@record
class Admission:
    """Whether a request is taken, which waiting ones of greedier clients give way, and after how long to ask again.

    late_ms: by how much all would be late with one that is refused; infinite where it was not for that.
    """

    taken: bool
    evicted: tuple[int, ...] = ()
    retry_ms: float = 0.0
    late_ms: float = 0.0


def decide(
    now: float,
    jobs: Sequence[Job],
    costs: Costs,
    most_rows: int,
    policy: Policy = "deadline",
    reserve: Reserve = Reserve(),
) -> Decision:
    """Who makes the next call, with which level.

    By "fifo" jobs come in the order in which they arrived, with their highest levels.
    """
    if not jobs:
        return Decision(now, (), costs, most_rows, policy, (), reserve)
    if policy == "fifo":
        order = sorted(jobs, key=lambda job: (job.arrived, job.id))[:most_rows]
        loads, weights = [load(job, now, costs)._replace(left=NEVER) for job in order], [1.0]
    else:
        order, loads, weights = due_order(now, jobs, costs)
    count, ends = outlook(loads, len(weights), costs, most_rows)
    share = _share(loads, ends, weights, costs, reserve) if policy == "deadline" else NEVER
    levels: dict[tuple[int, int, int], int] = {}  # of jobs with the same lowest, highest and weight: the same
    turns = []
    for job, one in zip(order[:count], loads, strict=False):
        alike = (job.lowest, job.highest, one.kind)
        if alike not in levels:
            levels[alike] = raised(job, costs, weights[one.kind] * share)
        turns.append(Turn(job.id, levels[alike]))
    return Decision(now, tuple(jobs), costs, most_rows, policy, tuple(turns), reserve)


def due_order(now: float, jobs: Sequence[Job], costs: Costs) -> tuple[list[Job], list[Load], list[float]]:
    """Jobs in the order in which they are served, the same in numbers, and the weights of clients.

    First what is due first, of which what is late in any case is due again later.
    """
    weights, kinds = client_weights(jobs)
    loads = [load(job, now, costs, kind) for job, kind in zip(jobs, kinds, strict=True)]
    rows = sorted((one.left, job.arrived, job.id, job, one) for job, one in zip(jobs, loads, strict=True))
    return [row[3] for row in rows], [row[4] for row in rows], weights


def _share(loads: Sequence[Load], ends: Sequence[End], weights: Sequence[float], costs: Costs, reserve: Reserve) -> float:
    """The share of the way to its highest level that a job of weight 1 can be given so that all are in time."""
    share, most, last = NEVER, 1.0, ends[0]
    for one, end in zip(loads, ends, strict=True):
        spare = one.left - costs.with_margin(end.ms, end.calls)
        if most * sum(end.more) > spare:  # no client has more of it
            share = min(share, even_share(spare, end.more, weights))
            if share <= 0:
                return 0.0
            most = min(1.0, share)
        last = end if end.ms > last.ms else last
    if reserve.left:
        spare = reserve.left - costs.with_margin(last.ms + reserve.ms, last.calls)
        share = min(share, even_share(spare, last.more, weights))
    return share


def lent(jobs: Sequence[Job], levels: Sequence[int], costs: Costs) -> float:
    """By how many milliseconds a call of these jobs at these levels is longer than at their lowest."""
    ms = 0.0
    for job, level in zip(jobs, levels, strict=True):
        rows = job.samples * (2 if job.guided and job.weak is None else 1)
        ms += rows * (costs.row[level] - costs.row[job.lowest])
    return costs.scale * ms


def lateness(now: float, jobs: Sequence[Job], costs: Costs, most_rows: int) -> float:
    """By how many milliseconds all jobs together are late at their lowest levels; 0 for none.

    What is late in any case counts as it is due again.
    """
    _, loads, weights = due_order(now, jobs, costs)
    _, ends = outlook(loads, len(weights), costs, most_rows)
    late = (costs.with_margin(end.ms, end.calls) - one.left for one, end in zip(loads, ends, strict=True))
    return sum(max(0.0, ms) for ms in late)


def admit(
    now: float, jobs: Sequence[Job], new: Job, costs: Costs, most_rows: int, most_waiting: int, policy: Policy = "deadline"
) -> Admission:
    """Whether a new request is taken beside those that are here.

    It is where none is later for it, and itself in time, at their lowest levels, and no more than `most_waiting` wait.
    Otherwise the newest waiting requests of the client that has most here, more than the new one's with it, give way to it;
    and where that does not help, it is refused. One that is late in any case is taken where it is alone.
    """
    here = list(jobs)
    evicted: list[int] = []
    before = lateness(now, here, costs, most_rows) if policy == "deadline" else 0.0
    hopeless = policy == "deadline" and bool(jobs) and load(new, now, costs).late

    def later() -> float:
        return lateness(now, [*here, new], costs, most_rows) - before if policy == "deadline" else 0.0

    def room() -> bool:
        return sum(not job.running for job in here) < most_waiting and later() <= 1e-6

    while hopeless or not room():
        victim = None if policy == "fifo" or hopeless else _greediest(here, new)
        if victim is None:
            here = list(jobs)
            late = later()
            unsparable = hopeless or late <= 1e-6
            return Admission(False, (), max(late, costs.ms([new.lowest]) * new.asks), NEVER if unsparable else late)
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
        again = decide(told.now, told.jobs, told.costs, told.most_rows, told.policy, told.reserve)
        if again.turns != told.turns:
            differing.append(number)
    return count, differing
