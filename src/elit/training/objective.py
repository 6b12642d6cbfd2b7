"""What a training step minimises: the flow's loss, and where asked distillation and alignment beside it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from elit.backbones.dit import DiT
from elit.flow import flow_loss
from elit.training.alignment import Aligner, Stored, make_aligner
from elit.training.batch import Batch
from elit.training.config import TrainConfig


@dataclass
class Objective:
    """flow + distill x distillation + weight x alignment; `parts` holds the last loss's summands, weighted, for the log.

    After a step, these are of this process's whole share of the batch.
    """

    teacher: DiT | None = None
    distill: float = 0.0
    aligner: Aligner | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def projector(self) -> nn.Module | None:
        """What learns beside the model."""
        return None if self.aligner is None else self.aligner.projector

    def __call__(self, model: DiT, batch: Batch) -> Tensor:
        """The loss of some samples, a scalar."""
        flow, labels_B = batch.flow, batch.labels
        velocity = model(flow.x_t, flow.t, labels_B, batch.budget)
        parts = {"flow": flow_loss(lambda x, t: velocity, flow)}
        if self.teacher is not None:
            with torch.no_grad():
                original = self.teacher(flow.x_t, flow.t, labels_B)
            parts["distillation"] = self.distill * (velocity.float() - original.float()).square().mean()
        if self.aligner is not None:
            assert batch.target is not None
            parts["alignment"] = self.aligner.loss(batch.target, model.config.grid)
        self.parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack(list(parts.values())).sum()


def make_objective(
    config: TrainConfig, model: DiT, teacher: DiT | None, device: torch.device, stored: Stored | None = None
) -> Objective:
    """The objective of a run. `teacher`: the model that the run starts from, kept only where it is distilled from.
    `stored`: of the data (see `alignment.stored_features`).

    The projector's weights come from the global generator, as the model's do. Raises ValueError for an encoder that
    cannot be loaded.
    """
    objective = Objective()
    if teacher is not None and config.finetune.distill:
        objective.teacher = teacher.to(device).eval().requires_grad_(False)
        objective.distill = config.finetune.distill
    if config.alignment.enabled:
        objective.aligner = make_aligner(config.alignment, model, device, stored)
    return objective
