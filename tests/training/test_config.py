"""The configuration: where values come from, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import yaml

from elit.backbones.config import DFMConfig
from elit.backbones.table import preset_config
from elit.training.config import BudgetConfig, TrainConfig
from elit.training.reading import flat, keys_of, kind_of, load_config, nested, parse_options

YAML = """
out: runs/a
steps: 500
optimizer:
  lr: 1e-3
  schedule: cosine
model: {width: 32, heads: 2, depth: 3, head_depth: 1, tail_depth: 1, group_size: 2, input_size: [8, 16]}
log:
  preview_budgets: [0.25, 1]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(YAML, encoding="utf8")
    return file


def refused(file: Path | None, *overrides: str) -> str:
    """The message of the ValueError, which is one line."""
    with pytest.raises(ValueError) as raised:
        load_config(file, list(overrides))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_defaults() -> None:
    assert load_config(None, []) == TrainConfig()


def test_values_of_the_file(recipe: Path) -> None:
    """What the file names is taken, nested; the rest is the default."""
    config = load_config(recipe, [])
    assert (config.out, config.steps) == ("runs/a", 500)
    assert (config.optimizer.lr, config.optimizer.schedule, config.optimizer.beta1) == (1e-3, "cosine", 0.9)
    assert (config.model.width, config.model.input_size, config.model.patch_size) == (32, (8, 16), 2)
    assert config.log.preview_budgets == (0.25, 1.0)
    assert config.data == TrainConfig().data


def test_overrides_win_over_the_file(recipe: Path) -> None:
    """Both spellings of an option, dashes for underscores, and the last one of two."""
    config = load_config(
        recipe,
        ["--steps", "7", "--optimizer.lr=2e-4", "--batch-size", "3", "--seed", "1", "--seed=2", "--compile=true"],
    )
    assert (config.steps, config.optimizer.lr, config.batch_size, config.seed) == (7, 2e-4, 3, 2)
    assert config.compile is True
    assert config.optimizer.schedule == "cosine"
    assert load_config(recipe, ["--model.group_size", "null"]).model.window is None
    assert load_config(recipe, ["--model.group_size", "[1, 2]"]).model.group_size == (1, 2)
    assert load_config(recipe, ["--log.preview_budgets", "[0.5]"]).log.preview_budgets == (0.5,)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".001", "+1e-3"])
