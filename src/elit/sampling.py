"""`sample`: from labels to images in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from elit.backbones.dit import Budget, DiT
from elit.elastic.budget import Schedule
from elit.flow import Path
from elit.guidance import Guidance, guided_velocity
from elit.samplers import Callback, euler, euler_maruyama, heun
from elit.seeding import generator_for

SAMPLERS = ("euler", "heun", "euler_maruyama")


@torch.no_grad()
def sample(
    model: DiT,
    labels: Tensor | Sequence[int],
    sampler: str = "euler",
    steps: int = 50,
    budget: Budget | Schedule = None,
    guidance: Guidance = Guidance(),
    seed: int = 0,
    noise: Tensor | None = None,
    sde_noise: Tensor | None = None,
    path: Path | str = Path.LINEAR,
    callback_on_step_end: Callback | None = None,
) -> Tensor:
    """Images (B, C, H, W) float32, one for each label, from noise to data.

    Args:
        labels: B class indices; the null class, `model.null_class`, samples without a label.
        sampler: "euler", "heun" or "euler_maruyama"; steps: at least 1 (2 for euler_maruyama).
        budget: None (full), a fraction, one per image, or a `Schedule` over the steps.
        noise: (B, C, H, W) to start from; otherwise image i's comes from (seed, i) alone.
        sde_noise: (steps - 1, B, C, H, W) for euler_maruyama; otherwise from (seed, i) too.
        path: of the flow that the model was trained on, linear or cosine.
        callback_on_step_end: see `elit.samplers`.

    Raises ValueError for a label, budget, sampler, count of steps or shape that cannot be.
    """
    device = next(model.parameters()).device
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    if steps < (2 if sampler == "euler_maruyama" else 1):
        raise ValueError(f"{steps} steps are too few for {sampler}")
    labels = torch.as_tensor(labels, dtype=torch.long)
    if labels.ndim != 1 or not len(labels) or bool(((labels < 0) | (labels > model.null_class)).any()):
        raise ValueError(
            f"labels are one list of 0 to {model.null_class - 1}, and {model.null_class} for none, not {labels.tolist()}"
        )
    shape = (len(labels), model.config.in_channels, *model.input_shape)
    noise = image_noise(seed, shape) if noise is None else noise  # noise given in another size asks for that size
    if noise.ndim != 4 or noise.shape[:2] != shape[:2]:
        raise ValueError(f"noise is {shape} for this model and these labels, not {tuple(noise.shape)}")
    velocity = guided_velocity(model, labels.to(device), budget, guidance)
    x = noise.to(device)
    if sampler == "euler":
        return euler(velocity, x, steps, callback_on_step_end).float()
    if sampler == "heun":
        return heun(velocity, x, steps, callback_on_step_end).float()
    if sde_noise is None:
        sde_noise = image_noise(seed, (len(labels), steps - 1, *noise.shape[1:]), "sde").transpose(0, 1)
    if sde_noise.shape != (steps - 1, *noise.shape):
        raise ValueError(
            f"sde_noise is {(steps - 1, *noise.shape)} for these steps and labels, not {tuple(sde_noise.shape)}"
        )
    return euler_maruyama(velocity, x, steps, sde_noise, Path(path), callback_on_step_end).float()


def image_noise(seed: int, shape: Sequence[int], kind: str = "noise", first: int = 0) -> Tensor:
    """Standard normal (B, ...): image i's from (seed, first + i) alone, whatever the batch."""
    return torch.stack([torch.randn(*shape[1:], generator=generator_for(kind, seed, first + i)) for i in range(shape[0])])
