"""What the server keeps of its workers: previews that nobody reads, requests that they have not read; and metrics."""

import asyncio
import socket
import struct
import subprocess
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from elit.errors import UserError
from elit.serving.messages import Cancel, Facts, Settings, State, Stepped, Wish
from elit.serving.metrics import Metrics, joined, text
from elit.serving.pool import TRIES, UNREAD, Pool
from elit.serving.server import Body, Server

FACTS = Facts((), (), 1, 2, 2, 1, (1,), (1.0,), (1.0,), 1, 1.0, "cpu")


@dataclass
class Lines:
    """Processes in place of workers, which do nothing or end at once, and the other ends of their lines."""

    ends: frozenset[str] = frozenset()
    all: list[Connection] = field(default_factory=list)

    def launch(self, settings: Settings, device: str) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 1000))  # else a full line waits for ever
        line = Connection(theirs.detach())
        if device in self.ends:
            line.close()
        self.all.append(line)
        return subprocess.Popen(["true"] if device in self.ends else ["sleep", "600"]), Connection(ours.detach())


async def started(lines: Lines) -> Pool:
    pool = Pool(Settings(), launch=lines.launch)
    starting = asyncio.create_task(pool.start())
    await asyncio.sleep(0)
    lines.all[0].send(FACTS)
    await starting
    return pool


def wish_for(pool: Pool) -> Wish:
    return Server(pool.settings, pool, Metrics()).wish(Body("heart"), "somebody")


async def ended(pool: Pool) -> None:
    for worker in pool.workers:
        worker.process.kill()
    await pool.stop()


def test_previews_that_nobody_reads_are_few() -> None:
    """Of a hundred; what the worker says later is still heard."""

    async def flooded() -> list[object]:
        lines = Lines()
        pool = await started(lines)
        ticket = pool.submit(wish_for(pool))
        for step in range(100):
            lines.all[0].send(Stepped(ticket.wish.id, step, 100, np.zeros((1, 2, 2, 3), np.uint8)))
        lines.all[0].send(State(waiting=7))
        while pool.workers[0].state.waiting != 7:
            await asyncio.sleep(0.01)
        await ended(pool)
        return [ticket.answers.get_nowait() for _ in range(ticket.answers.qsize())]

    assert [one.step for one in asyncio.run(flooded()) if isinstance(one, Stepped)] == list(range(UNREAD))


def test_nobody_waits_for_a_worker_that_reads_nothing() -> None:
    """More requests than its line takes, and whoever asked for one of them goes: it hears of all later, in order."""

    async def flooded() -> tuple[list[int], list[int]]:
        lines = Lines()
        pool = await started(lines)
        tickets = [pool.submit(wish_for(pool)) for _ in range(600)]
        pool.cancel(tickets[7].wish.id)
        assert pool.workers[0].unsent
        heard = [await asyncio.to_thread(lines.all[0].recv) for _ in range(601)]
        assert isinstance(heard[-1], Cancel) and not pool.workers[0].unsent
        await ended(pool)
        return [one.id for one in heard], [*(one.wish.id for one in tickets), tickets[7].wish.id]

    heard, told = asyncio.run(flooded())
    assert heard == told


def test_a_worker_that_cannot_begin_does_not_end_those_that_still_load() -> None:
    async def begun(devices: tuple[str, ...]) -> Facts:
        lines = Lines(frozenset(("broken",)))
        pool = Pool(Settings(devices=devices), launch=lines.launch)
        starting = asyncio.create_task(pool.start())
        while len(lines.all) < len(devices) + TRIES or pool.workers[0].process.poll() is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        if "cpu" in devices:
            lines.all[1].send(FACTS)
        try:
            return await starting
        finally:
            await ended(pool)

    assert asyncio.run(begun(("broken", "cpu"))) == FACTS
    with pytest.raises(UserError, match="the worker of broken died before it was ready, 3 times"):
        asyncio.run(begun(("broken",)))


def test_metrics_of_several_servers_are_told_apart() -> None:
    """By a reader of their form that is not ours; every family is there once."""
    replicas = {name: Metrics() for name in ("first", "second")}
    for name, statuses in (("first", (200, 200)), ("second", (200, 429))):
        for status in statuses:
            replicas[name].answered(status)
    pool = Pool(Settings())
    told = text(joined({name: metrics.families(pool) for name, metrics in replicas.items()})).decode()
    families = list(text_string_to_metric_families(told))
    assert len({family.name for family in families}) == len(families) > 10
    counted = {
        (sample.labels["replica"], sample.labels["status"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "elit_requests_total"
    }
    assert counted == {("first", "200"): 2, ("second", "200"): 1, ("second", "429"): 1}
    assert all("replica" in sample.labels for family in families for sample in family.samples)
