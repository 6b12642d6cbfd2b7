"""A worker, the process of one device: it loads a model, takes requests in, and makes one call after another."""

import select
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import IO

import numpy as np
import torch
from torch import Tensor

from elit.errors import UserError
from elit.guidance import Guidance
from elit.imprint import Imprint
from elit.model_words import PromptWords, Told
from elit.pixels import to_uint8
from elit.recipe import Recipe
from elit.serving.engine import Engine, Order, Running, is_memory, measure_costs, now_ms
from elit.serving.jobs import Costs, Job
from elit.serving.messages import Broken, Cancel, Done, Facts, Pixels, Refused, Settings, State, Stepped, ToWorker, Wish
from elit.serving.opened import DTYPES, Opened, opened
from elit.serving.policy import Reserve, admit, decide, lent, trace_line

QUALITIES = {"low": 1 / 4, "medium": 1 / 2, "high": 1.0}  # the budgets that they name; auto is decided at every step
DEADLINE = 3.0  # times what a request takes alone at its highest budget, where it names no deadline


def work(connection: Connection, settings: Settings, device: str) -> None:
    """Serves until the other side closes, or sends None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with ExitStack() as stack:
        try:
            trace = None if settings.trace is None else stack.enter_context(settings.trace.open("a", encoding="utf8"))
            worker = Worker(connection, settings, device, trace)
            connection.send(worker.facts())
        except (UserError, OSError) as error:
            connection.send(Broken(str(error)))
            return
        try:
            while worker.listen():
                worker.turn()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass


@dataclass
class Served:
    """A request here. told: what its images are of. work_ms: of the calls it took part in. began: when the first did.
    gflops: so far; shown: previews.
    """

    wish: Wish
    told: Told
    job: Job
    order: Order
    running: Running
    full_ms: float
    work_ms: float = 0.0
    began: float | None = None
    gflops: float = 0.0
    shown: int = 0


@dataclass
class Worker:
    """A model, the requests on it, and the line to the server."""

    connection: Connection
    settings: Settings
    device: str
    trace: IO[str] | None = None
    served: dict[int, Served] = field(default_factory=dict)
    reserve: Reserve = field(default_factory=Reserve)

    def __post_init__(self) -> None:
        self.opened: Opened = opened(self.settings, self.device)
        self.model, self.card, self.codec = self.opened.model, self.opened.card, self.opened.codec
        self.engine = Engine(self.model, self.settings.rows)
        self.costs: Costs = measure_costs(self.model, self.settings.rows, self.settings.repeats)
        self.levels = tuple(self.model.levels.counts())
        self.usual = self.card.recipe
        self.flops = self.opened.flops
        with torch.no_grad():
            x = torch.zeros(1, *self.model.input.shape, device=torch.device(self.device))
            self.height, self.width = self.codec.decode(x).shape[-2:]

    def facts(self) -> Facts:
        """What the server is told at first."""
        sampling, milliseconds = self.card.sampling, [self.costs.ms([i]) for i in range(len(self.levels))]
        return Facts(
            self.opened.words.names,
            self.opened.factors,
            self.model.null_class,
            self.width,
            self.height,
            self.engine.levels.latents,
            self.levels,
            tuple(self.flops[level] / 1e9 for level in self.levels),
            tuple(milliseconds),
            sum(self.card.recipe.counts),
            sampling.guidance_scale,
            self.device,
            texts=isinstance(self.opened.words, PromptWords),
            attention=self.engine.tells_attention,
        )

    def listen(self) -> bool:
        """Takes what the server sends, and waits for it where there is nothing to do; False at the end."""
        while not self.served or select.select([self.connection], [], [], 0)[0]:
            message: ToWorker = self.connection.recv()
            if message is None:
                return False
            if isinstance(message, Cancel):
                self.leave(message.id)
            else:
                self.take(message)
        return True

    def leave(self, number: int) -> None:
        self.engine.leave(number)
        if self.served.pop(number, None) is not None:
            self.connection.send(self.state())

    def take(self, wish: Wish) -> None:
        """Takes a request in, or refuses it."""
        try:
            served = self.understood(wish)
        except UserError as error:
            self.engine.leave(wish.id)
            self.connection.send(Refused(wish.id, 400, str(error)))
            return
        jobs, settings = [one.job for one in self.served.values()], self.settings
        answer = admit(now_ms(), jobs, served.job, self.costs, self.engine.most_rows, settings.queue, settings.policy)
        self.reserve = self.reserve.after(answer, served.job, self.costs)
        for number in answer.evicted:
            self.refuse_busy(number, answer.retry_ms)
        self.served[wish.id] = served
        if not answer.taken:
            self.refuse_busy(wish.id, answer.retry_ms)

    def refuse_busy(self, number: int, retry_ms: float) -> None:
        why = "too many requests are here for this one to be done in time, even at the lowest budget; ask again later"
        self.engine.leave(number)
        del self.served[number]
        self.connection.send(Refused(number, 429, why, retry_ms))

    def understood(self, wish: Wish) -> Served:
        """What a request asks for. Raises UserError for what cannot be."""
        sizes = (f"{self.width}x{self.height}", "auto")
        if wish.size not in sizes:
            raise UserError(f"size is {wish.size[:40]!r}; this model makes pictures of {sizes[0]}")
        told = self.opened.words.told(wish.prompt, wish.n)
        order = Order(self.recipe(wish), told.condition, wish.alone, wish.attention)
        running = self.engine.join(wish.id, order)
        job = self.job(wish, order, running)
        full_ms, alone = (job.alone(self.costs, level) for level in (len(self.levels) - 1, job.lowest))
        if wish.deadline_ms is not None and wish.deadline_ms < alone:
            raise UserError(
                f"deadline_ms is {wish.deadline_ms:g}; this takes {alone:.0f} ms at its lowest budget, on its own: give it"
                " more time, or ask for fewer images or steps"
            )
        return Served(wish, told, job, order, running, full_ms)

    def recipe(self, wish: Wish) -> Recipe:
        """How to sample, with the card's defaults for what is not said."""
        usual = self.usual
        scale = usual.guidance.scale if wish.guidance_scale is None else wish.guidance_scale
        weak = wish.guidance_budget
        guidance = Guidance(scale, wish.guidance_interval, weak, "same" if wish.autoguidance else "null")
        steps = usual.steps if wish.steps is None else wish.steps
        return replace(usual, sampler=wish.sampler, steps=steps, guidance=guidance, seed=wish.seed)

    def job(self, wish: Wish, order: Order, running: Running) -> Job:
        """What the policy is told of a request."""
        guidance = order.recipe.guidance
        fixed = QUALITIES.get(wish.quality) if wish.budget is None else wish.budget
        lowest = self.settings.min_budget if fixed is None else fixed
        weak = None if guidance.weak_budget is None else self.number(guidance.weak_budget)
        job = Job(
            id=wish.id,
            client=wish.client,
            samples=wish.n,
            asks=running.asks_left,
            guided=running.guided_left,
            weak=weak,
            arrived=wish.received,
            due=0.0,
            lowest=self.number(lowest),
            highest=self.number(1.0 if fixed is None else fixed),
        )
        alone = job.alone(self.costs, job.highest)
        usual = DEADLINE * alone if self.settings.deadline_ms is None else self.settings.deadline_ms
        return replace(job, due=wish.received + (usual if wish.deadline_ms is None else wish.deadline_ms))

    def number(self, budget: float) -> int:
        """The number of a budget's level, 0 for the lowest."""
        return self.levels.index(self.engine.levels.of(budget))

    def turn(self) -> None:
        """Makes one call of the model, with those whose turn it is, and tells what has come of it."""
        started = now_ms()
        jobs = [one.job for one in self.served.values()]
        plan = decide(started, jobs, self.costs, self.engine.most_rows, self.settings.policy, self.reserve)
        decided = now_ms()
        if self.trace is not None:
            self.trace.write(trace_line(plan))
            self.trace.flush()
        levels = {turn.id: turn.level for turn in plan.turns}
        extra = lent([self.served[number].job for number in levels], [*levels.values()], self.costs)
        rows: list[int] = []
        for number in levels:
            rows += self.begin(number, levels, started)
        try:
            made = self.engine.step({number: self.levels[level] for number, level in levels.items()})
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            for number in levels:
                self.engine.leave(number)
                del self.served[number]
                self.connection.send(Refused(number, 503, "memory ran out, even for one image at a time; ask for less"))
            return
        took = now_ms() - decided
        self.costs = self.costs.corrected(self.costs.ms(rows), took)
        for number in levels:
            self.served[number].work_ms += took
        last: Stepped | Done | None = None
        for number, progress in made.items():
            if last is not None:
                self.connection.send(last)
            last = self.outcome(self.served[number], progress.step, progress.x, progress.ended)
        for number in levels:
            self.after(number)
        self.reserve = self.reserve.lending(extra, not self.served)
        budgets = tuple(self.levels[level] / self.engine.levels.latents for level in levels.values())
        state = replace(self.state(), budgets=budgets, decision_ms=decided - started)
        self.connection.send(state if last is None else (last, state))

    def begin(self, number: int, levels: dict[int, int], now: float) -> list[int]:
        """Notes what a request's next call costs, and returns the levels of its rows."""
        one = self.served[number]
        if one.began is None:
            one.began = now
        running, guidance, n = one.running, one.order.recipe.guidance, one.wish.n
        level = self.levels.index(running.granted.get(running.ask.t, self.levels[levels[number]]))
        rows = [level] * n
        if guidance.active(running.ask.t):
            rows += [level if one.job.weak is None else one.job.weak] * n
        one.gflops += sum(self.flops[self.levels[row]] for row in rows) / 1e9
        return rows

    def after(self, number: int) -> None:
        """Notes what a request still needs; what has ended is gone."""
        if number not in self.engine.running:
            del self.served[number]
            return
        one = self.served[number]
        one.job = replace(one.job, asks=one.running.asks_left, guided=one.running.guided_left, running=True)

    def outcome(self, one: Served, step: int, x: Tensor, ended: bool) -> Stepped | Done | None:
        """What a request has come to: its images, or a preview, which are spread over the steps, or nothing to tell of."""
        steps = one.order.recipe.total_steps
        if ended:
            return self.done(one, self.pixels(x))
        if step * one.wish.previews >= (one.shown + 1) * steps:
            one.shown += 1
            return Stepped(one.wish.id, step, steps, self.pixels(x[:1]))
        return None

    def pixels(self, x: Tensor) -> Pixels:
        """(n, H, W, 3) of states."""
        with torch.no_grad():
            return np.ascontiguousarray(to_uint8(self.codec.decode(x).cpu()).permute(0, 2, 3, 1).numpy())

    def done(self, one: Served, pixels: Pixels) -> Done:
        wish, now = one.wish, now_ms()
        recipe, granted = one.order.recipe, tuple(one.running.granted.values())
        guidance = recipe.guidance
        imprint = Imprint(
            model=self.opened.fingerprint,
            labels=one.told.labels,
            prompts=one.told.prompts,
            index=0,
            seed=wish.seed,
            sampler=recipe.sampler,
            steps=recipe.total_steps,
            levels=granted,
            guidance_scale=guidance.scale,
            guidance_interval=guidance.interval,
            guidance_budget=guidance.weak_budget,
            weak_label=guidance.weak_label,
            codec=self.codec.name,
            shift=recipe.shift,
            dtype=str(DTYPES[self.settings.dtype]).removeprefix("torch."),  # type: ignore[arg-type]  # one of three
            alone=wish.alone,
        )
        calls = one.running.times
        weak = None if guidance.weak_budget is None else self.engine.levels.of(guidance.weak_budget)
        full = self.flops[self.levels[-1]] * len(calls)
        full += sum(self.flops[weak or self.levels[-1]] for t in calls if guidance.active(t))
        began = now if one.began is None else one.began
        return Done(
            id=wish.id,
            pixels=pixels,
            imprint=imprint,
            budgets=tuple(level / self.engine.levels.latents for level in granted),
            gflops=one.gflops,
            full_gflops=full * wish.n / 1e9,
            queue_ms=began - wish.received,
            drawing_ms=now - began,
            compute_ms=one.work_ms,
            full_ms=one.full_ms,
            deadline_ms=one.job.due - wish.received,
            deadline_met=now <= one.job.due,
            attention=self.attention(one.running.seen),
        )

    def attention(self, seen: Tensor | None) -> list[list[list[float]]] | None:
        """(n, rows, columns) of (n, tokens), each image's highest being 1."""
        if seen is None:
            return None
        grid = self.model.config.grid
        shares = seen / seen.amax(1, keepdim=True).clamp_min(1e-12)
        rows: list[list[list[float]]] = shares.unflatten(1, (grid.height, grid.width)).tolist()
        return rows

    def state(self) -> State:
        waiting = sum(not one.job.running for one in self.served.values())
        running = len(self.served) - waiting
        return State(waiting, running, self.engine.most_rows, self.costs.scale, self.engine.out_of_memory)


def main() -> None:  # what a server starts: the connection's number, and then all else over it
    connection = Connection(int(sys.argv[1]))
    settings, device = connection.recv()
    work(connection, settings, device)


if __name__ == "__main__":
    main()
