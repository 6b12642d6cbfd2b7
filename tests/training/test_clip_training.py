"""Training on clips: losses fall, a run that was stopped goes on exactly, previews move, and what does not fit is said."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_config import draw_batch, load_data, make_state
from PIL import Image

from elit import UserError
from elit.cli import main
from elit.seeding import generator_for
from elit.training.loop import train
from elit.training.reading import load_config
from elit.weights import load_model

TINY = {
    "architecture": "VideoDiT",
    "batch_size": 4,
    "steps": 4,
    "device": "cpu",
    "data.source": "moving-emoji/heart",
    "data.size": 8,
    "data.workers": 0,
    "model.input_size": 8,
    "model.frames": 4,
    "model.in_channels": 3,
    "model.num_classes": 8,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 3,
    "model.group_size": 2,
    "model.group_frames": 2,
    "model.head_depth": 1,
    "model.tail_depth": 1,
    "model.rope": "true",
    "budget.lowest": 0.125,
    "optimizer.lr": 3e-3,
    "optimizer.ema_decay": 0.5,
    "log.every": 1,
    "log.preview_every": 0,
}


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., list[str]]:
    """Options of `elit train` for a tiny run, with `values` (a.b given as a__b) in place of its own."""

    def make(**values: object) -> list[str]:
        merged = {**TINY, "out": tmp_path / "run", **{key.replace("__", "."): value for key, value in values.items()}}
        return [f"--{key}={value}" for key, value in merged.items()]

    return make


def test_a_batch_holds_clips_on_their_way_to_noise(options: Callable[..., list[str]]) -> None:
    """x_t and the velocity tell the clips: x = x_t - t v is what the data give for the step's own rows and generators."""
    config = load_config(None, options())
    data = load_data(config)
    batch = draw_batch(config, data, 3)
    assert batch.flow.x_t.shape == (4, 3, 4, 8, 8)
    clean = batch.flow.x_t - batch.flow.t.view(-1, 1, 1, 1, 1) * batch.flow.velocity
    kinds = [label if label < 8 else None for label in batch.labels.tolist()]
    for i, kind in enumerate(kinds):
        wanted = [
            data.read(torch.tensor([row]), [generator_for("data", config.seed, 3, i)])[0][0]
            for row in range(len(data))
            if kind is None or row % 8 == kind
        ]
        assert min(float((clean[i] - clip).abs().max()) for clip in wanted) < 1e-5


def test_a_run_goes_on_exactly_and_its_previews_are_gifs(options: Callable[..., list[str]], tmp_path: Path) -> None:
    """Four steps at once, and two and two: the same weights to the bit. A row of the preview for each budget, 4 frames."""
    train(load_config(None, options(out=tmp_path / "once")))
    train(load_config(None, options(out=tmp_path / "twice", steps=2)))
    previews = {"log__preview_every": 4, "log__preview_budgets": "[0.125, 1.0]"}
    train(load_config(None, options(out=tmp_path / "twice", **previews)))
    once, twice = (load_model(tmp_path / name).state_dict() for name in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    (preview,) = (tmp_path / "twice" / "previews").iterdir()
    with Image.open(preview) as sheet:
        assert preview.name == "step_00000004.gif"
        assert sheet.n_frames == 4
        assert sheet.width > 8 * 96 and 2 * 96 < sheet.height < 3 * 96


def test_a_dense_model_of_clips_is_made_elastic(options: Callable[..., list[str]], tmp_path: Path) -> None:
    """Sharply anchored, at the full budget and before its first step: the dense model's velocity; longer clips too."""
    dense = [word for word in options(out=tmp_path / "dense", steps=2) if "group" not in word]
    train(load_config(None, dense))
    started = load_config(None, options(init_from=tmp_path / "dense", model__anchor="sharp", model__frames=6))
    state = make_state(started, torch.device("cpu"))
    source = load_model(tmp_path / "dense")
    x = torch.randn(2, 3, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    given = (x, torch.tensor([0.3, 0.8]), torch.tensor([1, 5]))
    wanted = source(*given)
    assert ((state.model(*given) - wanted).norm() / wanted.norm()).item() < 1e-4


def test_the_loss_falls(options: Callable[..., list[str]]) -> None:
    """On clips nearly all white it does so quickly: that the model learns them at all is seen after a few steps."""
    made = load_config(None, options(steps=30, batch_size=8))
    train(made)
    log = [line for line in (Path(made.out) / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    losses = [float(line.split('"loss": ')[1].split(",")[0].rstrip("}")) for line in log]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data__source": "emoji"}, "the data are pictures and the model takes clips"),
        ({"data__source": "moving-emoji/hart"}, "did you mean heart"),
        ({"data__size": 16}, "set data.size 8, or model.input_size 16"),
        ({"model__num_classes": 7}, "set model.num_classes 8"),
        ({"model__frames": 1}, "model.frames is 1"),
        ({"model__group_frames": 5}, "group_frames 5 is more than the 4 frames"),
        ({"evaluate__every": 2}, "evaluate.every measures pictures"),
        ({"alignment__enabled": "true"}, "alignment looks at pictures"),
        ({"architecture": "VideoDit"}, "unknown architecture 'VideoDit'; did you mean VideoDiT"),
        ({"preset": "ELIT-SiT-S/1x2x3", "architecture": "VideoDiT"}, "ELIT-SiT-S/1x2x2"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(
    options: Callable[..., list[str]],
    values: dict[str, object],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["train", *options(**values)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_model_of_pictures_does_not_take_clips(options: Callable[..., list[str]]) -> None:
    given = [word for word in options(architecture="DiT") if "frames" not in word]
    with pytest.raises(UserError, match="is clips, and the model takes pictures; give a preset such as SiT-S/1x2x2"):
        train(load_config(None, given))
