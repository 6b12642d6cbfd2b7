"""What works on a GPU, and how fast: training, sampling and hosts, beside the card's own matrix rate. No network is needed.

    python benchmarks/gpu.py                         everything, in about 12 minutes of one H100
    python benchmarks/gpu.py --parts training,sampling --out gpu.json
    python benchmarks/gpu.py --device cpu --small    every part at a tiny size, to see that it runs

It prints a table for each part, writes --out after every row, and names card, driver and torch. A part has its minutes
(--minutes 3 for all), after which it ends with what it has. What does not fit the card's memory is left out, and said. A
part that fails is told, the others run, and the exit code is 1.

Times are medians of interleaved rounds; `of product` is the FLOP/s of a step as a share of those of one 8192^3 product in
bfloat16 (float32 on a CPU), timed in the same rounds; a training step counts as three forwards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import elit
from elit.backbones.table import preset_config
from elit.console import console, output
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import write_whole
from elit.flow import FlowPath
from elit.training.batch import Batch
from elit.training.config import TrainConfig
from elit.training.parts import take_apart
from elit.training.step import Rules, TrainState, make_state, train_step
from timing import machine

ROOT = Path(__file__).parents[1]
BUDGETS = (1.0, 1 / 2, 1 / 4, 1 / 16)
MINUTES = {"works": 2.0, "training": 3.0, "sampling": 2.0, "hosts": 1.0, "bundled": 5.5}
FP, BF, HALF = "fp32", "bf16", "fp16"


@dataclass
class Bench:
    """What the parts share: where they run, how large, and what they found.

    deadline: when the part that runs has to end, on the monotonic clock.
    """

    device: torch.device
    small: bool
    out: Path
    data: Path
    found: dict[str, Any] = field(default_factory=dict)
    deadline: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def keep(self, part: str, row: dict[str, Any]) -> None:
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


@contextmanager
def fits(bench: Bench, part: str, what: str) -> Iterator[None]:
    """Leaves out what is too large for the card, and says so."""
    try:
        yield
    except torch.OutOfMemoryError:
        bench.keep(part, {"case": what, "left out": "too little memory"})
        console.print(f"{what}: too little memory; left out", markup=False)
    finally:
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def peak_gib(bench: Bench) -> float | None:
    """The most memory that tensors took since `reset_peak_memory_stats`."""
    return torch.cuda.max_memory_allocated(bench.device) / 2**30 if bench.device.type == "cuda" else None


# --- a: it works


def works(bench: Bench) -> None:
    """The tests that ask for a device, a run under torchrun, the same samples twice, and a run resumed to the bit."""
    where = {**os.environ, "ELIT_TEST_DEVICE": bench.device.type, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    python, pytest = sys.executable, [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    elit_, world = [python, "-m", "elit"], [python, "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "elit"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny = tiny_run(place / "run", bench.device.type)
        sampled = ["sample", "--count", "16", "--steps", "5", "--device", bench.device.type, "--out"]
        model = str(place / "run")
        commands = {
            "contract on the device": [*pytest, "tests/test_contract.py", *(["-k", "elastic"] if bench.small else [])],
            "samplers and guidance": [*pytest, "tests/test_samplers.py", "tests/test_guidance.py"],
            "half precision": [*pytest, "tests/training/test_half_precision.py"],
            "torchrun, one process": [*world, "train", *tiny, "--steps", "4"],
            "resumed": [*elit_, "train", *tiny, "--steps", "8"],
            "in bf16": [*elit_, "train", *tiny_run(place / "bf16", bench.device.type), "--dtype", BF, "--steps", "4"],
            "in fp16, scaled": [
                *elit_,
                "train",
                *tiny_run(place / "fp16", bench.device.type),
                "--dtype",
                HALF,
                "--steps",
                "4",
            ],
            "sampled once": [*elit_, *sampled, str(place / "once"), "--model", model],
            "sampled again": [*elit_, *sampled, str(place / "again"), "--model", model],
        }
        for name, command in commands.items():
            if bench.late:
                bench.keep("works", {"case": name, "passed": None, "why": "no time was left"})
                continue
            start = time.perf_counter()
            left = max(5.0, bench.deadline - time.monotonic())
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=where, capture_output=True, text=True, timeout=left, check=False
                )
                passed, told = done.returncode == 0, (done.stdout + done.stderr)[-600:]
            except subprocess.TimeoutExpired:
                passed, told = False, "no time was left"
            why = {} if passed else {"why": told}
            bench.keep("works", {"case": name, "passed": passed, "seconds": time.perf_counter() - start, **why})
        once = pictures(place / "once")
        same = once == pictures(place / "again") if once else None  # no time was left
        bench.keep("works", {"case": "the same bytes twice", "passed": same})
    bench.keep("works", {"case": "resumed to the bit", "passed": resumed_to_the_bit(bench)})
    bench.keep("works", {"case": "compiled within 1e-3", **compiled_beside_eager(bench)})
    table = Table("check", "passed", "s", title="It works")
    for row in bench.found["works"]:
        table.add_row(row["case"], {True: "yes", False: "NO", None: "-"}[row["passed"]], f"{row.get('seconds', 0):.0f}")
    output.print(table)
    if any(row["passed"] is False for row in bench.found["works"]):
        raise RuntimeError("a check failed; see why in the file")


def tiny_run(out: Path, device: str) -> list[str]:
    """Options of a run of seconds on the embedded pictures."""
    model = {"input_size": 32, "patch_size": 4, "in_channels": 3, "num_classes": 99, "width": 64, "depth": 4, "heads": 4}
    model |= {"group_size": 4, "head_depth": 1, "tail_depth": 1}
    keys = [part for key, value in model.items() for part in (f"--model.{key}", str(value))]
    return [*keys, "--batch_size", "16", "--log.preview_every", "0", "--device", device, "--out", str(out)]


def pictures(folder: Path) -> dict[str, bytes]:
    """The bytes of the pictures below a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def resumed_to_the_bit(bench: Bench) -> bool:
    """Whether two runs of four steps, one through a copy of its state after two, end with the same weights."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        ends = []
        for halted in (False, True):
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
            ends.append([p.detach().clone() for p in state.model.parameters()])
        return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def compiled_beside_eager(bench: Bench) -> dict[str, Any]:
    """How far a compiled model is from the same one run eagerly, in float32."""
    model = trained_looking("ELIT-SiT-S/2", 16, bench).float()
    x, t, y = inputs(model, 2, bench, torch.float32)
    with torch.no_grad():
        eager = [model(x, t, y, budget) for budget in BUDGETS]
        model.compile_blocks()
        apart = max(float((model(x, t, y, b) - e).norm() / e.norm()) for b, e in zip(BUDGETS, eager, strict=True))
    return {"passed": apart < 1e-3, "apart": apart}


# --- b: training


def training(bench: Bench) -> None:
    """Images a second of dense and elastic models, in bfloat16 and compiled by block, at fixed budgets and drawn ones."""
    table = Table("case", "images/s", "of dense", "time / FLOPs", "of product", "GiB", title="Training")
    sides = ((8, 4),) if bench.small else ((32, 192), (64, 48))
    size = "S/2" if bench.small else "XL/2"
    for side, batch in sides:
        with fits(bench, "training", f"{size} at {8 * side} pixels"):
            train_at(bench, table, size, side, batch)
    output.print(table)


def train_at(bench: Bench, table: Table, size: str, side: int, batch: int) -> None:
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
        row = {
            "case": f"{size}, {8 * side} pixels, {name}",
            "batch": batch,
            "images_per_second": batch / taken[name],
            "of_dense": 1 / ratio,
            "time_over_flops": ratio / (count / flops["dense"]),
            "of_product": count / taken[name] / rate,
            "peak_gib": peak_gib(bench),
        }
        bench.keep("training", row)
        numbers = [row["images_per_second"], row["of_dense"], row["time_over_flops"], row["of_product"]]
        memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        table.add_row(str(row["case"]), f"{numbers[0]:.1f}", *(f"{number:.2f}" for number in numbers[1:]), memory)


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
    return {**{f"budget {budget:g}": (budget,) for budget in BUDGETS}, "drawn": model.levels.fractions()}


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
    table = Table("case", "ms", "images/s", "time / FLOPs", "of product", title="Sampling, one step of the sampler")
    model = trained_looking("ELIT-SiT-S/2" if bench.small else "ELIT-SiT-XL/2", 8 if bench.small else 32, bench)
    with torch.inference_mode():
        for batch in (1, 2) if bench.small else (1, 64):
            for how in ("eager", "compiled", "graph"):
                if bench.late or (how == "graph" and bench.device.type != "cuda") or (how == "compiled" and bench.small):
                    continue
                with fits(bench, "sampling", f"batch {batch}, {how}"):
                    sample_at(bench, table, model, batch, how)
        model_first_call(bench)
    output.print(table)


def sample_at(bench: Bench, table: Table, model: ElasticModel, batch: int, how: str) -> None:
    """The rows of one batch size and one way to run: every budget, CFG beside cheap CFG, and a budget per sample."""
    x, t, y = inputs(model, batch, bench)
    null = torch.full_like(y, model.null_class)
    runs: dict[str, Callable[[], object]] = {}
    flops: dict[str, float] = {}
    runs["product"], product_flops = bench.product()
    calls = {f"budget {b:g}": called(model, (x, t, y), b, how) for b in BUDGETS}
    weak_full, weak_low = (called(model, (x, t, null), b, how) for b in (1.0, 1 / 16))
    for name, budget in zip(calls, BUDGETS, strict=True):
        runs[name], flops[name] = calls[name], batch * elit.count_flops(model, budget)
    runs["CFG"] = lambda: (calls["budget 1"](), weak_full())
    runs["cheap CFG, 1/16"] = lambda: (calls["budget 1"](), weak_low())
    flops["CFG"] = 2 * flops["budget 1"]
    flops["cheap CFG, 1/16"] = flops["budget 1"] + flops["budget 0.0625"]
    if batch > 1 and how == "eager":
        each = [BUDGETS[i % len(BUDGETS)] for i in range(batch)]
        runs["a budget per sample"] = lambda: model(x, t, y, each)
        flops["a budget per sample"] = sum(elit.count_flops(model, budget) for budget in each)
    taken = bench.interleaved(runs, rounds=3 if bench.small else 15, warm=3)
    for name, count in flops.items():
        row = {
            "case": f"batch {batch}, {how}, {name}",
            "ms": 1000 * taken[name],
            "images_per_second": batch / taken[name],
            "time_over_flops": taken[name] / taken["budget 1"] / (count / flops["budget 1"]),
            "of_product": count / taken[name] / (product_flops / taken["product"]),
        }
        bench.keep("sampling", row)
        numbers = [row["images_per_second"], row["time_over_flops"], row["of_product"]]
        table.add_row(str(row["case"]), f"{1000 * taken[name]:.2f}", f"{numbers[0]:.0f}", *(f"{n:.2f}" for n in numbers[1:]))


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
    """How long a fresh model's first call takes, eager."""
    model = trained_looking("ELIT-SiT-S/2" if bench.small else "ELIT-SiT-B/2", 8 if bench.small else 32, bench)
    given = inputs(model, 1, bench)
    bench.keep("sampling", {"case": "first call of a fresh B/2, eager", "ms": 1000 * bench.seconds(lambda: model(*given))})


