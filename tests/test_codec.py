"""Codecs: what is stored of z, and what a model sees of it, against diffusers' own distribution and decoder."""

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from autoencoders import KINDS, make_autoencoder, save_autoencoder
from elit.autoencoders import KLCodec, load_autoencoder
from elit.card import Card, load_card, save_card
from elit.codec import Latents, PixelCodec, Pixels, load_codec, moments_to_latents

IMAGES = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_moments_and_samples_are_those_of_diffusers(kind: str) -> None:
    """Its mode for no noise, its sample for the noise it draws; scaled and shifted as its pipelines do; decoded alike."""
    autoencoder = make_autoencoder(kind)
    codec, config = KLCodec(autoencoder), KINDS[kind]
    channels, scale, shift = config["latent_channels"], config["scaling_factor"], config.get("shift_factor", 0.0)
    assert (codec.channels, codec.scale, codec.shift, codec.side) == (channels, scale, shift, 2)
    assert codec.needs_float32 == (kind != "fp16")
    with torch.no_grad():
        distribution = autoencoder.encode(IMAGES).latent_dist
    moments = codec.encode_moments(IMAGES)
    assert moments.shape == (3, 2 * channels, 4, 6)
    mode = moments_to_latents(moments, torch.zeros(3, channels, 4, 6), "moments", scale, shift)
    torch.testing.assert_close(mode, (distribution.mode() - shift) * scale)
    noise = torch.randn(3, channels, 4, 6, generator=torch.Generator().manual_seed(2))
    sample = distribution.sample(torch.Generator().manual_seed(2))
    latents = moments_to_latents(moments, noise, "moments", scale, shift)
    torch.testing.assert_close(latents, (sample - shift) * scale)
    assert (latents - mode).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(latents), autoencoder.decode(latents / scale + shift).sample)


def test_the_log_variance_is_clamped_as_diffusers_does() -> None:
    moments = torch.tensor([0.5, 3.0, 90.0, -90.0]).view(1, 4, 1, 1)
    noise = torch.randn(1, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    expected = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(moments_to_latents(moments, noise, "moments"), expected)


def test_the_other_kinds_of_values() -> None:
    """mean-std has the deviation itself; samples are z already."""
    generator = torch.Generator().manual_seed(0)
    mean, noise = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    std = torch.rand(2, 4, 3, 3, generator=generator)
    torch.testing.assert_close(
        moments_to_latents(torch.cat([mean, std], 1), noise, "mean-std", 0.5, 0.25), 0.5 * (mean + std * noise - 0.25)
    )
    as_moments = moments_to_latents(torch.cat([mean, 2 * std.log()], 1), noise, "moments", 0.5, 0.25)
    torch.testing.assert_close(as_moments, moments_to_latents(torch.cat([mean, std], 1), noise, "mean-std", 0.5, 0.25))
    torch.testing.assert_close(moments_to_latents(mean, noise, "samples", 0.5, 0.25), 0.5 * (mean - 0.25))


@pytest.mark.parametrize(("values", "channels"), [("moments", 4), ("mean-std", 4), ("moments", 9), ("samples", 8)])
def test_moments_and_samples_are_not_mistaken_for_each_other(values, channels: int) -> None:
    with pytest.raises(
        ValueError, match=f"4 channels of latents stored as {values} are . channels on disk, and not {channels}"
    ):
        moments_to_latents(torch.zeros(1, channels, 2, 2), torch.zeros(1, 4, 2, 2), values)


def test_sides_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2, and an image is 7 x 8"):
        KLCodec(make_autoencoder("sd")).encode_moments(torch.zeros(1, 3, 7, 8))


def test_names_tell_codecs_apart(tmp_path: Path) -> None:
    """By weights, scale and shift; a folder loads as what was saved, also from half precision."""
    sd = KLCodec(make_autoencoder("sd"))
    assert sd.name == KLCodec(make_autoencoder("sd")).name
    assert len({KLCodec(make_autoencoder(kind)).name for kind in KINDS} | {sd.name}) == 3  # sdxl and fp16: the same numbers
    assert load_autoencoder(str(save_autoencoder(tmp_path / "a", "sd"))).name == sd.name


def test_channels_that_are_normalised_one_by_one_are_as_pipelines_have_them() -> None:
    """(z - mean) scaling_factor / deviation, and back; what fits together by halves is refused."""
    means, deviations = [0.5, -1.0, 0.0, 2.0], [1.0, 0.5, 2.0, 4.0]
    autoencoder = make_autoencoder("sd", latents_mean=means, latents_std=deviations)
    codec = KLCodec(autoencoder)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (means, deviations))
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(x), autoencoder.decode(x * std / 0.18215 + mean).sample)
    z = moments_to_latents(x, torch.zeros(2, 4, 3, 3), "samples", codec.scale, codec.shift)
    torch.testing.assert_close(z, (x - mean) * 0.18215 / std)
    swapped = KLCodec(make_autoencoder("sd", latents_mean=means[::-1], latents_std=deviations))
    assert len({codec.name, swapped.name, KLCodec(make_autoencoder("sd")).name}) == 3
    with pytest.raises(ValueError, match="latents_mean and latents_std come together"):
        KLCodec(make_autoencoder("sd", latents_mean=means))
    with pytest.raises(ValueError, match="are not of its 4 channels"):
        KLCodec(make_autoencoder("sd", latents_mean=means[:3], latents_std=deviations[:3]))


