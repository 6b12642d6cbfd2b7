"""Features of the embedded network, and the linear probe on features."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from elit.evaluation.features import (
    FEATURE_WIDTH,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INPUT_SIZE,
    LinearProbe,
    efficientnet_features,
    load_efficientnet,
)
from elit.pixels import to_float, to_uint8
from elit.seeding import generator_for


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return load_efficientnet()


def smooth_images(count: int, size: int = 32) -> Tensor:
    """Random smooth images in [-1, 1]."""
    coarse = torch.randn(count, 3, 5, 5, generator=generator_for("features test")) * 2
    return F.interpolate(coarse, (size, size), mode="bicubic").tanh()


def toy(per_class: int = 30, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Three clouds of features of unequal scales and offsets, and their labels."""
    generator = generator_for("probe test")
    labels = torch.arange(3).repeat(per_class)
    centres = torch.tensor([[0.0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 5, 0]])[labels]
    x = centres + spread * torch.randn(len(labels), 4, generator=generator)
    return x * torch.tensor([1.0, 100.0, 0.01, 3.0]) + torch.tensor([0.0, 1e3, -5.0, 7.0]), labels


def probe_loss(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> Tensor:
    """Cross entropy of standardised features over sqrt(D), with the squared weights times the penalty, written out."""
    z = (x.double() - x.double().mean(0)) / x.double().std(0) / math.sqrt(x.shape[1])
    logits = z @ weight.T + bias
    own = logits[torch.arange(len(x)), labels]
    return (logits.exp().sum(1).log() - own).mean() + penalty * (weight**2).sum()


@pytest.mark.parametrize("penalty", [1e-2, 1e-4])
def test_probe_is_at_the_minimum(penalty: float) -> None:
    """The gradient vanishes, and weights and biases moved in any of many directions do worse."""
    x, labels = toy(spread=2.5)
    probe = LinearProbe(x, labels, penalty)
    weight, bias = (p.detach().clone().requires_grad_() for p in (probe.weight, probe.bias))
    loss = probe_loss(x, labels, weight, bias, penalty)
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-5
    generator = generator_for("directions")
    for _ in range(50):
        steps = [0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in (weight, bias)]
        steps[1] -= steps[1].mean()  # one bias added to every class changes nothing
        assert probe_loss(x, labels, weight + steps[0], bias + steps[1], penalty) > loss


def test_probe_tells_separable_classes_apart() -> None:
    """Clouds far apart are classified without error, on new samples as well, whatever the features' scales."""
    x, labels = toy(per_class=60)
    probe = LinearProbe(x[:90], labels[:90])
    assert torch.equal(probe.predict(x[90:]), labels[90:])
    assert probe.accuracy(x[90:], labels[90:]) == 1.0
    wrong = (labels[90:] + torch.arange(90).lt(9)) % 3
    assert probe.accuracy(x[90:], wrong) == pytest.approx(0.9)


def test_probe_on_noise_knows_no_more_than_the_shares() -> None:
    """Where features tell nothing, a strong penalty leaves the commonest class."""
    x = torch.randn(200, 4, generator=generator_for("noise probe"))
    labels = torch.tensor([1] * 120 + [0] * 80)
    probe = LinearProbe(x, labels, penalty=100.0)
    assert probe.predict(x).tolist() == [1] * 200
    torch.testing.assert_close(
        probe.bias.detach().softmax(0), torch.tensor([0.4, 0.6], dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_probe_bears_a_feature_that_never_changes() -> None:
    """A constant feature, which has no deviation to divide by, does no harm."""
    x, labels = toy()
    probe = LinearProbe(torch.cat([x, torch.full((len(x), 1), 3.0)], dim=1), labels)
    assert probe.accuracy(torch.cat([x, torch.full((len(x), 1), 3.0)], dim=1), labels) == 1.0


def test_features_do_not_depend_on_the_batch(network: nn.Module) -> None:
    """One image at a time or all at once; every finished batch is told."""
    images, told = smooth_images(5), []
    together = efficientnet_features(images, network)
    alone = efficientnet_features(images, network, batch_size=2, done=told.append)
    assert together.shape == (5, FEATURE_WIDTH)
    assert together.dtype == torch.float32
    assert told == [2, 2, 1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(efficientnet_features(images.flip(0), network), together.flip(0), rtol=1e-4, atol=1e-5)


def test_features_are_those_of_the_8_bit_image(network: nn.Module) -> None:
    """A float image and the file it would be saved as have the same features; values out of range are clamped."""
    images = smooth_images(3) * 1.2
    assert images.abs().max() > 1
    saved = to_float(to_uint8(images))
    assert not torch.equal(images, saved)
    torch.testing.assert_close(efficientnet_features(images, network), efficientnet_features(saved, network))


def test_features_are_the_pooled_last_map_of_normalised_pixels(network: nn.Module) -> None:
    """At the network's own size nothing is resampled: pixels / 255, ImageNet's mean and deviation, mean over places."""
    pixels = to_uint8(smooth_images(2, INPUT_SIZE))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        maps = network.extract_features((pixels.float() / 255 - mean) / std)
    features = efficientnet_features(to_float(pixels), network)
    torch.testing.assert_close(features, maps.flatten(2).mean(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [32, 2 * INPUT_SIZE])
def test_resampling_is_that_of_pil(network: nn.Module, size: int) -> None:
    """Images of another size are enlarged, or shrunk without aliasing, as PIL's bicubic filter does it."""
    pixels = to_uint8(smooth_images(2, size) + 0.3 * torch.randn(2, 3, size, size, generator=generator_for("grain")))
    planes = [Image.fromarray(plane.float().numpy()) for plane in pixels.flatten(0, 1)]
    resized = [np.asarray(plane.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)) for plane in planes]
    at_size = torch.from_numpy(np.stack(resized)).unflatten(0, (2, 3)).clamp(0, 255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = network.extract_features((at_size / 255 - mean) / std).flatten(2).mean(2)
    torch.testing.assert_close(efficientnet_features(to_float(pixels), network), expected, rtol=1e-3, atol=1e-3)


def test_network_is_loaded_whole_and_still(network: nn.Module) -> None:
    """Without a network given the same one is loaded; it is in eval mode, and features carry no graph."""
    images = smooth_images(1)
    features = efficientnet_features(images)
    assert torch.equal(features, efficientnet_features(images, network))
    assert not features.requires_grad
    assert not any(module.training for module in network.modules())
