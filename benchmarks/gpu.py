"""What works on a GPU, and how fast: training, sampling and hosts, beside the card's own matrix rate. No network is needed.

    python benchmarks/gpu.py                         everything, in about 14 minutes of one H100
    python benchmarks/gpu.py --parts training,sampling --out gpu.json
    python benchmarks/gpu.py --device cpu --small    every part at a tiny size, to see that it runs

It prints a table for each part, writes --out after every row, and names card, driver and torch. A part has its minutes
(--minutes 3 for all), after which it ends with what it has. Batches that do not fit the card's memory are made smaller, or
left out, and said. A part that fails is told, the others run, and the exit code is 1. At the end the marks of docs/gpu.md
are held against what was measured; --page FILE writes both between that page's two lines for tables.

Times are medians of interleaved rounds; `of product` is the FLOP/s of a step as a share of those of one 8192^3 product in
bfloat16 (float32 on a CPU), timed in the same rounds; a training step counts as three forwards.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import elit
from data import write_latents
from elit.backbones.table import preset_config
from elit.console import console, output
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import write_whole
from elit.flow import FlowPath
from elit.reports.scorecard import write_block
from elit.training.batch import Batch
from elit.training.config import DataConfig, TrainConfig
from elit.training.dry_run import step_flops
from elit.training.parts import take_apart
from elit.training.reading import load_config
from elit.training.step import Rules, TrainState, make_state, train_step
from elit.weights import load_model
from gpu_page import TITLES, Found, Row, marks_rows, page, terminal_table
from timing import machine
from training import loop_beside_bare

ROOT = Path(__file__).parents[1]
BUDGETS = {"1": 1.0, "1/2": 1 / 2, "1/4": 1 / 4, "1/16": 1 / 16}
MINUTES = {"works": 2.0, "training": 3.0, "loading": 0.7, "sampling": 2.0, "hosts": 1.0, "bundled": 5.0}
FP, BF, HALF = "fp32", "bf16", "fp16"
BATCH = 256  # of the bundled recipe on a GPU
ELASTIC_RATE = 0.45  # of the dense images a second, at the least, of the elastic model of that size


@dataclass
class Bench:
    """What the parts share: where they run, how large, and what they found.

    deadline: when the part that runs has to end, on the monotonic clock.
    """

    device: torch.device
    small: bool
    out: Path
    data: Path
    found: Found = field(default_factory=dict)
    deadline: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def keep(self, part: str, row: Row) -> None:
        """Writes a row at once: a limit in time loses nothing."""
        self.found.setdefault(part, []).append(row)
        write_whole(self.out, json.dumps(self.found, indent=2) + "\n")

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one run, the device's work included."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def interleaved(self, runs: dict[str, Callable[[], object]], rounds: int, warm: int = 2) -> dict[str, float]:
        """The median seconds of each, after warm-ups, every round running all of them."""
        for run in runs.values():
            for _ in range(warm):
                run()
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(rounds):
            names = list(runs)
            for name in names[index % len(names) :] + names[: index % len(names)]:
                taken[name].append(self.seconds(runs[name]))
            if self.late:
                break
        return {name: statistics.median(values) for name, values in taken.items()}

    def product(self) -> tuple[Callable[[], object], float]:
        """One large matrix product, and its FLOPs."""
        n = 256 if self.small else 8192
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        return lambda: a @ b, 2.0 * n**3


def largest_that_fits(bench: Bench, part: str, what: str, batches: Sequence[int], run: Callable[[int], None]) -> None:
    """Runs with the first of some batches that the card has memory for, or leaves it out, and says so."""
    for batch in batches:
        if attempt(bench, lambda batch=batch: run(batch)):
            return
        console.print(f"{what}, batch {batch}: too little memory", markup=False)
    bench.keep(part, {"run": f"{what}: left out, too little memory"})


def attempt(bench: Bench, run: Callable[[], None]) -> bool:
    """Whether it ran without running out of the card's memory, which is free again."""
    try:
        run()
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def peak_gib(bench: Bench) -> float | None:
    """The most memory that tensors took since `reset_peak_memory_stats`."""
    return torch.cuda.max_memory_allocated(bench.device) / 2**30 if bench.device.type == "cuda" else None


