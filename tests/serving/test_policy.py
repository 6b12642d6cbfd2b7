"""The policy: against brute force, in virtual time, and replayed from its trace."""

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elit.errors import UserError
from elit.serving.policy import (
    MARGIN,
    Costs,
    Decision,
    Job,
    Table,
    admit,
    decide,
    due_order,
    largest_levels,
    lateness,
    replay,
    trace_line,
)
from elit.serving.simulation import Served, poisson, simulate

LEVELS = 16
COSTS = Costs(0.0, tuple(9 + k * 8 / 15 for k in range(LEVELS)))  # milliseconds of the bundled model, about
STEPS = 20


def job(number: int, due: float, client: str = "a", **fields: object) -> Job:
    usual = {"samples": 1, "asks": STEPS, "guided": 0, "weak": None, "arrived": 0.0, "lowest": 0, "highest": LEVELS - 1}
    return Job(id=number, client=client, due=due, **{**usual, **fields})  # type: ignore[arg-type]


def levels_of(jobs: Sequence[Job], costs: Costs = COSTS) -> list[int]:
    return largest_levels(0.0, Table.of(jobs), [one.client for one in jobs], costs, 8)


def fits(jobs: Sequence[Job], levels: Sequence[int], costs: Costs = COSTS) -> bool:
    """Whether all are done when due, one after another, at these levels."""
    done = itertools.accumulate(one.work(costs, level) for one, level in zip(jobs, levels, strict=True))
    return all(end <= (1 - MARGIN) * one.due + 1e-9 for one, end in zip(jobs, done, strict=True))


def best_by_hand(jobs: Sequence[Job], costs: Costs) -> list[int]:
    """Of all levels with which all are done in time, those whose lowest is highest, then the next lowest, and so on."""
    every = itertools.product(*(range(one.lowest, one.highest + 1) for one in jobs))
    return list(max((levels for levels in every if fits(jobs, levels, costs)), key=lambda levels: sorted(levels)))


def test_levels_are_the_best_that_brute_force_finds() -> None:
    """Of one client: none gets less than it must. Those equal to the best apart from a last indivisible rest count too."""
    draw = random.Random(0)
    costs = Costs(0.0, (10.0, 13.0, 17.0, 20.0))
    for _ in range(60):
        dues = sorted(draw.uniform(300, 1400) for _ in range(4))
        jobs = [job(i, due, highest=3, asks=draw.randint(5, 12)) for i, due in enumerate(dues)]
        if not fits(jobs, [0] * 4, costs):
            continue
        mine, best = levels_of(jobs, costs), best_by_hand(jobs, costs)
        assert fits(jobs, mine, costs)
        assert min(mine) == min(best)
        raised = [[*mine[:i], mine[i] + 1, *mine[i + 1 :]] for i in range(4) if mine[i] < 3]
        together = [level + 1 if level == min(mine) else level for level in mine]
        assert min(mine) == 3 or not fits(jobs, [min(level, 3) for level in together], costs)
        assert sum(fits(jobs, levels, costs) for levels in raised) <= 3


def test_a_request_alone_has_its_full_budget_and_never_less_than_its_lowest() -> None:
    assert levels_of([job(0, 3 * STEPS * COSTS.row[-1])]) == [15]
    assert levels_of([job(0, 1.0, lowest=3)]) == [3]
    assert levels_of([job(0, 1e9, highest=5)]) == [5]
    tight = STEPS * COSTS.row[7] / (1 - MARGIN) + 1e-6
    assert levels_of([job(0, tight)]) == [7] and levels_of([job(0, tight - 1)]) == [6]


def test_a_weak_row_and_guidance_count() -> None:
    cheap = job(0, 1000, guided=STEPS, weak=0)
    both = job(0, 1000, guided=STEPS)
    assert cheap.work(COSTS, 4) == pytest.approx(STEPS * (COSTS.row[4] + COSTS.row[0]))
    assert both.work(COSTS, 4) == pytest.approx(STEPS * 2 * COSTS.row[4])
    assert levels_of([replace(cheap, due=450.0)])[0] > levels_of([replace(both, due=450.0)])[0]


def test_what_is_late_in_any_case_makes_nothing_else_late() -> None:
    jobs = [job(0, 10.0), job(1, 1000.0), job(2, 900.0)]
    assert Table.of(jobs).ordered(due_order(0.0, Table.of(jobs), COSTS)).id.tolist() == [2, 1, 0]
    assert lateness(0.0, jobs[:1], COSTS, 8) == 0
    assert decide(0.0, jobs, COSTS, 8).turns[0].id == 2


def test_clients_share_evenly() -> None:
    """One with a single request keeps more of its budget than one with many, and its request displaces one that waits."""
    many = [job(i, 5600.0, "many") for i in range(20)]
    levels = levels_of([*many, job(20, 5600.0, "one")])
    assert levels[20] == 15 and max(levels[:20]) < 15 and len(set(levels[:20])) == 1
    full = [job(i, 4000.0, "many", arrived=float(i)) for i in range(21)]
    assert lateness(0.0, full, COSTS, 8) == 0
    assert not admit(0.0, full, job(99, 4000.0, "many"), COSTS, 8, 64).taken
    taken = admit(0.0, full, job(99, 4000.0, "one"), COSTS, 8, 64)
    assert taken.taken and taken.evicted == (20,)
    running = [replace(one, running=True) for one in full]
    refused = admit(0.0, running, job(99, 4000.0, "one"), COSTS, 8, 64)
    assert not refused.taken and refused.retry_ms > 0