def test_numbers_as_everybody_writes_them(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads 1e-3 as a word; on the command line and in a file it is a number here."""
    assert load_config(None, ["--optimizer.lr", text]).optimizer.lr == 1e-3
    file = tmp_path / "lr.yaml"
    file.write_text(f"optimizer:\n  lr: {text}\n", encoding="utf8")
    assert load_config(file, []).optimizer.lr == 1e-3


def test_preset_gives_way_to_file_and_overrides(tmp_path: Path) -> None:
    """Defaults, then the preset, then the file, then the command line."""
    file = tmp_path / "preset.yaml"
    file.write_text("preset: ELIT-SiT-L/4\nmodel: {width: 64, heads: 4}\n", encoding="utf8")
    config = load_config(file, ["--model.heads", "2", "--model.num_classes", "10"])
    assert config.model == preset_config("ELIT-SiT-L/4", width=64, heads=2, num_classes=10)
    assert load_config(file, ["--preset", "SiT-S/2"]).model == preset_config("SiT-S/2", width=64, heads=4)
    assert load_config(None, ["--preset", "ELIT-SiT-XL/2"]).model == preset_config("ELIT-SiT-XL/2")


def test_presets_and_architectures_of_every_backbone_are_read() -> None:
    """The model is of its backbone's own configuration, whose keys are known then, and comes back from plain values."""
    for name in ("ELIT-UViT-B/2", "HDiT-S/2", "ELIT-DFM-SiT-B/4"):
        config = load_config(None, ["--preset", name, "--model.num_classes", "9"])
        assert config.model == preset_config(name, num_classes=9)
        assert kind_of(config.architecture)(**vars(config)) == config
        assert config.to_dict()["architecture"] == {"U": "UViT", "H": "HDiT", "D": "DFM"}[name.removeprefix("ELIT-")[0]]
    model = ["--architecture=DFM", "--model.stages=3", "--model.patch_size=4"]
    config = load_config(None, [*model, "--flow.stage_steps=[5,4,3]"])
    assert config.model == DFMConfig(patch_size=4, stages=3) and config.flow.stage_steps == (5, 4, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.stages", "3"], "unknown option --model.stages"),
        (["--architecture", "DFN"], "unknown architecture 'DFN'; did you mean DFM"),
        (["--preset", "SiT-B/2", "--architecture", "DFM"], "preset SiT-B/2 is a DiT, not a DFM"),
        (["--architecture", "DFM", "--model.stages", "4"], "4 stages halve patches 3 times, and patch_size 2"),
        (["--architecture", "DFM", "--model.stages", "0"], "model.stages is 0"),
        (["--architecture", "DFM", "--flow.stage_weights", "[0.5, 0.4]"], "0.5, 0.4 are not chances that make 1"),
        (["--architecture", "DFM", "--flow.stage_weights", "[0.5, 0.4, 0.1]"], "give one for each of 2 stages"),
        (["--architecture", "DFM", "--flow.stage_thresholds", "[0.1, 0.2]"], "0.1, 0.2 are 2; 2 stages have 1"),
        (["--architecture", "DFM", "--flow.stage_thresholds", "[-0.1]"], "flow.stage_thresholds"),
        (["--architecture", "DFM", "--flow.stage_steps", "[40]"], "steps 40 are not 2 whole numbers"),
        (["--flow.stage_steps", "[40, 10]"], "flow.stage_steps is for a model of several stages"),
    ],
)
def test_stages_that_cannot_be_are_refused(options: list[str], said: str) -> None:
    assert said in refused(None, *options)


