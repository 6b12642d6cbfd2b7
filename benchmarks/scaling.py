"""The arithmetic of docs/scaling.md: data, memory, communication and checkpoints of training on 8 to 1,024 GPUs.

    python benchmarks/scaling.py

FLOPs and activations are counted on the model itself; the rates of the machines are assumptions, named below and told in
the output. Nothing here is measured. Tables are printed as Markdown.
"""

import argparse
import math
from dataclasses import dataclass

import torch

import elit
from elit.console import output
from elit.cost import activation_bytes

GB, TB = 1e9, 1e12


@dataclass(frozen=True)
class Machine:
    """An H100 SXM in nodes of eight. Rates are those expected to be reached, not peaks; bytes/s are of one direction."""

    flops: float = 0.40 * 989e12  # 40 % of the bfloat16 peak
    memory: float = 80 * GB
    nvlink: float = 0.8 * 450 * GB  # of each GPU
    network: float = 0.8 * 50 * GB  # of each GPU: a 400 Gb/s card of its own
    hop: float = 6e-6  # seconds that each step of a ring takes, however little it sends
    host: float = 25 * GB  # of each GPU to its host's memory
    disk: float = 1 * GB  # of each writing process
    per_node: int = 8


H100 = Machine()
DATASETS = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122, "LAION-400M": 413_000_000, "LAION-5B": 5_850_000_000}


@dataclass(frozen=True)
class Load:
    """What a model asks of a cluster: parameters P, units gathered one after another, FLOPs and bytes of one sample."""

    parameters: int
    units: int
    step_flops: float  # three forwards at the mean of the budgets
    activations: float  # kept for the backward pass at the full budget, bfloat16
    checkpointed: float  # the same when blocks are recomputed
    muon_flops: float  # of the orthogonalisation of all hidden matrices, once a step on every rank


