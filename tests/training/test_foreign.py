"""The authors' YAML files: every key is translated, ignored with a reason or refused, as the table of its page says."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from elit.backbones.table import preset_config
from elit.console import console
from elit.records import parse_yaml
from elit.training.config import DataConfig, TrainConfig
from elit.training.foreign import DEFAULTS, translate
from elit.training.reading import flat, load_config

ROOT = Path(__file__).parents[2]
KNOWN = list(flat(TrainConfig().to_dict()))
BASE = {"exp_name": "mine", "model": "ELIT-SiT-XL/2", "data_dir": "data"}
Load = Callable[..., TrainConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The configuration of a file of theirs: `BASE` with some keys changed, or left out where None; and options."""

    def read(options: list[str] | None = None, **keys: Any) -> TrainConfig:
        file = tmp_path / "theirs.yaml"
        values = {key: value for key, value in (BASE | keys).items() if value is not None}
        file.write_text(yaml.safe_dump(values), encoding="utf8")
        return load_config(file, options or [])

    return read


def told(load: Load, **keys: Any) -> str:
    """What is said on the console of a file."""
    with console.capture() as captured:
        load(**keys)
    return " ".join(captured.get().split())


def table_rows() -> list[tuple[str, str]]:
    """(their cell, our cell) of the table of docs/from-the-authors-code.md."""
    text = (ROOT / "docs/from-the-authors-code.md").read_text(encoding="utf8")
    rows = text.split("| `train.py` | `elit train` |\n|---|---|\n")[1].split("\n\n")[0]
    cells = [re.findall(r"\|(.*)\|(.*)\|", row)[0] for row in rows.splitlines()]
    return [(theirs, ours) for theirs, ours in cells if "--config FILE" not in theirs]


def options_in(cell: str) -> list[tuple[str, str | None]]:
    """[("key", "value" or None), ...] of the options in a cell; `.b` and a lone value lean on the option before."""
    out: list[tuple[str, str | None]] = []
    for code in re.findall(r"`([^`]+)`", cell):
        if code.startswith("."):
            out.append((out[-1][0].rpartition(".")[0] + code, None))
        elif not code.startswith("--"):
            out.append((out[-1][0], code))
        for option in re.findall(r"--(\S+)(?: ([^-\s]\S*|-\d\S*))?", code):
            out.append((option[0], option[1] or None))
    return out


@pytest.mark.parametrize(("theirs", "ours"), table_rows(), ids=lambda cell: cell.strip()[:30])
def test_the_table_says_what_is_done(theirs: str, ours: str) -> None:
    """Each option on the left, put into a file, sets the one across from it; what has none there sets nothing new."""
    left, right = options_in(theirs), options_in(ours)
    assert right or "nothing" in ours
    if (right and left and len(left) != len(right)) or re.search("`--[^`]*--", theirs):  # some together make some of ours
        keys = {key: parse_yaml(value, "a test") for key, value in left if value is not None}
        made = translate(BASE | keys, KNOWN, "f").values
        assert all(made[key] == parse_yaml(value, "a test") for key, value in right if value is not None)
        return
    for i, (key, value) in enumerate(left):
        probe = {"adam_weight_decay": 0.25, "adam_beta1": 0.25, "adam_beta2": 0.25}.get(key, value)
        given = parse_yaml(probe, "a test") if isinstance(probe, str) else probe
        values = translate(BASE | {key: given}, KNOWN, "f").values
        if not right:
            assert values == translate(dict(BASE), KNOWN, "f").values
            continue
        our_key, our_value = right[i]
        assert our_key in KNOWN
        assert values[our_key] == (given if our_value is None else parse_yaml(our_value, "a test"))
    if not left:
        assert all(translate(dict(BASE), KNOWN, "f").values[key] == parse_yaml(value, "a test") for key, value in right)


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_key_is_in_the_table_or_said_to_be_ignored(load: Load, key: str) -> None:
    """A file that writes any key at its default is understood, and one line or the other names the key."""
    default = {"exp_name": "mine", "model": "ELIT-SiT-B/2", "data_dir": "d", "s3_cache_dir": "c"}.get(key, DEFAULTS[key])
    assert key in told(load, **{key: default})
    assert load(**{key: default}) == dataclasses.replace(load(), **changed(key))


def changed(key: str) -> dict[str, Any]:
    """What those defaults change in `BASE`'s configuration."""
    if key == "model":
        return {"preset": "ELIT-SiT-B/2", "model": load_config(None, ["--preset", "ELIT-SiT-B/2", *B2]).model}
    return {"data": DataConfig(source="d", workers=DEFAULTS["num_workers"])} if key == "data_dir" else {}


