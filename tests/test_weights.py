"""Model folders: written whole or not at all, and a sentence for every folder that is not one."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from elit import DiT, load_model
from elit.files import whole_folder, write_whole
from elit.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_dict,
    config_to_dict,
    load_tensors,
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
    refusal(folder / "nowhere", CONFIG_FILE, WEIGHTS_FILE)
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
        ("group_size", 3),
        ("width", 33),
    ],
)
def test_a_config_with_a_value_that_cannot_be_is_refused(folder, key, value):
    """A wrong type or number, from a hand that edited the file: a sentence that names the file."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refusal(folder, CONFIG_FILE)


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
