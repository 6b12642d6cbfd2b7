"""The parts of training, asked for by a whole configuration as a run takes it apart."""

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from elit.codec import Codec
from elit.data.loader import Data, Stored
from elit.training import batch, loop, run_folder, samples, step
from elit.training.batch import Batch
from elit.training.config import TrainConfig
from elit.training.evaluation import Evaluator
from elit.training.parts import take_apart
from elit.training.run_folder import Reads
from elit.training.step import Taken, TrainState

CPU = torch.device("cpu")


def load_data(config: TrainConfig) -> Data:
    return loop.load_data(config.data, config.model)


def draw_batch(config: TrainConfig, data: Data, number: int, share: range | None = None) -> Batch:
    return batch.draw_batch(take_apart(config, CPU).draws, data, number, share)


def make_state(config: TrainConfig, device: torch.device, stored: Stored | None = None) -> TrainState:
    return step.make_state(take_apart(config, device).start, stored)


def batch_loss(
    config: TrainConfig, state: TrainState, drawn: Batch, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    return step.batch_loss(take_apart(config, device).rules.products, state, drawn)


def train_step(
    config: TrainConfig, state: TrainState, drawn: Batch, device: torch.device, flags: Sequence[bool] = ()
) -> Taken:
    return step.train_step(take_apart(config, device).rules, state, drawn, flags)


def reads_of(config: TrainConfig, data: Data) -> Reads:
    return run_folder.reads_of(config.data.source, data, config.init_from)


def run_of(config: TrainConfig, data: Data, state: TrainState, codec: Codec | None, device: torch.device) -> loop.Run:
    """A run that is not asked to stop."""
    found = loop.Found(data, codec, None, reads_of(config, data), goes_on=False, notice=None)
    return loop.Run(take_apart(config, device), found, state, threading.Event())


def make_evaluator(
    config: TrainConfig, data: Data, state: TrainState, codec: Codec | None, device: torch.device
) -> Evaluator:
    run = run_of(config, data, state, codec, device)
    return loop.make_evaluator(config.evaluate, config.data.source, Path(config.out), run)


def save_preview(config: TrainConfig, state: TrainState, codec: Codec, device: torch.device, file: Path) -> None:
    data = load_data(config)
    sampler = run_of(config, data, state, codec, device).sampler(codec)
    samples.save_preview(sampler, config.log.preview_budgets, data.label_names, state, file)
