"""Networks that turn images into features, behind one interface: EfficientNet-Lite0, SqueezeNet, Inception and others.

| name | network | side of images | features | distance |
|---|---|---|---|---|
| efficientnet-lite0 | EfficientNet-Lite0, of an installed package | 128, bicubic | 1,280, pooled | FD |
| squeezenet | SqueezeNet 1.1, which comes with the package | 128, bicubic | 512, pooled | FD |
| inception | Inception of 2015-12-05 | 299, TensorFlow 1's bilinear | 2,048, pooled; 2,023 spatial; logits | FID, sFID |
| dinov2 | DINOv2 ViT-L/14 (Oquab et al., 2023) | 224, bicubic | 1,024, the class token | FDD |
| a folder or hub id | AutoModel of transformers | its preprocessor's, bicubic | class token, or pooled map | FD |
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.encoder import load_backbone, preprocessor_file
from elit.errors import UserError
from elit.evaluation.features import (
    FEATURE_WIDTH,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INPUT_SIZE,
    efficientnet_features,
    load_efficientnet,
)
from elit.evaluation.inception import CLASSES, SIDE, SPATIAL_CHANNELS, WIDTH, load_inception
from elit.evaluation.squeezenet import SIDE as SQUEEZENET_SIDE
from elit.evaluation.squeezenet import WIDTH as SQUEEZENET_WIDTH
from elit.evaluation.squeezenet import load_squeezenet, squeezenet_features

NAMES = ("efficientnet-lite0", "squeezenet", "inception", "dinov2")
DINOV2 = "facebook/dinov2-large"


@dataclass(frozen=True)
class Outputs:
    """What a network makes of N images, float32: pooled (N, D); spatial (N, S) and logits (N, K) where it has them."""

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """Images (N, 3, H, W) uint8 to `Outputs`, on its own device.

    distance: what the Fréchet distance of its features is called. resize: what is done to the images. width,
    spatial_width, logits_width: of its outputs, 0 for none. fingerprint: a hash of the weights and of `resize`, so that
    features of one network are never compared with another's. dtype: of the matrix products.
    """

    name: str
    distance: str
    resize: str
    network: nn.Module
    forward: Callable[[Tensor], Outputs]
    width: int
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    spatial_width: int = 0
    logits_width: int = 0

    @torch.inference_mode()
    def __call__(self, pixels_NCHW: Tensor) -> Outputs:
        pixels = pixels_NCHW.to(self.device, non_blocking=True)
        precise = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # float32 means float32
        with precise, torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.forward(pixels)


def load_extractor(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, weights: Path | None = None
) -> Extractor:
    """The extractor of a name in `NAMES`, or of a folder or hub id of transformers.

    weights: a file for `inception`, elsewhere than in torch hub's cache. Raises UserError for an unknown name, and for
    weights that are not there, saying how to fetch them.
    """
    device = torch.device(device)
    if weights is not None and name != "inception":
        raise UserError(f"a file of weights is for the features inception; {name} takes none")
    if name == "efficientnet-lite0":
        return _efficientnet(device, dtype)
    if name == "squeezenet":
        return _squeezenet(device, dtype)
    if name == "inception":
        return _inception(device, dtype, weights)
    if name == "dinov2":
        return _transformers(name, DINOV2, device, dtype, "FDD", Preparation())
    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"there are no features {name!r}; known: {', '.join(NAMES)}, and any folder or hub id of a transformers model"
        )
    return _transformers(name, name, device, dtype, f"FD ({Path(name).name})", None)


def _efficientnet(device: torch.device, dtype: torch.dtype) -> Extractor:
    network = load_efficientnet().to(device)
    resize = f"bicubic, antialiased, to {INPUT_SIZE}"

    def forward(pixels: Tensor) -> Outputs:
        return Outputs(efficientnet_features(pixels, network, batch_size=max(1, len(pixels))).float())

    kind, distance = "efficientnet-lite0", "FD (EfficientNet-Lite0)"
    made = _hash(network, resize)
    return Extractor(kind, distance, resize, network, forward, FEATURE_WIDTH, made, device, dtype)


def _squeezenet(device: torch.device, dtype: torch.dtype) -> Extractor:
    network = load_squeezenet().to(device)
    resize = f"bicubic, antialiased, to {SQUEEZENET_SIDE}"

    def forward(pixels: Tensor) -> Outputs:
        return Outputs(squeezenet_features(pixels, network))

    kind, distance = "squeezenet", "FD (SqueezeNet)"
    return Extractor(kind, distance, resize, network, forward, SQUEEZENET_WIDTH, _hash(network, resize), device, dtype)


def _inception(device: torch.device, dtype: torch.dtype, weights: Path | None) -> Extractor:
    network = load_inception(weights).to(device)
    resize = f"bilinear as TensorFlow 1 (align_corners and half_pixel_centers off), to {SIDE}"

    def forward(pixels: Tensor) -> Outputs:
        return Outputs(*network(pixels))

    places = SPATIAL_CHANNELS * 17 * 17
    made = _hash(network, resize)
    return Extractor("inception", "FID", resize, network, forward, WIDTH, made, device, dtype, places, CLASSES)


@dataclass(frozen=True)
class Preparation:
    """Of images for a vision transformer: the side they are resized to, and the mean and deviation of each channel."""

    side: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, pixels_NCHW: Tensor) -> Tensor:
        """Pixels / 255, bicubic with antialias in float32 (not clamped, as EDM2 has it), normalised."""
        x = pixels_NCHW.float() / 255
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


def _transformers(
    name: str, source: str, device: torch.device, dtype: torch.dtype, distance: str, preparation: Preparation | None
) -> Extractor:
    network = load_backbone(source).to(device)
    if name == "dinov2":
        place_as_published(network, preparation or Preparation())
    prepare = preparation or read_preparation(preprocessor_file(source), network.config)
    resize = f"bicubic, antialiased, to {prepare.side}, mean {list(prepare.mean)}, deviation {list(prepare.std)}"

    def forward(pixels: Tensor) -> Outputs:
        return Outputs(pooled_output(network(pixel_values=prepare(pixels))).float())

    try:
        with torch.no_grad():
            width = forward(torch.zeros(1, 3, prepare.side, prepare.side, dtype=torch.uint8, device=device)).pooled.shape[1]
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError(f"{source} makes no features of images ({why}); give a vision model, such as {DINOV2}") from error
    return Extractor(name, distance, resize, network, forward, width, _hash(network, resize), device, dtype)


def place_as_published(network: nn.Module, preparation: Preparation) -> None:
    """Resamples DINOv2's table of positions as its authors' code does, and so the published FDD (Stein et al., 2023; EDM2).

    They scale the table by (n + 0.1) / m and not by n / m, for n patches and m places in a row, which moves every position
    a little: transformers does not.
    """
    embeddings: Any = network.embeddings
    config: Any = network.config
    table_1PD = embeddings.position_embeddings
    places = math.isqrt(table_1PD.shape[1] - 1)
    patches = preparation.side // config.patch_size
    if patches == places:
        return
    grid = table_1PD[:, 1:].unflatten(1, (places, places)).permute(0, 3, 1, 2)
    scale = float((patches + 0.1) / places)
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    embeddings.position_embeddings = nn.Parameter(torch.cat([table_1PD[:, :1], grid], 1), requires_grad=False)


def pooled_output(out: Any) -> Tensor:
    """The class token, the first of (N, tokens, D), after the last norm; or the mean over the places of (N, D, H, W).

    A square number of tokens has no class token among them: it is a map, too.
    """
    last: Tensor = out.last_hidden_state
    if last.ndim == 4:
        return last.mean((2, 3))
    return last.mean(1) if math.isqrt(last.shape[1]) ** 2 == last.shape[1] else last[:, 0]


def read_preparation(file: Path | None, config: Any) -> Preparation:
    """What a preprocessor_config.json says of side, mean and deviation; the config's image size and ImageNet's without."""
    if file is None:
        side = getattr(config, "image_size", 224)
        return Preparation(side if isinstance(side, int) and "dinov2" not in config.model_type else 224)
    try:
        values = json.loads(file.read_text(encoding="utf8"))
        size = values.get("crop_size") or values.get("size") or {}
        side = size if isinstance(size, int) else int(size.get("height") or size.get("shortest_edge") or 224)
        mean, std = (
            tuple(float(x) for x in values.get(key, default))
            for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
        if side < 1 or len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise UserError("a side, three means and three deviations are needed")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not say how images are prepared ({error}); mend or remove it") from error
    return Preparation(side, mean, std)


def _hash(network: nn.Module, resize: str) -> str:
    digest = hashlib.sha256(resize.encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
