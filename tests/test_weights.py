"""Model folders: written whole or not at all, and a sentence for every folder that is not one."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from elit import DiT, create_model, load_model
from elit.files import whole_folder, write_whole
from elit.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_dict,
    config_to_dict,
    load_tensors,
    model_in,
    read_tensors,
    save_weights,
)
from models import ELASTIC, elastic, inputs_of, made


@pytest.fixture
def folder(tmp_path):
    """A sound model folder."""
    path = tmp_path / "model"
    path.mkdir()
    save_weights(made(ELASTIC), path)
    return path


def refusal(folder, *said) -> str:
    """What `load_model` answers: one line, which names the folder and what is wrong."""
    with pytest.raises(ValueError) as error:
        load_model(folder)
    sentence = str(error.value)
    assert "\n" not in sentence
    for part in (str(folder), *said):
        assert part in sentence
    return sentence


def test_a_folder_that_lacks_a_file_is_refused(folder):
    """Config, weights, or the folder itself."""
    refusal(folder / "nowhere", "there is no such folder")
    (folder / "empty").mkdir()
    refusal(folder / "empty", CONFIG_FILE, WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).rename(folder / "elsewhere")
    refusal(folder, WEIGHTS_FILE)
    (folder / "elsewhere").rename(folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).unlink()
    refusal(folder, CONFIG_FILE)


@pytest.mark.parametrize("share", [0, 0.000_05, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(folder, share):
    """Cut in the header's length, in the header, and in the data."""
    weights = folder / WEIGHTS_FILE
    os.truncate(weights, int(share * weights.stat().st_size))
    refusal(folder, WEIGHTS_FILE, "fetch or write it again")


@pytest.mark.parametrize("contents", [b"\x80\x02}q\x00.", b"not weights at all", bytes(range(256)) * 9, b"\xff" * 64])
def test_foreign_weights_are_refused(folder, contents):
    (folder / WEIGHTS_FILE).write_bytes(contents)
    refusal(folder, WEIGHTS_FILE, "fetch or write it again")


class Intruder:
    """A pickle that would leave a file behind if anything unpickled it."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_pickle_in_the_place_of_weights_is_not_run(folder, tmp_path):
    mark = tmp_path / "was run"
    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(Intruder(str(mark))))
    refusal(folder, WEIGHTS_FILE)
    assert not mark.exists()


@pytest.mark.parametrize("contents", [b"", b'{"width": 32', b"\xff\xfe\x00", b"width: 32"])
def test_a_config_that_is_not_json_is_refused(folder, contents):
    (folder / CONFIG_FILE).write_bytes(contents)
    refusal(folder, CONFIG_FILE, "fetch or write it again")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ([], "does not describe a model of this library"),
        ("DiT", "does not describe a model of this library"),
        ({}, "architecture is None"),
        ({"architecture": "UNet2DModel"}, "architecture is 'UNet2DModel'"),
        ({"architecture": "DiT", "groupsize": 4}, "unknown key 'groupsize'; did you mean group_size"),
    ],
)
def test_the_config_of_another_program_is_refused(folder, contents, said):
    (folder / CONFIG_FILE).write_text(json.dumps(contents))
    refusal(folder, CONFIG_FILE, said)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", "32"),
        ("width", None),
        ("heads", []),
        ("heads", 0),
        ("patch_size", 0),
        ("input_size", "32"),
        ("input_size", [8]),
        ("num_classes", 10.5),
        ("depth", 4.0),
        ("mlp_ratio", "4"),
        ("group_size", 70),
        ("width", 33),
        ("width", 2**40),
        ("in_channels", 2**41),
        ("mlp_ratio", -1),
        ("mlp_ratio", float("inf")),
        ("mlp_ratio", 1e18),
        ("mlp_ratio", 1e-9),
        ("interface_mlp_ratio", float("nan")),
        ("depth", 10**7),
        ("read_depth", 10**7),
        ("write_depth", 10**9),
        ("head_depth", -1),
        ("latent_table", 2**40),
        ("input_size", 2**16),
        ("qk_norm", 1),
        ("group_size", True),
    ],
)
def test_a_config_with_a_value_that_cannot_be_is_refused(folder, key, value):
    """A wrong type or number, from a hand that edited the file: a sentence that names the file."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refusal(folder, CONFIG_FILE, "window of 3x3" if value == 3 else key)


