"""Serving under load: deadlines met, and the budgets that this takes, against fixed budgets in order of arrival.

    python benchmarks/serving.py                        # in virtual time, from costs that are measured now
    python benchmarks/serving.py --costs 5.2,16.8       # from a cost of the lowest and of the full budget
    python benchmarks/serving.py --live 60              # also a real server over HTTP, so many seconds for each load
    python benchmarks/serving.py --seconds 0 --requests 200   # what a real server adds to a request beside its calls
    python benchmarks/serving.py --soak 600             # also a real server, overloaded for so many seconds

Requests are due after three times what one takes alone at the full budget. Load is told as a multiple of what one device can
do at the full budget. In virtual time (see `elit.serving.simulation`) calls take what was measured, times a noise of 10 %,
and arrivals are Poisson's, or bursts of eight; the policy is the server's own code. Beside it stand the fixed budgets; the
lowest budget with what cannot be in time refused; the highest fixed budget of which 95 % are; and what one could do who knew
all arrivals beforehand: the most requests in time, and, where all can be and for loads up to 1, the most of them with the
full budget throughout, and the highest mean budget, the solution of a linear program. All of it is for several seeds.

A real server gets the same requests over HTTP, from this process. Its pictures are kept, and as many of each load as of that
with the fewest are compared with a reference by `elit evaluate`: for a model of the data that come with the package their
own, unless another is given. Loads that were measured before with the same words are not measured again.
"""

import argparse
import base64
import json
import random
import re
import shutil
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
from rich.box import SIMPLE_HEAD
from scipy.optimize import linprog
from scipy.sparse import lil_array

import elit
from elit.card import load_card
from elit.console import Table, say, show
from elit.data.emoji_styles_test import NAME as STYLES
from elit.data.emoji_styles_test import load_styles_test
from elit.evaluation.exam import known_data
from elit.files import write_whole
from elit.hub import find_model
from elit.labels import labels_in_full
from elit.serving.engine import measure_costs
from elit.serving.jobs import Costs, Job
from elit.serving.policy import Policy, Reserve, decide
from elit.serving.simulation import Served, most_full, most_in_time, poisson, simulate
from elit.weights import load_model
from timing import machine, own_processor_s, processor_s, quartiles

LOADS = (0.5, 1.0, 1.5, 2.0, 4.0)
DEVICES = (1, 4, 16, 64, 256)
STEPS, ROWS, CLIENTS = 10, 8, 4
DEADLINE = 3.0
POLICIES: dict[str, tuple[Policy, float, float]] = {  # name: policy, lowest and highest budget
    "elastic": ("deadline", 1 / 16, 1.0),
    "1": ("fifo", 1.0, 1.0),
    "1/4": ("fifo", 1 / 4, 1 / 4),
    "1/16": ("fifo", 1 / 16, 1 / 16),
    "1/16, refusing": ("deadline", 1 / 16, 1 / 16),
}
LIVE_POLICIES, LIVE_LOADS = ("elastic", "1", "1/4", "1/16"), (0.5, 2.0)
GOAL = 0.95
SOAK_LOAD = 3.0
FEWEST = 10  # pictures that are worth comparing
DUE = 375  # calls of the lowest level, after which the first of 32 requests is due at the soonest: all need 369
WARM_UP = 10  # requests that are not counted


@dataclass(frozen=True)
class Outcome:
    """What came of a load. met: of all requests; met_taken: of those that were taken. budget: granted on average to those
    served, and full: the share of these that had the full one at every step; milliseconds until they end.
    """

    policy: str
    load: float
    burst: int
    devices: int
    requests: int
    met: float
    met_taken: float
    refused: float
    budget: float
    full: float
    p50: float
    p95: float
    p99: float
    images_per_second: float
    error: float = 0.0  # the standard error of met, over the seeds
    compared: int = 0  # pictures whose distances to the reference these are: KID x 1000, and Fréchet's
    kernel: float | None = None
    frechet: float | None = None


