"""The network of the Fréchet Inception distance: Inception v3 (Szegedy et al., 2015), TensorFlow's graph of 2015-12-05.

It differs from the Inception v3 of torchvision in three ways: 1,008 classes, average pools that do not count the padding,
and a max pool in the last block. Parameters have torchvision's names, under which the graph's weights go round as
`pt_inception-2015-12-05-6726825d.pth`. The weights could not be fetched where this was written: that figures agree with
published ones is unverified; names, shapes, preprocessing and pools are tested.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.errors import UserError
from elit.outlines import without_memory

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"
SIDE, CLASSES, WIDTH = 299, 1008, 2048
SPATIAL_CHANNELS = 7


class InceptionOutputs(NamedTuple):
    """pool3 (N, 2048), of FID and KID; spatial (N, 2023), of sFID; logits (N, 1008), of the inception score."""

    pool3: Tensor
    spatial: Tensor
    logits: Tensor


class BatchNorm(nn.Module):
    """Batch normalisation by stored statistics, eps 1e-3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=1e-3)


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU. kernel: its side, or (height, width)."""

    def __init__(self, width_in: int, width: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(width_in, width, sides, stride, padding, bias=False)
        self.bn = BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average_pool(x: Tensor) -> Tensor:
    """3 x 3 at stride 1; at the edges the mean of the pixels there are, as TensorFlow's SAME has it."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Block35(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, and a pool of `pooled` channels."""

    def __init__(self, width_in: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(width_in, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(width_in, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(width_in, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(width_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(average_pool(x))], 1)


class Block35To17(nn.Module):
    """288 channels at 35 x 35 to 768 at 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(288, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class Block17(nn.Module):
    """768 channels at 17 x 17: 7x7 kernels as 1x7 and 7x1, of `width` channels inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        flat, tall = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Conv(768, width, 1),
            Conv(width, width, flat),
            Conv(width, 192, tall),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, width, 1), Conv(width, width, tall)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(width, width, flat), Conv(width, width, tall)
        self.branch7x7dbl_5 = Conv(width, 192, flat)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average_pool(x))], 1)


class Block17To8(nn.Module):
    """768 channels at 17 x 17 to 1,280 at 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class Block8(nn.Module):
    """To 2,048 channels at 8 x 8; `max_pooled` in the last block alone."""

    def __init__(self, width_in: int, max_pooled: bool) -> None:
        super().__init__()
        self.max_pooled = max_pooled
        self.branch1x1 = Conv(width_in, 320, 1)
        self.branch3x3_1 = Conv(width_in, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(width_in, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(width_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pooled else average_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """uint8 images (N, 3, H, W) of any size to `InceptionOutputs`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = Block35(192, 32), Block35(256, 64), Block35(288, 64)
        self.Mixed_6a = Block35To17()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = Block17(128), Block17(160), Block17(160), Block17(192)
        self.Mixed_7a = Block17To8()
        self.Mixed_7b, self.Mixed_7c = Block8(1280, max_pooled=False), Block8(2048, max_pooled=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images_NCHW: Tensor) -> InceptionOutputs:
        return self.of_ready(preprocess(images_NCHW))

    def of_ready(self, x_NCHW: Tensor) -> InceptionOutputs:
        """The outputs for what `preprocess` made."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_NCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        middle = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(middle))))
        pool3 = x.float().mean((2, 3))
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(pool3, self.fc.weight.float())
        return InceptionOutputs(pool3, spatial_features(middle), logits)


def spatial_features(middle_NCHW: Tensor) -> Tensor:
    """(N, 2023): the first 7 channels at 17 x 17 places, ordered row, column, channel.

    ADM's evaluator takes them of the tensor `mixed_6/conv`, the first branch of the graph's seventh mixed block (they are
    counted from `mixed`), which is the first part of the output of Mixed_6d.
    """
    return middle_NCHW[:, :SPATIAL_CHANNELS].float().permute(0, 2, 3, 1).flatten(1)


# The logits are without the bias, as the inception score has been computed since 2016 and ADM's evaluator computes it.


def preprocess(images_NCHW: Tensor) -> Tensor:
    """uint8 to (N, 3, 299, 299): TensorFlow 1's bilinear resize, then (x - 128) / 128."""
    return (resize_bilinear(images_NCHW.float(), SIDE) - 128) / 128


def resize_bilinear(images_NCHW: Tensor, side: int) -> Tensor:
    """`tf.image.resize_bilinear` of TensorFlow 1, align_corners and half_pixel_centers off, to a square.

    Output pixel i lies at i * (input / output), so the image shifts by half a pixel, and shrinking skips pixels. Float32
    with TensorFlow's order of operations. Nothing that torch has does the same.
    """
    top, bottom, down = _places(images_NCHW.shape[-2], side, images_NCHW.device)
    left, right, across = _places(images_NCHW.shape[-1], side, images_NCHW.device)

    def along_row(rows: Tensor) -> Tensor:
        a, b = rows[..., left], rows[..., right]
        return a + (b - a) * across

    upper, lower = along_row(images_NCHW[..., top, :]), along_row(images_NCHW[..., bottom, :])
    return upper + (lower - upper) * down[:, None]


def _places(size: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every output pixel: the input pixels on both sides, and how far it lies from the first to the second."""
    scale = torch.tensor(size, dtype=torch.float32) / side
    place = torch.arange(side, dtype=torch.float32) * scale
    first = place.long()
    second = (first + 1).clamp(max=size - 1)
    return first.to(device), second.to(device), (place - first).to(device)


def load_inception(weights: Path | None = None) -> Inception:
    """The network in eval mode, its weights from a file, or from torch hub's cache.

    Raises UserError where the file is not there, holds other tensors, or anything but tensors.
    """
    from elit.pickles import read_pickle
    from elit.weights import check_fit

    file = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE if weights is None else weights
    if not file.is_file():
        raise UserError(
            f"the Inception weights are not at {file}; fetch {WEIGHTS_URL} and put it there, or name it with --weights FILE"
        )
    state = read_pickle(file)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds no weights of Inception; fetch {WEIGHTS_URL}")
    tensors = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    with without_memory():
        network = Inception()
    check_fit(tensors, network.state_dict(), f"{file} does not hold the weights of this Inception")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
