"""A server from its beginning to its end: bound to an address, told of, and drained when it is asked to end."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from elit.console import say
from elit.errors import UserError
from elit.serving.messages import Settings
from elit.serving.server import LOOPBACK, application

BACKLOG = 2048  # connections that the system keeps waiting
HEAD = 2**16  # bytes of a request beside its body, at most
ANSWERED_S = 10.0  # for those who read their answers slowly, once the time to drain is over


class Bounded(HttpToolsProtocol):
    """uvicorn's own, whose parser would read the head of a request, or what follows its body, without end."""

    beside = 0  # bytes of the request that is being read that are not of its body

    def data_received(self, data: bytes) -> None:
        self.beside += len(data)
        super().data_received(data)
        if self.beside > HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_body(self, body: bytes) -> None:
        self.beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.beside = 0
        super().on_message_complete()


class Telling(uvicorn.Server):
    """uvicorn's own, which says where it is once it answers, and ends at once where no worker could begin."""

    def __init__(self, app: Starlette, config: Config, told: Callable[[], None]) -> None:
        super().__init__(config)
        self.pool, self.told, self.drain_s = app.state.server.pool, told, app.state.server.settings.drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal ends the server, and no more: asked for once it drains, asked for twice by Ctrl-C it leaves at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.pool.broken is not None:
            self.should_exit = True
        elif self.started:
            self.told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own waits for answers; every request has one once the workers are drained."""
        draining = asyncio.create_task(self.pool.drain(self.drain_s))
        await super().shutdown(sockets)
        draining.cancel()


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is any free one. Raises UserError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, asyncio sends answers at once; else their second part waits for a client's delayed word of the first, 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise UserError(f"{host}:{port} cannot be listened at ({error.strerror or error}); give another --port") from error
    return listening


def configured(app: Starlette, settings: Settings) -> Config:
    """How uvicorn runs the application."""
    return Config(
        app,
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_s + ANSWERED_S),
        timeout_keep_alive=30,
        backlog=BACKLOG,
        lifespan="on",
        loop="asyncio",  # whatever else is installed
        http=Bounded,
        ws="none",
    )


def serve(settings: Settings, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C: then what is under way is finished, for at most `settings.drain_s` seconds.

    Raises UserError for an address that cannot be had, and where no worker can begin.
    """
    listening = bound(host, port)
    name = f"[{host}]" if ":" in host else host
    where = f"http://{name}:{listening.getsockname()[1]}"
    app = application(settings, LOOPBACK if host in LOOPBACK else ())
    config = configured(app, settings)
    say("loading the model")
    Telling(app, config, lambda: say(f"{'the page is at' if settings.page else 'serving at'} {where}")).run(
        sockets=[listening]
    )
    listening.close()
    broken = app.state.server.pool.broken
    if broken is not None:
        raise UserError(broken)