def jobs(
    costs: Costs, load: float, burst: int, devices: int, seconds: float, lowest: float, highest: float, seed: int
) -> list[Job]:
    """Requests of one image with CFG each."""
    top = len(costs.row) - 1
    alone = STEPS * (costs.call + 2 * costs.row[top])
    arrivals = poisson(1000 / alone * load * devices, seconds, seed, burst)
    levels = [max(round(budget * (top + 1)) - 1, 0) for budget in (lowest, highest)]
    return [
        Job(i, f"client {i % CLIENTS}", 1, STEPS, STEPS, None, at, at + DEADLINE * alone, levels[0], levels[1])
        for i, at in enumerate(arrivals)
    ]


def outcome(name: str, load: float, burst: int, devices: int, runs: Sequence[Sequence[Served]], levels: int) -> Outcome:
    """What came of a load in virtual time, of all its seeds together."""
    served = [one for run in runs for one in run]
    done = [one for one in served if one.end is not None]
    took = [one.end - one.job.arrived for one in done if one.end is not None]
    lasted = sum(max((one.end for one in run if one.end is not None), default=1.0) for run in runs)
    shares = [statistics.mean(one.met for one in run) for run in runs if run]
    return Outcome(
        name,
        load,
        burst,
        devices,
        len(served),
        statistics.mean(one.met for one in served),
        statistics.mean(one.met for one in done),
        1 - len(done) / len(served),
        statistics.mean((statistics.mean(one.levels) + 1) / levels for one in done),
        statistics.mean(min(one.levels) == levels - 1 for one in done),
        *(float(np.percentile(took, q)) for q in (50, 95, 99)),
        1000 * len(done) / lasted,
        statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0.0,
    )


@dataclass(frozen=True)
class Case:
    """What is simulated: a load, how many arrive at once, on so many devices, for so long, with so many seeds."""

    load: float
    burst: int
    devices: int
    seconds: float
    seeds: int


def simulated(costs: Costs, name: str, policy: Policy, lowest: float, highest: float, case: Case) -> Outcome:
    """One policy at one case."""
    runs = []
    for seed in range(case.seeds):
        draw = random.Random(f"noise {name} {case.load} {case.burst} {case.devices} {seed}")
        wanted = jobs(costs, case.load, case.burst, case.devices, case.seconds, lowest, highest, seed)
        runs.append(simulate(wanted, costs, ROWS, policy, case.devices, noise=lambda draw=draw: draw.uniform(0.9, 1.1)))  # type: ignore[misc]
    out = outcome(name, case.load, case.burst, case.devices, runs, len(costs.row))
    say(f"{name} at {case.load:g} times the capacity of {case.devices}: {out.met:.0%} in time, budget {out.budget:.2f}")
    return out


def virtual(costs: Costs, seconds: float, seeds: int) -> list[Outcome]:
    """Every policy at every load on one device, and the elastic one on many."""
    cases = [(name, Case(load, burst, 1, seconds, seeds)) for burst in (1, 8) for load in LOADS for name in POLICIES]
    cases += [("elastic", Case(2.0, 1, devices, max(seconds / devices, 3.0), 1)) for devices in DEVICES[1:]]
    return [simulated(costs, name, *POLICIES[name], case) for name, case in cases]


def best_fixed(costs: Costs, load: float, seconds: float, seeds: int) -> Outcome | None:
    """The highest fixed budget of which `GOAL` are in time; None where none is."""
    count, found = len(costs.row), None
    low, high = 0, count - 1
    while low <= high:
        middle = (low + high) // 2
        budget = (middle + 1) / count
        case = Case(load, 1, 1, seconds, seeds)
        one = simulated(costs, f"best fixed, {middle + 1}/{count}", "fifo", budget, budget, case)
        found, low, high = (one, middle + 1, high) if one.met >= GOAL else (found, low, middle - 1)
    return found