def load_of(name: str, side: int, group: int) -> Load:
    """Counted on the model, without its weights."""
    with torch.device("meta"):
        model = elit.create_model(name, input_size=side, group_size=group)
    every = model.levels.fractions()
    chosen = every if len(every) <= 16 else every[3::4]
    flops = sum(elit.count_flops(model, budget) for budget in chosen) / len(chosen)
    kept = activation_bytes(model, 1, 1.0, torch.bfloat16)
    model.set_checkpointing(True)
    saving = activation_bytes(model, 1, 1.0, torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    sides = [sorted(matrix.shape) for matrix in model.hidden_matrices()]
    muon = sum(5 * (4 * n**2 * m + 2 * n**3) for n, m in sides)
    return Load(parameters, len(model.units()), 3 * flops, kept, saving, muon)


def communication(load: Load, replicate: int, shard: int, machine: Machine) -> tuple[float, float]:
    """Seconds per step of (gathering and scattering within a group of shards, summing over the groups).

    All-gathers of bfloat16 weights forward and backward, 2 x 2P, and a reduce-scatter of float32 gradients, 4P, each times
    (S - 1) / S; then an all-reduce of a shard's gradients, 2 (R - 1) / R x 4P / S. A ring within a node goes at NVLink's
    rate; one over nodes at that of all cards of a node together, and each of the three per unit waits S - 1 hops. Sums
    over replicas go through trees: 2 log2 R hops per unit.
    """
    inside = shard <= machine.per_node
    rate = machine.nvlink if inside else min(machine.nvlink, machine.network * machine.per_node)
    sharded = 8 * load.parameters * (shard - 1) / shard / rate + 3 * load.units * (shard - 1) * machine.hop
    replicated = 8 * load.parameters / shard * (replicate - 1) / replicate / machine.network
    return sharded, replicated + 2 * load.units * math.log2(replicate) * machine.hop


def steps_table(load: Load, per_gpu: int, batch: int | None, full_shard: bool = False) -> list[str]:
    """A row per number of GPUs: with `per_gpu` samples on each, or with a fixed global batch."""
    titles = ("GPUs", "mesh (replicate x shard)", "batch", "a GPU's samples", "compute", "sharding", "replicas")
    rows = ["| " + " | ".join([*titles, "step, overlapped", "images/s"]) + " |", "|---|---|---|---|---|---|---|---|---|"]
    for gpus in (8, 16, 64, 256, 1024):
        shard = gpus if full_shard else H100.per_node
        samples = per_gpu if batch is None else batch / gpus
        compute = samples * load.step_flops / H100.flops
        within, across = communication(load, gpus // shard, shard, H100)
        step = max(compute, within + across)
        cells = [f"{gpus:,}", f"{gpus // shard} x {shard}", f"{samples * gpus:,.0f}", f"{samples:g}", *map(ms, (compute,))]
        cells += [ms(within), ms(across), ms(step), f"{samples * gpus / step:,.0f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def memory_table(load: Load, samples: int) -> list[str]:
    """What one GPU holds, by the number of shards."""
    rows = ["| shards | weights, gradients, moments | EMA | gathered | activations | of which checkpointed | in all |"]
    rows.append("|---|---|---|---|---|---|---|")
    for shard in (1, 2, 8, 64):
        state, ema = 16 * load.parameters / shard, 4 * load.parameters / shard
        gathered = 0.0 if shard == 1 else 2 * 2 * load.parameters / load.units
        kept, saving = samples * load.activations, samples * load.checkpointed
        sizes = (state, ema, gathered, kept, saving, state + ema + gathered + kept)
        rows.append(f"| {shard} | " + " | ".join(f"{size / GB:.1f} GB" for size in sizes) + " |")
    return rows


def checkpoint_table(loads: dict[str, Load]) -> list[str]:
    """Raw weights and moments, 12P, by the first group of eight shards; the EMA, 4P, by the first process."""
    rows = ["| model | on disk | of each writer | training waits | written after |", "|---|---|---|---|---|"]
    for name, load in loads.items():
        own, ema = 12 * load.parameters / 8, 4 * load.parameters
        waits = ema / H100.nvlink + ema / H100.host + own / H100.host
        written = max(own, ema + own) / H100.disk
        sizes = f"{16 * load.parameters / GB:.1f} GB | {own / GB:.2f} GB (first: {(own + ema) / GB:.2f} GB)"
        rows.append(f"| {name} | {sizes} | {waits:.2f} s | {written:.1f} s |")
    return rows


def data_table(rates: dict[str, float]) -> list[str]:
    """Latents of 8 channels (mean and deviation), float16: 16 x side^2 bytes a sample."""
    rows = [
        "| data | samples | latents of 256 px | of 512 px | an epoch's order |" + "".join(f" {k}: epoch |" for k in rates)
    ]
    rows.append("|---" * (5 + len(rates)) + "|")
    for name, count in DATASETS.items():
        sizes = " | ".join(f"{16 * side**2 * count / TB:.2f} TB" for side in (32, 64))
        order = f"{8 * count / GB:.2f} GB"
        times = " | ".join(f"{count / rate / 3600:,.2f} h" for rate in rates.values())
        rows.append(f"| {name} | {count:,} | {sizes} | {order} | {times} |")
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    loads = {
        "ELIT-SiT-XL/2, 256 px": load_of("ELIT-SiT-XL/2", 32, 4),
        "ELIT-SiT-XL/2, 512 px": load_of("ELIT-SiT-XL/2", 64, 8),
    }
    out = [f"Assumed: {H100}"]
    for name, load in loads.items():
        out += ["", f"## {name}", "", f"{load.parameters / 1e6:.1f} M parameters, {load.units} units,"]
        out += [f"{load.step_flops / TB:.3f} TFLOPs a sample and step (mean budget);"]
        out += [f"{load.activations / GB:.2f} GB of activations a sample, {load.checkpointed / GB:.3f} GB checkpointed;"]
        out += [f"{load.muon_flops / TB:.1f} TFLOPs a step for Muon, {ms(load.muon_flops / H100.flops)} on every GPU"]
        samples = 32 if "256" in name else 8
        out += ["", f"### {samples} samples on each GPU", "", *steps_table(load, samples, None)]
        out += ["", "### A batch of 1,024", "", *steps_table(load, 0, 1024)]
        out += ["", "### Sharded over all GPUs", "", *steps_table(load, samples, None, full_shard=True)]
        out += ["", f"### Memory of one GPU, {samples} samples", "", *memory_table(load, samples)]
    rate = 32 / (32 * loads["ELIT-SiT-XL/2, 256 px"].step_flops / H100.flops)
    out += ["", "## Checkpoints", "", *checkpoint_table(loads)]
    rates = {f"{gpus:,} GPUs": gpus * rate for gpus in (8, 1024)}
    out += ["", "## Data", "", *data_table(rates)]
    output.print("\n".join(out), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
