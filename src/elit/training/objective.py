"""What a training step minimises: the flow's loss, and where asked distillation and alignment beside it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from elit.data.loader import Stored
from elit.distributed import world_size
from elit.elastic.levels import Budget, PerSample
from elit.elastic.model import ElasticModel
from elit.flow import Flow, FlowPath
from elit.training.alignment import Aligner, make_aligner
from elit.training.batch import Batch
from elit.training.config import AlignmentConfig
from elit.training.flows import RunFlow


@dataclass(frozen=True)
class Aims:
    """What a run's loss is made of.

    distill: weight of the distance to the model that the run starts from. levels: every level that the budgets of samples
    may ask for, where they differ by the sample.
    """

    flow: RunFlow
    distill: float
    alignment: AlignmentConfig
    levels: tuple[int, ...] = ()


@dataclass
class Objective:
    """flow + distill x distillation + weight x alignment.

    always: levels that every process runs in every step, with no sample too, where budgets differ by the sample: sharded
    weights are gathered by all of them at once.
    """

    flow: Flow = FlowPath.LINEAR
    teacher: ElasticModel | None = None
    distill: float = 0.0
    aligner: Aligner | None = None
    always: tuple[int, ...] = ()

    @property
    def projector(self) -> nn.Module | None:
        """What learns beside the model."""
        return None if self.aligner is None else self.aligner.projector

    def summands(self, model: ElasticModel, batch: Batch) -> dict[str, Tensor]:
        """The loss of some samples as what it is the sum of, by name: scalars, weighted."""
        sample = batch.flow
        velocity = model(sample.x_t, sample.t, batch.labels, self.budget(model, batch))
        parts = {"flow": self.flow.loss(velocity, sample)}
        if self.teacher is not None:
            with torch.no_grad():
                original = self.teacher(sample.x_t, sample.t, batch.labels)
            parts["distillation"] = self.distill * self.flow.loss(velocity, replace(sample, velocity=original.float()))
        if self.aligner is not None:
            assert batch.target is not None
            parts["alignment"] = self.aligner.loss(batch.target, model.config.grid)
        return parts

    def budget(self, model: ElasticModel, batch: Batch) -> Budget:
        """The batch's budget, as the levels of its samples and those that run anyhow where there are such."""
        if not self.always or not isinstance(batch.budget, Tensor):
            return batch.budget
        return PerSample(tuple(model.levels.of(budget) for budget in batch.budget.tolist()), self.always)


def make_objective(
    aims: Aims,
    model: ElasticModel,
    teacher: ElasticModel | None,
    device: torch.device,
    stored: Stored | None = None,
) -> Objective:
    """The objective of a run. `teacher`: the model that the run starts from, kept only where it is distilled from.
    `stored`: of the data (see `alignment.stored_features`).

    The projector's weights come from the global generator, as the model's do. Raises UserError for an encoder that
    cannot be loaded.
    """
    objective = Objective(aims.flow)
    if world_size() > 1:
        objective.always = aims.levels
    if teacher is not None and aims.distill:
        objective.teacher = teacher.to(device).eval().requires_grad_(False)
        objective.distill = aims.distill
    if aims.alignment.enabled:
        objective.aligner = make_aligner(aims.alignment, model, device, stored)
    return objective