@dataclass(frozen=True)
class Possible:
    """What one could do who knew all arrivals beforehand, on one device, without noise: the means over the seeds.

    met: the most in time. Where all can be, full: of those, the most with the full budget throughout; budget: the highest
    mean budget.
    """

    load: float
    burst: int
    met: float
    full: float | None = None
    budget: float | None = None


def possible(costs: Costs, load: float, burst: int, seconds: float, seeds: int) -> Possible:
    """Of a load; budgets for loads up to 1 alone."""
    wanted = [jobs(costs, load, burst, 1, seconds, 1 / 16, 1.0, seed) for seed in range(seeds)]
    wanted = [one for one in wanted if one]
    low, high = (wanted[0][0].alone(costs, level) for level in (0, len(costs.row) - 1))
    met = statistics.mean(most_in_time(one, low) for one in wanted)
    if load > 1 or met < 1:
        return Possible(load, burst, met)
    full = statistics.mean(most_full(one, low, high) for one in wanted)
    return Possible(load, burst, met, full, statistics.mean(highest_budget(costs, one) for one in wanted))


def highest_budget(costs: Costs, wanted: Sequence[Job]) -> float:
    """The mean budget of one who knows all arrivals and serves all in time, in order; NaN where that cannot be.

    Request j takes w_j, between what the lowest and the full budget take, and ends at e_j >= e_(j-1) + w_j, its arrival
    + w_j, before it is due; the sum of w is as large as it can be. Budgets between levels count too.
    """
    n, low, high = len(wanted), wanted[0].alone(costs, 0), wanted[0].alone(costs, len(costs.row) - 1)
    rows, right = lil_array((2 * n, 2 * n)), np.zeros(2 * n)
    for j, job in enumerate(wanted):
        rows[j, j], rows[j, n + j], right[j] = 1, -1, -job.arrived
        if j:
            rows[n + j, j], rows[n + j, n + j - 1], rows[n + j, n + j] = 1, 1, -1
    bounds = [(low, high)] * n + [(None, job.due) for job in wanted]
    found = linprog([-1.0] * n + [0.0] * n, rows.tocsr(), right, bounds=bounds, method="highs")
    if found.status != 0:
        return float("nan")
    lowest = 1 / len(costs.row)
    return lowest + (1 - lowest) * float(np.mean((found.x[:n] - low) / (high - low)))


def controller_ms(costs: Costs, count: int = 32, repeats: int = 1000) -> float:
    """Milliseconds of this process's own time of a decision with so many requests, the least of repeats.

    All of them can be in time, some only below their highest levels: so all of the policy has something to do.
    """
    draw = random.Random("controller")
    here = [
        Job(
            i,
            f"client {i % CLIENTS}",
            1,
            draw.randint(1, 20),
            0,
            None,
            float(i),
            draw.uniform(DUE * costs.row[0], DUE * costs.row[-1]),
            0,
            len(costs.row) - 1,
        )
        for i in range(count)
    ]
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        decide(0.0, here, costs, 2 * count, reserve=Reserve(100.0, 1000.0))
        times.append(1000 * (time.thread_time() - began))
    return min(times)