# --- a: it works


def works(bench: Bench) -> None:
    """The tests that ask for a device, runs under torchrun and resumed ones, the same samples twice, compiled blocks."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, command in commands(bench, place).items():
            check(bench, name, command)
        once = pictures(place / "once")
        same = once == pictures(place / "again") if once else None  # no time was left
        bench.keep("works", {"case": "the same bytes twice", "passed": same})
        bench.keep("works", {"case": "resumed under torchrun, beside a run never halted", **resumed_run(place)})
    free, exact = resumed(bench, deterministic=False), resumed(bench, deterministic=True)
    bench.keep("works", {"case": "resumed with deterministic kernels", "passed": exact == 0, "apart": exact})
    bench.keep("works", {"case": "resumed with any kernels", "passed": free < 1e-2, "apart": free})
    apart = compiled_beside_eager(bench)
    bench.keep("works", {"case": "compiled beside eager, float32", "passed": apart < 1e-3, "apart": apart})
    if any(row["passed"] is False for row in bench.found["works"]):
        raise RuntimeError("a check failed; see why in the file")


def commands(bench: Bench, place: Path) -> dict[str, list[str]]:
    """What is run in processes of their own, by name."""
    device, python = bench.device.type, sys.executable
    pytest, elit_ = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"], [python, "-m", "elit"]
    world = [python, "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "elit"]
    run, whole = tiny_run(place / "run", device), tiny_run(place / "whole", device)
    sampled = [*elit_, "sample", "--count", "16", "--steps", "5", "--device", device, "--model", str(place / "run"), "--out"]
    return {
        "models, samplers, guidance, halves": [*pytest, "tests/test_on_device.py"],
        "training steps": [*pytest, "tests/training/test_loop.py", "tests/training/test_optimizer.py"],
        "torchrun, one process": [*world, "train", *run, "--steps", "4"],
        "resumed under torchrun": [*world, "train", *run, "--steps", "8"],
        "never halted": [*world, "train", *whole, "--steps", "8"],
        "in bf16": [*elit_, "train", *tiny_run(place / "bf16", device), "--dtype", BF, "--steps", "4"],
        "in fp16, scaled": [*elit_, "train", *tiny_run(place / "fp16", device), "--dtype", HALF, "--steps", "4"],
        "sampled once": [*sampled, str(place / "once")],
        "sampled again": [*sampled, str(place / "again")],
    }


def check(bench: Bench, name: str, command: list[str]) -> None:
    """Runs a command, and keeps whether it passed, how long it took, and otherwise why not."""
    if bench.late:
        bench.keep("works", {"case": name, "passed": None, "why": "no time was left"})
        return
    where = {**os.environ, "ELIT_TEST_DEVICE": bench.device.type, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=where,
            capture_output=True,
            text=True,
            timeout=max(5.0, bench.deadline - time.monotonic()),
            check=False,
        )
        passed, told = done.returncode == 0, (done.stdout + done.stderr)[-600:]
    except subprocess.TimeoutExpired:
        passed, told = False, "no time was left"
    row: Row = {"case": name, "passed": passed, "seconds": time.perf_counter() - start}
    bench.keep("works", row if passed else row | {"why": told})


def tiny_run(out: Path, device: str) -> list[str]:
    """Options of a run of seconds on the embedded pictures."""
    model = {"input_size": 32, "patch_size": 4, "in_channels": 3, "num_classes": 99, "width": 64, "depth": 4, "heads": 4}
    model |= {"group_size": 4, "head_depth": 1, "tail_depth": 1}
    keys = [part for key, value in model.items() for part in (f"--model.{key}", str(value))]
    return [*keys, "--batch_size", "16", "--log.preview_every", "0", "--device", device, "--out", str(out)]


def resumed_run(place: Path) -> Row:
    """How far the averaged weights of the resumed run are from those of the one that was never halted."""
    if not all((place / name / "checkpoints" / "step_00000008").is_dir() for name in ("run", "whole")):
        return {"passed": None}  # no time was left
    ends = [[p.detach() for p in load_model(place / name).parameters()] for name in ("run", "whole")]
    apart = distance(*ends)
    return {"passed": apart < 1e-2, "apart": apart}


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of any weight, as a share of the largest weight of its tensor."""
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(ours, theirs, strict=True))


