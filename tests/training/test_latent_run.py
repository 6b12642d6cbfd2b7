"""Training on latents: from pictures to a model whose previews, distances and samples are decoded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from autoencoders import make_autoencoder, save_autoencoder
from elit.autoencoders import KLCodec
from elit.cli import main
from elit.codec import PixelCodec
from elit.data.dataset import PreparedData
from elit.data.images import LabelledImages
from elit.data.opening import decoder_of, open_data
from elit.data.published_layout import PublishedLatents
from elit.pictures import sheet
from elit.training.config import TrainConfig
from elit.training.evaluation import RunImages
from elit.training.loop import train

OF_LATENTS = {"model__in_channels": 4, "model__input_size": 4, "model__patch_size": 1}


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    return save_autoencoder(tmp_path / "sd", "sd")


@pytest.fixture
def latents(tmp_path: Path, pictures: Path, codec: Path) -> Path:
    """The ten pictures of 8 x 8 as moments of 4 x 4."""
    images, out = tmp_path / "images", tmp_path / "latents"
    assert main(["prepare", "images", str(pictures), "--size=8", "--workers=1", f"--out={images}"]) == 0
    assert main(["prepare", "latents", str(images), f"--codec={codec}", "--tile=4", f"--out={out}"]) == 0
    return out


def published_layout(folder: Path) -> Path:
    """Two latents of one class as the authors' tools keep them."""
    file = folder / "vae-sd" / "00000" / "img-mean-std-00000000.npy"
    file.parent.mkdir(parents=True)
    for i in range(2):
        np.save(file.with_name(f"img-mean-std-{i:08d}.npy"), np.full((8, 4, 4), 0.5 + i, dtype=np.float32))
    return folder


def test_a_run_on_latents_draws_pictures_and_measures_them(
    make_config: Callable[..., TrainConfig], latents: Path, codec: Path, tmp_path: Path
) -> None:
    """Previews are of the decoder's size, distances are of decoded samples, and the checkpoint samples with the codec."""
    more = {
        "log__preview_every": 2,
        "evaluate__every": 2,
        "evaluate__count": 4,
        "evaluate__budgets": "[1.0]",
        "evaluate__features": "squeezenet",
    }
    config = make_config(data__source=latents, data__codec=codec, steps=2, **OF_LATENTS, **more)
    final = train(config)
    with Image.open(Path(config.out) / "previews" / "step_00000002.png") as preview:
        beside = [f"budget {budget:g}" for budget in config.log.preview_budgets]
        assert preview.size == sheet(torch.zeros(6, 3, 8, 8), ["a", "b"], beside).size and len(beside) == 3
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("FD (SqueezeNet) at 1")) == 1
    sampled = ["sample", f"--model={final}", f"--codec={codec}", "--count=2", "--steps=1", f"--out={tmp_path / 'samples'}"]
    assert main(sampled) == 0
    with Image.open(next((tmp_path / "samples").glob("*/00000/000000.png"))) as image:
        assert image.size == (8, 8)


def test_a_run_on_latents_without_a_codec_draws_nothing_and_says_so(
    make_config: Callable[..., TrainConfig], latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data__source=latents, steps=1, log__preview_every=1, **OF_LATENTS)
    assert train(config).is_dir()
    assert not (Path(config.out) / "previews").exists()
    assert "no previews are drawn, for the data are latents; give data.codec" in " ".join(capsys.readouterr().err.split())


def test_the_published_layout_trains_too(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    source = published_layout(tmp_path / "theirs")
    assert train(make_config(data__source=source, steps=1, batch_size=2, **OF_LATENTS)).is_dir()


def test_latents_are_decoded_by_a_codec_of_their_scale(
    latents: Path, codec: Path, tmp_path: Path, device: torch.device
) -> None:
    """None without one, and none is needed for pixels; the published layout has the scale of Stable Diffusion."""
    data, other = PreparedData(latents), str(save_autoencoder(tmp_path / "sdxl", "sdxl"))
    theirs = PublishedLatents(published_layout(tmp_path / "theirs"))
    for some in (data, theirs):
        decoder = decoder_of(some, str(codec), device)
        assert isinstance(decoder, KLCodec) and decoder.scale == 0.18215
        assert decoder_of(some, None, device) is None
        with pytest.raises(ValueError, match=r"scale 0.13025 and shift 0, and the latents 0.18215 and 0"):
            decoder_of(some, other, device)
    assert isinstance(decoder_of(open_data("emoji", 32), None, device), PixelCodec)


def test_the_reference_of_a_run_on_latents_is_decoded(latents: Path, codec: Path, device: torch.device) -> None:
    """As diffusers decodes them."""
    data, decoder = PreparedData(latents), decoder_of(PreparedData(latents), str(codec), device)
    assert decoder is not None
    images = RunImages("latents", data, 0, decoder)
    assert images.size == (8, 8) and images.count == 10

    class Latents(LabelledImages):
        def read(self, rows: Tensor, generators: object) -> tuple[Tensor, Tensor]:
            return self.images[rows], self.labels[rows]

    z = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = make_autoencoder("sd").decode(z / 0.18215).sample
    expected_pixels = ((expected + 1) * 127.5).round().clamp(0, 255)
    assert torch.equal(RunImages("z", Latents(z, torch.zeros(3), ()), 0, decoder).read(0, 3).float(), expected_pixels)
