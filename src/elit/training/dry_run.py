"""What a run would cost, computed without its data."""

from dataclasses import dataclass
from pathlib import Path

from elit.cost import activation_bytes, count_flops
from elit.data.emoji import SPLITS
from elit.data.moving_emoji import is_moving_emoji
from elit.distributed import local_device
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.training.budgets import mean_flops, run_flops
from elit.training.config import TrainConfig
from elit.training.step import DTYPES
from elit.weights import load_config, model_in, outline


@dataclass(frozen=True)
class Cost:
    """FLOPs, and the memory of each process of `config.parallel`'s mesh, one process where it names none.

    Of a run that is distilled both hold its frozen original, which each process holds whole. Alignment's encoder is in none.

    state_bytes: weights, gradients, two moments (Muon: one) and the EMA, float32. rank_state_bytes: 1/shard of that.
    rank_gathered_bytes: the whole weights of the two largest units in a row, the one in use and the next, in the run's
    dtype, and what belongs to no unit; with accumulation also the whole gradients, float32, which are summed before they
    are sent. Activations are those of the largest part that runs at once.
    """

    parameters: int
    forward_gflops_lowest: float
    forward_gflops_highest: float
    step_gflops_highest: float
    step_gflops_mean: float
    state_bytes: int
    ranks: int
    rank_state_bytes: float
    rank_gathered_bytes: float
    activation_bytes_highest: float


def dry_run(config: TrainConfig) -> Cost:
    """What a run would cost. Raises UserError for a device that is not here."""
    local_device(config.device)
    model = outline(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    by_muon = sum(p.numel() for p in model.hidden_matrices()) if config.optimizer.name == "muon" else 0
    dtype = DTYPES[config.dtype]
    highest = config.budget.highest if config.model.window is not None else None
    model.set_checkpointing(config.checkpointing)
    shard = config.parallel.shard or 1
    ranks = shard * config.parallel.replicate
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in model.units()]
    largest = max((a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)), default=0)
    gathered = dtype.itemsize * largest + 4 * (parameters - sum(sizes)) if ranks > 1 else 0
    if ranks > 1 and config.accumulate > 1:
        gathered += 4 * parameters
    state = 4 * (5 * parameters - by_muon)
    flops = run_flops(model, config.budget, config.flow)
    original = original_of(config)
    beside, held = (0, 0) if original is None else (count_flops(original), 4 * sum(p.numel() for p in original.parameters()))
    return Cost(
        parameters=parameters,
        forward_gflops_lowest=flops.lowest / 1e9,
        forward_gflops_highest=flops.highest / 1e9,
        step_gflops_highest=config.batch_size * (3 * flops.highest + beside) / 1e9,
        step_gflops_mean=config.batch_size * (3 * flops.mean + beside) / 1e9,
        state_bytes=state + held,
        ranks=ranks,
        rank_state_bytes=state / shard + held,
        rank_gathered_bytes=gathered,
        activation_bytes_highest=activation_bytes(
            model, -(-config.batch_size // (ranks * config.accumulate)), highest, dtype
        ),
    )


def step_flops(config: TrainConfig) -> float:
    """FLOPs of a training step, forward and backward of the whole batch, on average over the budgets that it draws.

    With those of the forward of what it is distilled from.
    """
    original = original_of(config)
    beside = 0 if original is None else count_flops(original)
    return config.batch_size * (3 * mean_flops(outline(config.model), config.budget, config.flow) + beside)


def original_of(config: TrainConfig) -> ElasticModel | None:
    """What a run is distilled from, without its weights: the model itself where that is not there yet, None for none."""
    if not config.finetune.distill:
        return None
    assert config.init_from is not None
    try:
        return outline(load_config(model_in(Path(config.init_from).expanduser())))  # a hub's is not fetched for this
    except UserError:
        return outline(config.model)


def missing(config: TrainConfig) -> list[str]:
    """What a run of this configuration reads and does not find here, a sentence each."""
    found, source, start = [], config.data.source, config.init_from
    if source not in SPLITS and not is_moving_emoji(source) and "://" not in source and not Path(source).is_dir():
        found.append(f"data.source {source} is not there")
    if start is not None and not Path(start).exists() and start.count("/") != 1:  # which a hub's names have
        found.append(f"init_from {start} is not there")
    return found
