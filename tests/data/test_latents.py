"""elit prepare latents: the numbers of diffusers, the same bytes however the work is spread or interrupted."""

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from autoencoders import KINDS, make_autoencoder, save_autoencoder
from elit.autoencoders import KLCodec
from elit.cli import main
from elit.data.dataset import DataInfo, PreparedData, read_info
from elit.data.latents import Encoding, parts_of, poor, prepare_latents, probe_tile
from elit.data.shards import Preparation
from elit.encoder import VisionEncoder
from elit.files import write_whole
from elit.pixels import to_float
from ranks import elit, run_ranks, start_ranks, wait_for

SIZES = ((8, 8), (8, 12))


def pictures(count: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def png(image_CHW: Tensor) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(stream, format="PNG")
    return {"bytes": stream.getvalue(), "path": None}


def make_source(folder: Path, count: int, bucketed: bool = False) -> PreparedData:
    """Prepared pictures: of 8 x 8, or by turns of 8 x 8 and 8 x 12; every third has no label."""
    info = DataInfo("images", 0, None if bucketed else SIZES[0], ("cats", "dogs"), buckets=SIZES if bucketed else ())
    shapes = [SIZES[i % 2 if bucketed else 0] for i in range(count)]
    columns: dict[str, Any] = {
        "label": [None if i % 3 == 2 else i % 2 for i in range(count)],
        "key": [f"{i}.png" for i in range(count)],
        "image": [png(pictures(i + 1, *shapes[i])[-1] if count < 50 else pictures(1)[0] ^ (i % 251)) for i in range(count)],
        "bucket": [i % 2 for i in range(count)],
    }
    columns = {name: columns[name] for name in info.columns()}
    with Preparation(folder, {"of": "the test", "count": count}) as preparation:
        preparation.write(0, info.schema, columns)
        preparation.finish(info, 1)
    return PreparedData(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def tiny_encoder() -> VisionEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=28, patch_size=2
        )
        return VisionEncoder(transformers.Dinov2Model(config), "me/dino")


@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_the_samples_of_diffusers(kind: str, tmp_path: Path) -> None:
    """(sample - shift) scale of its distribution, for the noise of each row's generator, up to the rounding to float16."""
    source = make_source(tmp_path / "images", 11)
    autoencoder, config = make_autoencoder(kind), KINDS[kind]
    info = prepare_latents(source, Encoding(KLCodec(autoencoder)), tmp_path / "out", tile=4)
    data = PreparedData(tmp_path / "out")
    channels, scale, shift = config["latent_channels"], config["scaling_factor"], config.get("shift_factor", 0.0)
    assert data.info == info and data.shape == (channels, 4, 4) and (info.scale, info.shift) == (scale, shift)
    assert (info.values, info.count, info.label_names) == ("moments", 11, ("cats", "dogs"))
    assert torch.equal(data.labels, source.labels) and (data.labels == -1).sum() == 3
    assert data.table["key"].to_pylist() == source.table["key"].to_pylist()
    rows = torch.tensor([9, 0, 10, 4])
    x, labels = data.read(rows, generators(4))
    images = torch.stack([source.image(int(row)) for row in rows])
    with torch.no_grad():
        distribution = autoencoder.encode(to_float(images)).latent_dist
    noise = torch.stack([torch.randn(channels, 4, 4, generator=g) for g in generators(4)])
    z = distribution.mean + distribution.std * noise
    torch.testing.assert_close(x, (z - shift) * scale, rtol=2e-3, atol=2e-3 * scale)
    assert torch.equal(labels, source.labels[rows])


def test_mirrored_latents_and_features_go_together(tmp_path: Path) -> None:
    """Each generator's first number chooses between the picture and the mirrored one, for latents and features alike."""
    source = make_source(tmp_path / "images", 9)
    codec, encoder = KLCodec(make_autoencoder("flux")), tiny_encoder()
    info = prepare_latents(source, Encoding(codec, (encoder,), mirror=True), tmp_path / "out", tile=4)
    assert info.mirror and info.features == {"dino": (4, 4, 16)}
    data, rows = PreparedData(tmp_path / "out"), torch.arange(9)
    flips = [float(torch.rand((), generator=g)) < 0.5 for g in generators(9)]
    assert set(flips) == {True, False}
    images = torch.stack([source.image(i).flip(-1) if flip else source.image(i) for i, flip in enumerate(flips)])
    features = data.feature("dino", rows, generators(9))
    torch.testing.assert_close(features, encoder.encoder_tokens(images), rtol=2e-3, atol=2e-3)
    mean, log_variance = codec.encode_moments(to_float(images)).chunk(2, 1)
    noise = []
    for g in generators(9):
        torch.rand((), generator=g)
        noise.append(torch.randn(16, 4, 4, generator=g))
    z = mean + (log_variance / 2).exp() * torch.stack(noise)
    torch.testing.assert_close(data.read(rows, generators(9))[0], 0.3611 * (z - 0.1159), rtol=3e-3, atol=3e-3)
    with pytest.raises(ValueError, match=r"no features of 'clip', but \['dino'\]"):
        data.feature("clip", rows, generators(9))


def test_buckets_keep_their_rows(tmp_path: Path) -> None:
    """Pictures of two sizes, encoded by size, are stored in the source's order; a batch is of one bucket."""
    source = make_source(tmp_path / "images", 10, bucketed=True)
    codec = KLCodec(make_autoencoder("sd"))
    info = prepare_latents(source, Encoding(codec), tmp_path / "out", tile=3)
    assert info.size is None and info.buckets == ((4, 4), (4, 6))
    data = PreparedData(tmp_path / "out")
    assert torch.equal(data.buckets, source.buckets)
    for bucket in (0, 1):
        rows = torch.arange(bucket, 10, 2)
        mean, log_variance = codec.encode_moments(to_float(torch.stack([source.image(int(r)) for r in rows]))).chunk(2, 1)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators(5)])
        z = mean + (log_variance / 2).exp() * noise
        torch.testing.assert_close(data.read(rows, generators(5))[0], 0.18215 * z, rtol=2e-3, atol=1e-3)
    with pytest.raises(ValueError, match="features need pictures of one size"):
        prepare_latents(source, Encoding(codec, (tiny_encoder(),)), tmp_path / "more", tile=3)