@pytest.mark.parametrize("fields", [{"depth": 10**7}, {"width": None}, {"mlp_ratio": "4"}, {"input_size": (8, "b")}])
def test_create_model_refuses_what_a_file_may_not_hold(fields):
    """The bounds belong to the configuration, wherever it comes from."""
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        create_model("ELIT-SiT-S/2", **fields)


def test_a_config_nested_too_deep_is_no_json(folder):
    (folder / CONFIG_FILE).write_text("[" * 100_000 + "]" * 100_000)
    refusal(folder, CONFIG_FILE, "not JSON")


def spoilt(folder, name: str, change) -> None:
    """Writes the folder's weights with one tensor changed."""
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(tensors | {name: change(tensors[name])}, folder / WEIGHTS_FILE)


def with_one(value: float):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(with_one(value) for value in (float("nan"), float("inf"), -float("inf"))),
        *(lambda t, dtype=dtype: t.to(dtype) for dtype in (torch.bool, torch.int64, torch.uint8, torch.complex64)),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: with_one(1e300)(t.double()),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused_by_name(folder, change):
    """In the one place that every command loads from."""
    spoilt(folder, "final.linear.bias", change)
    refusal(folder, WEIGHTS_FILE, "final.linear.bias")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_point_numbers_load_as_float32(folder, dtype):
    spoilt(folder, "final.linear.bias", lambda t: t.to(dtype))
    assert load_model(folder).final.linear.bias.dtype == torch.float32


def test_weights_that_half_precision_cannot_hold_are_not_saved(folder):
    model = made(ELASTIC)
    with torch.no_grad():
        model.final.linear.bias[0] = 70000
    before = (folder / WEIGHTS_FILE).read_bytes()
    with pytest.raises(ValueError, match=r"float16: final\.linear\.bias holds"):
        save_weights(model, folder, dtype=torch.float16)
    assert (folder / WEIGHTS_FILE).read_bytes() == before


def test_memory_is_taken_for_weights_that_are_there(folder):
    """A config that asks for a thousandfold width is refused by the shapes of the file, before any memory is taken."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "width": 65536, "depth": 1024}))
    refusal(folder, WEIGHTS_FILE, "does not fit its config")


def wrapped(model, kind: str):
    """The model as torch.compile, or a data-parallel wrapper, holds it."""
    if kind == "compiled":
        return torch.compile(model)
    outer = torch.nn.Module()
    outer.module = torch.compile(model) if kind == "both" else model
    return outer


@pytest.mark.parametrize("kind", ["compiled", "data parallel", "both"])
def test_a_wrapped_model_is_saved_by_its_own_names(folder, kind):
    save_weights(wrapped(made(ELASTIC), kind), folder)
    assert set(load_file(folder / WEIGHTS_FILE)) == set(made(ELASTIC).state_dict())
    assert torch.equal(load_model(folder)(*inputs_of(ELASTIC)), made(ELASTIC)(*inputs_of(ELASTIC)))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_compilation_and_data_parallelism_are_stripped(folder, prefix):
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    assert torch.equal(load_model(folder)(*inputs_of(ELASTIC)), made(ELASTIC)(*inputs_of(ELASTIC)))
    save_file(tensors | {f"{prefix}final.linear.bias": tensors["final.linear.bias"] + 1}, folder / WEIGHTS_FILE)
    refusal(folder, WEIGHTS_FILE, "final.linear.bias twice")


def test_a_runs_folder_stands_for_its_last_checkpoint(folder, tmp_path):
    """And where there is none yet, the words say so; so they do for files in a folder's place."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / CONFIG_FILE).write_text(json.dumps({"steps": 3}))
    refusal(run, "training run without a whole checkpoint")
    for step in (9, 10, 123456789):
        shutil.copytree(folder, run / "checkpoints" / f"step_{step:08d}")
    (run / "checkpoints" / "step_99999999").mkdir()
    assert model_in(run) == model_in(run / "checkpoints") == run / "checkpoints" / "step_123456789"
    load_model(run)
    refusal(folder / WEIGHTS_FILE, "give its folder")
    (tmp_path / "theirs.pt").write_bytes(b"x")
    refusal(tmp_path / "theirs.pt", "elit import")