B2 = ["--model.head_depth", "8", "--model.tail_depth", "2", "--model.write_sees_dropped", "true"]


@pytest.mark.parametrize("name", [f"{kind}sit-xl2-{px}{end}" for px in (256, 512) for kind, end in
                                  (("", ""), ("elit-", ""), ("elit-", "-multi"))])  # fmt: skip
def test_their_recipes_are_ours_of_the_release(load: Load, name: str) -> None:
    """The published settings, in their keys, make the configuration of configs/release/, but for how it is computed."""
    elastic, resolution = name.startswith("elit-"), 512 if "512" in name else 256
    keys = {
        "output_dir": "runs/release", "exp_name": name, "model": "ELIT-SiT-XL/2" if elastic else "SiT-XL/2",
        "resolution": resolution, "data_dir": f"data/imagenet-{resolution}-sd", "mixed_precision": "bf16",
        "weighting": "lognormal" if elastic else "uniform",
    }  # fmt: skip
    if elastic:
        keys |= {"elit_group_size": resolution // 64, "elit_max_mask_prob": 0.0}
    if name.endswith("multi"):
        keys |= {
            "elit_max_mask_prob": 0.9375,
            "elit_min_mask_prob": 0.0,
            "warmup_steps": 10000,
            "max_train_steps": 7_000_000,
        }
    ours = load_config(ROOT / "configs" / "release" / f"{name}.yaml", ["--compile", "false", "--data.workers", "4"])
    assert load(**keys) == ours


def test_their_defaults_hold_for_what_is_left_out(load: Load) -> None:
    """An almost empty file is their run: fp16, uniform times, 400k steps, one full budget, 256 pixels, the 8-16-4 split."""
    config = load()
    assert (config.out, config.dtype, config.steps, config.batch_size) == ("exps/mine", "fp16", 400_000, 256)
    assert (config.flow.time_law, config.budget.lowest, config.budget.highest) == ("uniform", 1.0, 1.0)
    model = config.model
    assert (model.input_size, model.head_depth, model.tail_depth, model.depth, model.in_channels) == (32, 8, 4, 28, 4)
    assert load(model="ELIT-SiT-B/4").model.tail_depth == 2


def test_a_single_budget_is_the_highest_mask(load: Load) -> None:
    """min null: one budget, 1 - max; a range otherwise."""
    budget = load(elit_max_mask_prob=0.75).budget
    assert (budget.lowest, budget.highest) == (0.25, 0.25)
    budget = load(elit_max_mask_prob=0.75, elit_min_mask_prob=0.5).budget
    assert (budget.lowest, budget.highest) == (0.25, 0.5)


def test_accumulation_makes_larger_steps(load: Load) -> None:
    """Theirs adds batches to a step; ours cuts the step's batch into parts."""
    config = load(batch_size=64, gradient_accumulation_steps=4)
    assert (config.batch_size, config.accumulate) == (256, 4)


def test_alignment_needs_an_encoder_and_a_coefficient(load: Load) -> None:
    on = load(enc_type="dinov2-vit-l", proj_coeff=0.5).alignment
    assert (on.enabled, on.encoder, on.weight, on.depth) == (True, "facebook/dinov2-large", 0.5, 8)
    assert not load(enc_type="dinov2-vit-b").alignment.enabled
    assert not load(proj_coeff=0.5).alignment.enabled
    dense = load(model="SiT-XL/2", enc_type="dinov2-vit-b", proj_coeff=0.5, encoder_depth=6)
    assert dense.alignment.depth == 6 and dense.model.window is None


def test_a_constant_schedule_has_no_warm_up(load: Load) -> None:
    assert load(lr_scheduler_type="constant", warmup_steps=500).optimizer.warmup_steps == 0
    assert load(warmup_steps=500).optimizer.warmup_steps == 500


def test_stages_and_their_steps_are_read(load: Load) -> None:
    """With the authors' defaults, and others of three stages."""
    config = load(model="DFM-SiT-XL/2", resolution=512)
    assert config.model == preset_config("DFM-SiT-XL/2", input_size=64)
    assert config.architecture == "DFM"
    flow = config.flow
    assert (flow.stage_weights, flow.stage_thresholds, flow.stage_steps) == ((0.9, 0.1), (0.1,), (40, 10))
    given = {"stage_weights": [0.5, 0.3, 0.2], "stage_sampling_thresholds": [0.3, 0.1], "num_steps_per_scale": [20, 5, 5]}
    config = load(model="ELIT-DFM-SiT-B/4", stages_count=3, **given)
    assert config.model.stages == 3 and config.model.head_depth == 8
    flow = config.flow
    assert (flow.stage_weights, flow.stage_thresholds, flow.stage_steps) == ((0.5, 0.3, 0.2), (0.3, 0.1), (20, 5, 5))
    assert "stages_count 3 -> model.stages 3" in told(load, model="DFM-SiT-B/4", stages_count=3, **given)
    assert "stages_count 2: only decomposable flow matching uses it" in told(load, stages_count=2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prediction": "x"}, "prediction is 'x', but only velocity"),
        ({"adam_epsilon": 1e-6}, "epsilon is fixed at 1e-8"),
        ({"legacy": True}, "legacy is True"),
        ({"model": "DFM-SiT-XL/2", "stages_count": 3}, "3 stages halve patches 2 times, and patch_size 2"),
        ({"model": "DFM-SiT-XL/2", "stage_weights": [0.9]}, "stage weights 0.9 are 1; give one for each of 2"),
        ({"stages_count": 3}, "stages_count 3 is for decomposable flow matching"),
        ({"num_steps_per_scale": [30, 10]}, "num_steps_per_scale"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; known: no, fp16, bf16"),
        ({"weighting": "cosmap"}, "known: uniform, lognormal"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type is 'cosine'"),
        ({"enc_type": "mocov3-vit-b", "proj_coeff": 0.5}, r"enc_type 'mocov3-vit-b' is not translated"),
        ({"resume_step": 5000}, "resume_step is 5000"),
        ({"resolution": 250}, "resolution is 250"),
        ({"resolution": "big"}, "resolution is 'big'"),
        ({"elit_max_mask_prob": 1.0}, "elit_max_mask_prob is 1.0; it is a chance"),
        ({"elit_min_mask_prob": "none"}, "elit_min_mask_prob is 'none'"),
        ({"batch_size": 1.5}, "batch_size 1.5"),
        ({"learning_rate": "fast"}, "optimizer.lr"),
        ({"model": "ELIT-SiT-XXL/2"}, "did you mean ELIT-SiT-XL/2"),
        ({"learning_rat": 1e-4}, r"unknown key 'learning_rat' .* did you mean learning_rate"),
        ({"steps": 5}, r"mixes keys of the authors' train\.py with steps"),
        ({"optimizer": {"lr": 1e-3}}, r"mixes keys .* with optimizer\.lr"),
        ({"exp_name": None}, "has no exp_name"),
        ({"data_dir": None}, "has no data_dir"),
        ({"model": None}, "has no model"),
    ],
)
def test_what_is_not_built_or_not_known_is_refused(load: Load, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load(**keys)
    assert "\n" not in str(raised.value)


def test_options_of_both_kinds_override_the_file(load: Load) -> None:
    """Theirs before the translation, ours after it; and ours may tell what the file leaves out."""
    config = load(["--max_train_steps", "7", "--elit_max_mask_prob=0.5", "--optimizer.lr", "1e-3", "--model.width", "64",
                   "--model.heads", "4"], learning_rate=1e-5)  # fmt: skip
    assert (config.steps, config.budget.lowest, config.optimizer.lr, config.model.width) == (7, 0.5, 1e-3, 64)
    assert load(["--out", "here", "--data.source", "emoji"], exp_name=None, data_dir=None).out == "here"


def test_what_was_understood_and_ignored_is_told(load: Load) -> None:
    text = told(load, epochs=1400, learning_rate=2e-4, report_to="wandb", allow_tf32=True)
    understood, ignored = text.split("ignored:")
    assert "learning_rate 0.0002 -> optimizer.lr 0.0002" in understood
    assert "epochs 1400: max_train_steps says when training ends" in ignored
    assert "report_to wandb" in ignored and "allow_tf32 True" in ignored
    assert "seed 0" not in ignored
    assert "elit_group_size 4: SiT-B/2 is dense" in told(load, model="SiT-B/2", elit_group_size=4)


def test_our_own_files_are_not_taken_for_theirs(tmp_path: Path) -> None:
    """Without exp_name and a named model, a key of theirs is unknown."""
    file = tmp_path / "ours.yaml"
    file.write_text("learning_rate: 1e-4\nbatch_size: 3\n")
    with pytest.raises(ValueError, match=r"unknown key 'learning_rate' in .*ours\.yaml"):
        load_config(file, [])