def arguments(images: Path, codec: Path, out: Path) -> list[str]:
    return ["prepare", "latents", str(images), f"--codec={codec}", f"--out={out}", "--tile=8", "--mirror"]


def test_killed_and_gone_on_with_two_processes_it_is_the_bytes_of_one(tmp_path: Path) -> None:
    """SIGKILL once a part is written; then two processes make what is missing; one in peace makes the same files."""
    source = make_source(tmp_path / "images", 1500)
    codec = save_autoencoder(tmp_path / "vae", "sd")
    work, log = elit(*arguments(source.folder, codec, tmp_path / "killed")), tmp_path / "log"
    (process,) = start_ranks(1, work, log)
    while not (first := tmp_path / "killed" / "parts" / "000000.json").is_file():
        assert os.waitpid(process, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    assert wait_for([process]) == [-signal.SIGKILL]
    assert len(list(first.parent.glob("*.json"))) < len(parts_of(1500, 8)) == 6
    with pytest.raises(ValueError, match="not prepared to the end"):
        read_info(tmp_path / "killed")
    assert run_ranks(2, work, log) == [0, 0], log.read_text()
    assert log.read_text().count("1500 latents of 4 x 4 x 4 are in") == 1
    assert main(arguments(source.folder, codec, tmp_path / "straight")) == 0
    straight = contents(tmp_path / "straight")
    assert straight == contents(tmp_path / "killed")
    assert not any("parts" in name for name in straight)
    assert main(arguments(source.folder, codec, tmp_path / "straight")) == 0  # given again, it is content
    assert contents(tmp_path / "straight") == straight


class Watched(KLCodec):
    """A codec that counts its calls and, at one of them, is stopped as by Ctrl-C."""

    calls, stop_at = 0, -1

    def encode_moments(self, images_BCHW: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super().encode_moments(images_BCHW)


def test_only_what_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five parts of two tiles, stopped in the fourth: the next call makes the last two, and another nothing."""
    monkeypatch.setattr("elit.data.latents.PART_IMAGES", 4)
    source, codec = make_source(tmp_path / "images", 19), Watched(make_autoencoder("sd"))
    codec.stop_at = 8
    with pytest.raises(KeyboardInterrupt):
        prepare_latents(source, Encoding(codec), tmp_path / "out", tile=2)
    prepare_latents(source, Encoding(codec), tmp_path / "out", tile=2)
    assert codec.calls == 8 + 4
    prepare_latents(source, Encoding(codec), tmp_path / "out", tile=2)
    assert codec.calls == 8 + 4
    prepare_latents(source, Encoding(KLCodec(codec.autoencoder)), tmp_path / "straight", tile=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("late", [False, True])
def test_a_stop_at_the_very_end_loses_nothing(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped just before, or just after, the file that says that all is there: the next call ends in the same files."""
    source, encoding = make_source(tmp_path / "images", 5), Encoding(KLCodec(make_autoencoder("sd")))
    prepare_latents(source, encoding, tmp_path / "straight", tile=2)

    def stopped(file: Path, text: str) -> None:
        if file.name == "elit-data.json" and not late:
            raise KeyboardInterrupt
        write_whole(file, text)
        if file.name == "elit-data.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("elit.data.shards.write_whole", stopped)
        prepare_latents(source, encoding, tmp_path / "out", tile=2)
    assert contents(tmp_path / "out") != contents(tmp_path / "straight")
    prepare_latents(source, encoding, tmp_path / "out", tile=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert not (tmp_path / "out" / "parts").exists()


def test_the_psnr_is_torchmetrics_own_and_poor_codecs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the decoded means of all of up to 16 pictures; a codec of random weights is far off, and the command says so."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    source = make_source(tmp_path / "images", 5)
    folder = save_autoencoder(tmp_path / "vae", "flux")
    assert (
        main(["prepare", "latents", str(source.folder), f"--codec={folder}", f"--out={tmp_path / 'out'}", "--tile=2"]) == 0
    )
    autoencoder, values = make_autoencoder("flux"), []
    for i in range(5):
        image = to_float(source.image(i))[None]
        with torch.no_grad():
            again = autoencoder.decode(autoencoder.encode(image).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(peak_signal_noise_ratio(again, image, data_range=2.0))
    psnr = read_info(tmp_path / "out").psnr
    assert psnr == pytest.approx(torch.stack(values).mean().item(), abs=0.01)
    assert psnr is not None and psnr < 15
    told = " ".join("".join(capsys.readouterr()).split())
    assert told.count(f"far from their pictures ({psnr:.1f} dB") == 1  # one part: at the end alone
    assert poor(19.9) is not None and poor(20.0) is None


@pytest.mark.parametrize(("factor", "shown"), [(1e6, "latent of 0.png holds [0-9.e+]+,"), (float("nan"), "holds nan")])
def test_what_float16_cannot_keep_is_refused(factor: float, shown: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "images", 3)
    autoencoder = make_autoencoder("sd")
    codec = KLCodec(autoencoder)
    autoencoder.quant_conv.weight.data *= factor
    with pytest.raises(ValueError, match=shown):
        prepare_latents(source, Encoding(codec), tmp_path / "out", tile=2)
    with pytest.raises(ValueError, match="not prepared to the end"):
        PreparedData(tmp_path / "out")


def test_sources_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source, codec = make_source(tmp_path / "images", 3), KLCodec(make_autoencoder("sd"))
    done = tmp_path / "out"
    prepare_latents(source, Encoding(codec), done, tile=2)
    with pytest.raises(ValueError, match="holds latents, and pictures become latents"):
        prepare_latents(PreparedData(done), Encoding(codec), tmp_path / "again")
    with pytest.raises(ValueError, match="tile is 2 there and 3 now"):
        prepare_latents(source, Encoding(codec), done, tile=3)
    with pytest.raises(ValueError, match="codec is AutoencoderKL"):
        prepare_latents(source, Encoding(KLCodec(make_autoencoder("sdxl"))), done, tile=2)
    with pytest.raises(ValueError, match="at least 1 picture, not 0"):
        prepare_latents(source, Encoding(codec), tmp_path / "zero", tile=0)
    deep = KLCodec(make_autoencoder("sd", blocks=5))
    with pytest.raises(ValueError, match="are 8 x 8, and the codec needs sides that are multiples of 16"):
        prepare_latents(source, Encoding(deep), tmp_path / "deep")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out"]


@pytest.mark.parametrize("values", ["samples", "mean-std"])
def test_values_of_another_kind_do_not_pass_for_moments(values: str, tmp_path: Path) -> None:
    """Samples have half the channels, so that a wrong elit-data.json is refused; mean-std is another formula."""
    data = tmp_path / "out"
    prepare_latents(make_source(tmp_path / "images", 3), Encoding(KLCodec(make_autoencoder("sd"))), data, tile=2)
    info = read_info(data)
    as_moments = PreparedData(data).read(torch.arange(3), generators(3))[0]
    (data / "elit-data.json").write_text(replace(info, values=values).to_json())
    if values == "samples":
        with pytest.raises(ValueError, match="prepare the data again"):
            PreparedData(data)
    else:
        assert (PreparedData(data).read(torch.arange(3), generators(3))[0] - as_moments).abs().max() > 0.01
    (data / "elit-data.json").write_text(json.dumps({**json.loads(info.to_json()), "values": "means"}))
    with pytest.raises(ValueError, match="does not describe prepared data"):
        read_info(data)


def test_bucketed_moments_do_not_pass_for_samples(tmp_path: Path) -> None:
    """There the table has no lengths; the values of a row are too many."""
    data = tmp_path / "out"
    source = make_source(tmp_path / "images", 4, bucketed=True)
    info = prepare_latents(source, Encoding(KLCodec(make_autoencoder("sd"))), data, tile=2)
    (data / "elit-data.json").write_text(replace(info, values="samples").to_json())
    with pytest.raises(ValueError, match="a stored latent is not 4 x 4 x 4; prepare the data again"):
        PreparedData(data).read(torch.tensor([0, 2]), generators(2))


def ticking(seconds: Iterator[float]) -> Any:
    """A clock whose every second reading is later by the next of `seconds`."""
    steps, now = chain.from_iterable((0.0, s) for s in seconds), [0.0]

    def clock() -> float:
        now[0] += next(steps)
        return now[0]

    return clock


def test_the_tile_is_doubled_until_it_no_longer_helps() -> None:
    """1, 2, 4 images in the same second, and 8 in twice that; or until memory ends; or for ever up to the limit."""
    image, seen = torch.zeros(3, 4, 4, dtype=torch.uint8), []
    assert probe_tile(lambda x: seen.append(len(x)), image, ticking(iter([1.0, 1.0, 1.0, 2.0]))) == 4
    assert seen == [1, 1, 2, 2, 4, 4, 8, 8]
    assert probe_tile(lambda x: None, image, ticking(repeat(1.0))) == 256

    def small(x: Tensor) -> None:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert probe_tile(small, image, ticking(repeat(1.0))) == 2
    with pytest.raises(ValueError, match="not even one picture fits"):
        probe_tile(lambda x: torch.empty(2**60), image)
    with pytest.raises(RuntimeError, match="of another kind"):
        probe_tile(lambda x: (_ for _ in ()).throw(RuntimeError("of another kind")), image)


def test_a_probed_tile_is_recorded_and_repeats_the_bytes(tmp_path: Path) -> None:
    """auto takes the recorded one when the folder is there; given as a number, it makes the same files elsewhere."""
    source, encoding = make_source(tmp_path / "images", 6), Encoding(KLCodec(make_autoencoder("sd")))
    prepare_latents(source, encoding, tmp_path / "probed")
    tile = json.loads((tmp_path / "probed" / "settings.json").read_text())["tile"]
    assert tile in [2**k for k in range(9)]
    prepare_latents(source, encoding, tmp_path / "probed")
    prepare_latents(source, encoding, tmp_path / "given", tile=tile)
    assert contents(tmp_path / "probed") == contents(tmp_path / "given")


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, codec = make_source(tmp_path / "images", 2), save_autoencoder(tmp_path / "vae", "flux")
    for options, sentence in (
        (["--dtype=fp16"], "overflows float16"),
        (["--tile=many"], "is not a number of pictures"),
        ([f"--features={tmp_path}"], "no vision model could be loaded"),
    ):
        assert main(["prepare", "latents", str(source.folder), f"--codec={codec}", "--out=nowhere", *options]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path("nowhere").exists()