def test_tensors_that_do_not_fit_are_listed(folder):
    """Missing, unexpected and mis-shaped ones, by name and by both shapes."""
    tensors = load_file(folder / WEIGHTS_FILE)
    del tensors["final.linear.bias"]
    tensors["stranger"] = torch.zeros(2)
    tensors["label_embedding.weight"] = torch.zeros(11, 32)
    save_file(tensors, folder / WEIGHTS_FILE)
    refusal(
        folder,
        WEIGHTS_FILE,
        "missing final.linear.bias",
        "unexpected stranger",
        "label_embedding.weight is (11, 32), not (4, 32)",
    )


def test_a_long_list_is_cut_and_counted(folder):
    """Five are named, and the rest is a number."""
    save_file({f"stranger.{i}": torch.zeros(1) for i in range(4)}, folder / WEIGHTS_FILE)
    wrong = len(made(ELASTIC).state_dict()) + 4
    sentence = refusal(folder, f"and {wrong - 5} more")
    assert sentence.count("missing") + sentence.count("unexpected") == 5


def test_a_model_that_was_refused_weights_keeps_its_own(folder):
    """Nothing is copied before everything fits."""
    model = made(elastic(num_classes=5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="label_embedding"):
        load_tensors(model, folder / WEIGHTS_FILE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_saving_in_half_precision_loads_as_float32(folder):
    """The weights are rounded once; the loaded model computes in float32."""
    model = made(ELASTIC)
    save_weights(model, folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in read_tensors(folder / WEIGHTS_FILE).values()} == {torch.bfloat16}
    loaded = load_model(folder)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


def test_other_weights_can_be_saved_in_the_models_stead(folder):
    """As training does with its average: `state` is what is written, and the model is left as it is."""
    model, other = made(ELASTIC), made(ELASTIC)
    with torch.no_grad():
        other.final.linear.bias += 1
    save_weights(model, folder, state=other.state_dict())
    assert torch.equal(load_model(folder)(*inputs_of(ELASTIC)), other(*inputs_of(ELASTIC)))
    assert not torch.equal(model(*inputs_of(ELASTIC)), other(*inputs_of(ELASTIC)))


@pytest.mark.parametrize("config", [ELASTIC, elastic(input_size=(8, 12), group_size=(2, 3), rope=True)])
def test_a_config_survives_json(config):
    """Pairs come back as pairs."""
    values = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(values, "here") == config
    assert DiT(config_from_dict(values, "here")).config == config


def left_in(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    """While it is written the name is free, or the old folder's; then it holds the new files alone."""
    target = tmp_path / "deep" / "step"
    for text in ("old", "new"):
        with whole_folder(target) as part:
            assert part != target
            assert part.is_dir()
            (part / text).write_text(text)
            assert target.exists() == (text == "new")
        assert left_in(target) == [text]
    assert left_in(target.parent) == ["step"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_folder_as_it_was(tmp_path, error):
    """Nothing of the new one is seen, nor left beside it; without an old one there is none."""
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    old.mkdir()
    (old / "kept").write_text("as it was")
    for target in (old, fresh):
        with pytest.raises(type(error)), whole_folder(target) as part:
            (part / "half").write_text("written")
            raise error
    assert left_in(tmp_path) == ["old"]
    assert (old / "kept").read_text() == "as it was"
    assert left_in(old) == ["kept"]


def test_a_text_is_replaced_whole(tmp_path):
    """In one rename, leaving nothing beside it."""
    file = tmp_path / "state.json"
    for text in ("old", "naïve ✓"):
        write_whole(file, text)
        assert file.read_text(encoding="utf8") == text
    assert left_in(tmp_path) == ["state.json"]
