"""The Inception network: names and shapes of its weights, its pools, TensorFlow 1's resize, and how weights are read.

The weights themselves cannot be fetched here, so no figure of theirs is compared.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from elit.evaluation import inception as module
from elit.evaluation.inception import Block8, Inception, average_pool, load_inception, preprocess, resize_bilinear
from elit.seeding import generator_for

TABLE = Path(__file__).parents[1] / "data" / "inception_layers.txt"


def table() -> Iterator[tuple[str, tuple[int, ...]]]:
    for line in TABLE.read_text().splitlines():
        if not line.startswith("#"):
            name, *shape = line.split()
            yield name, tuple(map(int, shape))


def expected_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in table():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


@pytest.fixture(scope="module")
def network() -> Inception:
    """With drawn weights and statistics, so that every part counts."""
    generator = generator_for("inception test")
    made = Inception().eval().requires_grad_(False)
    for name, tensor in made.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 4:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        elif "weight" in name and tensor.ndim == 1:
            tensor.copy_(1 + 0.1 * torch.randn(tensor.shape, generator=generator))
        else:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return made


def pictures(count: int, height: int = 20, width: int = 33) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator_for("pictures", height))


def test_names_and_shapes_are_those_of_the_weights_file(network: Inception) -> None:
    """A table written apart; and the table against the published counts of Inception v3 (Keras: 23,851,784 parameters,
    of them 34,432 running statistics, with no scales in its batch norms and 1,000 classes)."""
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected_shapes()
    convolutions = [shape for _, shape in table()]
    channels = sum(shape[0] for shape in convolutions)
    assert len(convolutions) == 94
    assert 2 * channels == 34_432
    assert sum(int(np.prod(shape)) for shape in convolutions) + 3 * channels + 2048 * 1000 + 1000 == 23_851_784


def tf1_resize(image_HW: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's `resize_bilinear`, pixel by pixel in float64: the output pixel i lies at i * input / output."""
    height, width = image_HW.shape
    out = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            upper = image_HW[top, left] * (1 - dx) + image_HW[top, right] * dx
            lower = image_HW[bottom, left] * (1 - dx) + image_HW[bottom, right] * dx
            out[i, j] = upper * (1 - dy) + lower * dy
    return out


@pytest.mark.parametrize(("height", "width", "side"), [(20, 33, 31), (40, 40, 23), (23, 26, 39), (9, 1, 5)])
def test_resize_is_that_of_tensorflow_1(height: int, width: int, side: int) -> None:
    """Larger and smaller, square and not, where output pixels fall on input pixels; to the rounding of float32 places."""
    images = pictures(1, height, width).float()
    resized = resize_bilinear(images, side)[0].double()
    assert resized.shape == (3, side, side)
    expected = torch.from_numpy(tf1_resize(images[0, 1].double().numpy(), side))
    torch.testing.assert_close(resized[1], expected, rtol=0, atol=4e-3)


def test_preprocessing_maps_grey_levels_as_the_graph_does() -> None:
    """At 299 pixels nothing is resampled: 0 is -1, 128 is 0, and 255 is 127/128."""
    images = pictures(1, 299, 299)
    images[0, 0, 0, :3] = torch.tensor([0, 128, 255], dtype=torch.uint8)
    out = preprocess(images)
    assert out[0, 0, 0, :3].tolist() == [-1.0, 0.0, 127 / 128]
    assert torch.equal(out, (images.float() - 128) / 128)


def test_average_pool_counts_no_padding() -> None:
    x = torch.randn(1, 1, 4, 5, generator=generator_for("pool"))
    out = average_pool(x)
    for i in range(4):
        for j in range(5):
            there = x[0, 0, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            assert out[0, 0, i, j] == pytest.approx(float(there.mean()), abs=1e-6)


def test_only_the_last_block_pools_by_maximum(network: Inception) -> None:
    """The pool branch, the last 192 channels, of both 8 x 8 blocks: batch norm written out, ReLU, and their own pool."""
    for block, width, maximum in ((network.Mixed_7b, 1280, False), (network.Mixed_7c, 2048, True)):
        assert isinstance(block, Block8)
        x = torch.randn(1, width, 3, 3, generator=generator_for("block")).double()
        pooled = torch.empty_like(x)
        for i in range(3):
            for j in range(3):
                there = x[..., max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                pooled[..., i, j] = there.amax((2, 3)) if maximum else there.mean((2, 3))
        conv, bn = block.branch_pool.conv.weight[:, :, 0, 0].double(), block.branch_pool.bn
        projected = torch.einsum("oi,nihw->nohw", conv, pooled)
        column = {name: tensor.double().view(1, -1, 1, 1) for name, tensor in bn.state_dict().items()}
        normed = (projected - column["running_mean"]) / (column["running_var"] + 1e-3).sqrt()
        expected = (normed * column["weight"] + column["bias"]).clamp(min=0)
        torch.testing.assert_close(block(x.float())[:, -192:].double(), expected, rtol=1e-4, atol=1e-4)


def test_outputs_are_those_of_the_named_places(network: Inception) -> None:
    """pool3 is the mean of the last map; spatial the first 7 channels of Mixed_6d in TensorFlow's order; logits without
    their bias. The maps have the published sizes."""
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(network, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in ("Mixed_5d", "Mixed_6a", "Mixed_6d", "Mixed_7a", "Mixed_7c")
    ]
    images = pictures(2)
    pool3, spatial, logits = network(images)
    for hook in hooks:
        hook.remove()
    sizes = {name: tuple(out.shape[1:]) for name, out in seen.items()}
    assert sizes == {
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6d": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }
    torch.testing.assert_close(pool3, seen["Mixed_7c"].flatten(2).mean(2))
    assert spatial.shape == (2, 17 * 17 * 7)
    for row, column, channel in ((0, 0, 0), (3, 11, 6), (16, 16, 2)):
        place = (row * 17 + column) * 7 + channel
        assert torch.equal(spatial[:, place], seen["Mixed_6d"][:, channel, row, column])
    torch.testing.assert_close(logits, pool3 @ network.fc.weight.T)
    torch.testing.assert_close(network(images[1:]).pool3, pool3[1:], rtol=1e-4, atol=1e-4)


def test_weights_come_from_a_file_or_from_torch_hubs_cache(
    network: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without the counters that batch norms of torch carry; the network is the same one."""
    state = network.state_dict()
    file = tmp_path / "own.pth"
    torch.save(state | {f"{name}.bn.num_batches_tracked": torch.tensor(0) for name, _ in table()}, file)
    hub = tmp_path / "hub"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"not at {hub}/checkpoints/pt_inception.*; fetch https://\S+ and put it there, or"
    ):
        load_inception()
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(state, hub / "checkpoints" / module.WEIGHTS_FILE)
    for found in (load_inception(file), load_inception()):
        assert not any(p.requires_grad for p in found.parameters()) and not found.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())


def test_other_files_are_refused(network: Inception, tmp_path: Path) -> None:
    state = network.state_dict()
    file = tmp_path / "weights.pth"
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, file)
    with pytest.raises(ValueError, match=r"does not hold the weights of this Inception: fc.weight is \(1000, 2048\)"):
        load_inception(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="holds no weights of Inception; fetch https"):
        load_inception(file)
    file.write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match="damaged"):
        load_inception(file)
