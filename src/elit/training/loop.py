"""The training loop, one process: flow matching with one random budget per step."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elit.backbones.dit import DiT
from elit.bundled import Card
from elit.console import console, progress_bar
from elit.data.images import LabelledImages, load_images
from elit.data.loader import rows_of_step, sample_generators
from elit.distributed import local_device
from elit.evaluation.cost import activation_bytes, count_flops
from elit.flow import FlowSample, TimeLaw, interpolate
from elit.flow import Path as FlowPath
from elit.pictures import save_png, spread, tile
from elit.sampling import sample
from elit.seeding import generator_for
from elit.training.alignment import alignment_target
from elit.training.budgets import mean_flops, step_budget
from elit.training.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    open_run,
    remove_unfinished,
    save_checkpoint,
)
from elit.training.config import TrainConfig
from elit.training.finetune import hold_all_but_interface, prime, start_from
from elit.training.objective import make_objective
from elit.training.optimizer import hidden_matrices, lr_scale, make_optimizers


@dataclass(frozen=True)
class Batch:
    """What one step trains on: points on paths, labels (B,) with some dropped to the null class, and budgets.

    budget: one for all, or one per sample. target: what alignment looks at (see `alignment_target`), None without it.
    """

    flow: FlowSample
    labels: Tensor
    budget: float | Tensor | None
    target: Tensor | None = None


def draw_batch(config: TrainConfig, data: LabelledImages, step: int) -> Batch:
    """The batch of a step, from (seed, step) alone. Images come in a new random order each epoch."""
    rows = rows_of_step(config.seed, len(data), config.batch_size, step)
    generator = generator_for("batch", config.seed, step)
    path = FlowPath(config.flow.path)
    t = TimeLaw(config.flow.time_law).draw(config.batch_size, path, generator)


    def generators() -> list[torch.Generator]:
        return sample_generators("data", config.seed, step, 0, len(rows))

    x, kept = data.read(rows, generators())
    noise = torch.randn(x.shape, generator=generator)
    dropped = torch.rand(config.batch_size, generator=generator) < config.flow.label_dropout
    labels = torch.where(dropped, config.model.num_classes, kept)
    budget = step_budget(config.budget, config.model, config.seed, step, t)
    target = alignment_target(config.alignment, data, rows, x, generators)
    return Batch(interpolate(path, x, noise, t), labels, budget, target)


def make_state(config: TrainConfig, device: torch.device) -> TrainState:
    """A model initialised from the seed or from `init_from`, its EMA, its optimisers and its objective."""
    teacher = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = DiT(config.model)
        if config.init_from is not None:
            start, teacher = start_from(model, config.init_from, config.flow.path)
            console.print(start.describe(), markup=False)
        model.to(device)
        objective = make_objective(config, model, teacher, device)
    model.set_checkpointing(config.checkpointing)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, config.optimizer, objective.projector)
    prime(optimizers)
    return TrainState(model, ema, optimizers, objective)


def train_step(config: TrainConfig, state: TrainState, batch: Batch, device: torch.device) -> Tensor:
    """One step of the optimisers and of the EMA; the loss, a scalar on the device."""
    scale = lr_scale(config.optimizer, state.step, config.steps)
    labels = batch.labels.to(device)
    flow = FlowSample(batch.flow.x_t.to(device), batch.flow.velocity.to(device), batch.flow.t.to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
        loss = state.objective(state.model, config.model.grid, flow, labels, batch.budget, batch.target)
    loss.backward()
    if state.step < config.finetune.interface_first:
        hold_all_but_interface(state.model)
    torch.nn.utils.clip_grad_norm_((p for _, p in state.trained()), config.optimizer.clip)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak"]
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1
    state.update_ema(config.optimizer.ema_decay)
    return loss.detach()


def train(config: TrainConfig) -> Path:
    """Trains until `config.steps`, going on from the run's last checkpoint where there is one; returns that of the end.

    Raises ValueError for data or a folder that does not fit the configuration, and FloatingPointError for a loss that
    is not finite (the last checkpoint is kept).
    """
    from torch.utils.tensorboard import SummaryWriter

    device = local_device(config.device)
    data = load_data(config)
    run = open_run(config)
    card = Card(path=FlowPath(config.flow.path), label_names=data.label_names)
    state = make_state(config, device)
    remove_unfinished(run)
    if found := checkpoints(run):
        load_checkpoint(found[-1], state)
        console.print(f"going on from {found[-1]}")
    if config.compile:
        state.model.compile_blocks()
    state.model.train()
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=state.step)
    with progress_bar() as bar:
        task = bar.add_task("training", total=config.steps, completed=state.step, unit="images", per_step=config.batch_size)
        started, first = time.perf_counter(), state.step
        while state.step < config.steps:
            loss = train_step(config, state, draw_batch(config, data, state.step), device)
            last = state.step == config.steps
            log = config.log.every and state.step % config.log.every == 0
            save = last or (config.log.checkpoint_every and state.step % config.log.checkpoint_every == 0)
            if log or save:
                _check(state.step, loss.item())
            if log:
                rate = (state.step - first) * config.batch_size / (time.perf_counter() - started)
                _report(writer, state, loss.item(), rate)
                bar.update(task, description=f"training, loss {loss.item():.4f}")
                started, first = time.perf_counter(), state.step
            bar.update(task, completed=state.step)
            if save:
                save_checkpoint(run, state, config.log.keep, card)
            if config.log.preview_every and (last or state.step % config.log.preview_every == 0):
                save_preview(config, state, run / "previews" / f"step_{state.step:08d}.png")
    writer.close()
    final = checkpoints(run)[-1]
    console.print(f"the trained model is in {final}")
    if config.log.preview_every:
        console.print(f"previews, one row per budget, are in {run / 'previews'}")
    return final


def _check(step: int, loss: float) -> None:
    if not loss < float("inf"):
        raise FloatingPointError(
            f"the loss is {loss} at step {step}; lower optimizer.lr and start again from the last checkpoint"
        )


def _report(writer: object, state: TrainState, loss: float, rate: float) -> None:
    for name, value in (
        ("loss", loss),
        ("images_per_second", rate),
        ("learning_rate", state.optimizers[-1].param_groups[0]["lr"]),
        *((f"loss_{name}", part.item()) for name, part in state.objective.parts.items()),
    ):
        writer.add_scalar(name, value, state.step)  # type: ignore[attr-defined]
    if not console.is_terminal and state.step % 500 == 0:
        console.print(f"step {state.step}  loss {loss:.4f}  {rate:.1f} images/s")


def load_data(config: TrainConfig) -> LabelledImages:
    """The run's images, checked against its model."""
    data = load_images(config.data.source, config.data.size)
    model = config.model
    if model.in_channels != 3 or (config.data.size, config.data.size) != (
        model.grid.height * model.patch_size,
        model.grid.width * model.patch_size,
    ):
        raise ValueError(
            f"the images are 3 x {config.data.size} x {config.data.size};"
            f" set model.in_channels 3 and model.input_size {config.data.size}"
        )
    if int(data.labels.max()) >= model.num_classes:
        raise ValueError(f"labels go up to {int(data.labels.max())}; set model.num_classes {len(data.label_names)}")
    return data


