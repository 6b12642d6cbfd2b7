"""Codecs of clips: diffusers' own numbers, and the whole way from GIFs over shards and a training to GIFs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTXPipeline
from PIL import Image
from torch import Tensor

from autoencoders import DEVIATIONS, MEANS, OF_CLIPS, make_clip_autoencoder, save_autoencoder
from elit import ElitPipeline
from elit.autoencoders import KINDS, KLCodec, load_autoencoder
from elit.card import load_card
from elit.cli import main
from elit.codec import Latents, load_codec, moments_to_latents
from elit.data.dataset import PreparedData
from elit.data.stream import StreamedData
from elit.hub import find_model
from elit.media import read_clip
from elit.pixels import to_float, to_uint8
from elit.sampling import sample
from elit.weights import load_model

CPU = torch.device("cpu")
CLIPS = torch.rand(2, 3, 9, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
TIMES = {"CogVideoX": 2, "HunyuanVideo": 4, "LTXVideo": 4, "Wan": 4}  # frames in one latent frame
SIDES = {"CogVideoX": 2, "HunyuanVideo": 4, "LTXVideo": 4, "Wan": 4}

MEAN, DEVIATION = (torch.tensor(values).view(1, 4, 1, 1, 1) for values in (MEANS, DEVIATIONS))
# What the pipelines of diffusers do to z before the model, and to what the model made before it is decoded.
NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "CogVideoX": lambda z: 0.7 * z,
    "HunyuanVideo": lambda z: 0.476986 * z,
    "LTXVideo": lambda z: LTXPipeline._normalize_latents(z, torch.tensor(MEANS), torch.tensor(DEVIATIONS), 0.5),
    "Wan": lambda z: (z - MEAN) * (1.0 / DEVIATION),
}
BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "CogVideoX": lambda x: 1 / 0.7 * x,
    "HunyuanVideo": lambda x: x / 0.476986,
    "LTXVideo": lambda x: LTXPipeline._denormalize_latents(x, torch.tensor(MEANS), torch.tensor(DEVIATIONS), 0.5),
    "Wan": lambda x: x / (1.0 / DEVIATION) + MEAN,
}


def test_every_kind_of_clips_is_tried() -> None:
    assert {f"AutoencoderKL{kind}" for kind in OF_CLIPS} == {name for name, kind in KINDS.items() if kind.of_clips}


@pytest.mark.parametrize("kind", OF_CLIPS)
def test_clips_are_encoded_and_decoded_as_diffusers_does(kind: str) -> None:
    """Its distribution, normalised as its pipelines do; decoded alike, to the bit the second time."""
    autoencoder = make_clip_autoencoder(kind)
    codec = KLCodec(autoencoder)
    frames, side = 8 // TIMES[kind] + 1, SIDES[kind]
    assert (codec.channels, codec.side, codec.latent_frames(9)) == (4, side, frames)
    with torch.no_grad():
        distribution = autoencoder.encode(CLIPS).latent_dist
    moments = codec.encode_moments(CLIPS)
    assert moments.shape == (2, 8, frames, 8 // side, 12 // side)
    assert torch.equal(moments, distribution.parameters)
    shape = (2, 4, *moments.shape[2:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    latents = moments_to_latents(moments, noise, "moments", codec.scale, codec.shift)
    wanted = NORMALISED[kind](distribution.sample(torch.Generator().manual_seed(2)))
    torch.testing.assert_close(latents, wanted)
    decoded = codec.decode(latents)
    assert decoded.shape == CLIPS.shape and torch.equal(decoded, codec.decode(latents))
    with torch.no_grad():
        torch.testing.assert_close(decoded, autoencoder.decode(BACK[kind](latents)).sample)


def test_29_frames_are_8_of_latents() -> None:
    """As in the paper's Kinetics; and back again to 29. Not for a codec that encodes 8 frames at a time."""
    clip = torch.rand(1, 3, 29, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    for kind in ("HunyuanVideo", "Wan"):
        codec = KLCodec(make_clip_autoencoder(kind))
        moments = codec.encode_moments(clip)
        assert moments.shape == (1, 8, 8, 1, 1)
        assert codec.decode(moments[:, :4]).shape == clip.shape
        codec.check_latent_frames(8)
    codec = KLCodec(make_clip_autoencoder("CogVideoX"))
    with pytest.raises(ValueError, match="and a multiple of 8, and these have 29; prepare them with --frames 25 or 33"):
        codec.encode_moments(clip)
    with pytest.raises(ValueError, match="decodes one latent frame and a multiple of 4, and the model makes 8"):
        codec.check_latent_frames(8)


@pytest.mark.parametrize(("kind", "frames", "said"), [("Wan", 3, "--frames 5$"), ("LTXVideo", 8, "--frames 5 or 9$")])
def test_frames_that_would_be_lost_are_refused(kind: str, frames: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KLCodec(make_clip_autoencoder(kind)).encode_moments(CLIPS[:, :, :frames, :, :8])


def test_a_decoder_that_asks_for_a_time_is_given_that_of_clean_latents() -> None:
    """As LTX's pipeline does unless told otherwise. A decoder that draws noise is refused: its clips would differ."""
    conditioned = make_clip_autoencoder("LTXVideo", timestep_conditioning=True)
    x = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = conditioned.decode(BACK["LTXVideo"](x), torch.zeros(2)).sample
        later = conditioned.decode(BACK["LTXVideo"](x), torch.ones(2)).sample
    decoded = KLCodec(conditioned).decode(x)
    torch.testing.assert_close(decoded, wanted)
    assert (decoded - later).abs().max() > 1e-3
    with pytest.raises(ValueError, match="draws noise when it decodes"):
        KLCodec(make_clip_autoencoder("LTXVideo", decoder_inject_noise=(False, True, False, False)))


def test_a_codec_is_found_by_its_class_and_others_are_told(tmp_path: Path) -> None:
    for kind in OF_CLIPS:
        make_clip_autoencoder(kind).save_pretrained(tmp_path / kind)
        found = load_autoencoder(str(tmp_path / kind))
        assert (found.kind, found.of_clips) == (f"AutoencoderKL{kind}", True)
        assert found.name == KLCodec(make_clip_autoencoder(kind)).name
    config = tmp_path / "Wan" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "AutoencoderKLMochi"}))
    known = "of clips an AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo, AutoencoderKLLTXVideo or AutoencoderKLWan"
    with pytest.raises(ValueError, match=f"of the kind AutoencoderKLMochi, which elit does not know; .* {known}$"):
        load_autoencoder(str(tmp_path / "Wan"))


