"""The workers of a server, one process a device: who gets which request, and what happens when one of them dies.

A request of a worker that died is run again, once, from its beginning, since its seed is known; if that one dies too, it is
answered with 503. Nothing is lost in silence.
"""

import asyncio
import contextlib
import itertools
import select
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

from elit.errors import UserError
from elit.serving.messages import Broken, Cancel, Done, Facts, FromWorker, Refused, Settings, State, Stepped, ToWorker, Wish

TRIES = 2  # of a request; and as often a worker that dies before it is ready is started again
LOAD_S = 600.0  # that a worker may take to load its model
END_S = 5.0  # that a worker may take to end
DRAINED_S = 0.05  # between looks at whether all is done
UNREAD = 16  # previews that wait to be sent: a client that reads more slowly misses some

Answer = Stepped | Done | Refused


class Process(Protocol):
    """What is asked of a worker's process."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


Launch = Callable[[Settings, str], tuple[Process, Connection]]


def launched(settings: Settings, device: str) -> tuple[Process, Connection]:
    """A new process on a device, and the line to it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "elit.serving.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    connection = Connection(ours.detach())
    connection.send((settings, device))
    return process, connection


@dataclass
class Ticket:
    """A request under way: what comes of it arrives in `answers`, None where who asked has gone."""

    wish: Wish
    answers: asyncio.Queue[Answer | None] = field(default_factory=asyncio.Queue)
    tries: int = 1


@dataclass
class Worker:
    """One worker's process, its line, what waits for that to take it, and its requests."""

    device: str
    process: Process
    connection: Connection
    tickets: dict[int, Ticket] = field(default_factory=dict)
    facts: Facts | None = None
    state: State = field(default_factory=State)
    failures: int = 0  # how often it was started again since it was last ready
    unsent: deque[ToWorker] = field(default_factory=deque)


