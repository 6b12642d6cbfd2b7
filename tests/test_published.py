"""The authors' checkpoints: the same weights give the same velocities, and a sentence for every file that is not one."""

import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from elit import DiT, create_model, load_model, load_published
from elit.autoencoders import STABLE_DIFFUSION_SCALE
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.cli import main
from elit.codec import Latents
from elit.published import FILES, LICENCE, published_names, read_published, wanted_tensors
from elit.weights import config_to_dict
from published_weights import DATA, SHAPES, args_of, drawn_inputs, drawn_state, light_state, save_checkpoint, with_positions

EXPECTED = load_file(DATA / "expected.safetensors")
DENSE, ELASTIC = "sit_s2_256", "elit_s4_qknorm"


@pytest.fixture(scope="module")
def dense_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SiT-S/2 with the drawn weights as its average, and raw weights of another final bias."""
    ema = with_positions(drawn_state(SHAPES[DENSE]), SHAPES[DENSE])
    raw = ema | {"final_layer.linear.bias": ema["final_layer.linear.bias"] + 1}
    return save_checkpoint(tmp_path_factory.mktemp("dense") / "0400000.pt", ema, args_of(DENSE), raw)


@pytest.fixture(scope="module")
def elastic_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ELIT-SiT-S/4 as released, 8 - 2 - 2 blocks, with the drawn weights."""
    ema = with_positions(drawn_state(SHAPES[ELASTIC]), SHAPES[ELASTIC])
    return save_checkpoint(tmp_path_factory.mktemp("elastic") / "0400000.pt", ema, args_of(ELASTIC))


@pytest.fixture(scope="module")
def dense(dense_file: Path) -> DiT:
    return load_published(dense_file)


@pytest.fixture(scope="module")
def elastic(elastic_file: Path) -> DiT:
    return load_published(str(elastic_file))


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """A small file of an ELIT-SiT-S/4 that says of itself all there is to say."""
    return save_checkpoint(tmp_path / "light.pt", light_state(ELASTIC), args_of(ELASTIC))