def test_a_vae_within_a_repository_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OWNER/NAME/vae, as FLUX keeps its own."""
    repo, commit = tmp_path / "models--me--pipe", "0" * 40
    save_autoencoder(repo / "snapshots" / commit / "vae", "flux")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_autoencoder("me/pipe/vae").channels == 16
    with pytest.raises(ValueError, match="no AutoencoderKL could be loaded from 'me/pipe/unet'"):
        load_autoencoder("me/pipe/unet")


def test_three_channels_are_pixels_only_where_no_card_says_otherwise(tmp_path: Path) -> None:
    """A card of latents asks for their codec, one of pixels for none; a codec of another scale is another's."""
    cpu = torch.device("cpu")
    assert isinstance(load_codec(None, 3, cpu), PixelCodec) and isinstance(load_codec(None, 3, cpu, Pixels()), PixelCodec)
    with pytest.raises(ValueError, match=r"latents of 3 channels \(its latents are of mine\); give their decoder"):
        load_codec(None, 3, cpu, Latents(2.0, codec="mine"))
    with pytest.raises(ValueError, match="the model makes pixels, which need no codec; leave --codec ema out"):
        load_codec("ema", 3, cpu, Pixels())
    make_autoencoder("sd").save_pretrained(tmp_path)
    found = load_codec(str(tmp_path), 4, cpu)
    assert load_codec(str(tmp_path), 4, cpu, Latents(found.scale, found.shift)).name == found.name
    with pytest.raises(ValueError, match=r"and the latents 2 and 0; give the codec that they were made with \(mine\)"):
        load_codec(str(tmp_path), 4, cpu, Latents(2.0, codec="mine"))


def test_a_card_keeps_what_its_model_makes(tmp_path: Path) -> None:
    for encoding in (Pixels(), Latents(0.5, 0.1, "mine"), None):
        save_card(Card(encoding=encoding, label_counts=(3, 0)), tmp_path)
        assert load_card(tmp_path).encoding == encoding and load_card(tmp_path).label_counts == (3, 0)
    (tmp_path / "card.json").write_text('{"encoding": {"kind": "words"}}')
    with pytest.raises(ValueError, match=r"card\.json"):
        load_card(tmp_path)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0"),
        ({"scaling_factor": float("nan")}, "scaling_factor is nan"),
        ({"scaling_factor": "ten"}, "scaling_factor is 'ten'"),
        ({"scaling_factor": None}, "scaling_factor is None"),
        ({"shift_factor": float("inf")}, "shift_factor is inf"),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KLCodec(make_autoencoder("sd", **numbers))


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    autoencoder = make_autoencoder("sd")
    with torch.no_grad():
        autoencoder.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"decoder\.conv_out\.bias holds NaN"):
        KLCodec(autoencoder)


@pytest.mark.parametrize("config", ["[]", "{", '{"_class_name": "AutoencoderKL", "block_out_channels": 3}', "[" * 10**5])
def test_a_folder_that_is_no_autoencoders_is_refused_in_a_sentence(tmp_path: Path, config: str) -> None:
    folder = save_autoencoder(tmp_path / "a", "sd")
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="no AutoencoderKL could be loaded"):
        load_autoencoder(str(folder))
