"""What the server keeps of its workers: previews that nobody reads, and metrics of several servers."""

import asyncio
import socket
import subprocess
from multiprocessing.connection import Connection

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from elit.serving.messages import Facts, Settings, State, Stepped
from elit.serving.metrics import Metrics, joined, text
from elit.serving.pool import UNREAD, Pool
from elit.serving.server import Body, Server

FACTS = Facts((), (), 1, 2, 2, 1, (1,), (1.0,), (1.0,), 1, 1.0, "cpu")


def test_previews_that_nobody_reads_are_few() -> None:
    """Of a hundred; what the worker says later is still heard."""
    lines: list[Connection] = []

    def launch(settings: Settings, device: str) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        lines.append(Connection(theirs.detach()))
        return subprocess.Popen(["sleep", "600"]), Connection(ours.detach())

    async def flooded() -> list[object]:
        pool = Pool(Settings(), launch=launch)
        starting = asyncio.create_task(pool.start())
        await asyncio.sleep(0)
        lines[0].send(FACTS)
        await starting
        ticket = pool.submit(Server(pool.settings, pool, Metrics()).wish(Body("heart"), "somebody"))
        for step in range(100):
            lines[0].send(Stepped(ticket.wish.id, step, 100, np.zeros((1, 2, 2, 3), np.uint8)))
        lines[0].send(State(waiting=7))
        while pool.workers[0].state.waiting != 7:
            await asyncio.sleep(0.01)
        pool.workers[0].process.kill()
        await pool.stop()
        return [ticket.answers.get_nowait() for _ in range(ticket.answers.qsize())]

    assert [one.step for one in asyncio.run(flooded()) if isinstance(one, Stepped)] == list(range(UNREAD))


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
