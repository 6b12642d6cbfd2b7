"""Training in several processes: the same as in one, whatever their number, mesh and accumulation."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from by_config import draw_batch, load_data, make_state, train_step
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from elit.distributed import gathered, make_mesh, own_share, process_group, shard_model, sharded_like
from elit.training.checkpoint import checkpoints
from elit.training.config import TrainConfig
from elit.training.loop import train
from elit.training.muon import Muon
from elit.training.optimizer import with_moments
from ranks import run_ranks

Make = Callable[..., TrainConfig]
RUN = {"steps": 8, "batch_size": 6, "log__every": 1, "optimizer__warmup_steps": 3, "optimizer__clip": 0.1}


def curve(config: TrainConfig, name: str = "loss") -> list[float]:
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The averaged weights at the end."""
    return load_file(checkpoints(Path(config.out))[-1] / "model.safetensors")


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"accumulate": 4}),
        (2, {"parallel__replicate": 2, "accumulate": 2, "log__preview_every": 5}),
        (4, {"parallel__replicate": 2, "parallel__shard": 2, "checkpointing": "true"}),
        (2, {"optimizer__name": "muon"}),
    ],
    ids=["accumulated", "replicated and accumulated", "both and checkpointed", "muon"],
)
def test_any_number_of_processes_trains_alike(
    make_config: Make, tmp_path: Path, count: int, options: dict[str, object]
) -> None:
    """The curve of the loss is that of one process with the whole batch to 1e-5, and the averaged weights are alike.

    Muon's are left out: it moves a matrix as far along directions in which the gradient is nothing but rounding.
    """
    muon = {key: value for key, value in options.items() if key == "optimizer__name"}
    alone = make_config(out=tmp_path / "alone", **{**RUN, **muon})
    train(alone)
    config = make_config(out=tmp_path / "many", **{**RUN, **options})
    log = tmp_path / "log"
    assert run_ranks(count, lambda: train(config), log) == [0] * count, log.read_text()
    assert len(curve(alone)) == 8
    assert curve(config) == pytest.approx(curve(alone), rel=0, abs=1e-5)
    assert curve(alone)[0] - curve(alone)[-1] > 0.01  # the curve is not flat
    assert curve(config, "gradient_norm") == pytest.approx(curve(alone, "gradient_norm"), rel=1e-3 if muon else 1e-4)
    assert min(curve(alone, "gradient_norm")) > 0.1  # and every gradient is clipped
    far = max((weights(alone)[name] - tensor).abs().max().item() for name, tensor in weights(config).items())
    assert far < 1e-4 or muon


def losses(config: TrainConfig, compiled: bool, device: torch.device) -> list[float]:
    """Of two steps in this group of processes."""
    state, data, share = make_state(config, device), load_data(config), own_share(config.batch_size)
    if compiled:
        state.model.compile_blocks(backend="eager", fullgraph=True)
    return [train_step(config, state, draw_batch(config, data, step, share), device).loss.item() for step in range(2)]


def test_compiled_blocks_are_one_graph_each_between_the_shards(
    make_config: Make, tmp_path: Path, device: torch.device
) -> None:
    """FSDP gathers and lets go of weights outside the graphs, which are whole; the losses are those of one process."""
    torch._dynamo.reset()  # what other tests compiled, or gave up compiling, is forgotten
    config = make_config(**RUN, budget__lowest=0.5, budget__highest=0.5)

    def work() -> None:
        with process_group():
            assert losses(config, compiled=True, device=device) == pytest.approx(alone, rel=0, abs=1e-5)

    alone = losses(config, compiled=False, device=device)
    assert run_ranks(2, work, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()


def muon_step(shard: bool, device: torch.device) -> list[torch.Tensor]:
    """The whole of two matrices after two steps of Muon, on given gradients."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 1, bias=False))  # rows that two ranks cannot halve
    gradients = [[torch.randn(p.shape) for p in layers.parameters()] for _ in range(2)]
    if shard:
        shard_model(layers, layers, make_mesh(1, 2, device, timedelta(minutes=1)), torch.float32)
    muon = with_moments(Muon(list(layers.parameters()), lr=0.1, weight_decay=0.2, momentum=0.9))
    for given in gradients:
        for p, gradient in zip(layers.parameters(), given, strict=True):
            p.grad = sharded_like(gradient, p)
        muon.step()
    return [gathered(p.detach()) for p in layers.parameters()]


def test_muon_on_shards_is_muon(tmp_path: Path, device: torch.device) -> None:
    """Given the same gradients, steps on shards are bit for bit those on whole matrices."""

    def work() -> None:
        with process_group():
            sharded = muon_step(shard=True, device=device)
        for ours, whole in zip(sharded, muon_step(shard=False, device=device), strict=True):
            assert torch.equal(ours, whole)

    log = tmp_path / "log"
    assert run_ranks(2, work, log) == [0, 0], log.read_text()
