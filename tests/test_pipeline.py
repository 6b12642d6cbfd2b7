"""ElitPipeline and codecs: `sample` with names, latents decoded, and folders that load again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress

from elit import DiT, ElitPipeline, Guidance, Schedule, count_flops, load_model, sample
from elit.autoencoders import KLCodec
from elit.card import Card, SamplingDefaults
from elit.codec import PixelCodec, load_codec
from elit.pictures import to_image

CARD = Card(SamplingDefaults(steps=3, guidance_scale=1.5), label_names=tuple("abcdefg"))


@pytest.fixture
def pipe(tiny: DiT) -> ElitPipeline:
    return ElitPipeline(tiny, CARD, PixelCodec())


@pytest.fixture(scope="module")
def autoencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL with four latent channels, half the side, a scale and a shift."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    folder = tmp_path_factory.mktemp("autoencoder")
    autoencoder.save_pretrained(folder)
    return folder


def test_is_sample_with_the_cards_defaults(pipe: ElitPipeline, tiny: DiT) -> None:
    """Labels by name and number; steps and scale from the card; PIL images."""
    out = pipe(["c", 5], budget=0.5, seed=3)
    expected = sample(tiny, [2, 5], "euler", 3, 0.5, Guidance(1.5), seed=3)
    assert out.labels == [2, 5]
    assert [image.tobytes() for image in out.images] == [to_image(image).tobytes() for image in expected]
    assert isinstance(out.images[0], Image.Image)


def test_guidance_by_its_arguments(pipe: ElitPipeline, tiny: DiT) -> None:
    """Cheap CFG, autoguidance, and the dataclass; steps by either name."""
    cheap = pipe(1, guidance_scale=2.0, guidance_budget=0.25, num_inference_steps=2, output_type="latent").images
    assert torch.equal(cheap, sample(tiny, [1], steps=2, guidance=Guidance(2.0, weak_budget=0.25)))
    auto = pipe(1, guidance_scale=2.0, guidance_budget=0.25, autoguidance=True, steps=2, output_type="latent").images
    whole = Guidance(2.0, weak_budget=0.25, weak_label="same")
    assert torch.equal(auto, sample(tiny, [1], steps=2, guidance=whole))
    assert torch.equal(auto, pipe(1, guidance=whole, steps=2, output_type="latent").images)
    assert not torch.equal(auto, cheap)
    with pytest.raises(ValueError, match="give weak_budget"):
        pipe(1, guidance_scale=2.0, autoguidance=True)


def test_budgets_as_text(pipe: ElitPipeline, tiny: DiT) -> None:
    assert pipe(1, "1/4@t>0.5,1").budget == Schedule(((0.5, 0.25),), 1.0)
    assert pipe(1, f"{count_flops(tiny, 0.5) / 1e9 * 1.001}gflops").budget == 0.5


def test_output_types(pipe: ElitPipeline) -> None:
    """In [0, 1] for arrays and tensors, as the PIL image has it in 8 bits."""
    latent, unit, array, pil = (pipe([1, 2], output_type=kind).images for kind in ("latent", "pt", "np", "pil"))
    torch.testing.assert_close(unit, ((latent + 1) / 2).clamp(0, 1))
    assert np.array_equal(array, unit.permute(0, 2, 3, 1).numpy())
    assert np.abs(255 * array[0] - np.asarray(pil[0])).max() <= 0.5 + 1e-3
    with pytest.raises(ValueError, match="unknown output_type"):
        pipe(1, output_type="jpeg")


def test_generator_draws_the_noise(pipe: ElitPipeline, tiny: DiT) -> None:
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    made = pipe([0, 1], generator=torch.Generator().manual_seed(9), output_type="latent").images
    assert torch.equal(made, sample(tiny, [0, 1], steps=3, guidance=Guidance(1.5), noise=noise))


def test_unknown_labels_are_refused(pipe: ElitPipeline) -> None:
    with pytest.raises(ValueError, match="there is no label 'h'"):
        pipe("h")
    with pytest.raises(ValueError, match="0 to 6"):
        pipe([8])


def test_saved_and_loaded_it_is_the_same(pipe: ElitPipeline, tmp_path: Path) -> None:
    """Weights, card and a README with a row for each budget; a foreign folder is left alone."""
    folder = pipe.save_pretrained(tmp_path / "mine")
    again = ElitPipeline.from_pretrained(folder)
    assert again.card == CARD
    assert torch.equal(again("b", output_type="pt").images, pipe("b", output_type="pt").images)
    readme = (folder / "README.md").read_text()
    assert all(f"| {k}/4 |" in readme for k in range(1, 5))
    pipe.save_pretrained(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files, such as thesis\.txt"):
        pipe.save_pretrained(tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_in_half_precision(pipe: ElitPipeline) -> None:
    """Close to float32, and moved back."""
    exact = pipe([1], output_type="pt").images
    half = pipe.to("cpu", torch.bfloat16)([1], output_type="pt").images
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.2
    pipe.to(torch.float32)


def test_latents_are_decoded(make_dit, autoencoder_folder: Path, tmp_path: Path) -> None:
    """decode(z / scale + shift), whether the codec is there from the start or a latent result is decoded by hand."""
    from diffusers import AutoencoderKL

    model = make_dit(in_channels=4)
    folder = ElitPipeline(model, CARD).save_pretrained(tmp_path / "latent")
    pipe = ElitPipeline.from_pretrained(folder, codec=str(autoencoder_folder))
    z = pipe([1, 2], output_type="latent").images
    with torch.no_grad():
        x = AutoencoderKL.from_pretrained(autoencoder_folder).decode(z / 0.5 + 0.25).sample
    torch.testing.assert_close(pipe([1, 2], output_type="pt").images, (x / 2 + 0.5).clamp(0, 1))
    assert pipe(1).images[0].size == (16, 16)
    bare = ElitPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="give from_pretrained a codec"):
        bare(1)
    assert torch.equal(bare([1, 2], output_type="latent").images, z)


def test_codecs_that_do_not_fit(
    autoencoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="give their decoder with --codec"):
        load_codec(None, 4, device)
    with pytest.raises(ValueError, match="decodes 4 channels; the model makes 16"):
        load_codec(str(autoencoder_folder), 16, device)
    with pytest.raises(ValueError, match="no AutoencoderKL could be loaded"):
        load_codec(str(tmp_path), 4, device)
    first, second = (load_codec(str(autoencoder_folder), 4, device) for _ in range(2))
    assert isinstance(first, KLCodec) and first.name == second.name != PixelCodec.name


def test_the_bundled_model_by_name() -> None:
    """No argument is the bundled model, whose classes have names."""
    out = ElitPipeline.from_pretrained()("heart/noto", budget=1 / 16, steps=2)
    assert out.images[0].size == (64, 64)


def test_hub_ids_without_a_network_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no folder nobody/nothing either"):
        ElitPipeline.from_pretrained("nobody/nothing")
    with pytest.raises(ValueError, match="is not a model folder"):
        ElitPipeline.from_pretrained(tmp_path / "nothing")


def test_a_model_in_the_hubs_cache_is_loaded_offline(pipe: ElitPipeline, tmp_path: Path, monkeypatch) -> None:
    """The folder layout of the hub's cache: a snapshot by commit, and a ref that names it."""
    repo = tmp_path / "models--me--mine"
    pipe.save_pretrained(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    again = ElitPipeline.from_pretrained("me/mine")
    for a, b in zip(again.model.parameters(), load_model(repo / "snapshots" / "abc").parameters(), strict=True):
        assert torch.equal(a, b)


def test_several_images_of_each_label(pipe: ElitPipeline, tiny: DiT) -> None:
    """One label's after another's, each image of its own noise."""
    made = pipe(["c", 5], num_images_per_prompt=2, output_type="latent")
    assert made.labels == [2, 2, 5, 5]
    assert torch.equal(made.images, sample(tiny, [2, 2, 5, 5], steps=3, guidance=Guidance(1.5)))


def test_a_generator_for_each_image(pipe: ElitPipeline) -> None:
    """Makes of image i what its generator alone would make."""

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    together = pipe([0, 1], generator=[generator(3), generator(4)], output_type="latent").images
    for i, seed in enumerate((3, 4)):
        alone = pipe(i, generator=generator(seed), output_type="latent").images
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": [1.9]}, "labels"),
        ({"labels": None}, "labels"),
        ({"labels": True}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": torch.tensor([1.0])}, "labels"),
        ({"guidance": 2.0}, "guidance"),
        ({"guidance": Guidance(2.0), "guidance_scale": 3.0}, "guidance_scale"),
        ({"guidance_scale": "2"}, "guidance"),
        ({"guidance_budget": "1/0"}, "budget"),
        ({"generator": 3}, "generator"),
        ({"generator": [torch.Generator()]}, "list of 1, and 2 images"),
        ({"generator": [1, 2]}, "generator"),
        ({"generator": torch.Generator(), "seed": 3}, "seed"),
        ({"seed": None}, "seed"),
        ({"seed": float("nan")}, "seed"),
        ({"steps": 3, "num_inference_steps": 4}, "num_inference_steps"),
        ({"steps": 2.5}, "steps"),
        ({"num_inference_steps": 0}, "steps"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"sampler": []}, "sampler"),
        ({"budget": []}, "budget"),
        ({"callback_on_step_end": 3}, "callback_on_step_end"),
    ],
)
def test_an_argument_that_cannot_be_is_named(pipe: ElitPipeline, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pipe(**({"labels": [0, 1]} | arguments))


@pytest.mark.parametrize("card", [CARD, Card(licence="MIT", source="there"), Card()])
def test_the_model_card_has_licence_labels_and_a_loading_line_that_works(tiny: DiT, card: Card, tmp_path: Path) -> None:
    """Its Python runs as it stands, of pixels and of latents, elastic and dense."""
    folder = ElitPipeline(tiny, card, PixelCodec()).save_pretrained(tmp_path / "mine")
    text = (folder / "README.md").read_text()
    assert "license: " + {"MIT": "mit", None: "unknown"}[card.licence] in text
    assert ("2 c, 3 d" in text) == bool(card.label_names) and ("0 to 6" in text) != bool(card.label_names)
    made: dict[str, object] = {}
    exec(text.split("```python\n")[1].split("```")[0], made)
    assert isinstance(made["image"], Image.Image)


@pytest.mark.parametrize("fields", [{"in_channels": 4}, {"group_size": None}, {"in_channels": 4, "group_size": None}])
def test_the_loading_line_works_for_latents_and_dense_models(make_dit, fields, tmp_path: Path) -> None:
    folder = ElitPipeline(make_dit(**fields), CARD).save_pretrained(tmp_path / "it's")
    made: dict[str, object] = {}
    exec((folder / "README.md").read_text().split("```python\n")[1].split("```")[0], made)
    assert "image" in made or "latents" in made


def test_a_compiled_model_is_saved_as_the_original(tiny: DiT, tmp_path: Path) -> None:
    folder = ElitPipeline(torch.compile(tiny), CARD).save_pretrained(tmp_path / "mine")
    assert torch.equal(load_model(folder).final.linear.weight, tiny.final.linear.weight)


def test_the_progress_bar_counts_the_steps_and_can_be_switched_off(pipe: ElitPipeline, monkeypatch) -> None:
    """A callback of one's own is called all the same."""
    bars = []

    class Bar(Progress):
        def __init__(self) -> None:
            super().__init__(disable=True)
            bars.append(self)

    monkeypatch.setattr("elit.pipeline.progress_bar", Bar)
    steps: list[int] = []
    pipe(1, callback_on_step_end=lambda step, t, x: steps.append(step))
    assert [(task.completed, task.total) for task in bars[0].tasks] == [(3, 3)] and steps == [0, 1, 2]
    pipe.set_progress_bar_config(disable=True)
    pipe(1)
    assert len(bars) == 1
