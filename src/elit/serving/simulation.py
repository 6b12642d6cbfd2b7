"""A server in virtual time: the policy's own functions, with costs in place of models.

A device makes one call after another, and a call takes what the cost model says, times some noise. Beside it stands what is
possible at all on one device, for those who know all arrivals beforehand.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from elit.serving.jobs import Costs, Job
from elit.serving.policy import Policy, Reserve, admit, decide, lent


@dataclass
class Served:
    """What came of one request. budgets: the level of every ask; end: None where it was refused."""

    job: Job
    levels: list[int] = field(default_factory=list)
    end: float | None = None

    @property
    def met(self) -> bool:
        return self.end is not None and self.end <= self.job.due


@dataclass
class Device:
    """One device's requests, what its calls truly cost, what it believes that they cost, and when it is free."""

    truth: Costs
    costs: Costs
    most_rows: int
    policy: Policy
    most_waiting: int
    free: float = 0.0
    jobs: dict[int, Job] = field(default_factory=dict)
    reserve: Reserve = field(default_factory=Reserve)

    def backlog(self) -> float:
        """Milliseconds of work at the highest levels."""
        return sum(job.work(self.costs, job.highest) for job in self.jobs.values())


def poisson(rate: float, seconds: float, seed: int, burst: int = 1) -> list[float]:
    """Times in milliseconds of arrivals at `rate` a second: `burst` at once, so many times more seldom."""
    draw, now, out = random.Random(f"arrivals {seed}"), 0.0, list[float]()
    while (now := now + draw.expovariate(rate / burst)) < seconds:
        out += [1000 * now] * burst
    return out


def simulate(
    arrivals: Sequence[Job],
    costs: Costs,
    most_rows: int,
    policy: Policy = "deadline",
    devices: int = 1,
    most_waiting: int = 1_000_000,
    noise: Callable[[], float] = lambda: 1.0,
    believed: Costs | None = None,
) -> list[Served]:
    """What comes of jobs that arrive in order of time. A new one goes to the device with the least work.

    noise: times what the costs say a call takes. believed: what the devices believe of the costs at first, if that is wrong.
    """
    served = {job.id: Served(job) for job in arrivals}
    machines = [Device(costs, believed or costs, most_rows, policy, most_waiting) for _ in range(devices)]
    for job in arrivals:
        for machine in machines:
            run_until(machine, job.arrived, served, noise)
        machine = min(machines, key=Device.backlog)
        now = max(job.arrived, machine.free)  # a device hears of it after the call that it is in
        answer = admit(now, list(machine.jobs.values()), job, machine.costs, most_rows, most_waiting, policy)
        machine.reserve = machine.reserve.after(answer, job, machine.costs)
        for evicted in answer.evicted:
            del machine.jobs[evicted]
        if answer.taken:
            machine.jobs[job.id] = job
            machine.free = now
    for machine in machines:
        run_until(machine, float("inf"), served, noise)
    return list(served.values())


def run_until(device: Device, time: float, served: dict[int, Served], noise: Callable[[], float]) -> None:
    """Makes the device's calls that begin before a time."""
    while device.jobs and device.free < time:
        jobs = list(device.jobs.values())
        plan = decide(device.free, jobs, device.costs, device.most_rows, device.policy, device.reserve)
        rows = list[int]()
        for turn in plan.turns:
            job = device.jobs[turn.id]
            rows += [turn.level] * job.samples
            rows += [turn.level if job.weak is None else job.weak] * (job.samples if job.guided else 0)
        extra = lent([device.jobs[turn.id] for turn in plan.turns], [turn.level for turn in plan.turns], device.costs)
        took = device.truth.ms(rows) * noise()
        device.free += took
        device.costs = device.costs.corrected(device.costs.ms(rows), took)
        for turn in plan.turns:
            job = device.jobs[turn.id]
            served[turn.id].levels.append(turn.level)
            device.jobs[turn.id] = replace(job, asks=job.asks - 1, guided=max(job.guided - 1, 0), running=True)
            if job.asks == 1:
                served[turn.id].end = device.free
                del device.jobs[turn.id]
        device.reserve = device.reserve.lending(extra, not device.jobs)


def most_in_time(jobs: Sequence[Job], ms: float) -> float:
    """The share of jobs of `ms` each, due in the order of their arrival, that can be in time.

    Whoever can still be in time is taken. The k-th of those ends as soon as the k-th of any choice can: with all taken
    before it ending as soon, the earliest that can follow them follows. So no choice holds more.
    """
    free, taken = 0.0, 0
    for job in jobs:
        end = max(free, job.arrived) + ms
        if end <= job.due:
            free, taken = end, taken + 1
    return taken / len(jobs)


def most_full(jobs: Sequence[Job], low: float, high: float) -> float:
    """The share of jobs, due in the order of their arrival, that can take `high` each where the others take `low` and all
    are in time; NaN where they cannot be. Those between would only take longer.
    """
    soonest = [0.0]  # when all so far are done, by how many of them took `high`
    for job in jobs:
        after = [math.inf] * (len(soonest) + 1)
        for k, end in enumerate(soonest):
            for more, ms in ((0, low), (1, high)):
                then = max(end, job.arrived) + ms
                if then <= job.due:
                    after[k + more] = min(after[k + more], then)
        soonest = after
    return max((k for k, end in enumerate(soonest) if end < math.inf), default=math.nan) / len(jobs)
