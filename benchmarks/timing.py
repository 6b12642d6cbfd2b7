"""What the benchmarks share: the machine in one line, interleaved timing, and medians with their spread."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from elit.console import console as progress
from elit.cost import cpu_name

PIPE_WIDTH = 165  # columns of a table where there is no terminal to ask


@dataclass(frozen=True)
class Variant:
    """One thing to time: `run(setup())`, of which only `run` is timed."""

    run: Callable[[Any], object]
    setup: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and their first and third quartiles."""

    median: float
    low: float
    high: float

    def show(self, scale: float = 1.0, digits: int = 2) -> str:
        """`median (first quartile - third quartile)`, every value times `scale`."""
        median, low, high = (f"{value * scale:,.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low} - {high})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles. The median of paired ratios is not the ratio of the medians: give it the ratios."""
    low, high = np.percentile(values, [25, 75])
    return Spread(statistics.median(values), float(low), float(high))


def measure(variant: Variant, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one run; its setup and the release of what it returns are not counted."""
    given = variant.setup()
    start = clock()
    result = variant.run(given)
    seconds = clock() - start
    del result
    return seconds


def interleave(
    variants: Mapping[str, Variant], rounds: int, title: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per variant and round, after one warm-up each; by the processor's time where the clock is `process_time`.

    Every round times every variant once, so a machine that drifts slows all of them alike, and each round begins one
    variant further on, so that none always comes first. Progress goes to stderr, between the rounds.
    """
    names = list(variants)
    for name in names:
        measure(variants[name])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(measure(variants[name], clock))
        progress.print(f"{title}: round {index + 1} of {rounds}")
    return seconds


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    card = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu_name(),
        **card,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def open_report() -> Console:
    """A console on stdout that has told the machine already, wide enough for the tables when it is not a terminal."""
    out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for name, value in machine().items():
        out.print(f"{name}: {value}")
    return out


def memory_table(title: str, counted: str, peaks: dict[int, float]) -> Table:
    """A line for each count of what is named."""
    table = Table(counted, "peak memory, MiB", title=title)
    for count, mib in peaks.items():
        table.add_row(f"{count:,}", f"{mib:,.0f}")
    return table


def peak_mib() -> float:
    """The most memory that this process held, MiB (Linux). Not getrusage, whose peak a child has from its parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def own_processor_s(pid: int) -> float:
    """Seconds of the processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processor_s(pid: int) -> float:
    """Seconds of the processor that a process has had, and its children."""
    return own_processor_s(pid) + sum(
        processor_s(int(child)) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    )


def quartiles(times: list[float]) -> str:
    """Milliseconds as people read them: the median, and the quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"
