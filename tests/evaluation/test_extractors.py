"""The networks behind one interface: what they are given, what they give, and what is said where they cannot be had."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from elit.evaluation.extractors import Preparation, load_extractor, place_as_published, pooled_output, read_preparation
from elit.evaluation.features import efficientnet_features
from elit.evaluation.inception import Inception
from elit.pixels import to_float
from elit.seeding import generator_for


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator_for("extractors", size))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hub's client has been imported before."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def tiny_dinov2(tmp_path: Path) -> Path:
    """A folder with a random DINOv2 of two layers."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config)
    folder = tmp_path / "dinov2"
    model.save_pretrained(folder)
    return folder


def test_efficientnet_gives_the_features_it_always_gave() -> None:
    """Those of `efficientnet_features`, on which the bundled model's card stands; from half precision they differ."""
    extractor = load_extractor("efficientnet-lite0")
    pixels = pictures(3)
    out = extractor(pixels)
    assert torch.equal(out.pooled, efficientnet_features(to_float(pixels)))
    assert (out.spatial, out.logits, extractor.width) == (None, None, 1280)
    half = load_extractor("efficientnet-lite0", dtype=torch.bfloat16)(pixels).pooled
    assert half.dtype == torch.float32
    assert 0 < (half - out.pooled).abs().max() < 0.5
    assert load_extractor("efficientnet-lite0").fingerprint == extractor.fingerprint


def test_inception_gives_all_three_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Inception().eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    extractor = load_extractor("inception", weights=tmp_path / "w.pth")
    pixels = pictures(1)
    out = extractor(pixels)
    with torch.no_grad():
        expected = network(pixels)
    assert out.spatial is not None and out.logits is not None
    assert (out.pooled.shape[1], out.spatial.shape[1], out.logits.shape[1]) == (2048, 2023, 1008)
    assert (extractor.width, extractor.spatial_width, extractor.logits_width) == (2048, 2023, 1008)
    for ours, theirs in zip((out.pooled, out.spatial, out.logits), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    half = load_extractor("inception", dtype=torch.bfloat16, weights=tmp_path / "w.pth")(pixels)
    assert all(found is not None and found.dtype == torch.float32 for found in (half.pooled, half.spatial, half.logits))
    network.fc.bias.data += 1
    torch.save(network.state_dict(), tmp_path / "other.pth")
    assert load_extractor("inception", weights=tmp_path / "other.pth").fingerprint != extractor.fingerprint


def test_a_transformers_folder_gives_its_class_token(tiny_dinov2: Path) -> None:
    """Of the normed last layer; images resized and normalised as said, against PIL's bicubic filter."""
    from transformers import AutoModel

    extractor = load_extractor(str(tiny_dinov2))
    assert extractor.width == 12
    pixels = pictures(2, 60)
    planes = [Image.fromarray(plane.float().numpy()) for plane in pixels.flatten(0, 1)]
    resized = np.stack([np.asarray(plane.resize((224, 224), Image.Resampling.BICUBIC)) for plane in planes])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    prepared = (torch.from_numpy(resized).unflatten(0, (2, 3)) / 255 - mean) / std
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tiny_dinov2).eval()(pixel_values=prepared).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(pixels).pooled, expected, rtol=1e-3, atol=1e-4)


def test_weights_in_half_precision_compute_in_float32(tiny_dinov2: Path, tmp_path: Path) -> None:
    """As those of a rounded network; a folder that lacks weights is refused, for they would be drawn."""
    from transformers import AutoModel

    pixels = pictures(2)
    AutoModel.from_pretrained(tiny_dinov2).bfloat16().save_pretrained(tmp_path / "half")
    AutoModel.from_pretrained(tmp_path / "half").float().save_pretrained(tmp_path / "whole")
    half, whole = (load_extractor(str(tmp_path / name))(pixels).pooled for name in ("half", "whole"))
    assert half.dtype == torch.float32 and torch.equal(half, whole)
    weights = load_file(tiny_dinov2 / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tiny_dinov2 / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its own, such as layernorm\.weight"):
        load_extractor(str(tiny_dinov2))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -3/4."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_dinov2s_positions_are_scaled_as_its_authors_do() -> None:
    """A table of 3 x 3 for 2 x 2 patches: place i of the new one lies at (i + 1/2) 3 / 2.1 - 1/2, edges repeated."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=42, patch_size=14)
    network = Dinov2Model(config).eval()
    table = network.embeddings.position_embeddings.detach().double()
    weights = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(2):
        place = (i + 0.5) * 3 / 2.1 - 0.5
        for j in range(-3, 6):
            weights[i, min(max(j, 0), 2)] += cubic(place - j)
    grid = torch.einsum("ih,jw,hwd->ijd", weights, weights, table[0, 1:].view(3, 3, 12))
    place_as_published(network, Preparation(side=28))
    found = network.embeddings.position_embeddings
    torch.testing.assert_close(found[0, 1:].double(), grid.flatten(0, 1), rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0, 0].double(), table[0, 0])
    assert network(pixel_values=torch.zeros(1, 3, 28, 28)).last_hidden_state.shape == (1, 5, 12)


def test_a_folder_says_how_its_images_are_prepared(tiny_dinov2: Path) -> None:
    """preprocessor_config.json as different models have it; without one the config's size, of DINOv2 224."""
    config = load_extractor(str(tiny_dinov2)).network.config
    assert read_preparation(None, config) == Preparation()
    file = tiny_dinov2 / "preprocessor_config.json"
    half = (0.5, 0.5, 0.5)
    for text, side, mean in (
        ('{"size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}', 28, half),
        ('{"size": {"shortest_edge": 56}, "crop_size": {"height": 42, "width": 42}}', 42, Preparation().mean),
        ('{"size": 70}', 70, Preparation().mean),
    ):
        file.write_text(text)
        found = read_preparation(file, config)
        assert (found.side, found.mean) == (side, mean)
    for text in ('{"size": -4}', "[]", '{"image_std": [0, 0, 0]}', "not json"):
        file.write_text(text)
        with pytest.raises(ValueError, match="does not say how images are prepared"):
            read_preparation(file, config)


def test_maps_are_pooled_over_their_places() -> None:
    class Out:
        last_hidden_state = torch.arange(24.0).view(1, 2, 3, 4)

    assert pooled_output(Out()).tolist() == [[5.5, 17.5]]


def test_a_square_of_tokens_has_no_class_token() -> None:
    class Out:
        last_hidden_state = torch.arange(8.0).view(1, 4, 2)

    assert pooled_output(Out()).tolist() == [[3.0, 4.0]]
    Out.last_hidden_state = torch.arange(10.0).view(1, 5, 2)
    assert pooled_output(Out()).tolist() == [[0.0, 1.0]]


def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match="there are no features 'dino'; known: efficientnet-lite0, squeezenet, inception, dinov2"
    ):
        load_extractor("dino")
    with pytest.raises(
        ValueError, match=r"could be loaded from 'some/vit' .* fetch it where there is a network with `hf download some/v"
    ):
        load_extractor("some/vit")
    with pytest.raises(ValueError, match="the Inception weights are not at"):
        load_extractor("inception")
    with pytest.raises(ValueError, match="weights is for the features inception; dinov2 takes none"):
        load_extractor("dinov2", weights=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"no vision model could be loaded from '{tmp_path}'"):
        load_extractor(str(tmp_path))


def test_a_model_of_no_images_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"makes no features of images .* give a vision model"):
        load_extractor(str(tmp_path))
