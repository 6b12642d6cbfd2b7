"""Vision encoders: the tokens are those of transformers for the input that REPA describes, for every kind of ViT."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from elit.encoder import VisionEncoder, load_encoder

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
FIRST = {"Dinov2": 1, "Dinov2WithRegisters": 5, "ViT": 1, "CLIPVision": 1, "SiglipVision": 0}  # tokens before the patches


def make(kind: str, folder: Path, **more: Any) -> Path:
    """A tiny encoder with drawn weights, saved as transformers saves it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **more)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (2, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", FIRST)
def test_tokens_are_those_of_the_patches(kind: str, images: torch.Tensor, tmp_path: Path) -> None:
    """A 64 x 32 image is 56 x 28 pixels for the encoder: 4 x 2 patches, after the class and register tokens."""
    encoder = load_encoder(str(make(kind, tmp_path)))
    tokens = encoder.encoder_tokens(images)
    assert encoder.grid(64, 32) == (4, 2) and tokens.shape == (2, 8, encoder.width)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (images / 255 - mean) / std
    resized = torch.nn.functional.interpolate(pixels, (56, 28), mode="bicubic", align_corners=False)
    model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path)
    options = {} if kind.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        everything = model(resized, **options).last_hidden_state
    assert everything.shape[1] == FIRST[kind] + 8
    torch.testing.assert_close(tokens, everything[:, FIRST[kind] :])


def test_the_vision_tower_of_a_pair_with_text(images: torch.Tensor, tmp_path: Path) -> None:
    """A whole CLIP gives what its vision model gives."""
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    torch.manual_seed(0)
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=8))
    whole.save_pretrained(tmp_path)
    tokens = load_encoder(str(tmp_path)).encoder_tokens(images)
    torch.testing.assert_close(tokens, VisionEncoder(whole.vision_model, "tower").encoder_tokens(images))


def test_normalised_as_the_encoders_own_file_says(images: torch.Tensor, tmp_path: Path) -> None:
    """With mean 0.5 and deviation 0.5, grey 127.5 is zero for the encoder."""
    folder = make("SiglipVision", tmp_path)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    own = load_encoder(str(folder))
    pixels = torch.nn.functional.interpolate(images / 127.5 - 1, (56, 28), mode="bicubic")
    model = transformers.SiglipVisionModel.from_pretrained(folder)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(own.encoder_tokens(images), expected)


@pytest.mark.parametrize(
    ("patch", "size", "grid"),
    [(14, 256, (16, 16)), (16, 256, (14, 14)), (14, 512, (32, 32)), (14, 32, (2, 2)), (14, 4, (1, 1))],
)
def test_the_grid_follows_the_resolution(patch: int, size: int, grid: tuple[int, int]) -> None:
    config = transformers.Dinov2Config(**{**SMALL, "patch_size": patch, "image_size": 4 * patch, "num_hidden_layers": 1})
    with torch.device("meta"):
        model = transformers.Dinov2Model(config)
    assert VisionEncoder(model, "tiny").grid(size, size) == grid


def test_encoders_that_cannot_be(images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there; weights missing, which transformers would draw at random; no patches; fewer tokens than patches."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="no vision model could be loaded"):
        load_encoder(str(tmp_path))
    deep = make("Dinov2", tmp_path / "deep")
    config = (deep / "config.json").read_text()
    (deep / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match=r"lacks weights of its own, such as .*2\."):
        load_encoder(str(deep))
    resnet = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    with pytest.raises(ValueError, match="no vision transformer with square patches"):
        VisionEncoder(resnet, "resnet")
    masked = transformers.ViTMAEModel(transformers.ViTMAEConfig(**{**SMALL, "image_size": 56}))
    with pytest.raises(ValueError, match="not a token for each"):
        VisionEncoder(masked, "mae").encoder_tokens(images[:, :, :32])