def test_a_config_that_lies_about_its_latents_is_told() -> None:
    with pytest.raises(ValueError, match="AutoencoderKLLTXVideo says latents of 2 x 2 x 2, and it makes 3 x 2 x 2"):
        KLCodec(make_clip_autoencoder("LTXVideo", temporal_compression_ratio=8)).encode_moments(CLIPS[..., :8])


def test_the_codec_fits_what_a_model_makes(tmp_path: Path) -> None:
    """Pictures and clips, and the factors of each channel."""
    make_clip_autoencoder("Wan").save_pretrained(tmp_path / "clips")
    pictures, clips = str(save_autoencoder(tmp_path / "pictures", "sd")), str(tmp_path / "clips")
    codec = load_codec(clips, 4, CPU, frames=3)
    assert isinstance(codec, KLCodec) and load_codec(clips, 4, CPU, Latents(codec.scale, codec.shift), 3).name == codec.name
    with pytest.raises(ValueError, match="AutoencoderKL, is of pictures, and the model makes clips; give one of clips: an"):
        load_codec(pictures, 4, CPU, frames=3)
    with pytest.raises(ValueError, match="Wan, is of clips, and the model makes pictures; give one of pictures: an Auto"):
        load_codec(clips, 4, CPU)
    with pytest.raises(ValueError, match=r"has scale by channel .* and the latents by channel .*; give the codec that they"):
        load_codec(clips, 4, CPU, Latents(codec.scale, (0.0,) * 4), 3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of 9 frames of 8 x 8, of two classes: each a square that moves."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        frames = [Image.new("RGB", (8, 8), (250, 50 * i, 40)) for _ in range(9)]
        for t, frame in enumerate(frames):
            frame.paste((10, 10, 200), (t % 6, i, t % 6 + 3, i + 3))
        file = folder / "raw" / ("left", "right")[i % 2] / f"{i}.gif"
        file.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=50)
    out = folder / "data"
    assert main(["prepare", "clips", str(folder / "raw"), "--frames=9", "--size=8", "--workers=1", f"--out={out}"]) == 0
    return out