def pictures(folder: Path) -> dict[str, bytes]:
    """The bytes of the pictures below a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def resumed(bench: Bench, deterministic: bool) -> float:
    """How far two runs of four steps end from each other, one of them through a copy of its state after two."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        return distance(*(four_steps(bench, halted) for halted in (False, True)))
    finally:
        torch.use_deterministic_algorithms(False)


def four_steps(bench: Bench, halted: bool) -> list[Tensor]:
    """The weights after four steps of a small model."""
    config = training_config("ELIT-SiT-S/2", bench, batch=4, dtype=FP)
    state, batches = training_state(config, bench)
    for step in range(4):
        if halted and step == 2:
            kept = {name: value.clone() for name, value in state.model.state_dict().items()}
            moments = [optimizer.state_dict() for optimizer in state.optimizers]
            state, _ = training_state(config, bench)
            state.model.load_state_dict(kept)
            for optimizer, moment in zip(state.optimizers, moments, strict=True):
                optimizer.load_state_dict(moment)
            state.step = 2
        train_step(take_apart(config, bench.device).rules, state, batches[step % len(batches)])
    return [p.detach().clone() for p in state.model.parameters()]


def compiled_beside_eager(bench: Bench) -> float:
    """How far a compiled model's velocities are from those of the same one run eagerly, in float32."""
    model = trained_looking("ELIT-SiT-S/2", 16, bench).float()
    given = inputs(model, 2, bench, torch.float32)
    with torch.no_grad():
        eager = [model(*given, budget) for budget in BUDGETS.values()]
        model.compile_blocks()
        compiled = [model(*given, budget) for budget in BUDGETS.values()]
    return max(float((c - e).norm() / e.norm()) for c, e in zip(compiled, eager, strict=True))


# --- b: training


def training(bench: Bench) -> None:
    """Images a second of dense and elastic models, in bfloat16 and compiled by block, at fixed budgets and drawn ones."""
    size, sides = "XL/2", {32: (192, 128, 64), 64: (48, 32, 16)}
    if bench.small:
        size, sides = "S/2", {8: (4,)}
    for side, batches in sides.items():
        run = partial(train_at, bench, size, side)
        largest_that_fits(bench, "training", f"{size}, {8 * side} pixels", batches, run)


def train_at(bench: Bench, size: str, side: int, batch: int) -> None:
    """The rows of one size of pictures."""
    runs: dict[str, Callable[[], object]] = {}
    flops: dict[str, float] = {}
    steps: dict[str, int] = {}
    runs["product"], product_flops = bench.product()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    for kind in ("SiT", "ELIT-SiT"):
        config = training_config(f"{kind}-{size}", bench, batch, BF, side)
        state, batches = training_state(config, bench)
        rules = take_apart(config, bench.device).rules
        if not bench.small:
            state.model.compile_blocks()
        for name, budgets in budgets_of(state.model).items():
            runs[name] = step_at(rules, state, batches[0], budgets)
            flops[name] = sum(3.0 * batch * elit.count_flops(state.model, budget) for budget in budgets) / len(budgets)
            steps[name] = len(budgets)
    taken = bench.interleaved(runs, rounds=3 if bench.small else 8)
    taken = {name: seconds / steps.get(name, 1) for name, seconds in taken.items()}
    rate = product_flops / taken["product"]
    for name, count in flops.items():
        ratio = taken[name] / taken["dense"]
        row: Row = {"size": size, "pixels": 8 * side, "run": name, "batch": batch, "images/s": batch / taken[name]}
        row |= {"of dense": 1 / ratio, "time / FLOPs": ratio / (count / flops["dense"])}
        bench.keep("training", row | {"of product": count / taken[name] / rate, "GiB": peak_gib(bench)})