@contextmanager
def server(policy: Policy, model: str | None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A real server of a model folder, or of the bundled model, and its port."""
    words = ["--policy", policy, "--port", "0", "--queue", "64"] + ([] if model is None else ["--model", model])
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
    """What a client saw: the status (0: none), milliseconds, the budgets of all steps, and the picture."""

    status: int = 0
    ms: float = 0.0
    budgets: tuple[float, ...] = ()
    picture: bytes = b""


def told(port: int, path: str, body: dict[str, object] | None = None) -> tuple[int, dict[str, object]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(
        "GET" if body is None else "POST", path, body and json.dumps(body), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def ask(port: int, body: dict[str, object], answer: Answer) -> None:
    began = time.perf_counter()
    answer.status, content = told(port, "/v1/images/generations", body)
    answer.ms = 1000 * (time.perf_counter() - began)
    if answer.status == 200:
        answer.budgets = tuple(content["elit"]["budgets"])  # type: ignore[index]
        answer.picture = base64.b64decode(content["data"][0]["b64_json"])  # type: ignore[index]


def prompts(port: int) -> list[str]:
    """The names, or numbers, of the labels that the model knows pictures of."""
    facts = told(port, "/v1/models")[1]["data"][0]["elit"]  # type: ignore[index]
    names = facts["label_names"]
    return [names[i] for i in labels_in_full(names)] or names or [str(i) for i in range(facts["classes"])]


def overheads(port: int, count: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of requests of one step beside their calls of the model, and of that inside the worker, before and after
    these; and of the calls. The requests come one after another over one connection; the first ten are not counted.
    """
    connection = HTTPConnection("127.0.0.1", port)
    body = json.dumps({"prompt": "0", "steps": 1, "seed": 1, "quality": "high", "guidance_scale": 1, "deadline_ms": 1e8})
    whole, inside, calls = [], [], []
    for _ in range(count + WARM_UP):
        began = time.perf_counter()
        connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
        told = json.loads(connection.getresponse().read())["elit"]
        whole.append(1000 * (time.perf_counter() - began) - told["compute_ms"])
        inside.append(told["queue_ms"] + told["drawing_ms"] - told["compute_ms"])
        calls.append(told["compute_ms"])
    return whole[WARM_UP:], inside[WARM_UP:], calls[WARM_UP:]


def requests(count: int, model: str | None) -> dict[str, object]:
    """What a real server adds to so many requests, and what they have of the processor, that of their calls included."""
    with server("deadline", model) as (process, port):
        overheads(port, 0)
        clocks = processor_s, own_processor_s
        before = [clock(process.pid) for clock in clocks]
        whole, inside, calls = overheads(port, count)
        after = [clock(process.pid) for clock in clocks]
        used, own = (1000 * (end - begin) / (count + WARM_UP) for begin, end in zip(before, after, strict=True))
    show(f"a request beside its calls: {quartiles(whole)}, in the worker {quartiles(inside)}; {count} requests")
    said = f"of the processor a request has {used:.1f} ms, {own:.1f} of them in the server beside the worker"
    show(f"{said}; its calls take {statistics.median(calls):.1f} ms, at the median")
    return {"whole": whole, "inside": inside, "calls": calls, "processor_ms": used, "server_processor_ms": own}


def drive(port: int, load: float, seconds: float, body: dict[str, object], seed: int = 0) -> tuple[float, list[Answer]]:
    """Poisson's arrivals at a load: milliseconds of a request alone, as measured just before, and what clients saw."""
    names = prompts(port)
    full = {**body, "prompt": names[0], "quality": "high", "budget": None, "deadline_ms": 1e8}
    alone = statistics.median(_alone(port, full) for _ in range(3))
    answers, threads, began = list[Answer](), list[threading.Thread](), time.perf_counter()
    for at in poisson(1000 / alone * load, seconds, seed) or [0.0]:
        time.sleep(max(0.0, at / 1000 - (time.perf_counter() - began)))
        answers.append(Answer())
        prompt = names[7919 * len(answers) % len(names)]
        sent = {**body, "prompt": prompt, "deadline_ms": DEADLINE * alone, "seed": len(answers)}
        threads.append(threading.Thread(target=ask, args=(port, sent, answers[-1])))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return alone, answers


def _alone(port: int, body: dict[str, object]) -> float:
    answer = Answer()
    ask(port, body, answer)
    return answer.ms


def live(seconds: float, out: Path, model: str | None) -> list[Outcome]:
    """A real server: the elastic policy, and fixed budgets in order of arrival; what it drew, and a row for each load, are
    kept in `out`.
    """
    rows = {(name, load): row_file(out, name, load) for name in LIVE_POLICIES for load in LIVE_LOADS}
    found = {row: kept(file, seconds, model) for row, file in rows.items()}
    left = [row for row, outcome in found.items() if outcome is None]
    for name in dict.fromkeys(name for name, _ in left):
        policy, _, highest = POLICIES[name]
        body: dict[str, object] = {"steps": STEPS} | ({} if name == "elastic" else {"budget": highest})
        with server(policy, model) as (_, port):
            for load in [load for other, load in left if other == name]:
                began = time.monotonic()
                alone, answers = drive(port, load, seconds, body)
                keep_pictures(answers, pictures_of(rows[name, load]))
                found[name, load] = one = seen(name, load, answers, alone, seconds)
                kept_row = {"machine": machine(), "seconds": seconds, "model": model, "outcome": asdict(one)}
                write_whole(rows[name, load], json.dumps(kept_row, indent=2))
                rest = sum(outcome is None for outcome in found.values())  # loads that are left
                minutes = rest * (time.monotonic() - began) / 60
                say(
                    f"a real server, {name} at {load:g}: {one.met:.0%} in time of {len(answers)}, alone {alone:.0f} ms;"
                    f" {rest} loads and about {minutes:.0f} min left"
                )
    return [outcome for outcome in found.values() if outcome is not None]


def row_file(out: Path, name: str, load: float) -> Path:
    return out / f"{name.replace('/', '-of-')}-at-{load:g}.json"


def pictures_of(row: Path) -> Path:
    """The folder of what was drawn under a load."""
    return row.with_suffix("")


def kept(file: Path, seconds: float, model: str | None) -> Outcome | None:
    """What came of a load in an earlier run on this machine, with the same words."""
    if not file.is_file():
        return None
    row = json.loads(file.read_text())
    same = (row["machine"], row["seconds"], row["model"]) == (machine(), seconds, model)
    return Outcome(**row["outcome"]) if same else None


def keep_pictures(answers: Sequence[Answer], folder: Path) -> None:
    """Writes what was drawn, and nothing else, into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, answer in enumerate(answers):
        if answer.picture:
            (folder / f"{i:05}.png").write_bytes(answer.picture)


def reference_of(model: str | None) -> str | None:
    """The reference that comes with the package for a model of its data."""
    source = find_model(model)
    data = known_data(load_model(source), load_card(source))
    if data is None:
        return None
    return STYLES if data is load_styles_test() else "emoji"


def judged(outcomes: Sequence[Outcome], out: Path, reference: str) -> list[Outcome]:
    """The outcomes with the distances of what was drawn: of as many pictures of each as of that with the fewest."""
    files = [sorted(pictures_of(row_file(out, one.policy, one.load)).glob("*.png")) for one in outcomes]
    count, some, told = min(map(len, files)), out / "compared", []
    if count < FEWEST:
        say(f"{count} pictures are too few to be compared with {reference}")
        return list(outcomes)
    say(f"comparing {count} pictures of each load with {reference}")
    for one, drawn in zip(outcomes, files, strict=True):
        shutil.rmtree(some, ignore_errors=True)
        some.mkdir()
        for file in drawn[:count]:
            shutil.copy(file, some)
        figures = compared(some, reference)
        kernel = figures.pop("KID x 1000")
        told.append(replace(one, compared=count, kernel=kernel, frechet=next(iter(figures.values()))))
    return told


def seen(name: str, load: float, answers: Sequence[Answer], alone: float, seconds: float) -> Outcome:
    """What clients saw."""
    done = [one for one in answers if one.status == 200]
    took = [one.ms for one in done] or [float("nan")]
    met = [one.ms <= DEADLINE * alone for one in done]
    return Outcome(
        name,
        load,
        1,
        1,
        len(answers),
        sum(met) / len(answers),
        statistics.mean(met) if met else float("nan"),
        statistics.mean(one.status == 429 for one in answers),
        statistics.mean(statistics.mean(one.budgets) for one in done) if done else float("nan"),
        statistics.mean(min(one.budgets) == 1 for one in done) if done else float("nan"),
        *(float(np.percentile(took, q)) for q in (50, 95, 99)),
        len(done) / seconds,
    )


def compared(folder: Path, reference: str) -> dict[str, float]:
    """The distances of the pictures in a folder to a reference, by `elit evaluate`."""
    out = folder.with_name(f"{folder.name}-evaluated")
    words = [str(folder), "--reference", reference, "--metrics", "fd,kid", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "elit", "evaluate", *words], check=True, capture_output=True)
    lines = (out / "results.jsonl").read_text().splitlines()
    figures: dict[str, float] = json.loads(lines[-1])["metrics"]
    return figures  # of two metrics: one names the features


def resident_mib(pid: int) -> float:
    """Of a process and its children (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    return own + sum(resident_mib(int(child)) for child in children)


def soak(seconds: float, model: str | None) -> dict[str, float]:
    """Overload for so long: requests, those never answered, and memory after a tenth of the time and at the end."""
    with server("deadline", model) as (process, port):
        body: dict[str, object] = {"steps": STEPS}
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


def draw(outcomes: Sequence[Outcome], best: Sequence[Possible], file: Path) -> None:
    """Deadlines met, beside the most that can be, and budgets over the load; deadlines met over the number of devices."""
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    met, budget, scale = figure.subplots(1, 3)
    for name, marker in zip(POLICIES, "os^vx", strict=True):
        rows = [one for one in outcomes if one.policy == name and one.devices == 1 and one.burst == 1]
        label = "elastic" if name == "elastic" else f"fixed {name}"
        met.plot([one.load for one in rows], [100 * one.met for one in rows], marker=marker, label=label)
        budget.plot([one.load for one in rows], [one.budget for one in rows], marker=marker)
    able = [one for one in best if one.burst == 1]
    met.plot([one.load for one in able], [100 * one.met for one in able], "k:", label="the most possible")
    many = [one for one in outcomes if one.policy == "elastic" and one.load == 2 and one.burst == 1]
    scale.plot([one.devices for one in many], [100 * one.met for one in many], marker="o")
    scale.set_xscale("log", base=4)
    scale.set_xticks(DEVICES, [str(devices) for devices in DEVICES])
    figure.legend(*met.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    for axes, over, title in (
        (met, "load, of the full-budget capacity", "in time, of all requests (%)"),
        (budget, "load, of the full-budget capacity", "mean budget granted"),
        (scale, "devices, at twice their capacity", "in time, of all requests (%)"),
    ):
        axes.set_xlabel(over)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0, top=1.05 if axes is budget else 105)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def table(outcomes: Sequence[Outcome]) -> Table:
    """What is told of virtual time."""
    columns = ("n", "in time", "of taken", "refused", "budget", "always full", "p50", "p95", "p99 ms", "/s")
    out = Table("policy", "load", "arrivals", "devices", *columns)
    for one in outcomes:
        arrivals = "Poisson" if one.burst == 1 else f"{one.burst} at once"
        times = [f"{ms:.0f}" for ms in (one.p50, one.p95, one.p99)]
        shares = [
            f"{one.met:.1%} ± {100 * one.error:.1f}",
            f"{one.met_taken:.1%}",
            f"{one.refused:.1%}",
            f"{one.budget:.2f}",
            f"{one.full:.0%}",
        ]
        numbers = [str(one.devices), str(one.requests), *shares, *times, f"{one.images_per_second:.1f}"]
        out.add_row(one.policy, f"{one.load:g}", arrivals, *numbers)
    return out


def possible_table(best: Sequence[Possible]) -> Table:
    """What one could do who knew all arrivals."""
    out = Table("load", "arrivals", "most in time", "most with the full budget", "highest mean budget", title="in hindsight")
    for one in best:
        rest = ["", ""] if one.full is None or one.budget is None else [f"{one.full:.0%}", f"{one.budget:.3f}"]
        out.add_row(f"{one.load:g}", "Poisson" if one.burst == 1 else f"{one.burst} at once", f"{one.met:.1%}", *rest)
    return out


def live_table(outcomes: Sequence[Outcome]) -> Table:
    """What is told of a real server, in 80 columns."""
    out = Table(box=SIMPLE_HEAD, padding=0)
    for name in ("policy", "load", "n", "in time", "refused", "budget", "p50/p95/p99 ms", "/s", "KID", "Fréchet"):
        out.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for one in outcomes:
        times = "/".join(f"{ms:.0f}" for ms in (one.p50, one.p95, one.p99))
        distances = ["" if value is None else f"{value:.0f}" for value in (one.kernel, one.frechet)]
        shares = [f"{one.met:.0%}", f"{one.refused:.0%}", f"{one.budget:.2f}", times, f"{one.images_per_second:.1f}"]
        out.add_row(one.policy, f"{one.load:g}", str(one.requests), *shares, *distances)
    return out


def costs_of(text: str | None) -> Costs:
    """The costs of calls of the bundled model: as measured now, or on a straight line between two that are given."""
    model = elit.load_bundled()
    if text is None:
        return replace(measure_costs(model, ROWS, repeats=20), scale=1.0)
    low, high = map(float, text.split(","))
    return Costs(0.0, tuple(np.linspace(low, high, len(model.levels.counts())).tolist()))


def keep(results: dict[str, object], out: Path) -> None:
    write_whole(out / "results.json", json.dumps(results, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="of virtual time for each load; 0: none of it")
    parser.add_argument("--seeds", type=int, default=4, help="of arrivals and noise in virtual time")
    parser.add_argument("--costs", help="milliseconds at the lowest and the full budget, such as 4.4,8.4, not measured now")
    parser.add_argument("--live", type=float, default=0.0, help="seconds of a real server for each load")
    parser.add_argument("--model", help="folder of the model that a real server has; the bundled model if none is given")
    parser.add_argument("--reference", help="compares the pictures of a real server with this, as elit evaluate does")
    parser.add_argument("--requests", type=int, default=0, help="to a real server, one after another: what it adds to each")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of a real server at overload")
    parser.add_argument("--out", type=Path, default=Path("serving"), help="folder for results.json and serving.png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    costs = costs_of(options.costs)
    rows = ", ".join(f"{ms:.1f}" for ms in costs.row)
    show(f"{machine()}; ms of a row at each level: {rows}; of a call: {costs.call:.1f}")
    decisions = controller_ms(costs), controller_ms(replace(costs, call=costs.row[-1]))
    results: dict[str, object] = {"machine": machine(), "costs": asdict(costs), "controller_ms": decisions}
    show("a decision among 32 requests: {:.3f} ms of the processor's time, {:.3f} where calls are shared".format(*decisions))
    if options.seconds:
        lasting = options.seconds, options.seeds
        outcomes = virtual(costs, *lasting)
        fixed = [one for load in (1.0, 1.5, 2.0) if (one := best_fixed(costs, load, *lasting)) is not None]
        best = [possible(costs, load, burst, *lasting) for burst in (1, 8) for load in LOADS]
        show(table([*outcomes, *fixed]))
        show(possible_table(best))
        draw(outcomes, best, options.out / "serving.png")
        results |= {"virtual": [asdict(one) for one in [*outcomes, *fixed]], "possible": [asdict(one) for one in best]}
        keep(results, options.out)
    if options.requests:
        results["requests"] = requests(options.requests, options.model)
        keep(results, options.out)
    if options.live:
        real, reference = live(options.live, options.out, options.model), options.reference or reference_of(options.model)
        real = real if reference is None else judged(real, options.out, reference)
        show(live_table(real))
        results["live"] = [asdict(one) for one in real]
        keep(results, options.out)
    if options.soak:
        say(f"overload for {options.soak / 60:.1f} min")
        results["soak"] = soak(options.soak, options.model)
        show(json.dumps(results["soak"], indent=2))
    keep(results, options.out)


if __name__ == "__main__":
    main()