# --- d: hosts


def hosts(bench: Bench) -> None:
    """A Flux- and a Qwen-Image-shaped transformer of random weights made elastic: one call at each budget."""
    table = Table("host", "parameters, B", "budget", "ms", "of full", title="Hosts at 1024 x 1024, one call")
    for name in ("flux", "qwen-image"):
        with fits(bench, "hosts", name):
            host_at(bench, table, name)
    output.print(table)


def host_at(bench: Bench, table: Table, name: str) -> None:
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
    runs = {f"{budget:g}": host_call(made, given, budget) for budget in (1.0, 0.5, 0.25, 0.125)}
    with torch.inference_mode():
        taken = bench.interleaved(runs, rounds=3 if bench.small else 8)
    count = sum(p.numel() for p in made.parameters()) / 1e9
    for budget, seconds in taken.items():
        row = {
            "host": name,
            "parameters": count,
            "budget": float(budget),
            "ms": 1000 * seconds,
            "of_full": seconds / taken["1"],
        }
        bench.keep("hosts", row)
        table.add_row(name, f"{count:.2f}", budget, f"{1000 * seconds:.2f}", f"{row['of_full']:.2f}")


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
    """Trains the bundled model's recipe: the dense twin first, and the elastic model from it, for the part's minutes."""
    data = bench.data
    if not bench.small and not (data / "train").is_dir():
        raise UserError(f"there are no emoji in seven styles in {data}; make them: elit prepare emoji-styles --out {data}")
    runs = bench.out.parent / "bundled-runs"
    source = [] if bench.small else ["--data.source", str(data / "train")]
    shrunk = small_keys() if bench.small else []
    left = bench.deadline - time.monotonic()
    start = time.monotonic()
    common = ["--device", bench.device.type, "--log.preview_every", "0", *source, *shrunk]
    halves = {"dense": ("emoji-styles-dense.yaml", 0.55), "elastic": ("emoji-styles.yaml", 1.0)}
    for name, (config, share) in halves.items():
        origin = ["--init-from", str(runs / "dense")] if name == "elastic" else []
        command = [sys.executable, "-m", "elit", "train", "--config", str(ROOT / "configs" / config), *common, *origin]
        command += [
            "--out",
            str(runs / name),
            *(["--steps", "2"] if bench.small else ["--dtype", BF, "--batch_size", "256"]),
        ]
        ends = start + share * left - 20
        with subprocess.Popen(command, cwd=ROOT) as run:
            try:
                run.wait(timeout=max(10.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                run.terminate()  # saves, and ends at the next step
                run.wait(timeout=60)
        lines = (runs / name / "log.jsonl").read_text().splitlines() if (runs / name / "log.jsonl").is_file() else []
        bench.keep("bundled", {"run": name, "exit": run.returncode, "last": json.loads(lines[-1]) if lines else None})
        if run.returncode:
            raise RuntimeError(f"the run {name} ended with {run.returncode}")
    console.print(f"the runs are in {runs}", markup=False)


def small_keys() -> list[str]:
    """What makes the recipe one of seconds, on the embedded pictures."""
    keys = {"width": "32", "depth": "4", "heads": "2", "input_size": "32"}
    model = [part for key, value in keys.items() for part in (f"--model.{key}", value)]
    return [*model, "--data.source", "emoji", "--batch_size", "4", "--data.size", "32"]


PARTS: dict[str, Callable[[Bench], None]] = {
    "works": works,
    "training": training,
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
    bench.found = {"machine": {**machine(), **driver()}}
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