@torch.no_grad()
def save_preview(config: TrainConfig, state: TrainState, file: Path, columns: int = 12) -> None:
    """Samples of the EMA weights: a row per budget, the same noise and labels down a column."""
    raw = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    state.model.load_state_dict(state.ema)
    labels = spread(columns, config.model.num_classes)
    budgets = config.log.preview_budgets if config.model.window is not None else (1.0,)
    with torch.autocast(local_device(config.device).type, torch.bfloat16, enabled=config.dtype == "bf16"):
        rows = [sample(state.model, labels, steps=20, budget=budget, path=config.flow.path) for budget in budgets]
    state.model.load_state_dict(raw)
    file.parent.mkdir(exist_ok=True)
    save_png(tile(torch.cat(rows).cpu(), columns=len(labels), scale=2), file)


def dry_run(config: TrainConfig) -> dict[str, float]:
    """What the run would cost, without its data: parameters, FLOPs and memory."""
    with torch.device("meta"):
        model = DiT(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    by_muon = sum(p.numel() for p in hidden_matrices(model)) if config.optimizer.name == "muon" else 0
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    lowest = config.budget.lowest if config.model.window is not None else None
    highest = config.budget.highest if config.model.window is not None else None
    model.set_checkpointing(config.checkpointing)
    return {
        "parameters": parameters,
        "forward_gflops_lowest": count_flops(model, lowest) / 1e9,
        "forward_gflops_highest": count_flops(model, highest) / 1e9,
        "step_gflops_highest": 3 * config.batch_size * count_flops(model, highest) / 1e9,
        "step_gflops_mean": 3 * config.batch_size * mean_flops(model, config.budget, config.flow) / 1e9,
        # weights, gradients, two moments (Muon: one) and the EMA, float32
        "state_bytes": 4 * (5 * parameters - by_muon),
        "activation_bytes_highest": activation_bytes(model, config.batch_size, highest, dtype),
    }