def training_config(name: str, bench: Bench, batch: int, dtype: str, side: int = 16) -> TrainConfig:
    """A run's configuration of a model by name, on latents of a side."""
    model = preset_config(name, input_size=side, num_classes=1000)
    return TrainConfig(batch_size=batch, dtype=dtype, device=bench.device.type, model=model)  # type: ignore[arg-type]


def training_state(config: TrainConfig, bench: Bench) -> tuple[TrainState, list[Batch]]:
    """A fresh state, and two batches of random latents on the device."""
    parts = take_apart(config, bench.device)
    state = make_state(parts.start)
    state.model.train()
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        shape = (config.batch_size, *state.model.input.shape)
        x, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        t = torch.rand(config.batch_size, generator=generator)
        y = torch.randint(1000, (config.batch_size,), generator=generator)
        budget = None if state.model.core is None else 1.0
        batches.append(Batch(FlowPath.LINEAR.interpolate(x, noise, t), y, budget).to(bench.device))
    return state, batches


def step_at(rules: Rules, state: TrainState, batch: Batch, budgets: Sequence[float | None]) -> Callable[[], object]:
    """A training step at each of some budgets, one after another."""

    def steps() -> None:
        for budget in budgets:
            train_step(rules, state, replace(batch, budget=budget))

    return steps


def budgets_of(model: ElasticModel) -> dict[str, Sequence[float | None]]:
    """What a model is trained at, by name; "drawn" is every level once, as a run draws each as often."""
    if model.core is None:
        return {"dense": (None,)}
    return {**{name: (budget,) for name, budget in BUDGETS.items()}, "drawn": model.levels.fractions()}


def loading(bench: Bench) -> None:
    """What the loop adds to the bare steps: drawing and reading prepared latents, averaging, logging."""
    name, side, batches, steps = ("S/2", 32, (2,), 2) if bench.small else ("XL/2", 32, (192, 128, 64), 10)
    with tempfile.TemporaryDirectory() as folder:
        write_latents(Path(folder) / "latents", 8 if bench.small else 4000)

        def run(batch: int) -> None:
            made = training_config(f"ELIT-SiT-{name}", bench, batch, BF, side)
            source = DataConfig(source=str(Path(folder) / "latents"))
            config = replace(made, data=source, model=replace(made.model, num_classes=1), compile=not bench.small)
            took = loop_beside_bare(config, steps, rounds=2 if bench.small else 4)
            loop, bare = (statistics.median(took[kind]) / steps for kind in ("loop", "bare"))
            rates = {"loop, images/s": batch / loop, "bare, images/s": batch / bare}
            bench.keep("loading", {"model": f"ELIT-SiT-{name}", "batch": batch, **rates, "overhead": loop / bare - 1})

        largest_that_fits(bench, "loading", name, batches, run)


def trained_looking(name: str, side: int, bench: Bench) -> ElasticModel:
    """A model in which nothing is zero, on the device: products of zeros can take another time."""
    model = elit.create_model(name, input_size=side, num_classes=1000)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.to(bench.device, bench.dtype).eval()


