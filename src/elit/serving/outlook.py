"""What comes of requests if all have their lowest levels from now on, and how much more than these they can be given.

Calls are made in virtual time: a call is shared by those that come first, and each time that one of them is done the next
may join. So it is known of every request when it ends, after how many calls, and by how much these calls would be longer at
the highest levels. From what time is left to each, an even share of that lengthening follows.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from elit.serving.jobs import Costs, Job

WORTH = 0.05  # of a call's time, its own cost: below, more rows in it save nothing
GRACE = 5  # times what it was given, or takes alone: after so long, what is late is due again


class Load(NamedTuple):
    """A job in numbers: what it adds to a call at its lowest level, and how much more at its highest; the calls it takes;
    its rows; the time left, infinite where it does not count; the number of its client's weight; and whether it is late.
    """

    low: float
    more: float
    asks: int
    rows: int
    left: float
    kind: int
    late: bool = False


class End(NamedTuple):
    """When a job ends, after how many calls, and how much longer these are at the highest levels, by kinds of clients."""

    ms: float
    calls: int
    more: list[float]


def client_weights(jobs: Sequence[Job]) -> tuple[list[float], list[int]]:
    """The weights of clients, falling from 1, and the number of each job's: inversely as the samples that they have here."""
    samples: dict[str, int] = {}
    for job in jobs:
        samples[job.client] = samples.get(job.client, 0) + job.samples
    counts = sorted(set(samples.values()))
    number = {count: k for k, count in enumerate(counts)}
    return [counts[0] / count for count in counts] or [1.0], [number[samples[job.client]] for job in jobs]


def load(job: Job, now: float, costs: Costs, kind: int = 0) -> Load:
    """A job in numbers. Where guidance holds for some of its calls, each counts as their mean.

    It is late in any case where not even its lowest level, alone, is likely to be in time. Then it is due again, `GRACE`
    times as long after as it was given at first: it makes others wait as little as it can, and does not wait for ever.
    """
    row, asks, scaled = costs.row, job.asks or 1, costs.scale * job.samples
    if job.guided == 0:
        low, more = scaled * row[job.lowest], scaled * (row[job.highest] - row[job.lowest])
    elif job.weak is None:
        each = scaled * (1 + job.guided / asks)
        low, more = each * row[job.lowest], each * (row[job.highest] - row[job.lowest])
    else:
        low = scaled * (row[job.lowest] + row[job.weak] * job.guided / asks)
        more = scaled * (row[job.highest] - row[job.lowest])
    left, alone = job.due - now, asks * (costs.scale * costs.call + low)
    rows = job.samples * 2 if job.guided else job.samples
    if 3 * alone <= left or (need := costs.with_margin(alone, asks)) <= left:  # a margin is less than twice the work itself
        return Load(low, more, asks, rows, left, kind)
    again = GRACE * max(job.due - job.arrived, need)
    return Load(low, more, asks, rows, left + again * math.ceil((need - left) / again), kind, late=True)


def outlook(loads: Sequence[Load], kinds: int, costs: Costs, most_rows: int) -> tuple[int, list[End]]:
    """How many of the first jobs share the first call, and what comes of each at the lowest levels, in this order.

    A call has at most `most_rows` rows, and is shared as long as its own cost is worth it, by no more than each of those who
    share it can wait for; but by one at least.
    """
    own = costs.scale * costs.call
    ends: list[End | None] = [None] * len(loads)
    sharing: list[tuple[int, int]] = []  # a heap: the number of its last call, and that of the job
    now, busy, rows, clock, joined, first = 0.0, own, 0, 0, 0, 0
    pace: dict[int, float] = {}  # the longest call that each of them could afford when it joined
    slowest = math.inf  # the shortest of these
    more, spent = [0.0] * kinds, [0.0] * kinds  # of a call, and of all so far
    while joined < len(loads) or sharing:
        if not sharing and own < WORTH * (own + (one := loads[joined]).low):  # nobody would share its calls
            first, joined = first or 1, joined + 1
            now, clock, spent = now + one.asks * (own + one.low), clock + one.asks, spent.copy()
            spent[one.kind] += one.asks * one.more
            ends[joined - 1] = End(now, clock, spent)
            continue
        while joined < len(loads):
            one = loads[joined]
            if sharing and (own < WORTH * busy or rows + one.rows > most_rows):
                break
            can = (one.left - now) / one.asks
            if can < own + one.low:
                can = math.inf  # it is late, and nobody need wait less for that
            if sharing and busy + one.low > min(can, slowest):
                break
            heapq.heappush(sharing, (clock + one.asks, joined))
            pace[joined], slowest = can, min(can, slowest)
            busy, rows, joined = busy + one.low, rows + one.rows, joined + 1
            more[one.kind] += one.more
        first = first or joined
        last = sharing[0][0]
        now, calls, clock = now + (last - clock) * busy, last - clock, last
        spent = [spent[0] + calls * more[0]] if kinds == 1 else [spent[k] + calls * more[k] for k in range(kinds)]
        while sharing and sharing[0][0] == last:
            number = heapq.heappop(sharing)[1]
            one = loads[number]
            ends[number] = End(now, clock, spent)
            busy, rows = busy - one.low, rows - one.rows
            more[one.kind] -= one.more
            if pace.pop(number) <= slowest:
                slowest = min(pace.values(), default=math.inf)
        busy = busy if sharing else own  # what rounding left
    return first, [end for end in ends if end is not None]


def even_share(spare: float, more: Sequence[float], weights: Sequence[float]) -> float:
    """The largest u for which the calls' lengthening, the sum over kinds of min(1, weight u) more, is no more than `spare`.

    Infinite where there is time for all of it, or nothing to lengthen; 0 where there is none.
    """
    if spare <= 0:
        return math.inf if not any(more) else 0.0
    full, rate, least = 0.0, sum(weight * ms for weight, ms in zip(weights, more, strict=True)), 0.0
    for weight, ms in zip(weights, more, strict=True):  # the first has all it can take at the smallest u
        if full + rate / weight > spare:
            return max(least, (spare - full) / rate) if rate > 0 else least
        full, rate, least = full + ms, rate - weight * ms, 1 / weight
    return math.inf


def raised(job: Job, costs: Costs, share: float) -> int:
    """The level that a job has if it is given a share of the time between its lowest and highest ones."""
    if share >= 1:
        return job.highest
    low, high = costs.row[job.lowest], costs.row[job.highest]
    level = bisect_right(costs.row, (low + share * (high - low)) * (1 + 1e-9)) - 1
    return min(max(level, job.lowest), job.highest)
