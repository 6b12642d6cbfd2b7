"""A real server on the loopback, in a thread of this process, with a worker of its own."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page

from elit.serving.messages import Settings
from elit.serving.pool import Launch, Pool
from elit.serving.running import Telling, bound, configured
from elit.serving.server import LOOPBACK, application
from elit.serving.worker import work

WAIT_S = 60.0


class Forked:
    """A worker's process, forked from this one, which has loaded already what takes a new one seconds to load."""

    def __init__(self, settings: Settings, device: str) -> None:
        ours, theirs = socket.socketpair()
        self.connection, self.code = Connection(ours.detach()), None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.connection.close()
                torch.set_num_threads(1)
                work(Connection(theirs.detach()), settings, device)
            finally:
                os._exit(0)
        theirs.close()

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or WAIT_S)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout or WAIT_S)
            time.sleep(0.01)
        return 0

    def poll(self) -> int | None:
        if self.code is None:
            found, code = os.waitpid(self.pid, os.WNOHANG)
            self.code = code if found else None
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def forked(settings: Settings, device: str) -> tuple[Forked, Connection]:
    process = Forked(settings, device)
    return process, process.connection


class Running:
    """Where a server is, and ways to ask it."""

    def __init__(self, port: int, pool: Pool | None = None, **headers: str) -> None:
        self.port, self.pool, self.url, self.headers = port, pool, f"http://127.0.0.1:{port}", headers

    def ask(self, body: object, path: str = "/v1/images/generations", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of an answer; `body` is JSON, or bytes as they are, or None for GET."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        usual = {"content-type": "application/json"} if body is not None else {}
        told = {name.replace("_", "-"): value for name, value in (self.headers | headers).items()}
        connection.request("GET" if body is None else "POST", path, sent, usual | told)
        answer = connection.getresponse()
        content = answer.read()
        kind = answer.getheader("content-type", "")
        value = json.loads(content) if "json" in kind else content
        return answer.status, value, {name.lower(): text for name, text in answer.getheaders()}

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def post(self, body: object) -> socket.socket:
        """A connection over which a request was sent, and its answer not read."""
        connection, content = self.open(), json.dumps(body).encode()
        head = f"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + content)
        return connection

    def metric(self, name: str) -> float:
        """The value of a metric, the sum of those of several replicas; 0 for one that was not counted yet."""
        lines = re.sub(r'{replica="\w+"}|replica="\w+",', "", self.ask(None, "/metrics")[1].decode()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def until(true: Any, seconds: float = WAIT_S) -> None:
    """Waits until a function says so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@contextmanager
def running(model: Path, launch: Launch = forked, **settings: Any) -> Iterator[Running]:
    """A server of a model folder, for as long as the block takes."""
    chosen = Settings(model=str(model), repeats=1, **settings)
    app, listening, ready = application(chosen, LOOPBACK, launch), bound("127.0.0.1", 0), threading.Event()
    server = Telling(app, configured(app, chosen), ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        yield Running(listening.getsockname()[1], app.state.server.pool)
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        listening.close()
        assert not thread.is_alive()
        assert all(worker.process.poll() is not None for worker in app.state.server.pool.workers)


def settled(page: Page) -> None:
    """Waits until both pictures are those of the settings."""
    page.wait_for_timeout(200)  # longer than the page waits for a slider to rest
    reached(page, "document.body.dataset.drawing === 'no'")


def reached(page: Page, condition: str) -> None:
    """Waits until a condition holds; playwright's own way would need a policy that lets pages evaluate text."""
    until(lambda: page.wait_for_timeout(50) or page.evaluate(condition))


def shown(page: Page, figure: str) -> np.ndarray:
    source = page.get_attribute(f"#{figure} img", "src")
    assert source is not None
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