def refused(capsys: pytest.CaptureFixture[str], file: Path | str, *flags: str) -> str:
    """Imports a file that must be refused: one sentence, exit code 2, and nothing written. Returns the sentence."""
    folder = Path(file).parent
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(["import", str(file), "--out", str(folder / "new" / "model"), *flags]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert said.err.startswith("elit: ") and len(said.err.strip().splitlines()) == 1, said.err
    assert sorted(folder.rglob("*")) == before
    return said.err


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the expected, relative and in L2, for each sample."""
    error = (actual - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max().item() < 1e-4


@torch.no_grad()
def test_dense_outputs(dense):
    assert_same(dense(*drawn_inputs()), EXPECTED["sit_s2_256/fwd"])


@torch.no_grad()
@pytest.mark.parametrize("budget", [1.0, 0.25])
def test_elastic_outputs(elastic, budget):
    """At the full budget and at a quarter, where Write still sees the twelve dropped latents of each group."""
    assert_same(elastic(*drawn_inputs(), budget), EXPECTED[f"elit_s4_qknorm/fwd/{budget}"])


@torch.no_grad()
def test_elastic_outputs_of_a_mixed_batch(elastic):
    """Each sample at its own budget is the published output at that budget."""
    mixed = elastic(*drawn_inputs(), [0.25, 1.0])
    assert_same(mixed, torch.stack([EXPECTED["elit_s4_qknorm/fwd/0.25"][0], EXPECTED["elit_s4_qknorm/fwd/1.0"][1]]))


def test_the_names_and_shapes_of_a_published_model_are_those_that_we_look_for(dense, elastic):
    for model, name in ((dense, DENSE), (elastic, ELASTIC)):
        assert {key: list(tensor.shape) for key, tensor in wanted_tensors(model).items()} == SHAPES[name]


@pytest.mark.parametrize(
    ("preset", "fields", "blocks"),
    [
        ("ELIT-SiT-XL/2", {"head_depth": 8}, {0: 0, 7: 7, 8: (8, 0), 23: (8, 15), 24: 9, 27: 12}),
        ("ELIT-SiT-L/2", {"head_depth": 8, "input_size": 64, "group_size": 8}, {8: (8, 0), 19: (8, 11), 20: 9}),
        ("SiT-B/2", {}, {0: 0, 11: 11}),
    ],
)
def test_published_blocks_stand_where_the_split_puts_them(preset, fields, blocks):
    """Number of a published block -> ours: its place, or the core's and its place in there."""
    with torch.device("meta"):
        names = {theirs: ours for ours, theirs in published_names(create_model(preset, **fields)).items()}
    for number, place in blocks.items():
        ours = f"blocks.{place}" if isinstance(place, int) else f"blocks.{place[0]}.blocks.{place[1]}"
        assert names[f"blocks.{number}.attn.qkv.weight"] == f"{ours}.attention.qkv.weight"


@torch.no_grad()
def test_an_imported_folder_loads_and_gives_the_published_outputs(elastic_file, tmp_path, capsys):
    """Config, weights and card, and a licence that is shown and kept."""
    out = tmp_path / "model"
    assert main(["import", str(elastic_file), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "non-commercial" in said.err and "assumed" not in said.err
    model, card = load_model(out), load_card(out)
    assert_same(model(*drawn_inputs(), 0.25), EXPECTED["elit_s4_qknorm/fwd/0.25"])
    config = model.config
    assert (config.head_depth, config.tail_depth, config.group_size, config.latent_table) == (8, 2, 4, 4096)
    assert config.qk_norm and config.write_sees_dropped and not config.rope
    latents = Latents(STABLE_DIFFUSION_SCALE)
    assert card == Card(SamplingDefaults(50, 1.0), None, LICENCE, f"{elastic_file} (ema)", "linear", encoding=latents)
    assert sorted(file.name for file in out.iterdir()) == ["card.json", "config.json", "model.safetensors"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(dense, dense_file):
    raw = load_published(dense_file, weights="model")
    assert torch.equal(raw.final.linear.bias, dense.final.linear.bias + 1)
    assert torch.equal(raw.final.linear.weight, dense.final.linear.weight)
    with pytest.raises(ValueError, match="'ema' or 'model'"):
        load_published(dense_file, weights="raw")


def test_projectors_are_left_out_and_told(light, caplog):
    state = torch.load(light, weights_only=False)["ema"]
    for i in (0, 2, 4):
        state |= {f"projectors.0.{i}.weight": torch.ones(4, 4), f"projectors.0.{i}.bias": torch.ones(4)}
    model = load_published(save_checkpoint(light, state, args_of(ELASTIC)))
    assert len(model.state_dict()) == len(SHAPES[ELASTIC]) - 1
    assert "6 tensors of REPA projectors" in caplog.text
    assert "non-commercial" in caplog.text


def test_what_nobody_says_is_assumed_as_the_authors_default_and_told(light, caplog):
    """Sizes are read off the tensors; the split and the path cannot be."""
    save_checkpoint(light, light_state(ELASTIC), None)
    published = read_published(light)
    assert (published.model.config.head_depth, published.model.config.tail_depth, published.path) == (8, 2, "linear")
    assert "assumed, as neither the file nor a flag says: head_depth 8, tail_depth 2, path linear" in published.notes
    assert published.settings["model"].value == "ELIT-SiT-S/4"
    assert {name for name, setting in published.settings.items() if setting.teller == "tensors"} == {
        *("model", "resolution", "num_classes", "group_size", "qk_norm")
    }


def test_flags_say_what_the_file_does_not(light):
    save_checkpoint(light, light_state(ELASTIC), argparse.Namespace(model="ELIT-SiT-S/4", encoder_depth=None))
    published = read_published(light, head_depth=6, tail_depth=3, path="cosine", qk_norm=True, resolution=256)
    config = published.model.config
    assert (config.head_depth, config.tail_depth, published.path) == (6, 3, "cosine")
    assert not any("assumed" in note for note in published.notes)
    assert published.settings["head_depth"].teller == "--head-depth"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--head-depth", "4"], ["head_depth is 8 by args.encoder_depth", "4 by --head-depth"]),
        (["--group-size", "8"], ["group_size is 4 by args.elit_group_size", "8 by --group-size"]),
        (["--no-qk-norm"], ["qk_norm is True by args.qk_norm", "False by --qk-norm"]),
        (["--path", "cosine"], ["path is linear by args.path_type", "cosine by --path"]),
        (["--model", "ELIT-SiT-B/4"], ["ELIT-SiT-S/4 by args.model", "ELIT-SiT-B/4 by --model"]),
        (["--resolution", "512"], ["256 by args.resolution", "512 by --resolution"]),
        (["--num-classes", "10"], ["1000 by args.num_classes", "10 by --num-classes"]),
        (["--tail-depth", "4"], ["head_depth 8 + tail_depth 4"]),
    ],
)
def test_a_flag_that_contradicts_the_file_is_refused_and_both_are_named(light, capsys, flags, said):
    sentence = refused(capsys, light, *flags)
    assert all(part in sentence for part in said), sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "ELIT-SiT-XL/2"}, "model is ELIT-SiT-XL/2 by args.model, but ELIT-SiT-S/4 by tensors"),
        ({"model": "SiT-S/4"}, "model is SiT-S/4 by args.model, but ELIT-SiT-S/4 by tensors"),
        ({"qk_norm": False}, "qk_norm is False by args.qk_norm, but True by tensors"),
        ({"encoder_depth": 11}, "leave no core"),
        ({"encoder_depth": "8"}, "args.encoder_depth is of the type str"),
        ({"resolution": torch.ones(3)}, "args.resolution is of the type Tensor"),
        ({"path_type": "curved"}, "path 'curved' is unknown; known: linear, cosine"),
        ({"prediction": "eps"}, "args.prediction is 'eps'"),
        ({"prediction": torch.ones(3)}, "args.prediction is of the type Tensor"),
        ({"elit_write_depth": 2}, "args.elit_write_depth is 2"),
        ({"model": "DFM-SiT-S/4"}, "DFM-SiT"),
    ],
)
def test_args_that_cannot_be_are_refused(light, capsys, changed, said):
    save_checkpoint(light, light_state(ELASTIC), args_of(ELASTIC, **changed))
    assert said in refused(capsys, light)