@dataclass
class Pool:
    """All workers. `noticed` is told of every state and answer of a worker, for the metrics."""

    settings: Settings
    noticed: Callable[[FromWorker], None] = lambda message: None
    launch: Launch = launched
    workers: list[Worker] = field(default_factory=list)
    restarts: int = 0
    broken: str | None = None
    draining: bool = False

    def __post_init__(self) -> None:
        self.numbers = itertools.count(1)
        self.ready = asyncio.Event()

    async def start(self) -> Facts:
        """Starts all workers; the facts of the first that is ready. Raises UserError where none can begin."""
        self.loop = asyncio.get_running_loop()
        for device in self.settings.devices:
            worker = Worker(device, *self.launch(self.settings, device))
            self.workers.append(worker)
            self._attend(worker)
        try:
            await asyncio.wait_for(self.ready.wait(), LOAD_S)
        except TimeoutError:
            self.broken = f"no worker was ready within {LOAD_S:.0f} seconds"
        if self.broken is not None:
            await self.stop()
            raise UserError(self.broken)
        return next(worker.facts for worker in self.workers if worker.facts is not None)

    def _attend(self, worker: Worker) -> None:
        """Reads what a worker says, in a thread of its own."""
        threading.Thread(target=self._read, args=(worker, worker.connection), daemon=True).start()

    def _read(self, worker: Worker, connection: Connection) -> None:
        """Hands on what a worker says, until it is silent for good."""
        while True:
            try:
                said = connection.recv()
            except (EOFError, OSError):
                said = None
            messages: tuple[FromWorker | None, ...] = said if isinstance(said, tuple) else (said,)
            try:
                self.loop.call_soon_threadsafe(self._hear, worker, connection, messages)
            except RuntimeError:  # the loop has ended
                return
            if said is None:
                return

    def _hear(self, worker: Worker, connection: Connection, messages: tuple[FromWorker | None, ...]) -> None:
        """What a worker said; None where its line was cut."""
        if connection is not worker.connection:
            return  # of a process that another has replaced
        for message in messages:
            if message is None:
                self._lost(worker)
            else:
                self._heed(worker, message)

    def _heed(self, worker: Worker, message: FromWorker) -> None:
        """Notes a message, and hands it to who waits for it."""
        if isinstance(message, Facts):
            worker.facts, worker.failures = message, 0
            self.ready.set()
        elif isinstance(message, Broken):
            self.broken, worker.failures = message.why, TRIES
            self.ready.set()
        elif isinstance(message, State):
            worker.state = message
        elif (ticket := worker.tickets.get(message.id)) is not None:
            if not isinstance(message, Stepped):
                del worker.tickets[message.id]
                ticket.answers.put_nowait(message)
            elif ticket.answers.qsize() < UNREAD:
                ticket.answers.put_nowait(message)
        self.noticed(message)

    def _lost(self, worker: Worker) -> None:
        """A worker has died: another takes its place, unless it has failed too often. Its requests that were not tried too
        often are run again, by whoever is there.
        """
        worker.process.kill()  # one whose line was cut has nothing to say, and the others must not wait for it
        worker.process.wait()
        self.loop.remove_writer(worker.connection)
        worker.connection.close()
        worker.unsent.clear()
        tickets, worker.tickets, worker.facts, worker.state = list(worker.tickets.values()), {}, None, State()
        if not self.draining and worker.failures < TRIES:
            worker.process, worker.connection = self.launch(self.settings, worker.device)
            worker.failures += 1
            self.restarts += 1
            self._attend(worker)
        elif not self.draining and all(one.process.poll() is not None for one in self.workers):
            self.broken = self.broken or f"the worker of {worker.device} died before it was ready, {TRIES + 1} times"
            self.ready.set()
        for ticket in tickets:
            ticket.tries += 1
            if ticket.tries <= TRIES:
                self._give(ticket)
            else:
                self._refuse(ticket, "the worker that drew this died; ask again", 1000.0)

    def submit(self, wish: Wish) -> Ticket:
        """Gives a request to the worker with the fewest. What comes of it is in the ticket's answers."""
        ticket = Ticket(wish)
        self._give(ticket)
        return ticket

    def _give(self, ticket: Ticket) -> None:
        """Gives a request to the living worker with the fewest, or refuses it where there is none."""
        living = [worker for worker in self.workers if worker.process.poll() is None]
        if not living or self.draining:
            self._refuse(ticket, "no worker is there to draw this; ask again later", 5000.0)
            return
        worker = min(living, key=lambda one: (one.facts is None, len(one.tickets)))
        worker.tickets[ticket.wish.id] = ticket
        self._send(worker, ticket.wish)

    def _refuse(self, ticket: Ticket, why: str, retry_ms: float) -> None:
        refused = Refused(ticket.wish.id, 503, why, retry_ms)
        ticket.answers.put_nowait(refused)
        self.noticed(refused)

    def cancel(self, number: int) -> None:
        """The one who asked has gone, or has been answered."""
        for worker in self.workers:
            if worker.tickets.pop(number, None) is not None:
                self._send(worker, Cancel(number))

    def _send(self, worker: Worker, message: ToWorker) -> None:
        worker.unsent.append(message)
        self._go_on_sending(worker)

    def _go_on_sending(self, worker: Worker) -> None:
        """Tells a worker what its line takes at once, and the rest when it takes more: one that makes a long call, or is
        loading, reads nothing meanwhile, and nobody is to wait for that.
        """
        line = worker.connection
        with contextlib.suppress(OSError, ValueError):  # of one that died, which its line's thread tells of
            takes = select.poll()
            takes.register(line, select.POLLOUT)
            while worker.unsent and takes.poll(0):
                line.send(worker.unsent.popleft())
            if worker.unsent:
                self.loop.add_writer(line, self._go_on_sending, worker)
            else:
                self.loop.remove_writer(line)

    @property
    def is_ready(self) -> bool:
        return not self.draining and any(worker.facts is not None for worker in self.workers)

    async def drain(self, seconds: float) -> None:
        """Takes no more requests, and waits so long for those under way; what is not done by then is answered with 503."""
        self.draining = True
        end = self.loop.time() + seconds
        while any(worker.tickets for worker in self.workers) and self.loop.time() < end:
            await asyncio.sleep(DRAINED_S)
        why = f"the server is ending, and this was not done within {seconds:g} seconds; ask again"
        for worker in self.workers:
            for number, ticket in list(worker.tickets.items()):
                self._refuse(ticket, why, 1000.0)
                self.cancel(number)

    async def stop(self) -> None:
        """Ends all workers, and waits for them."""
        self.draining = True
        for worker in self.workers:
            self._send(worker, None)
        for worker in self.workers:
            try:
                await asyncio.to_thread(worker.process.wait, END_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                await asyncio.to_thread(worker.process.wait)