def test_the_queue_is_bounded() -> None:
    waiting = [job(i, 1e9) for i in range(3)]
    assert admit(0.0, waiting, job(9, 1e9), COSTS, 8, 4).taken
    for policy in ("deadline", "fifo"):
        assert not admit(0.0, waiting, job(9, 1e9), COSTS, 8, 3, policy).taken  # type: ignore[arg-type]


def test_calls_are_shared_where_that_saves_time() -> None:
    jobs = [job(i, 1e6) for i in range(32)]
    assert len(decide(0.0, jobs, COSTS, 8).turns) == 1  # rows cost all there is: whoever shares waits for nothing
    assert len(decide(0.0, jobs, replace(COSTS, call=50.0), 8).turns) == 8
    assert len(decide(0.0, [job(0, 1e6, samples=20)], replace(COSTS, call=50.0), 8).turns) == 1
    tight = [job(0, STEPS * 100 / (1 - MARGIN)), *(job(i, 1e6) for i in range(1, 9))]
    turns = decide(0.0, tight, replace(COSTS, call=50.0), 8).turns  # the first can wait for 100 ms a call
    assert 50 + sum(COSTS.row[turn.level] for turn in turns) <= 100 + 1e-6 and 2 <= len(turns) <= 5


def test_costs_follow_what_steps_take() -> None:
    costs = COSTS
    for _ in range(60):
        predicted = costs.ms([3, 3])
        costs = costs.corrected(predicted, 2 * 2 * COSTS.row[3])
    assert costs.scale == pytest.approx(2, rel=0.02)
    assert COSTS.corrected(1.0, 1e99).scale == 16 and COSTS.corrected(0.0, 5.0) == COSTS


def load(times_capacity: float, seed: int = 0, burst: int = 1, **fields: object) -> list[Job]:
    """Requests of four clients, each due after three times what it takes alone at the full budget."""
    alone = STEPS * COSTS.row[-1]
    arrivals = poisson(1000 / alone * times_capacity, 30, seed, burst)
    return [job(i, at + 3 * alone, "abcd"[i % 4], arrived=at, **fields) for i, at in enumerate(arrivals)]


def met(served: Sequence[Served]) -> float:
    return statistics.mean(one.met for one in served)


def budget(served: Sequence[Served]) -> float:
    return statistics.mean(statistics.mean(one.levels) + 1 for one in served if one.end is not None) / LEVELS


def test_in_virtual_time_budgets_fall_instead_of_deadlines() -> None:
    """With a noise of a fifth on every call. Every request that is taken is answered, nearly all in time."""
    draw = random.Random(1)
    noise = lambda: draw.uniform(0.8, 1.2)  # noqa: E731
    half, full, over = (simulate(load(x), COSTS, 8, noise=noise) for x in (0.5, 1.0, 1.5))
    assert met(half) > 0.99 and budget(half) > 0.9
    assert met(full) > 0.95 and 0.5 < budget(full) < budget(half)
    assert 0.2 < budget(over) < budget(full)
    fixed = simulate(load(1.5, lowest=LEVELS - 1), COSTS, 8, "fifo", noise=noise)
    assert met(fixed) < 0.1 < 0.8 < met(over)
    for served in (half, full, over):
        taken = [one for one in served if one.end is not None]
        assert all(len(one.levels) == STEPS for one in taken) and met(taken) > 0.95
        assert any(max(one.levels) > min(one.levels) for one in taken)  # lowered and raised while they run


def test_costs_that_were_measured_wrongly_are_found_out() -> None:
    served = simulate(load(1.0), COSTS, 8, believed=replace(COSTS, scale=0.5))
    assert met([one for one in served[20:] if one.end is not None]) > 0.95


def test_more_devices_serve_more() -> None:
    served = simulate(load(2.0), COSTS, 8, devices=4)
    assert met(served) > 0.99 and budget(served) > 0.9


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    jobs = [job(i, 500.0 + 90 * i, "ab"[i % 2], arrived=float(i)) for i in range(9)]
    lines = [trace_line(decide(float(now), jobs[: now + 1], replace(COSTS, call=5.0), 8)) for now in range(9)]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(lines))
    assert replay(file) == (9, [])
    file.write_text("".join([*lines[:4], lines[4].replace('"level": ', '"level": 1'), *lines[5:]]))
    assert replay(file) == (9, [5])
    file.write_text('{"now": 1}\n')
    with pytest.raises(UserError, match="line 1 of"):
        replay(file)


def test_nothing_to_do() -> None:
    assert decide(0.0, [], COSTS, 8) == Decision(0.0, (), COSTS, 8, "deadline", ())
    assert lateness(0.0, [], COSTS, 8) == 0
