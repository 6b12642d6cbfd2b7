"""Models of several stages from the command line and the pipeline: budgets per stage, going on to the byte, bad input."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import elit
import elit.generation
from elit.backbones.config import DFMConfig
from elit.backbones.table import build_model
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.cli import main
from elit.recipe import Recipe
from elit.weights import save_weights
from randomised import randomised

SMALL = DFMConfig(
    input_size=8, in_channels=3, num_classes=7, width=32, depth=3, heads=2, group_size=2, head_depth=1, tail_depth=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny elastic model of two stages with a card that says how it is sampled."""
    place = tmp_path_factory.mktemp("staged") / "model"
    place.mkdir()
    save_weights(randomised(build_model(SMALL)), place)
    save_card(Card(SamplingDefaults((3, 2), 1.0, (0.2,))), place)
    return place


@pytest.fixture
def staged(folder: Path) -> Callable[..., tuple[int, Path]]:
    """`elit sample` of that model: the exit code, and OUT."""

    def run(out: Path, *options: str) -> tuple[int, Path]:
        return main(["sample", "--model", str(folder), "--out", str(out), *options]), out

    return run


def files_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def test_a_staged_sample_that_was_killed_goes_on_to_the_byte(staged, tmp_path, monkeypatch) -> None:
    """Killed in the midst of a tile's second stage, and given again: every byte is that of a run never stopped."""
    options = ("--count", "5", "--tile", "2", "--labels", "balanced", "--budget", "1/4,1", "--sampler", "heun")
    code, whole = staged(tmp_path / "whole", *options)
    assert code == 0
    calls = 0
    forward = elit.generation.Recipe.draw

    def dies(self: Recipe, model: torch.nn.Module, *rest: object, **more: object) -> torch.Tensor:
        def count(module: object, inputs: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 14:  # 8 forwards a tile: the sixth of the second tile, in its second stage
                raise KeyboardInterrupt

        hook = model.register_forward_pre_hook(count)
        try:
            return forward(self, model, *rest, **more)
        finally:
            hook.remove()

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "draw", dies)
        assert staged(tmp_path / "cut", *options)[0] != 0
    assert calls == 14 and 0 < len(list((tmp_path / "cut").rglob("0*.png"))) < 5
    assert staged(tmp_path / "cut", *options)[0] == 0
    assert files_of(tmp_path / "cut") == files_of(whole)
    settings = json.loads(next(whole.rglob("settings.json")).read_text())
    assert settings["steps"] == [3, 2] and settings["thresholds"] == [0.2]
    assert settings["budget"] == [[0.5, "1/4"], "4/4"]


def test_steps_thresholds_and_stages_are_settings_of_their_own(staged, tmp_path) -> None:
    for options in ([], ["--steps", "2,2"], ["--thresholds", "0.3"], ["--stages", "1"]):
        assert staged(tmp_path, "--count", "1", *options)[0] == 0
    pictures = {next(place.rglob("000000.png")).read_bytes() for place in tmp_path.iterdir() if place.is_dir()}
    assert len(pictures) == 4
    assert staged(tmp_path, "--count", "1", "--steps", "3,2", "--thresholds", "0.2")[0] == 0
    assert len([place for place in tmp_path.iterdir() if place.is_dir()]) == 4  # what the card says anyhow


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "1/4,1/2,1"], "3 budgets (0.25, 0.5, 1) were given for 2 stages"),
        (["--thresholds", "0.1,0.2"], "are 2; 2 stages have 1"),
        (["--thresholds", "-0.1"], "do not fall from below 1 to above 0"),
        (["--thresholds", "low"], "'low' is not a number"),
        (["--steps", "4,4,4"], "steps 4, 4, 4 are not 2 whole numbers"),
        (["--steps", "4,0"], "0 is not from 1 to 10000"),
        (["--steps", "1"], "1 steps are too few for 2 stages"),
        (["--stages", "3"], "3 stages were asked for; the model has 2"),
        (["--sampler", "euler_maruyama"], "euler_maruyama samples a model of one stage, and this has 2"),
    ],
)
def test_what_does_not_fit_the_stages_is_one_sentence(staged, tmp_path, capsys, options, said) -> None:
    code, out = staged(tmp_path / "out", "--count", "1", *options)
    err = capsys.readouterr().err
    assert code == 2 and said in " ".join(err.split()) and "Traceback" not in err
    assert not list(out.rglob("*.png"))


def test_thresholds_out_of_order_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three stages, which have two: sampled, and trained."""
    place = tmp_path / "three"
    place.mkdir()
    save_weights(randomised(build_model(replace(SMALL, patch_size=4, stages=3))), place)
    out = ["--out", str(tmp_path / "out")]
    training = ["train", "--architecture", "DFM", "--model.stages", "3", "--model.patch_size", "4", *out]
    for arguments in (
        ["sample", "--model", str(place), *out, "--count", "1", "--thresholds", "0.1,0.2"],
        [*training, "--flow.stage_thresholds", "[0.1, 0.2]"],
    ):
        assert main(arguments) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "stage thresholds 0.1, 0.2 do not fall from below 1 to above 0; give such as 0.2, 0.1" in said
    assert not (tmp_path / "out").exists()


def test_a_budget_per_stage_is_refused_where_there_is_one_stage(model_folder, tmp_path, capsys) -> None:
    assert main(["sample", "--model", str(model_folder), "--out", str(tmp_path / "o"), "--budget", "1/4,1"]) == 2
    assert "2 budgets (0.25, 1) were given for 1 stage;" in f"{capsys.readouterr().err.strip()};"


def test_the_pipeline_samples_as_the_card_says(folder) -> None:
    """Steps and thresholds of the card; a budget for each stage in words."""
    pipe = elit.ElitPipeline.from_pretrained(folder)
    seen = []
    images = pipe([1, 2], "1/4,1", output_type="latent", callback_on_step_end=lambda i, t, x: seen.append(i)).images
    same = elit.sample(pipe.model, [1, 2], steps=(3, 2), budget=elit.Schedule.by_stage([0.25, 1], 2), thresholds=(0.2,))
    assert torch.equal(images, same) and images.shape == (2, 3, 8, 8) and seen == list(range(5))
    assert not torch.equal(same, elit.sample(pipe.model, [1, 2], steps=(3, 2), budget=elit.Schedule.by_stage([0.25, 1], 2)))


def test_a_card_keeps_steps_of_stages(folder, tmp_path) -> None:
    card = load_card(folder)
    assert card.sampling == SamplingDefaults((3, 2), 1.0, (0.2,))
    assert "thresholds" not in SamplingDefaults().told()
    text = (folder / "card.json").read_text().replace("[\n      0.2\n    ]", '"low"')
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(elit.UserError, match=r"sampling\.thresholds"):
        load_card(tmp_path)


def test_the_cost_of_a_step_is_that_of_all_forwards(folder) -> None:
    """With a budget for each stage, and guidance while a stage's own time is in the interval."""
    model = elit.load_model(folder)
    recipe = Recipe(
        "heun", (3, 2), elit.Schedule.by_stage([0.25, 1], 2), elit.Guidance(2.0, (0.3, 0.9), 0.5), thresholds=(0.2,)
    )
    ran = []
    hook = model.register_forward_pre_hook(lambda module, inputs: ran.append((len(inputs[0]), inputs[3])))
    recipe.draw(model, [1])
    hook.remove()
    flops = sum(batch * elit.count_flops(model, budget) for batch, budget in ran)
    assert recipe.gflops_per_step(model) == pytest.approx(flops / 5 / 1e9)
    assert 8 < len(ran) < 16  # guided in part