def test_a_dense_model_has_no_core_to_be_told_of(tmp_path, capsys):
    file = save_checkpoint(tmp_path / "dense.pt", light_state(DENSE), args_of(DENSE))
    assert "leave --head-depth out" in refused(capsys, file, "--head-depth", "8")


def spoilt(**changes: object):
    """The light state dict with tensors replaced, or removed where the change is None."""
    state = light_state(ELASTIC) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def with_one(value: float) -> Tensor:
    bias = torch.zeros(384)
    bias[7] = value
    return bias


def mirrored() -> Tensor:
    """The fixed table with its rows and columns exchanged."""
    table = light_state(ELASTIC)["pos_embed"]
    return torch.cat([table[..., 192:], table[..., :192]], dim=-1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks__3__attn__proj__bias": None}, "missing blocks.3.attn.proj.bias"),
        ({"x_embedder__proj__weight": None}, "another architecture"),
        ({"pos_embed": None}, "missing pos_embed"),
        ({"input_token_editor__adapters__0__learned_query_embed": None}, "learned_query_embed"),
        ({"blocks__3__attn__proj__gain": torch.ones(2)}, "unexpected blocks.3.attn.proj.gain"),
        ({"final_layer__linear__weight": torch.ones(128, 384)}, "final_layer.linear.weight is (128, 384), not (64, 384)"),
        ({"y_embedder__embedding_table__weight": torch.ones(11, 384)}, "1000 by args.num_classes, but 10 by tensors"),
        ({"y_embedder__embedding_table__weight": torch.tensor(1.0)}, "should have 2 dimensions"),
        ({"blocks__12__attn__qkv__weight": torch.ones(2)}, "13 blocks of width 384"),
        ({"blocks__3__attn__proj__bias": with_one(float("nan"))}, "blocks.3.attn.proj.bias holds NaN"),
        ({"blocks__3__attn__proj__bias": with_one(float("inf"))}, "blocks.3.attn.proj.bias holds NaN or infinite"),
        ({"blocks__3__attn__proj__bias": "text"}, "is no tensor"),
        ({"blocks__3__attn__proj__bias": torch.ones(384, dtype=torch.int64)}, "not a plain tensor"),
        ({"blocks__3__attn__proj__bias": torch.ones(384).to(torch.float8_e5m2)}, "not a plain tensor"),
        ({"blocks__3__attn__proj__bias": torch.ones(384, device="meta")}, "not a plain tensor"),
        ({"pos_embed": torch.ones(1).expand(1, 10**10, 384)}, "not a plain tensor"),
        ({"pos_embed": mirrored()}, "pos_embed is not the fixed sin-cos table"),
        ({"pos_embed": torch.zeros(1, 60, 384)}, "resolution is 256 by args.resolution, but 224 by tensors"),
        ({"x_embedder__embedders__0__proj__weight": torch.ones(4)}, "should have 4 dimensions"),
        ({"x_embedder__embedders__0__proj__weight": torch.ones(4, 4, 1, 1)}, "another architecture"),
        ({"x_embedder__embedders__0__proj__weight": torch.ones(384, 4, 4, 4)}, "both stages and a latent core"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(light, capsys, changes, said):
    save_checkpoint(light, spoilt(**changes), args_of(ELASTIC))
    assert said in refused(capsys, light)


STAGED = "dfm_b2_256"


def test_a_model_of_stages_is_imported_with_its_steps_and_thresholds(tmp_path, capsys):
    """`elit import` tells the stages, and the card how the run sampled them."""
    file = save_checkpoint(tmp_path / "dfm.pt", light_state(STAGED), args_of(STAGED))
    assert main(["import", str(file), "--out", str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert "DFM-SiT-B/2" in out and "args.stages_count" in out and "head_depth" not in out
    model, card = load_model(tmp_path / "model"), load_card(tmp_path / "model")
    assert (model.stages, model.config.patch_size, model.config.input_size, model.core) == (2, 2, 32, None)
    assert card.sampling == SamplingDefaults((30, 10), 1.0, (0.2,))
    assert card.recipe.steps == (30, 10) and card.recipe.thresholds == (0.2,)
    silent = save_checkpoint(tmp_path / "silent.pt", light_state(STAGED), None)
    assert read_published(silent).sampling == SamplingDefaults((40, 10), 1.0, (0.1,))


@pytest.mark.parametrize(
    ("changed", "flags", "said"),
    [
        ({"stages_count": 3}, [], "stages is 3 by args.stages_count, but 2 by tensors"),
        ({"stages_count": 2.0}, [], "args.stages_count is of the type float"),
        ({}, ["--stages", "4"], "stages is 2 by args.stages_count, but 4 by --stages"),
        ({"model": "SiT-B/2"}, [], "model is SiT-B/2 by args.model, but DFM-SiT-B/2 by tensors"),
        ({}, ["--head-depth", "8"], "has no head_depth; leave --head-depth out"),
        ({"stage_sampling_thresholds": [0.1, 0.2]}, [], "do not fit its 2 stages: stage thresholds 0.1, 0.2 are 2"),
        ({"stage_sampling_thresholds": [-0.1]}, [], "do not fall from below 1 to above 0"),
        ({"stage_sampling_thresholds": ["low"]}, [], "do not fit its 2 stages"),
        ({"stage_sampling_thresholds": 0.1}, [], "args.stage_sampling_thresholds is 0.1, and should be a list"),
        ({"num_steps_per_scale": [40, 10, 5]}, [], "steps 40, 10, 5 are not 2 whole numbers"),
    ],
)
def test_stages_that_args_and_tensors_do_not_share_are_refused(tmp_path, capsys, changed, flags, said):
    file = save_checkpoint(tmp_path / "dfm.pt", light_state(STAGED), args_of(STAGED, **changed))
    assert said in refused(capsys, file, *flags)


def test_a_stage_whose_patches_do_not_fit_is_refused_by_name(tmp_path, capsys):
    state = light_state(STAGED) | {"x_embedder.embedders.0.proj.weight": torch.ones(768, 4, 2, 2)}
    file = save_checkpoint(tmp_path / "dfm.pt", state, args_of(STAGED))
    assert "embedders.0.proj.weight is (768, 4, 2, 2), not (768, 4, 1, 1)" in refused(capsys, file)


def test_a_model_without_stages_is_not_told_of_any(light, capsys):
    assert "is a ELIT-SiT-S/4, which has no stages; leave --stages out" in refused(capsys, light, "--stages", "2")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_compilation_and_data_parallelism_are_stripped(light, prefix):
    state = {prefix + name: tensor for name, tensor in light_state(ELASTIC).items()}
    plain = load_published(light)
    found = load_published(save_checkpoint(light, state, args_of(ELASTIC)))
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_read(light, capsys, dtype):
    """The fixed positions are compared as closely as the type allows: another table is refused still."""
    state = {name: tensor.to(dtype) for name, tensor in light_state(ELASTIC).items()}
    assert load_published(save_checkpoint(light, state, args_of(ELASTIC))).positions.dtype == torch.float32
    save_checkpoint(light, state | {"pos_embed": mirrored().to(dtype)}, args_of(ELASTIC))
    assert "pos_embed is not the fixed sin-cos table" in refused(capsys, light)


def test_a_state_dict_alone_is_imported(light, tmp_path, capsys):
    """Saved by torch or as safetensors; what it does not say is assumed, and told."""
    plain = load_published(light)
    state = light_state(ELASTIC)
    torch.save(state, tmp_path / "flat.pt")
    save_file({name: tensor.bfloat16().clone() for name, tensor in state.items()}, tmp_path / "flat.safetensors")
    for name, dtype in (("flat.pt", torch.float32), ("flat.safetensors", torch.bfloat16)):
        published = read_published(tmp_path / name)
        for key, tensor in published.model.state_dict().items():
            assert torch.equal(tensor, plain.state_dict()[key].to(dtype).float())
        assert published.weights == "only" and any("assumed" in note for note in published.notes)
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 100)
    assert "not a whole safetensors file" in refused(capsys, tmp_path / "cut.safetensors")


def test_args_may_be_a_dict(light):
    save_checkpoint(light, light_state(ELASTIC), vars(args_of(ELASTIC)))
    assert read_published(light).settings["head_depth"].teller == "args.encoder_depth"


def test_the_drift_of_an_averaged_table_is_taken(light):
    """Averaging moves the fixed table a little too, as float32 rounds; our models compute it anew."""
    state = light_state(ELASTIC)
    save_checkpoint(light, state | {"pos_embed": state["pos_embed"] + 2e-4}, args_of(ELASTIC))
    assert load_published(light).positions.shape == (64, 384)


@pytest.mark.parametrize("contents", [[1, 2], {"state_dict": {}}, {"model": {}}, {"ema": torch.ones(2)}, torch.ones(3)])
def test_checkpoints_of_other_programs_are_refused(tmp_path, capsys, contents):
    torch.save(contents, tmp_path / "other.pt")
    assert "not a checkpoint of the authors" in refused(capsys, tmp_path / "other.pt")


def test_another_architecture_is_refused(tmp_path, capsys):
    state = torch.nn.TransformerEncoderLayer(16, 2, 16).state_dict()
    torch.save({"ema": state, "args": ["mine"]}, tmp_path / "other.pt")
    assert "args are a list" in refused(capsys, tmp_path / "other.pt")
    torch.save({"ema": state, "args": {"model": "mine", 3: 4}}, tmp_path / "other.pt")
    assert "another architecture" in refused(capsys, tmp_path / "other.pt")
    torch.save({"ema": dict(state)}, tmp_path / "other.pt")
    assert "another architecture" in refused(capsys, tmp_path / "other.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(light, capsys, share):
    os.truncate(light, int(share * light.stat().st_size))
    assert "damaged, cut short" in refused(capsys, light)


def test_a_file_that_wants_to_run_code_is_refused_and_runs_nothing(tmp_path, capsys):
    class Intruder:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save({"ema": light_state(ELASTIC), "args": Intruder()}, tmp_path / "evil.pt")
    assert "posix.mkdir" in refused(capsys, tmp_path / "evil.pt")
    assert not (tmp_path / "was run").exists()


def test_the_old_format_of_torch_is_read(light):
    new = load_published(light)
    old = load_published(
        save_checkpoint(light, light_state(ELASTIC), args_of(ELASTIC), _use_new_zipfile_serialization=False)
    )
    assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items())


def test_folders_that_hold_something_are_kept(light, capsys):
    """Another model needs --overwrite, and anything else stays whatever is asked."""
    folder = light.parent / "new" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "no model of this library" in refused(capsys, light, "--overwrite")
    assert (folder / "config.json").read_text() == "{}"
    (folder / "config.json").write_text(json.dumps(config_to_dict(create_model("SiT-S/8").config)))
    assert "--overwrite" in refused(capsys, light)
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(capsys, light, "--overwrite")
    (folder / "notes.txt").unlink()
    assert main(["import", str(light), "--out", str(folder), "--overwrite"]) == 0
    assert load_model(folder).latents == 16


def test_a_missing_file_and_an_unknown_setting_are_refused(tmp_path, capsys):
    assert "there is no file" in refused(capsys, tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="did you mean head_depth"):
        load_published(tmp_path / "nowhere.pt", headdepth=8)
    assert "hf://mali6/elit/" in refused(capsys, "hf://mali6/elit")


def test_files_on_the_hub_are_taken_from_its_cache_or_the_way_by_hand_is_told(light, tmp_path, monkeypatch, capsys):
    """Without a network: a file that was fetched before is imported; for another, the address is told."""
    cache, commit = tmp_path / "cache", "0" * 40
    snapshot = cache / "models--mali6--elit" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(light, snapshot / FILES[2])
    (cache / "models--mali6--elit" / "refs").mkdir()
    (cache / "models--mali6--elit" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    assert [main(["import", f"hf://mali6/elit/{file}", "--out", file]) for file in FILES[2:4]] == [0, 2]
    told = capsys.readouterr().err
    assert load_card(Path(FILES[2])).source == f"hf://mali6/elit/{FILES[2]} (ema)"
    assert f"https://huggingface.co/mali6/elit/resolve/main/{FILES[3]}" in told
    assert "Traceback" not in told and not Path(FILES[3]).exists()


def test_cards_of_the_older_form_load_and_the_new_one_survives(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"sampling": {"steps": 3, "guidance_scale": 1.5}, "quality": None}))
    old = load_card(tmp_path)
    assert old == Card(SamplingDefaults(3, 1.5)) and old.path == "linear"
    new = dataclasses.replace(old, licence="theirs", source="there", path="cosine")
    save_card(new, tmp_path)
    assert load_card(tmp_path) == new
    (tmp_path / "card.json").write_text(json.dumps({"sampling": {"steps": 3}, "path": "curved"}))
    with pytest.raises(ValueError, match=r"card\.json"):
        load_card(tmp_path)
