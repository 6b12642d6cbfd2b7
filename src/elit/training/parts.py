"""A configuration taken apart: what each part of a run is told, and nothing else."""

from dataclasses import dataclass
from datetime import timedelta

import torch

from elit.card import SamplingDefaults
from elit.flow import FlowPath
from elit.training.batch import Draws
from elit.training.budgets import schedule_levels
from elit.training.config import LogConfig, RunConfig, TrainConfig
from elit.training.finetune import OwnOrigin
from elit.training.flows import make_flow, sampling_of
from elit.training.objective import Aims
from elit.training.step import Rules, Start, products_of


@dataclass(frozen=True)
class Course:
    """How a run goes on from step to step.

    seed: of the order in which a stream is read. steps: in all. skip_limit: steps in a row that may be skipped.
    workers: that read batches ahead. compile: whether the blocks are compiled. timeout: after which a process is lost.
    log: what is left behind on the way. evaluate_every: steps between measurements, 0 for none. path, sampling: what the
    model's card says.
    """

    seed: int
    steps: int
    skip_limit: int
    workers: int
    compile: bool
    timeout: timedelta
    log: LogConfig
    evaluate_every: int
    path: FlowPath
    sampling: SamplingDefaults


@dataclass(frozen=True)
class Parts:
    """What decides the state, the batches and the steps of a run, and how it goes on."""

    start: Start
    draws: Draws
    rules: Rules
    course: Course


def take_apart(config: TrainConfig, device: torch.device) -> Parts:
    """The parts of a configuration, which run on a device."""
    products, flow = products_of(config.dtype, device), make_flow(config.flow, config.model)
    aims = Aims(flow, config.finetune.distill, config.alignment, schedule_levels(config.budget, config.model))
    origin = OwnOrigin(config.model, config.init_from)
    start = Start(origin, config.seed, config.checkpointing, aims, config.optimizer, config.parallel, products)
    draws = Draws(config.seed, config.batch_size, config.model, config.flow, config.budget, config.alignment)
    first = config.finetune.interface_first
    rules = Rules(config.batch_size, config.accumulate, config.steps, first, config.optimizer, products)
    sampling = sampling_of(config.flow, flow)
    return Parts(start, draws, rules, course_of(config, FlowPath(config.flow.path), sampling, config.evaluate.every))


def course_of(config: RunConfig, path: FlowPath, sampling: SamplingDefaults, evaluate_every: int = 0) -> Course:
    """How a run of any configuration goes on."""
    return Course(
        seed=config.seed,
        steps=config.steps,
        skip_limit=config.skip_limit,
        workers=config.data.workers,
        compile=config.compile,
        timeout=timedelta(seconds=config.parallel.timeout),
        log=config.log,
        evaluate_every=evaluate_every,
        path=path,
        sampling=sampling,
    )
