"""What Read attends to, beside where the model errs: maps over the tokens of images.

Shapes: B batch, N tokens, G groups, S tokens in a group, J latents in a group, K latents kept, C width, H heads,
D head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elit.backbones.layers import patchify
from elit.elastic.core import LatentCore
from elit.elastic.grouping import ungroup
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.metrics import rank_correlation
from elit.flow import FlowPath, FlowSample
from elit.pyramid import Pyramid
from elit.read_attention import captured_reads
from elit.sampling import image_noise

DRAWS = 4  # of the noise: the loss of one draw is noise itself
BATCH = 8


@dataclass(frozen=True)
class ReadMaps:
    """At one time, means over draws of the noise. A latent's weights over its window's tokens sum to 1.

    attention: (B, G, J, S), of the full budget's Read, the mean of its heads and layers. token_attention: (B, N), their
    sum over the latents, row by row. loss: (B, N), the flow-matching loss of every patch, row by row: a mean square, or of
    a model of several stages the sum of theirs.
    """

    t: float
    attention: Tensor
    token_attention: Tensor
    loss: Tensor


@torch.no_grad()
def read_maps(
    model: ElasticModel,
    images: Tensor,
    labels: Tensor,
    t: float,
    path: FlowPath,
    seed: int,
    done: Callable[[], None] | None = None,
) -> ReadMaps:
    """The maps of images (B, C, H, W) with labels (B,) at time t, on the flow's path; `done` is called after every draw.

    In a model of several stages all of them are at that time.

    Raises UserError for a dense model, which has no Read, and where a window holds one token.
    """
    core = require_read(model)
    device = next(model.parameters()).device
    images = Pyramid(images.shape[1], model.stages).decompose(images)  # one stage is the images themselves
    attention, loss = [], []
    for draw in range(DRAWS):
        noise = image_noise(seed, images.shape, f"read{draw}")
        parts = []
        for x, eps, y in zip(images.split(BATCH), noise.split(BATCH), labels.split(BATCH), strict=True):
            times = torch.full((len(x),), t, device=device)
            parts.append(_batch(model, core, path.interpolate(x.to(device), eps.to(device), times), y.to(device)))
        attention.append(torch.cat([part[0] for part in parts]))
        loss.append(torch.cat([part[1] for part in parts]))
        if done is not None:
            done()
    attention_BGJS = torch.stack(attention).mean(0)
    token_attention_BN = ungroup(attention_BGJS.sum(2)[..., None], model.config.grid, core.window)[..., 0]
    return ReadMaps(t, attention_BGJS, token_attention_BN, torch.stack(loss).mean(0))


def require_read(model: ElasticModel) -> LatentCore:
    """The core of a model whose Read has something to choose from; ValueError for any other."""
    if model.core is None:
        raise UserError("this model is dense and has no Read to look at; give an elastic one")
    if model.core.levels.latents < 2:
        raise UserError("each window of this model holds one token, so its Read has nothing to choose; give another model")
    return model.core


def _batch(model: ElasticModel, core: LatentCore, sample: FlowSample, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, G, J, S) and loss (B, N) of one batch at one draw of the noise."""
    with captured_reads(core) as found:
        error = model(sample.x_t, sample.t, labels).float() - sample.velocity
    widths = Pyramid(model.samples.channels, model.stages).widths
    losses = [patchify(stage, model.input.patch).mean(-1) for stage in error.square().split(widths, dim=1)]
    return torch.stack(found).mean(0).float().cpu(), torch.stack(losses).sum(0).cpu()


def latent_map(maps: ReadMaps, latent: int, model: ElasticModel) -> Tensor:
    """(B, N) weights of one latent of every group, each window showing its own."""
    core = require_read(model)
    return ungroup(maps.attention[:, :, latent, :, None], model.config.grid, core.window)[..., 0]


def correlations(attention_BN: Tensor, loss_BN: Tensor) -> list[float]:
    """Spearman's rank correlation over the tokens, image by image."""
    return [rank_correlation(a, b) for a, b in zip(attention_BN, loss_BN, strict=True)]


def mean_maps(maps: Sequence[ReadMaps]) -> tuple[Tensor, Tensor]:
    """Attention and loss (B, N), each the mean over the times."""
    return torch.stack([m.token_attention for m in maps]).mean(0), torch.stack([m.loss for m in maps]).mean(0)
