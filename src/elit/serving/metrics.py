"""What a server tells Prometheus."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from elit.serving.messages import Done, FromWorker, State
from elit.serving.pool import Pool

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SHARES = tuple(i / 16 for i in range(1, 17))


class Metrics:
    """Counts of a server's own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("elit_requests", "Requests that were answered, by status", ["status"], registry=own)
        self.deadlines = Counter("elit_deadlines", "Requests that were drawn, by whether in time", ["met"], registry=own)
        self.images = Counter("elit_images", "Images that were drawn", registry=own)
        self.gflops = Counter("elit_gflops", "GFLOPs of what was drawn", registry=own)
        self.latency = Histogram("elit_request_seconds", "From arrival to the images", buckets=SECONDS, registry=own)
        self.queued = Histogram("elit_queue_seconds", "From arrival to the first step", buckets=SECONDS, registry=own)
        self.budget = Histogram("elit_granted_budget", "Budget of a request at a step", buckets=SHARES, registry=own)
        self.decision = Histogram(
            "elit_decision_seconds", "The controller, a step", buckets=(1e-4, 2e-4, 5e-4, 1e-3, 1e-2), registry=own
        )
        self.waiting = Gauge("elit_waiting_requests", "Requests that have not begun", registry=own)
        self.running = Gauge("elit_running_requests", "Requests that have begun", registry=own)
        self.rows = Gauge(
            "elit_call_rows", "Rows of a call of the model, at most: fewer after memory ran out", ["device"], registry=own
        )
        self.scale = Gauge("elit_cost_scale", "What calls take, over what was measured", ["device"], registry=own)
        self.memory = Gauge("elit_out_of_memory", "How often memory ran out", ["device"], registry=own)
        self.restarts = Gauge("elit_worker_restarts", "Workers that died and were replaced", registry=own)
        self.up = Gauge("elit_workers", "Workers that are ready", registry=own)

    def answered(self, status: int) -> None:
        """A request was answered."""
        self.requests.labels(str(status)).inc()

    def notice(self, message: FromWorker) -> None:
        """A worker said something."""
        if isinstance(message, Done):
            self.deadlines.labels(str(message.deadline_met).lower()).inc()
            self.images.inc(len(message.pixels))
            self.gflops.inc(message.gflops)
            self.queued.observe(message.queue_ms / 1000)
            self.latency.observe((message.queue_ms + message.drawing_ms) / 1000)
        elif isinstance(message, State) and message.budgets:
            self.decision.observe(message.decision_ms / 1000)
            for budget in message.budgets:
                self.budget.observe(budget)

    def families(self, pool: Pool) -> list[Metric]:
        """All of it, in the same order for every server."""
        self.waiting.set(sum(worker.state.waiting for worker in pool.workers))
        self.running.set(sum(worker.state.running for worker in pool.workers))
        self.restarts.set(pool.restarts)
        self.up.set(sum(worker.facts is not None for worker in pool.workers))
        for i, worker in enumerate(pool.workers):
            name = f"{i} {worker.device}"
            self.rows.labels(name).set(worker.state.rows)
            self.scale.labels(name).set(worker.state.scale)
            self.memory.labels(name).set(worker.state.out_of_memory)
        return list(self.registry.collect())


class Told(Collector):
    """Families of samples as they are."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def text(families: Sequence[Metric]) -> bytes:
    """Families of samples in Prometheus' own form."""
    registry = CollectorRegistry()
    registry.register(Told(families))
    return generate_latest(registry)


def joined(replicas: Mapping[str, Sequence[Metric]]) -> list[Metric]:
    """The families of several servers as one: every sample says in a label `replica` whose it is."""
    out = []
    for alike in zip(*replicas.values(), strict=True):
        whole = Metric(alike[0].name, alike[0].documentation, alike[0].type)
        for name, family in zip(replicas, alike, strict=True):
            whole.samples += [one._replace(labels={**one.labels, "replica": name}) for one in family.samples]
        out.append(whole)
    return out