def latents_of(prepared: Path, kind: str, folder: Path, *more: str) -> tuple[Path, Path]:
    """A codec's folder, and the latents of the clips."""
    make_clip_autoencoder(kind).save_pretrained(folder / "codec")
    words = ["prepare", "latents", str(prepared), f"--codec={folder / 'codec'}", f"--out={folder / 'latents'}", *more]
    assert main(words) == 0
    return folder / "codec", folder / "latents"


def test_training_reads_the_samples_of_diffusers(prepared: Path, tmp_path: Path) -> None:
    """Of each clip or of its mirror image, with the noise of its row's generator, up to the rounding to float16."""
    _, folder = latents_of(prepared, "Wan", tmp_path, "--mirror", "--tile=2")
    data, source, autoencoder = PreparedData(folder), PreparedData(prepared), make_clip_autoencoder("Wan")
    assert data.shape == (4, 3, 2, 2) and data.label_names == ("left", "right") and data.info.psnr is not None
    x, labels = data.read(torch.arange(5), [torch.Generator().manual_seed(i) for i in range(5)])
    flips = []
    for i in range(5):
        generator = torch.Generator().manual_seed(i)
        flips.append(float(torch.rand((), generator=generator)) < 0.5)
        clip = to_float(source.info.in_frames(source.image(i)))[None]
        with torch.no_grad():
            distribution = autoencoder.encode(clip.flip(-1) if flips[-1] else clip).latent_dist
        z = distribution.mean + distribution.std * torch.randn(1, 4, 3, 2, 2, generator=generator)
        torch.testing.assert_close(x[i : i + 1], NORMALISED["Wan"](z), rtol=4e-3, atol=4e-3)
    assert len(set(flips)) == 2 and torch.equal(labels, source.labels)
    streamed = StreamedData(folder.as_uri())
    seen, _ = streamed.read(torch.arange(5), [torch.Generator().manual_seed(0) for _ in range(5)])
    wanted, _ = data.read(torch.arange(5), [torch.Generator().manual_seed(0) for _ in range(5)])
    assert sorted(seen.flatten(1).sum(1).tolist()) == sorted(wanted.flatten(1).sum(1).tolist())


def run_of(folder: Path, codec: Path, data: Path, *more: str) -> list[str]:
    frames, side = PreparedData(data).shape[1:3]
    sizes = {"input_size": side, "frames": frames, "in_channels": 4, "num_classes": 2, "patch_size": 1, "width": 16}
    sizes |= {"depth": 3, "heads": 2, "head_depth": 1, "tail_depth": 1, "group_size": 2, "group_frames": frames}
    values = {"architecture": "VideoDiT", "out": folder / "run", "steps": 2, "batch_size": 2, "device": "cpu"}
    values |= {"data.source": data, "data.codec": codec, "data.workers": 0, "log.preview_every": 2}
    values |= {"log.preview_budgets": "[0.25, 1.0]", "optimizer.lr": 0.01, "optimizer.ema_decay": 0.5}
    return ["train", *(f"--{key}={value}" for key, value in ({f"model.{k}": v for k, v in sizes.items()} | values).items())]


