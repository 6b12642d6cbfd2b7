"""SqueezeNet 1.1 (Iandola et al., 2016, arXiv 1602.07360), a second network of features: 512 numbers of an image.

Its weights come with the package in half precision, without the classifier: `python benchmarks/squeezenet_weights.py` made
them of those of ndf (MIT), whose own forward it follows: the first convolution is padded below and on the right, as
TensorFlow pads, and the pools round down. ndf leaves the preparation to its users. What it is shows in what the classifier
knows (the script says it): pixels of 0 to 255 less their mean, in the order blue, green, red; here red, green, blue.

Shapes: N images, C channels, H and W places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.bundled import REFERENCE
from elit.evaluation.features import resized
from elit.weights import check_fit, read_tensors

FILE = REFERENCE / "squeezenet.safetensors"
WIDTH = 512
SIDE = 128
MEAN = (123.68, 116.779, 103.939)  # of ImageNet's red, green and blue


class Fire(nn.Module):
    """A fire module: few channels by 1 x 1, from these many by 1 x 1 and as many by 3 x 3, one after the other."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        squeezed = F.relu(self.squeeze(x_NCHW))
        return F.relu(torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1))


class SqueezeNet(nn.Module):
    """Images (N, 3, H, W) in [0, 1], of even sides, to (N, 512): the mean of the last fire module over its places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.fire2, self.fire3 = Fire(64, 16, 64), Fire(128, 16, 64)
        self.fire4, self.fire5 = Fire(128, 32, 128), Fire(256, 32, 128)
        self.fire6, self.fire7 = Fire(256, 48, 192), Fire(384, 48, 192)
        self.fire8, self.fire9 = Fire(384, 64, 256), Fire(512, 64, 256)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        mean = torch.tensor(MEAN, device=images_NCHW.device).view(1, 3, 1, 1)
        x = F.pad(images_NCHW * 255 - mean, (0, 1, 0, 1))
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2)
        x = F.max_pool2d(self.fire3(self.fire2(x)), 3, 2)
        x = F.max_pool2d(self.fire5(self.fire4(x)), 3, 2)
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return x.float().mean((2, 3))


def load_squeezenet() -> SqueezeNet:
    """The network in eval mode, in float32, with the weights that come with the package."""
    network, tensors = SqueezeNet(), read_tensors(FILE)
    check_fit(tensors, network.state_dict(), f"{FILE} does not hold SqueezeNet's weights")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.eval()


def squeezenet_features(images_NCHW: Tensor, network: nn.Module) -> Tensor:
    """(N, 512) float32 features of images (N, 3, H, W) uint8, resampled (bicubic, antialiased) to 128 x 128."""
    return network(resized(images_NCHW, SIDE))