def inputs(model: ElasticModel, batch: int, bench: Bench, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Random x, t and y on the device."""
    x = torch.randn(batch, *model.input.shape, device=bench.device, dtype=dtype or bench.dtype)
    return x, torch.rand(batch, device=bench.device), torch.randint(1000, (batch,), device=bench.device)


# --- c: sampling


def sampling(bench: Bench) -> None:
    """Milliseconds of one call of the model: eager, compiled and as a CUDA graph, one image and many, by budget."""
    model = trained_looking("ELIT-SiT-S/2" if bench.small else "ELIT-SiT-XL/2", 8 if bench.small else 32, bench)
    with torch.inference_mode():
        for batch in (1, 2) if bench.small else (1, 64):
            for how in ("eager", "compiled", "graph"):
                if bench.late or (how == "graph" and bench.device.type != "cuda") or (how == "compiled" and bench.small):
                    continue
                run = partial(sample_at, bench, model, how)
                largest_that_fits(bench, "sampling", how, (batch,), run)
        model_first_call(bench)


def sample_at(bench: Bench, model: ElasticModel, how: str, batch: int) -> None:
    """The rows of one batch size and one way to run: every budget, CFG beside cheap CFG, and a budget per sample."""
    x, t, y = inputs(model, batch, bench)
    null = torch.full_like(y, model.null_class)
    runs: dict[str, Callable[[], object]] = {}
    flops: dict[str, float] = {}
    runs["product"], product_flops = bench.product()
    calls = {name: called(model, (x, t, y), budget, how) for name, budget in BUDGETS.items()}
    weak_full, weak_low = (called(model, (x, t, null), budget, how) for budget in (1.0, 1 / 16))
    for name, budget in BUDGETS.items():
        runs[name], flops[name] = calls[name], batch * elit.count_flops(model, budget)
    runs["CFG"] = lambda: (calls["1"](), weak_full())
    runs["cheap CFG"] = lambda: (calls["1"](), weak_low())
    flops |= {"CFG": 2 * flops["1"], "cheap CFG": flops["1"] + flops["1/16"]}
    if batch > 1 and how == "eager":
        each = [list(BUDGETS.values())[i % len(BUDGETS)] for i in range(batch)]
        runs["a budget per sample"] = lambda: model(x, t, y, each)
        flops["a budget per sample"] = sum(elit.count_flops(model, budget) for budget in each)
    taken = bench.interleaved(runs, rounds=3 if bench.small else 15, warm=3)
    for name, count in flops.items():
        kind = "budget" if name in BUDGETS else "mixed" if name == "a budget per sample" else "guided"
        row: Row = {"batch": batch, "how": how, "kind": kind, "run": name, "ms": 1000 * taken[name]}
        row |= {"images/s": batch / taken[name], "time / FLOPs": taken[name] / taken["1"] / (count / flops["1"])}
        bench.keep("sampling", row | {"of product": count / taken[name] / (product_flops / taken["product"])})


def called(model: ElasticModel, given: tuple[Tensor, Tensor, Tensor], budget: float, how: str) -> Callable[[], object]:
    """A call of the model at a budget: as it is, compiled, or replayed as a CUDA graph."""
    fixed = model.fixed(budget=budget)
    if how == "compiled":
        compiled = torch.compile(fixed)
        return lambda: compiled(*given)
    if how == "eager":
        return lambda: fixed(*given)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            fixed(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fixed(*given)
    return graph.replay


def model_first_call(bench: Bench) -> None:
    """How long a fresh model's first call takes, eager and compiled by block."""
    for how in ("eager",) if bench.small else ("eager", "compiled"):
        model = trained_looking("ELIT-SiT-S/2" if bench.small else "ELIT-SiT-B/2", 8 if bench.small else 32, bench)
        if how == "compiled":
            model.compile_blocks()
        given = inputs(model, 1, bench)
        taken = 1000 * bench.seconds(partial(model, *given))
        bench.keep("sampling", {"batch": 1, "how": how, "kind": "first call", "run": "a fresh B/2", "ms": taken})


# --- d: hosts


def hosts(bench: Bench) -> None:
    """A Flux- and a Qwen-Image-shaped transformer of random weights made elastic: one call at each budget."""
    for name in ("flux", "qwen-image"):
        if not attempt(bench, partial(host_at, bench, name)):
            bench.keep("hosts", {"host": name, "budget": "left out, too little memory"})


def host_at(bench: Bench, name: str) -> None:
    """The rows of one host."""
    import diffusers

    side, layers, heads = (8, 4, 2) if bench.small else (64, 16, 16)
    heads_width, text = (16, 4) if bench.small else (128, 128)
    grid = {"num_attention_heads": heads, "attention_head_dim": heads_width, "joint_attention_dim": 64}
    kwargs = {"hidden_states": torch.randn(1, side * side, 64), "encoder_hidden_states": torch.randn(1, text, 64)}
    kwargs["timestep"] = torch.full((1,), 0.5)
    axes = (4, 6, 6) if bench.small else (16, 56, 56)
    if name == "flux":
        made: Any = diffusers.FluxTransformer2DModel(
            num_layers=layers // 2, num_single_layers=layers, pooled_projection_dim=32, axes_dims_rope=axes, **grid
        )
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        kwargs |= {"pooled_projections": torch.randn(1, 32), "img_ids": ids, "txt_ids": torch.zeros(text, 3)}
    else:
        made = diffusers.QwenImageTransformer2DModel(num_layers=layers, axes_dims_rope=axes, **grid)
        kwargs |= {"img_shapes": [[(1, side, side)]], "encoder_hidden_states_mask": torch.ones(1, text, dtype=torch.bool)}
    made = made.to(bench.device, bench.dtype).eval()
    elit.elasticize(made, head=layers // 8 or 1, tail=layers // 8 or 1, window=4)
    made.to(bench.device, bench.dtype)
    given = {key: on_device(value, bench) for key, value in kwargs.items()}
    if not bench.small:
        made.compile_repeated_blocks(fullgraph=True)
    budgets = {"1": 1.0, "1/2": 1 / 2, "1/4": 1 / 4, "1/8": 1 / 8}
    runs = {written: host_call(made, given, budget) for written, budget in budgets.items()}
    with torch.inference_mode():
        taken = bench.interleaved(runs, rounds=3 if bench.small else 8)
    count = sum(p.numel() for p in made.parameters()) / 1e9
    for budget, seconds in taken.items():
        row: Row = {"host": name, "parameters, B": count, "budget": budget, "ms": 1000 * seconds}
        bench.keep("hosts", row | {"of full": seconds / taken["1"]})


def on_device(value: Any, bench: Bench) -> Any:
    """A tensor on the device, a floating one in its precision; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(bench.device, bench.dtype) if value.is_floating_point() else value.to(bench.device)


def host_call(transformer: Any, given: dict[str, Any], budget: float) -> Callable[[], object]:
    """A call of a transformer at a budget."""

    def call() -> None:
        with elit.budget(transformer, budget):
            transformer(**given)

    return call


# --- e: the bundled model


def bundled(bench: Bench) -> None:
    """Trains the bundled model's recipe in the part's minutes: a dense trunk, then of it the elastic model and its twin.

    The trunk has half of the time; the rate it went at says how many steps the others have, at whose end their rate falls.
    Both are exported, in half precision.
    """
    if not bench.small and not (bench.data / "train").is_dir():
        made = f"elit prepare emoji-styles --out {bench.data}"
        raise UserError(f"there are no emoji in seven styles in {bench.data}; make them: {made}")
    runs, left = bench.out.parent / "bundled-runs", bench.deadline - time.monotonic()
    dense, elastic = (ROOT / "configs" / name for name in ("emoji-styles-dense.yaml", "emoji-styles.yaml"))
    keys = ["--device", bench.device.type, "--log.preview_every", "0", *(small_keys() if bench.small else large_keys(bench))]
    rate = train_for(bench, runs / "trunk", dense, [*keys, *(["--steps", "2"] if bench.small else [])], 0.5 * left - 20)
    flops = [step_flops(load_config(config, keys)) for config in (elastic, dense)]
    steps = 2 if bench.small else int(ELASTIC_RATE * rate * 0.25 * left / BATCH)
    for name, config, count in (("elastic", elastic, steps), ("twin", dense, round(steps * flops[0] / flops[1]))):
        course = ["--steps", str(count), "--optimizer.decay_steps", str(count // 3), "--optimizer.warmup_steps", "0"]
        train_for(bench, runs / name, config, [*keys, "--init-from", str(runs / "trunk"), *course], left)
        export = [sys.executable, "-m", "elit", "export", str(runs / name), "--out", str(runs / f"{name}-exported")]
        subprocess.run(export, cwd=ROOT, check=True)
    console.print(f"the runs are in {runs}", markup=False)


def train_for(bench: Bench, out: Path, config: Path, options: list[str], seconds: float) -> float:
    """A run of `elit train` that is asked to stop after so many seconds; its images a second."""
    command = [sys.executable, "-m", "elit", "train", "--config", str(config), *options, "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT) as run:
        try:
            run.wait(timeout=max(10.0, seconds))
        except subprocess.TimeoutExpired:
            run.terminate()  # saves, and ends at the next step
            run.wait(timeout=60)
    log = out / "log.jsonl"
    last: Row = json.loads(log.read_text().splitlines()[-1]) if log.is_file() else {}
    told = {"step": last.get("step"), "loss": last.get("loss"), "images/s": last.get("images_per_second")}
    bench.keep("bundled", {"run": out.name, "exit": run.returncode, **told})
    if run.returncode:
        raise RuntimeError(f"the run {out.name} ended with {run.returncode}")
    return float(last.get("images_per_second", 0.0))


def large_keys(bench: Bench) -> list[str]:
    """What makes the recipe one of a GPU."""
    return ["--data.source", str(bench.data / "train"), "--dtype", BF, "--batch_size", str(BATCH)]


def small_keys() -> list[str]:
    """What makes the recipe one of seconds, on the embedded pictures."""
    keys = {"width": "32", "depth": "6", "heads": "2", "input_size": "32"}
    model = [part for key, value in keys.items() for part in (f"--model.{key}", value)]
    return [*model, "--data.source", "emoji", "--data.size", "32", "--batch_size", "4", "--log.every", "1"]


PARTS: dict[str, Callable[[Bench], None]] = {
    "works": works,
    "training": training,
    "loading": loading,
    "sampling": sampling,
    "hosts": hosts,
    "bundled": bundled,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between")
    parser.add_argument("--minutes", type=float, help="of every part; else each has its own")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--page", type=Path, metavar="FILE", help="such as docs/gpu.md, whose tables are made anew")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-styles"), help="what the bundled model trains on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that everything runs")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"there is no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; run it where one is, or give --device cpu --small to see that it runs")
    bench = Bench(torch.device(options.device), options.small, options.out.absolute(), options.data.absolute())
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    bench.found = {"machine": {**machine(), **driver(), "date": time.strftime("%Y-%m-%d", time.gmtime())}}
    failed = []
    for part in parts:
        minutes = MINUTES[part] if options.minutes is None else options.minutes
        bench.deadline = time.monotonic() + 60 * minutes
        console.print(f"{part}: at most {minutes:g} min", markup=False)
        try:
            PARTS[part](bench)
        except UserError as error:
            failed.append(part)
            console.print(f"{part}: {error}", markup=False)
        except Exception:  # the other parts are worth running
            failed.append(part)
            console.print(traceback.format_exc(), markup=False)
        output.print(terminal_table(TITLES[part], bench.found.get(part, [])))
    output.print(terminal_table("Marks, for one H100", marks_rows(bench.found)))
    if options.page is not None:
        write_block(options.page, page(bench.found))
    console.print(f"the figures are in {bench.out}", markup=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}", markup=False)
    return 1 if failed else 0


def driver() -> dict[str, str]:
    """The card's driver, where there is one to ask."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        return {"card": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()}
    except (OSError, subprocess.CalledProcessError):
        return {}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        console.print(str(error), markup=False)
        sys.exit(2)
