"""The flow of a run: a path, or of a model of several stages the flow of its pyramid; and what a step draws of it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from elit.backbones.config import DFMConfig
from elit.card import SamplingDefaults
from elit.flow import FlowPath, TimeLaw, shifted
from elit.pyramid import Pyramid, PyramidFlow, default_thresholds, default_weights, steps_by_stage
from elit.seeding import generator_for
from elit.training.config import FlowConfig, Trained

RunFlow = FlowPath | PyramidFlow


def make_flow(config: FlowConfig, model: Trained) -> RunFlow:
    """The flow that a model learns. Raises UserError for weights of stages that do not fit it."""
    path = FlowPath(config.path)
    if not isinstance(model, DFMConfig) or model.stages == 1:
        return path
    weights = default_weights(model.stages) if config.stage_weights is None else config.stage_weights
    return PyramidFlow(Pyramid(model.in_channels, model.stages), weights, path)


def path_of(flow: RunFlow) -> FlowPath:
    """The path of every stage."""
    return flow if isinstance(flow, FlowPath) else flow.path


def sampling_of(config: FlowConfig, flow: RunFlow) -> SamplingDefaults:
    """How samples of a run's model are drawn, as its card says."""
    usual = SamplingDefaults()
    if isinstance(flow, FlowPath):
        return replace(usual, shift=config.shift)
    stages, thresholds = flow.pyramid.stages, config.stage_thresholds
    steps = steps_by_stage(usual.steps if config.stage_steps is None else config.stage_steps, stages)
    return SamplingDefaults(
        tuple(steps), usual.guidance_scale, default_thresholds(stages) if thresholds is None else thresholds
    )


def active_stages(flow: RunFlow, seed: int, step: int) -> int:
    """How many stages a step trains, the same for all samples and ranks; 1 where there is one."""
    return 1 if isinstance(flow, FlowPath) else flow.draw_active(generator_for("stages", seed, step))


def noise_shape(flow: RunFlow, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a sample's noise: that of an image (C, H, W), or of its packed pyramid."""
    if isinstance(flow, FlowPath):
        return tuple(shape)
    _, height, width = shape
    halvings = 2 ** (flow.pyramid.stages - 1)
    return (sum(flow.pyramid.widths), height // halvings, width // halvings)


def draw_times(flow: RunFlow, active: int, law: TimeLaw, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """(active,) times of one sample. shift: of a flow of one stage (see `shifted`)."""
    if isinstance(flow, FlowPath):
        return shifted(law.draw(1, flow, generator), shift)
    return flow.draw_times(active, law, generator)


def global_times(flow: RunFlow, t_BA: Tensor) -> Tensor:
    """(B,) the times that a schedule of budgets goes by: those of the path, or the global ones of a pyramid's sampler.

    The last active stage's part begins at 1 - (A - 1) / S and is over at 1 - A / S.
    """
    return t_BA[:, 0] if isinstance(flow, FlowPath) else 1 - (t_BA.shape[1] - t_BA[:, -1]) / flow.pyramid.stages


def share_above(flow: RunFlow, law: TimeLaw, time: float, shift: float = 1.0) -> float:
    """The chance that `global_times` of a sample, moved by `shift`, is above a time in [0, 1]."""
    if isinstance(flow, FlowPath):
        return law.share_above(time / (shift + (1 - shift) * time), flow)
    stages, above = flow.pyramid.stages, 0.0
    for active, weight in enumerate(flow.weights, start=1):
        last = active - stages * (1 - time)  # the time of the last stage where the global one is `time`
        above += weight * law.share_above(min(1.0, max(0.0, last)), flow.path)
    return above
