"""What a training step minimises: the flow's loss, and where asked distillation and alignment beside it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from elit.backbones.dit import Budget, DiT
from elit.elastic import Grid
from elit.encoder import VisionEncoder, load_encoder
from elit.flow import FlowSample, flow_loss
from elit.training.alignment import Projector, Tap, alignment_loss, resample_tokens
from elit.training.config import TrainConfig, alignment_depth


@dataclass
class Aligner:
    """The parts of alignment: whose tokens are taken, what projects them, and whose they should be like."""

    tap: Tap
    projector: nn.Module
    encoder: VisionEncoder
    weight: float

    def loss(self, images_BCHW: Tensor, grid: Grid) -> Tensor:
        """Of the forward that has just been, on uint8 images (B, 3, H, W), at a model grid of tokens."""
        target = self.encoder.encoder_tokens(images_BCHW)
        rows, columns = self.encoder.grid(images_BCHW.shape[-2], images_BCHW.shape[-1])
        tokens = self.projector(self.tap.take())
        return self.weight * alignment_loss(tokens, resample_tokens(target, Grid(rows, columns), grid))


@dataclass
class Objective:
    """flow + distill x distillation + weight x alignment; `parts` holds the last loss's summands, weighted, for the log."""

    teacher: DiT | None = None
    distill: float = 0.0
    aligner: Aligner | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def projector(self) -> nn.Module | None:
        """What learns beside the model."""
        return None if self.aligner is None else self.aligner.projector

    def __call__(
        self, model: nn.Module, grid: Grid, flow: FlowSample, labels_B: Tensor, budget: Budget, images: Tensor | None
    ) -> Tensor:
        """The loss of a batch, a scalar. `images`: uint8 (B, 3, H, W), which alignment looks at."""
        velocity = model(flow.x_t, flow.t, labels_B, budget)
        parts = {"flow": flow_loss(lambda x, t: velocity, flow)}
        if self.teacher is not None:
            with torch.no_grad():
                original = self.teacher(flow.x_t, flow.t, labels_B)
            parts["distillation"] = self.distill * (velocity.float() - original.float()).square().mean()
        if self.aligner is not None:
            assert images is not None
            parts["alignment"] = self.aligner.loss(images, grid)
        self.parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack(list(parts.values())).sum()


def make_objective(config: TrainConfig, model: DiT, teacher: DiT | None, device: torch.device) -> Objective:
    """The objective of a run. `teacher`: the model that the run starts from, kept only where it is distilled from.

    The projector's weights come from the global generator, as the model's do. Raises ValueError for an encoder that
    cannot be loaded.
    """
    objective = Objective()
    if teacher is not None and config.finetune.distill:
        objective.teacher = teacher.to(device).eval().requires_grad_(False)
        objective.distill = config.finetune.distill
    if config.alignment.on:
        encoder = load_encoder(config.alignment.encoder, device)
        projector = Projector(config.model.width, config.alignment.width, encoder.width).to(device)
        tap = Tap(model.blocks[alignment_depth(config.alignment, config.model) - 1])
        objective.aligner = Aligner(tap, projector, encoder, config.alignment.weight)
    return objective