@pytest.mark.parametrize("kind", ["HunyuanVideo", "Wan"])  # one factor for all channels, and one for each
def test_from_clips_over_latents_and_a_run_to_clips(
    kind: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of training; the preview, the samples' GIFs, the pipeline's frames and the report are decoded clips."""
    monkeypatch.setattr("elit.reports.budgets.LATENCY_REPEATS", 2)
    codec, data = latents_of(prepared, kind, tmp_path, "--tile=2")
    assert main(run_of(tmp_path, codec, data)) == 0
    run, decoder = tmp_path / "run", load_autoencoder(str(codec))
    model = find_model(str(run))
    assert load_card(model).encoding == Latents(decoder.scale, decoder.shift, decoder.name)
    with Image.open(run / "previews" / "step_00000002.gif") as preview:
        assert preview.n_frames == 9
    words = ["sample", f"--model={run}", f"--codec={codec}", "--labels=left,right", "--steps=2", "--guidance.scale=1"]
    assert main([*words, "--tile=2", f"--out={tmp_path / 'samples'}"]) == 0
    made = sorted((tmp_path / "samples").glob("*/00000/*.gif"))
    latents = sample(load_model(model), [0, 1], steps=2)
    with torch.no_grad():
        wanted = to_uint8(make_clip_autoencoder(kind).decode(BACK[kind](latents)).sample)
    assert len(made) == 2
    for file, clip in zip(made, wanted, strict=True):
        assert read_clip(file).shape == (3, 9, 8, 8)
        assert (read_clip(file).int() - clip.int()).abs().float().mean() < 8  # of what a palette loses
    pipe = ElitPipeline.from_pretrained(run, codec=str(codec))
    images = pipe(labels=["left"], num_inference_steps=1, guidance_scale=1).images
    assert len(images[0]) == 9 and images[0][0].size == (8, 8)
    report = ["report", "budgets", f"--model={run}", f"--codec={codec}", "--labels=left", "--steps=1"]
    assert main([*report, f"--out={tmp_path / 'report'}"]) == 0
    with Image.open(tmp_path / "report" / "budgets.gif") as sheet:
        assert sheet.n_frames == 9
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/gif;base64," in page and "makes latents" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--codec=pictures"], "is of pictures, and the source holds clips; give one of clips: an AutoencoderKLCogVideoX,"),
        (["--codec=wan", "--features=dino"], "features are of pictures, and the source holds clips; leave --features out"),
        (["--codec=deep"], "the clips are 8 x 8, and the codec needs sides that are multiples of 16"),
        (["--codec=long"], "and a multiple of 16, and these have 9; prepare them with --frames 17"),
        (["--codec=nowhere"], "no AutoencoderKL could be loaded from 'nowhere'"),
    ],
)
def test_what_does_not_fit_clips_is_told_in_a_sentence(
    words: list[str],
    said: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_autoencoder(tmp_path / "pictures", "sd")
    made = {"wan": {}, "deep": {"dim_mult": [1] * 5, "temperal_downsample": [False, False, True, True]}}
    for name, more in made.items():
        make_clip_autoencoder("Wan", **more).save_pretrained(tmp_path / name)
    make_clip_autoencoder("LTXVideo", temporal_compression_ratio=16).save_pretrained(tmp_path / "long")
    monkeypatch.setattr("elit.encoder.load_encoder", lambda name, device: name)
    assert main(["prepare", "latents", str(prepared), "--out=out", *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_codec_of_clips_does_not_take_pictures_and_a_run_says_what_it_misses(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec, data = latents_of(prepared, "Wan", tmp_path, "--tile=2")
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "1.png")
    assert main(["prepare", "images", str(tmp_path / "one"), "--size=8", "--workers=1", f"--out={tmp_path / 'images'}"]) == 0
    words = ["prepare", "latents", str(tmp_path / "images"), f"--codec={codec}", f"--out={tmp_path / 'out'}"]
    assert main(words) == 2
    assert "AutoencoderKLWan, is of clips, and the source holds pictures" in " ".join(capsys.readouterr().err.split())
    assert main(["prepare", "latents", str(data), f"--codec={codec}", f"--out={tmp_path / 'out'}"]) == 2
    assert "the source holds latents, and pictures become latents, or clips; give" in " ".join(
        capsys.readouterr().err.split()
    )
    for more, said in (
        ("--model.frames=4", "set model.frames 3"),
        ("--evaluate.every=2", "evaluate.every measures pictures, and the data are clips"),
        ("--alignment.enabled=true", "alignment looks at pictures, and the data are clips"),
        (f"--data.codec={save_autoencoder(tmp_path / 'sd', 'sd')}", "is of pictures, and the model makes clips"),
    ):
        assert main([*run_of(tmp_path, codec, data), more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
