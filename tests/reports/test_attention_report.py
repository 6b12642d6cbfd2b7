"""The report on attention: the weights are the layer's own, each map sits where it belongs, and nothing is left behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import EMOJI, LATENT, STAGED, model_folder, subject_of
from torch import Tensor

import elit
from elit.backbones.table import build_model
from elit.cli import main
from elit.elastic.grid import regions
from elit.elastic.grouping import token_index
from elit.elastic.interface import CrossAttention
from elit.read_attention import attention_weights, captured_reads
from elit.reports.attention import correlation_rows, images_of, report_attention
from elit.reports.colophon import write_colophon
from elit.reports.read_maps import DRAWS, ReadMaps, latent_map, read_maps
from elit.reports.report import Picture, write_report
from elit.sampling import image_noise
from randomised import randomised


def some_images(model: elit.DiT, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (count, model.config.in_channels, *model.input.shape[1:])
    return torch.randn(shape, generator=generator), torch.arange(count)


def test_the_weights_reproduce_the_layers_output() -> None:
    layer = randomised(CrossAttention(24, 3))
    generator = torch.Generator().manual_seed(1)
    x, source = torch.randn(2, 5, 3, 24, generator=generator), torch.randn(2, 5, 4, 24, generator=generator)
    weights_BGHKS = attention_weights(layer, x, source)
    assert weights_BGHKS.shape == (2, 5, 3, 3, 4)
    torch.testing.assert_close(weights_BGHKS.sum(-1), torch.ones(2, 5, 3, 3))
    v_BGHSD = layer.kv(source).chunk(2, dim=-1)[1].unflatten(-1, (3, 8)).transpose(2, 3)
    made = layer.out((weights_BGHKS @ v_BGHSD).transpose(2, 3).flatten(-2))
    torch.testing.assert_close(made, layer(x, source))


@torch.no_grad()
def test_capturing_changes_nothing_and_ends(make_dit: Callable[..., elit.DiT]) -> None:
    model = make_dit(read_depth=2)
    assert model.core is not None
    images, labels = some_images(model)
    before = model(images, torch.full((3,), 0.5), labels)
    with captured_reads(model.core) as found:
        assert torch.equal(model(images, torch.full((3,), 0.5), labels), before)
        assert [weights.shape for weights in found] == [(3, 4, 4, 4)] * 2
    model(images, torch.full((3,), 0.5), labels)
    assert len(found) == 2


def test_every_weight_lands_on_its_own_token(make_dit: Callable[..., elit.DiT]) -> None:
    model = make_dit(input_size=(8, 12))
    config = model.config
    assert config.window is not None
    maps = read_maps(model, *some_images(model), 0.5, elit.FlowPath.LINEAR, seed=0)
    where_GS = token_index(config.grid, regions(config.grid, config.window)[0])
    for j in range(4):
        assert torch.equal(latent_map(maps, j, model)[:, where_GS], maps.attention[:, :, j])
    torch.testing.assert_close(maps.token_attention[:, where_GS], maps.attention.sum(2))
    torch.testing.assert_close(maps.attention.sum(-1), torch.ones(3, 6, 4))


@pytest.mark.parametrize("path", list(elit.FlowPath))
@torch.no_grad()
def test_the_loss_of_a_patch_is_its_share_of_the_flow_matching_loss(path: elit.FlowPath, tiny: elit.DiT) -> None:
    images, labels = some_images(tiny)
    maps = read_maps(tiny, images, labels, 0.3, path, seed=2)
    t, error = torch.full((3,), 0.3), torch.zeros(3, 3, 8, 8)
    for draw in range(DRAWS):
        noise = image_noise(2, images.shape, f"read{draw}")
        alpha, sigma = path.alpha(t[:1]), path.sigma(t[:1])
        velocity = path.d_alpha(t[:1]) * images + path.d_sigma(t[:1]) * noise
        error += (tiny(alpha * images + sigma * noise, t, labels) - velocity).square() / DRAWS
    torch.testing.assert_close(maps.loss[:, 5], error[:, :, 2:4, 2:4].mean((1, 2, 3)))  # token 5: row 1, column 1
    torch.testing.assert_close(maps.loss.mean(), error.mean())


def test_attention_that_follows_the_loss_has_correlation_one(tiny: elit.DiT) -> None:
    loss = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    follows, opposes = (ReadMaps(t, torch.empty(0), sign * loss, loss) for t, sign in ((0.2, 2.0), (0.8, -1.0)))
    rows = correlation_rows([follows, opposes], tiny)
    assert [row.t for row in rows] == ["0.2", "0.8", "all"]
    assert [row.image for row in rows] == pytest.approx([1, -1, 1])  # the mean of 2 and -1 follows
    assert [row.windows for row in rows] == pytest.approx([1, -1, 1])


@torch.no_grad()
def test_the_loss_of_a_patch_is_the_sum_of_its_stages() -> None:
    """Written out for two stages: halves are means of 2 x 2 pixels, and every stage has a mean square of its own."""
    model = randomised(build_model(STAGED))
    images, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 98])
    maps = read_maps(model, images, labels, 0.3, elit.FlowPath.LINEAR, seed=2)
    coarse = F.avg_pool2d(images, 2)
    fine = images - F.interpolate(coarse, scale_factor=2, mode="bilinear")
    clean = torch.cat([coarse, F.pixel_unshuffle(fine, 2)], 1)
    expected = torch.zeros(2, 16)
    for draw in range(DRAWS):
        noise = image_noise(2, clean.shape, f"read{draw}")
        error = model(0.7 * clean + 0.3 * noise, torch.full((2, 2), 0.3), labels) - (noise - clean)
        for stage, side in ((error[:, :3], 4), (F.pixel_shuffle(error[:, 3:], 2), 8)):
            tokens = stage.unflatten(3, (4, side)).unflatten(2, (4, side))  # B, C, rows, side, columns, side
            expected += tokens.square().mean((1, 3, 5)).flatten(1) / DRAWS
    torch.testing.assert_close(maps.loss, expected)


@pytest.mark.parametrize(
    ("config", "source"),
    [(EMOJI, "real pictures"), (STAGED, "real pictures"), (LATENT, "samples")],
    ids=["emoji", "stages", "latent"],
)
def test_real_pictures_where_they_are_known_and_samples_elsewhere(
    config: elit.DiTConfig, source: str, tmp_path: Path
) -> None:
    subject = subject_of(tmp_path, config, "3,4")
    images, labels = images_of(subject)
    assert labels.tolist() == [3, 4] * 4 and len(images) == 8
    report = report_attention(subject, [0.75, 0.25])
    assert report.results["of"] == source and report.results["images"] == 8
    assert [row["t"] for row in report.results["rank_correlation"]] == ["0.25", "0.75", "all"]
    assert all(-1 <= row["image"] <= 1 for row in report.results["rank_correlation"])
    write_report(report, tmp_path / "out", write_colophon("elit report"))
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"attention.png", "latents.png"}
    assert [p.name for p in report.parts if isinstance(p, Picture)] == ["attention.png", "latents.png"]


def test_a_model_of_stages_has_a_page_from_the_command_line(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", STAGED)
    arguments = ["--labels", "heart,zodiac", "--times", "0.5", "--out", str(tmp_path / "out")]
    assert main(["report", "attention", "--model", str(model), *arguments]) == 0
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "loss of the token&#x27;s patch, the sum of its 2 stages, all at that time." in page
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["images"], results["of"]) == (8, "real pictures")


def test_models_without_a_choice_and_times_outside_are_refused(tmp_path: Path, make_dit: Callable[..., elit.DiT]) -> None:
    for wrong, word in ((make_dit(group_size=None), "dense"), (make_dit(group_size=1), "one token")):
        with pytest.raises(ValueError, match=word):
            read_maps(wrong, *some_images(wrong), 0.5, elit.FlowPath.LINEAR, seed=0)
    subject = subject_of(tmp_path, LATENT, "0")
    for time in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            report_attention(subject, [time])
