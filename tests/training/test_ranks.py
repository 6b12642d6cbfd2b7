"""Training in several processes: the same as in one, whatever their number, mesh and accumulation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elit.training.checkpoint import checkpoints
from elit.training.config import TrainConfig
from elit.training.loop import train
from ranks import run_ranks

Make = Callable[..., TrainConfig]
RUN = {"steps": 8, "batch_size": 6, "log__every": 1, "optimizer__warmup_steps": 3, "log__checkpoint_every": 4}


def losses(config: TrainConfig) -> list[float]:
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars("loss")]


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The averaged weights at the end."""
    return load_file(checkpoints(Path(config.out))[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Curves and weights of one process, by the optimiser's name; filled as they are asked for."""
    return {}


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"accumulate": 4}),
        (2, {}),
        (2, {"parallel__replicate": 2, "accumulate": 2, "log__preview_every": 5}),
        (4, {"parallel__replicate": 2, "parallel__shard": 2, "checkpointing": "true"}),
        (2, {"optimizer__name": "muon"}),
    ],
    ids=["accumulated", "sharded", "replicated and accumulated", "both and checkpointed", "muon"],
)
def test_any_number_of_processes_trains_alike(
    make_config: Make, tmp_path: Path, count: int, options: dict[str, object]
) -> None:
    """The curve of the loss is that of one process with the whole batch to 1e-5, and so are the averaged weights."""
    muon = {key: value for key, value in options.items() if key == "optimizer__name"}
    alone = make_config(out=tmp_path / "alone", **{**RUN, **muon})
    train(alone)
    config = make_config(out=tmp_path / "many", **{**RUN, **options})
    log = tmp_path / "log"
    assert run_ranks(count, lambda: train(config), log) == [0] * count, log.read_text()
    assert len(losses(alone)) == 8
    assert losses(config) == pytest.approx(losses(alone), rel=0, abs=1e-5)
    assert losses(alone)[0] - losses(alone)[-1] > 0.01 or muon  # the curve is not flat
    far = max((weights(alone)[name] - tensor).abs().max().item() for name, tensor in weights(config).items())
    assert far < (2e-3 if muon else 1e-4)