def test_unknown_preset_names_the_nearest() -> None:
    assert "ELIT-SiT-B/2" in refused(None, "--preset", "ELIT-SiT-B2")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("stepz", "steps"),
        ("optimizer.learning_rate_lr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("model.groupsize", "model.group_size"),
        ("data.sizes", "data.size"),
        ("optimizer.warmup", "optimizer.warmup_steps"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, wrong: str, nearest: str) -> None:
    """On the command line, and in a file, which is named too."""
    message = refused(None, f"--{wrong}", "1")
    assert message.startswith(f"unknown option --{wrong};")
    assert re.search(rf"{re.escape(nearest)}\b", message)
    file = tmp_path / "typo.yaml"
    file.write_text(yaml.safe_dump(nested({wrong: 1})), encoding="utf8")
    message = refused(file)
    assert f"unknown key {wrong!r} in {file};" in message
    assert re.search(rf"{re.escape(nearest)}\b", message)
    file.write_text("steps: 5\n", encoding="utf8")
    assert str(file) not in refused(file, f"--{wrong}", "1")


def test_unknown_keys_without_a_near_one_list_nothing(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("qqqq: 1\n", encoding="utf8")
    assert refused(file) == f"unknown key 'qqqq' in {file}; elit train --help lists all"
    file.write_text("optimizer: 1\n", encoding="utf8")
    assert "set its keys, such as optimizer.name" in refused(file)
    file.write_text("optimizer.lr: 1\noptimizer: {lr: 1}\n", encoding="utf8")
    assert "optimizer.lr stands twice" in refused(file)


def test_a_mistake_is_told_of_where_it_was_made(tmp_path: Path) -> None:
    """A value of the file and one of the command line, whichever else was given."""
    file = tmp_path / "steps.yaml"
    file.write_text("steps: many\n", encoding="utf8")
    assert refused(file, "--seed", "1").startswith(f"{file}: steps is 'many'")
    file.write_text("steps: 5\n", encoding="utf8")
    assert refused(file, "--optimizer.lr", "fast").startswith("the command line: optimizer.lr is 'fast'")
    assert refused(file, "--log.preview_budgets", "[1, 2]").startswith("the command line: log.preview_budgets.1 is 2")


def test_texts_are_taken_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be called 2024, 1e3 or [x; ~ is the user's own folder, in files as in options; nothing is no folder."""
    monkeypatch.setenv("HOME", "/home/me")
    for text in ("2024", "1e3", "007", "true", "[x", "a: b: c", "x=y"):
        assert load_config(None, ["--out", text]).out == text
    assert load_config(None, ["--out=~/r", "--data.source", "~/d", "--preset", "null"]).data.source == "/home/me/d"
    file = tmp_path / "texts.yaml"
    file.write_text("out: 2024\ninit_from: ~/m\ndata: {source: 's3://b//d', codec: '~/c'}\n", encoding="utf8")
    config = load_config(file, [])
    assert (config.out, config.init_from) == ("2024", "/home/me/m")
    assert (config.data.source, config.data.codec) == ("s3://b//d", "/home/me/c")
    assert "out is ''; it should have at least 1 character" in refused(None, "--out=")
    file.write_text('out: "a\\0b"\n', encoding="utf8")
    assert "holds letters that no name has" in refused(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "many"),
        ("steps", "1.5"),
        ("steps", "true"),
        ("steps", "[1]"),
        ("steps", "null"),
        ("steps", ""),
        ("seed", "null"),
        ("out", "null"),
        ("steps", "[x"),
        ("steps", "a: b: c"),
        ("data.source", "null"),
        ("optimizer.lr", "fast"),
        ("optimizer.schedule", "linear"),
        ("flow.path", "straight"),
        ("dtype", "float8"),
        ("compile", "maybe"),
        ("log.preview_budgets", "all"),
        ("model.width", "wide"),
        ("model.input_size", "[8, 8, 8]"),
    ],
)
def test_mistyped_values_name_their_key(key: str, value: str) -> None:
    """A value of another type than the key's, or none at all, is refused before anything runs."""
    assert key in refused(None, f"--{key}", value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("steps", value) for value in ("0", "-1", "1e30", ".inf", str(2**41))),
        *((key, "0") for key in ("batch_size", "accumulate", "skip_limit", "log.keep", "data.size", "evaluate.count")),
        *((key, "-1") for key in ("log.every", "log.checkpoint_every", "log.preview_every", "evaluate.every")),
        *((key, "-1") for key in ("optimizer.warmup_steps", "optimizer.decay_steps", "finetune.interface_first")),
        *((key, "0") for key in ("parallel.replicate", "parallel.shard", "alignment.depth", "alignment.width")),
        *((key, "-1") for key in ("optimizer.weight_decay", "finetune.distill", "alignment.weight", "data.workers")),
        *(("parallel.timeout", value) for value in ("0", ".inf", "1e300")),
        *(("flow.label_dropout", value) for value in ("1.5", "-0.1", ".nan")),
        *((f"optimizer.{key}", value) for key in ("lr", "muon_lr", "clip") for value in ("0", "-1", ".nan", ".inf")),
        *((f"optimizer.{key}", value) for key in ("beta1", "beta2", "muon_momentum") for value in ("1", "-1", ".nan")),
        *(("optimizer.ema_decay", value) for value in ("2", "-1", ".nan", ".inf")),
        ("optimizer.weight_decay", ".inf"),
        *((key, value) for key in ("log.preview_budgets", "evaluate.budgets") for value in ("[]", "[0]", "[2]", "[.nan]")),
        ("data.workers", "1000000"),
        ("seed", str(2**70)),
    ],
)
def test_values_out_of_range_name_their_key(key: str, value: str) -> None:
    assert key in refused(None, f"--{key}", value)


