"""Where the time of a forward goes, dense and at low budgets: in blocks outside of the core, Read, its blocks, and Write.

    python benchmarks/host_parts.py
    python benchmarks/host_parts.py --only SiT,PixArt --rounds 30

The cases are those of benchmarks/hosts.py. Time is the processor's, of one thread: medians over interleaved rounds, in
milliseconds. `core` is what the latent core takes beside its blocks, Read's and Write's layers; `rest` what is outside of
all blocks. `faults` are pages of memory that the system handed out during a forward, which takes time of its own.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import nn

import hosts
from elit.elastic.core import LatentCore
from elit.elastic.interface import ReadLayer, WriteLayer
from timing import open_report

PARTS = ("outside", "read", "blocks", "write", "core", "rest")
Took = dict[str, float]  # seconds by part


def parts_of(model: nn.Module, blocks: list[nn.Module]) -> dict[nn.Module, str]:
    """Which part each module is, whose forwards are timed. blocks: the model's own, in the core and outside of it."""
    core = next((module for module in model.modules() if isinstance(module, LatentCore)), None)
    inside = set() if core is None else {*core.modules()} | {*getattr(core, "middle", list)()}
    made = {block: "blocks" if block in inside else "outside" for block in blocks}
    kinds = ((LatentCore, "core"), (ReadLayer, "read"), (WriteLayer, "write"))
    return made | {module: name for module in model.modules() for kind, name in kinds if isinstance(module, kind)}


class Stopwatch:
    """Notes the seconds of a model's parts, each without those of parts inside of it."""

    def __init__(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        self.took: Took = defaultdict(float)
        self.began: list[list[float]] = []  # of every part that runs: when it began, and what parts inside of it took
        for module, name in parts_of(model, blocks).items():
            module.register_forward_pre_hook(lambda *_: self.began.append([time.process_time(), 0.0]))
            module.register_forward_hook(lambda *_, name=name: self.ends(name))

    def ends(self, name: str) -> None:
        began, inside = self.began.pop()
        whole = time.process_time() - began
        self.took[name] += whole - inside
        if self.began:
            self.began[-1][1] += whole

    def time(self, run: Callable[[Any], object]) -> Took:
        """The seconds of a forward's parts, and its page faults."""
        self.took.clear()
        faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        run(None)
        whole = time.process_time() - began
        found = {**self.took, "rest": whole - sum(self.took.values()), "whole": whole}
        return found | {"faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / 1e3}


def measured(name: str, rounds: int) -> dict[str, Took]:
    """Median milliseconds by part of a case, dense and at each budget; faults as they are."""
    forwards = hosts.forwards_of(name)
    dense, elastic = (Stopwatch(model, hosts.blocks_of(model)) for model in forwards.models)
    watches = {variant: dense if variant == "dense" else elastic for variant in forwards.variants}
    found: dict[str, list[Took]] = defaultdict(list)
    for turn in range(rounds + 1):  # the first is left out
        for variant, watch in watches.items():
            took = watch.time(forwards.variants[variant].run)
            found[variant] += [took] if turn else []
    return {
        variant: {part: 1e3 * statistics.median(one.get(part, 0.0) for one in several) for part in several[0]}
        for variant, several in found.items()
    }


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Took]]:
    """Prints a table of each case, and returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="SiT,PixArt", help="names of cases, with commas between them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out, made = open_report(), {}
    for name in options.only.split(","):
        made[name] = measured(name, options.rounds)
        table = Table(name, *PARTS, "whole", "faults", title=f"milliseconds, {options.rounds} rounds")
        for variant, took in made[name].items():
            table.add_row(variant, *(f"{took.get(part, 0):.1f}" for part in (*PARTS, "whole")), f"{took['faults']:.0f}")
        out.print(table)
    return made


if __name__ == "__main__":
    main()
