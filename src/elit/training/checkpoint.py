"""Checkpoints of a run: whole or absent, and enough to go on exactly where the run stopped.

RUN/config.json                    the run's configuration
RUN/checkpoints/step_00001000/     a model folder of the EMA weights (config.json, model.safetensors, card.json), with
    training.safetensors           the raw weights and the optimisers' moments, float32, and
    training.json                  the number of steps done

Every random number of a run is a function of (seed, step), so there is no generator to save.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from elit.backbones.dit import DiT
from elit.bundled import Card, save_card
from elit.training.config import TrainConfig, flat
from elit.training.objective import Objective
from elit.training.optimizer import MOMENTS
from elit.weights import WEIGHTS_FILE, read_tensors, remove_folder, save_weights, whole_folder, write_whole

STATE_FILE, TENSORS_FILE = "training.json", "training.safetensors"


@dataclass
class TrainState:
    """What training changes: the model, the EMA of its weights by name, the optimisers, and the number of steps done.

    objective: what is minimised; it may have a projector, which learns too.
    """

    model: DiT
    ema: dict[str, Tensor]
    optimizers: tuple[torch.optim.Optimizer, ...]
    objective: Objective = field(default_factory=Objective)
    step: int = 0

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that learns, by name: the model's parameters, then those of alignment's projector."""
        yield from self.model.named_parameters()
        if self.objective.projector is not None:
            yield from self.objective.projector.named_parameters(prefix="projector")

    @property
    def optimizer_of(self) -> dict[Tensor, torch.optim.Optimizer]:
        """The optimiser that each parameter belongs to."""
        return {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}

    def update_ema(self, decay: float) -> None:
        """ema <- decay ema + (1 - decay) weights; at first the decay is (1 + step) / (10 + step), if that is lower."""
        weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
        names = list(self.ema)
        weights = dict(self.model.named_parameters())
        torch._foreach_lerp_([self.ema[n] for n in names], [weights[n].detach() for n in names], weight)


def open_run(config: TrainConfig) -> Path:
    """The run's folder, made or found. Raises ValueError where it holds a run of another configuration."""
    run = Path(config.out)
    file = run / "config.json"
    if run.is_file() or (run.is_dir() and any(p.suffix != ".part" for p in run.iterdir()) and not file.is_file()):
        raise ValueError(f"{run} exists and is not a training run; give another folder with --out")
    if file.is_file():
        try:
            old = flat(json.loads(file.read_text(encoding="utf8")))
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"{file} is not a run's configuration ({error}); give another folder with --out") from error
        new = flat(config.to_dict())
        differing = [
            f"{key} is {old.get(key)} there and {new.get(key)} now" for key in new | old if old.get(key) != new.get(key)
        ]
        if differing:
            raise ValueError(
                f"{run} holds a run of another config ({'; '.join(differing[:3])}); give another folder with --out"
            )
        return run
    run.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(config.to_dict(), indent=2) + "\n")
    return run


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / STATE_FILE).is_file())


def remove_unfinished(run: Path) -> None:
    """Removes what a kill left half-written or half-removed; such folders have hidden names and are never read."""
    for folder in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(folder)


def save_checkpoint(run: Path, state: TrainState, keep: int, card: Card | None = None) -> Path:
    """Writes a checkpoint beside its place, renames it there, and removes all but the last `keep`."""
    folder = run / "checkpoints" / f"step_{state.step:08d}"
    with whole_folder(folder) as part:
        save_weights(state.model, part, state.ema)
        save_card(card or Card(), part)
        tensors = {f"model.{name}": p.detach().cpu().contiguous() for name, p in state.trained()}
        optimizer_of = state.optimizer_of
        for name, p in state.trained():
            for key, value in optimizer_of[p].state[p].items():
                tensors[f"optimizer.{key}.{name}"] = value.detach().cpu().contiguous()
        save_file(tensors, part / TENSORS_FILE)
        (part / STATE_FILE).write_text(json.dumps({"step": state.step}) + "\n", encoding="utf8")
    for old in checkpoints(run)[: -max(keep, 1)]:
        remove_folder(old)
    return folder


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restores a state from a checkpoint, exactly. Raises ValueError for a truncated or foreign one."""
    tensors = read_tensors(folder / TENSORS_FILE)
    ema = read_tensors(folder / WEIGHTS_FILE)
    optimizer_of = state.optimizer_of
    try:
        with torch.no_grad():
            for name, average in state.ema.items():
                average.copy_(ema[name])
            for name, p in state.trained():
                p.copy_(tensors[f"model.{name}"])
                optimizer = optimizer_of[p]
                moments = {key: tensors[f"optimizer.{key}.{name}"] for key in MOMENTS[type(optimizer)]}
                optimizer.state[p] = {key: value.to(p.device, copy=True) for key, value in moments.items()}
        state.step = int(json.loads((folder / STATE_FILE).read_text(encoding="utf8"))["step"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{folder} is not a checkpoint of this run ({error}); remove it to go on from the one before"
        ) from error