def test_what_a_model_cannot_be_is_refused() -> None:
    """The model's own rules, and budgets that its groups do not have."""
    assert "width 30" in refused(None, "--model.width", "30")
    assert "leave no core" in refused(None, "--model.group_size", "4", "--model.head_depth", "12")
    assert "1/16" in refused(None, "--model.group_size", "4", "--budget.lowest", "0")
    assert "above the highest" in refused(None, "--model.group_size", "4", "--budget.highest", "0.01", "--budget.lowest=1")


@pytest.mark.parametrize("arguments", [["steps", "3"], ["--steps", "3", "4"], ["--steps"]])
def test_what_is_not_an_option_is_refused(arguments: list[str]) -> None:
    assert "options look like --optimizer.lr 1e-3" in refused(None, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "1"], "unknown option --lr; did you mean --optimizer.lr?"),
        (["--depth", "3"], "unknown option --depth; did you mean --model.depth or --alignment.depth?"),
        (["--optimizer.muon_lrr", "1"], "did you mean --optimizer.muon_lr or"),
        (["mine.yaml"], "'mine.yaml' is not an option; a file is given as --config mine.yaml"),
        (["--dry-run"], "--dry-run is no option, or has no value"),
        (["--steps", "1e3"], "steps is 1000.0; it should be a whole number"),
        (["--compile", "maybe"], "compile is 'maybe'; it should be true or false"),
        (["--batch_size", "0"], "batch_size is 0; it should be at least 1"),
        (["--optimizer.lr", "-1"], "optimizer.lr is -1; it should be above 0"),
    ],
)
def test_a_wrong_option_is_told_with_its_remedy(arguments: list[str], message: str) -> None:
    assert message in refused(None, *arguments)


def test_missing_file(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml") in refused(tmp_path / "no.yaml")
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"- 1\n- 2\n", b"a: [1", b"a: b: c", b"\x00", b"\xff\xfe\x80", b"\t- x:\n\t\ty"]
)
def test_what_is_not_a_mapping_in_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    """An empty file, a list, a word, broken YAML and bytes are refused with the file's name."""
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    assert str(file) in refused(file)


@pytest.mark.parametrize("form", [json.dumps, yaml.safe_dump])
def test_round_trip(tmp_path: Path, recipe: Path, form: type) -> None:
    """`to_dict` holds every value: written as JSON or YAML and read again it is the same configuration."""
    config = load_config(recipe, ["--optimizer.lr", "1e-7", "--preset", "ELIT-SiT-B/2", "--budget.highest", "0.5"])
    plain = config.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    file = tmp_path / "again.yaml"
    file.write_text(form(plain), encoding="utf8")
    assert load_config(file, []) == config
    assert config.budget == BudgetConfig(highest=0.5)


def test_flat_and_nested_are_inverse() -> None:
    values = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}
    assert flat(values) == {"a.b.c": 1, "a.d": [1, 2], "e": None}
    assert nested(flat(values)) == values


def test_overrides_are_yaml_values() -> None:
    """Numbers, lists, truth values, null and words; a minus sign or an = in a value is part of it."""
    arguments = ["--a", "-3", "--b-c=x=y", "--d", "[1, 2]", "--e=no thing", "--f", "null", "--g", "1e3"]
    assert parse_options(arguments, ["e"]) == {"a": -3, "b_c": "x=y", "d": [1, 2], "e": "no thing", "f": None, "g": 1000.0}


def test_every_key_is_explained() -> None:
    """The docstrings say of each key what it means, and no explanation runs into the next key's."""
    keys = {key.name: key for key in keys_of(TrainConfig)}
    assert [name for name, key in keys.items() if not key.meaning] == []
    assert keys["optimizer.beta2"].meaning == "AdamW's decay of the mean squared gradient."
    assert keys["steps"].meaning == "steps to train in all; a run that has made them may be given more."
    assert set(flat(TrainConfig().to_dict())) == set(keys)
    assert keys["log.preview_budgets"].default == (0.0625, 0.25, 1.0)
    assert keys["out"].is_text and keys["data.codec"].is_text and not keys["dtype"].is_text
