"""A model trained at times moved towards the noise is sampled at such times, wherever it is sampled."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import elit
from elit import DiT, ElitPipeline, Guidance, sample
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.cli import main
from elit.errors import UserError
from elit.flow import FlowPath
from elit.imprint import Imprint, png
from elit.pictures import to_image
from elit.request import repeat
from elit.training.config import FlowConfig
from elit.training.flows import sampling_of
from elit.weights import fingerprint, load_model, save_weights


@pytest.fixture
def shifted(tiny: DiT, tmp_path: Path) -> Path:
    """A model folder whose card moves the times of three steps."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_weights(tiny, folder)
    save_card(Card(SamplingDefaults(3, 1.0, shift=3.0)), folder)
    return folder


def test_the_card_of_a_run_samples_as_it_was_trained(shifted: Path) -> None:
    assert sampling_of(FlowConfig(shift=3.0), FlowPath.LINEAR) == SamplingDefaults(shift=3.0)
    assert load_card(shifted).sampling.shift == 3 and load_card(shifted).recipe.shift == 3
    save_card(Card(SamplingDefaults(3, 1.0)), shifted)
    assert "shift" not in json.loads((shifted / "card.json").read_text())["sampling"], "as cards were before there was one"


def test_command_and_pipeline_follow_the_card(shifted: Path, tmp_path: Path) -> None:
    model = load_model(shifted)
    expected = to_image(sample(model, [2], steps=3, seed=0, shift=3.0)[0])
    for options, name in (([], "own"), (["--shift", "3"], "told"), (["--shift", "1"], "even")):
        command = ["sample", "--model", str(shifted), "--labels", "2", "--out", str(tmp_path / name), *options]
        assert main(command) == 0
    made = {name: next((tmp_path / name).glob("*/00000/*.png")).read_bytes() for name in ("own", "told", "even")}
    assert made["own"] == made["told"] != made["even"]
    assert ElitPipeline.from_pretrained(shifted)([2]).images[0].tobytes() == expected.tobytes()
    settings = [json.loads(next((tmp_path / name).glob("*/settings.json")).read_text()) for name in ("own", "even")]
    assert settings[0]["shift"] == 3 and "shift" not in settings[1]


def test_a_picture_tells_its_shift(shifted: Path, tmp_path: Path) -> None:
    """It is drawn again to the byte, whatever the card says by then."""
    model = load_model(shifted)
    picture = to_image(sample(model, [2], steps=3, guidance=Guidance(2.0), seed=5, shift=3.0)[0])
    imprint = Imprint(fingerprint(model), (2,), 0, 5, "euler", 3, (4, 4, 4), 2.0, shift=3.0, alone=True)
    (tmp_path / "picture.png").write_bytes(png(picture, imprint))
    save_card(replace(load_card(shifted), sampling=SamplingDefaults(3, 1.0)), shifted)
    again = repeat(tmp_path / "picture.png", tmp_path / "again", str(shifted), None, "cpu")
    assert again.read_bytes() == (tmp_path / "picture.png").read_bytes()


def test_stages_have_thresholds_and_no_shift() -> None:
    with pytest.raises(UserError, match="shift 2 is for a model of one stage, and this has 2"):
        sample(elit.create_model("DFM-SiT-S/4", stages=2, depth=1, width=32, heads=2), [0], shift=2.0)
