"""Serving under load: deadlines met, and the budgets that this takes, against fixed budgets in order of arrival.

    python benchmarks/serving.py                        # in virtual time, from costs that are measured now
    python benchmarks/serving.py --live 20              # also a real server over HTTP, so many seconds for each load
    python benchmarks/serving.py --soak 600             # also a real server, overloaded for so many seconds

Requests are due after three times what one takes alone at the full budget. Load is told as a multiple of what one device can
do at the full budget. In virtual time (see `elit.serving.simulation`) calls take what was measured, times a noise of 10 %,
and arrivals are Poisson's, or bursts of eight; the policy is the server's own code.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import elit
from elit.console import Table, say, show
from elit.serving.engine import measure_costs
from elit.serving.jobs import Costs, Job
from elit.serving.policy import Policy
from elit.serving.simulation import Served, poisson, simulate
from timing import machine

LOADS = (0.5, 1.0, 1.5, 2.0, 4.0)
DEVICES = (1, 4, 16, 64, 256)
STEPS, ROWS, CLIENTS = 10, 8, 4
DEADLINE = 3.0
POLICIES: dict[str, tuple[Policy, float, float]] = {  # name: policy, lowest and highest budget
    "elastic": ("deadline", 1 / 16, 1.0),
    "1": ("fifo", 1.0, 1.0),
    "1/4": ("fifo", 1 / 4, 1 / 4),
    "1/16": ("fifo", 1 / 16, 1 / 16),
}
SOAK_LOAD = 3.0


@dataclass(frozen=True)
class Outcome:
    """What came of a load: shares of all requests, the mean budget of those served, and milliseconds until they end."""

    policy: str
    load: float
    burst: int
    devices: int
    requests: int
    met: float
    refused: float
    budget: float
    p50: float
    p95: float
    p99: float
    images_per_second: float


def jobs(costs: Costs, load: float, burst: int, devices: int, seconds: float, lowest: float, highest: float) -> list[Job]:
    """Requests of one image with CFG each."""
    top = len(costs.row) - 1
    alone = STEPS * (costs.call + 2 * costs.row[top])
    arrivals = poisson(1000 / alone * load * devices, seconds, 0, burst)
    levels = [max(round(budget * (top + 1)) - 1, 0) for budget in (lowest, highest)]
    return [
        Job(i, f"client {i % CLIENTS}", 1, STEPS, STEPS, None, at, at + DEADLINE * alone, levels[0], levels[1])
        for i, at in enumerate(arrivals)
    ]


def outcome(name: str, load: float, burst: int, devices: int, served: Sequence[Served], levels: int) -> Outcome:
    """What came of a load in virtual time."""
    done = [one for one in served if one.end is not None]
    took = [one.end - one.job.arrived for one in done if one.end is not None]
    last = max((one.end for one in done if one.end is not None), default=1.0)
    return Outcome(
        name,
        load,
        burst,
        devices,
        len(served),
        statistics.mean(one.met for one in served),
        1 - len(done) / len(served),
        statistics.mean((statistics.mean(one.levels) + 1) / levels for one in done),
        *(float(np.percentile(took, q)) for q in (50, 95, 99)),
        1000 * len(done) / last,
    )


def virtual(costs: Costs, seconds: float) -> list[Outcome]:
    """Every policy at every load on one device, and the elastic one on many."""
    cases = [(name, load, burst, 1) for burst in (1, 8) for load in LOADS for name in POLICIES]
    cases += [("elastic", 2.0, 1, devices) for devices in DEVICES[1:]]
    out = []
    for name, load, burst, devices in cases:
        policy, lowest, highest = POLICIES[name]
        draw = random.Random(f"noise {name} {load} {burst} {devices}")
        length = max(seconds / devices, 3.0)
        served = simulate(
            jobs(costs, load, burst, devices, length, lowest, highest),
            *(costs, ROWS, policy, devices),
            noise=lambda draw=draw: draw.uniform(0.9, 1.1),
        )
        out.append(outcome(name, load, burst, devices, served, len(costs.row)))
        say(f"{name} at {load:g} times the capacity of {devices}: {out[-1].met:.0%} in time, budget {out[-1].budget:.2f}")
    return out


@contextmanager
def server(policy: Policy) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A real server of the bundled model, and its port."""
    words = ["--policy", policy, "--port", "0", "--queue", "64"]
    process = subprocess.Popen([sys.executable, "-m", "elit", "serve", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = None
        while port is None:
            line = process.stderr.readline()
            assert line, "elit serve has ended"
            port = re.search(r"http://127.0.0.1:(\d+)", line)
        yield process, int(port[1])
    finally:
        process.terminate()
        process.wait()


@dataclass
class Answer:
    """What a client saw: the status (0: none), milliseconds, and the mean budget."""

    status: int = 0
    ms: float = 0.0
    budget: float = 0.0


def ask(port: int, body: dict[str, object], answer: Answer) -> None:
    began = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/images/generations", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    told = json.loads(response.read())
    answer.status, answer.ms = response.status, 1000 * (time.perf_counter() - began)
    answer.budget = statistics.mean(told["elit"]["budgets"]) if response.status == 200 else 0.0
    connection.close()


def drive(port: int, load: float, seconds: float, body: dict[str, object]) -> tuple[float, list[Answer]]:
    """Poisson's arrivals at a load: milliseconds of a request alone, as measured just before, and what clients saw."""
    full = {**body, "quality": "high", "deadline_ms": 1e8}
    alone = statistics.median(_alone(port, full) for _ in range(3))
    answers, threads, began = list[Answer](), list[threading.Thread](), time.perf_counter()
    for at in poisson(1000 / alone * load, seconds, 0):
        time.sleep(max(0.0, at / 1000 - (time.perf_counter() - began)))
        answers.append(Answer())
        sent = {**body, "deadline_ms": DEADLINE * alone, "seed": len(answers)}
        threads.append(threading.Thread(target=ask, args=(port, sent, answers[-1])))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return alone, answers


def _alone(port: int, body: dict[str, object]) -> float:
    answer = Answer()
    ask(port, body, answer)
    return answer.ms


def live(seconds: float) -> list[Outcome]:
    """A real server: the elastic policy and the full budget in order of arrival."""
    out = []
    for name in ("elastic", "1"):
        policy, _, highest = POLICIES[name]
        body: dict[str, object] = {"prompt": "heart", "steps": STEPS}
        body |= {} if name == "elastic" else {"budget": highest}
        with server(policy) as (_, port):
            for load in (0.5, 2.0):
                alone, answers = drive(port, load, seconds, body)
                done = [one for one in answers if one.status == 200]
                took = [one.ms for one in done] or [float("nan")]
                out.append(
                    Outcome(
                        name,
                        load,
                        1,
                        1,
                        len(answers),
                        statistics.mean(one.status == 200 and one.ms <= DEADLINE * alone for one in answers),
                        statistics.mean(one.status == 429 for one in answers),
                        statistics.mean(one.budget for one in done) if done else float("nan"),
                        *(float(np.percentile(took, q)) for q in (50, 95, 99)),
                        len(done) / seconds,
                    )
                )
                say(f"a real server, {name} at {load:g}: {out[-1].met:.0%} in time of {len(answers)}, alone {alone:.0f} ms")
    return out


def resident_mib(pid: int) -> float:
    """Of a process and its children (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    return own + sum(resident_mib(int(child)) for child in children)


def soak(seconds: float) -> dict[str, float]:
    """Overload for so long: requests, those never answered, and memory after a tenth of the time and at the end."""
    with server("deadline") as (process, port):
        body = {"prompt": "heart", "steps": STEPS}
        _, first = drive(port, SOAK_LOAD, seconds / 10, body)
        before = resident_mib(process.pid)
        _, rest = drive(port, SOAK_LOAD, 0.9 * seconds, body)
        answers = [*first, *rest]
        return {
            "seconds": seconds,
            "requests": len(answers),
            "served": sum(one.status == 200 for one in answers),
            "refused": sum(one.status == 429 for one in answers),
            "unanswered": sum(one.status not in (200, 429) for one in answers),
            "mib_before": before,
            "mib_after": resident_mib(process.pid),
        }


def draw(outcomes: Sequence[Outcome], file: Path) -> None:
    """Deadlines met and budgets over the load, and the budget over the number of devices."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    met, budget, scale = figure.subplots(1, 3)
    for name, marker in zip(POLICIES, "os^v", strict=True):
        rows = [one for one in outcomes if one.policy == name and one.devices == 1 and one.burst == 1]
        label = "elastic" if name == "elastic" else f"fixed {name}, in order"
        met.plot([one.load for one in rows], [100 * one.met for one in rows], marker=marker, label=label)
        budget.plot([one.load for one in rows], [one.budget for one in rows], marker=marker)
    many = [one for one in outcomes if one.policy == "elastic" and one.load == 2 and one.burst == 1]
    scale.plot([one.devices for one in many], [100 * one.met for one in many], marker="o")
    scale.set_xscale("log", base=4)
    scale.set_xticks(DEVICES, [str(devices) for devices in DEVICES])
    met.legend(fontsize=7)
    for axes, over, title in (
        (met, "load, of the full-budget capacity", "deadlines met (%)"),
        (budget, "load, of the full-budget capacity", "mean budget granted"),
        (scale, "devices, at twice their capacity", "deadlines met (%)"),
    ):
        axes.set_xlabel(over)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def table(outcomes: Sequence[Outcome]) -> Table:
    out = Table("policy", "load", "arrivals", "devices", "n", "in time", "refused", "budget", "p50", "p95", "p99 ms", "/s")
    for one in outcomes:
        arrivals = "Poisson" if one.burst == 1 else f"{one.burst} at once"
        times = [f"{ms:.0f}" for ms in (one.p50, one.p95, one.p99)]
        shares = [f"{one.met:.0%}", f"{one.refused:.0%}", f"{one.budget:.2f}"]
        name = one.policy if one.policy == "elastic" else f"fixed {one.policy}"
        numbers = [str(one.devices), str(one.requests), *shares, *times, f"{one.images_per_second:.1f}"]
        out.add_row(name, f"{one.load:g}", arrivals, *numbers)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="of virtual time for each load")
    parser.add_argument("--costs", help="milliseconds at the lowest and the full budget, such as 4.4,8.4, not measured now")
    parser.add_argument("--live", type=float, default=0.0, help="seconds of a real server for each load")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of a real server at overload")
    parser.add_argument("--out", type=Path, default=Path("serving"), help="folder for results.json and serving.png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = elit.load_bundled()
    if options.costs is None:
        costs = measure_costs(model, ROWS, repeats=20)
    else:
        low, high = map(float, options.costs.split(","))
        costs = Costs(0.0, tuple(np.linspace(low, high, len(model.levels.counts())).tolist()))
    show(
        f"{machine()}; ms of a row at each level: {', '.join(f'{ms:.1f}' for ms in costs.row)}; of a call: {costs.call:.1f}"
    )
    outcomes = virtual(replace(costs, scale=1.0), options.seconds)
    show(table(outcomes))
    draw(outcomes, options.out / "serving.png")
    real = live(options.live) if options.live else []
    if real:
        show(table(real))
    soaked = soak(options.soak) if options.soak else {}
    if soaked:
        show(json.dumps(soaked))
    results = {"machine": machine(), "costs": asdict(costs), "virtual": [asdict(one) for one in outcomes]}
    results |= {"live": [asdict(one) for one in real], "soak": soaked}
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
