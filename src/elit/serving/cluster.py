"""The same application on a cluster: a deployment of Ray Serve, whose replicas hold a model each.

Ray gives a request to one of the replicas with the fewest under way, and adds replicas while these are many. How a replica
serves what it has been given is its own controller's affair, as on one machine.
"""

import logging
import os
import re
import signal
import socket
import threading
from types import FrameType

import ray
from prometheus_client import Metric
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from elit.console import say
from elit.errors import UserError
from elit.serving.messages import Settings
from elit.serving.metrics import joined, text
from elit.serving.running import ANSWERED_S
from elit.serving.server import LOOPBACK, Server, application

NAME = "elit"
REPLICA = "x-elit-replica"  # the header of an answer that names who gave it
SIGNALS = (signal.SIGTERM, signal.SIGINT)
HELD = 100_000  # requests that a replica may hold: refusing is its controller's affair, and waiting elsewhere helps nobody
ANSWERS_S = 5.0  # that a cluster may take to answer
TOLD_S = 10.0  # that replicas may take to tell what they have measured


class Ended(BaseException):
    """A signal has asked for the end."""


class Replica:
    """The application in one of the cluster's processes, and what the others ask of it."""

    def __init__(self, settings: Settings, hosts: tuple[str, ...]) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        self.application = application(settings, hosts, measure=measured, headers={REPLICA: name})
        self.server: Server = self.application.state.server

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.application

    async def check_health(self) -> None:
        """Raises UserError where no worker can begin. Ray asks before the first request, and every few seconds."""
        if self.server.pool.broken is not None:
            raise UserError(self.server.pool.broken)

    async def families(self) -> tuple[str, list[Metric]]:
        """This replica's name, and what it has measured."""
        return serve.get_replica_context().replica_id.unique_id, self.server.metrics.families(self.server.pool)

    async def drain(self) -> None:
        """Takes no more requests, and answers all that are under way."""
        await self.server.pool.drain(self.server.settings.drain_s)


async def measured() -> bytes:
    """What all replicas have measured, for Prometheus; those that have died meanwhile are left out."""
    handle = serve.get_deployment_handle(NAME, NAME)
    told = await handle.broadcast("families").results_async(timeout_s=TOLD_S, return_exceptions=True)
    return text(joined(dict(sorted(one for one in told if not isinstance(one, BaseException)))))


def deployment(settings: Settings, hosts: tuple[str, ...], replicas: tuple[int, int], ongoing: float) -> serve.Application:
    """The application with at least and at most so many replicas, each of which has the one device of the settings.

    Replicas are added while each has more than `ongoing` requests on average, and taken away while each has fewer.
    """
    least, most = replicas
    deployed = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": ongoing},
        max_ongoing_requests=HELD,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=settings.drain_s + ANSWERED_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": 0 if settings.devices == ("cpu",) else 1},
    )
    return deployed.bind(settings, hosts)


def serve_on_cluster(settings: Settings, host: str, port: int, replicas: tuple[int, int], ongoing: float) -> None:
    """Serves on the cluster that RAY_ADDRESS names, or else on the one that this machine belongs to, until SIGTERM or
    Ctrl-C: then what is under way is finished, for at most `settings.drain_s` seconds.

    Raises UserError where no cluster answers, and where no replica can begin.
    """
    before = [(sign, signal.getsignal(sign)) for sign in SIGNALS]
    try:
        raise_at_signals()
        join_cluster(os.environ.get("RAY_ADDRESS", "auto"))
        raise_at_signals()  # Ray has put its own in their place
        say("starting replicas")
        handle = started(deployment(settings, LOOPBACK if host in LOOPBACK else (), replicas, ongoing), host, port)
        say(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}")
        serve_until_ended(handle, settings.drain_s)
    except Ended:
        pass
    finally:
        if ray.is_initialized():
            leave_cluster()
        for sign, handler in before:
            signal.signal(sign, handler)


def serve_until_ended(handle: DeploymentHandle, drain_s: float) -> None:
    """Waits for a signal, and then for the replicas to answer what is under way."""
    try:
        threading.Event().wait()
    except Ended:
        handle.broadcast("drain").results(timeout_s=drain_s + ANSWERED_S, return_exceptions=True)


def raise_at_signals() -> None:
    """From now on SIGTERM and Ctrl-C raise Ended, once: what ends then is not disturbed by a second."""

    def raised(sign: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Ended

    for sign in SIGNALS:
        signal.signal(sign, raised)


def join_cluster(address: str) -> None:
    """Joins the cluster at an address. Raises UserError where none answers."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), ANSWERS_S).close()
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # Ray's own are of this type
        why = str(error).partition("\n")[0]
        raise UserError(
            f"no cluster of Ray answers at {address} ({why}); begin one with ray start --head, or name one in RAY_ADDRESS"
        ) from error


def leave_cluster() -> None:
    """Takes the application from the cluster, and Ray Serve with it where that holds no other."""
    serve.delete(NAME)
    if not serve.status().applications:
        serve.shutdown()
    ray.shutdown()


def started(app: serve.Application, host: str, port: int) -> DeploymentHandle:
    """Starts the application; all its replicas are asked through the handle. Raises UserError where none can begin."""
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        return serve.run(app, name=NAME, logging_config={"log_level": "ERROR"})
    except (RuntimeError, RayError) as error:
        status = serve.status().applications.get(NAME)
        told = [] if status is None else [one.message for one in status.deployments.values()]
        why = re.findall("UserError: (.*)", "\n".join(told)) or [str(error).partition("\n")[0]]
        raise UserError(f"no replica could begin: {why[-1]}") from error
