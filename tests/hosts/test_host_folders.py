"""What made a host elastic, kept and put onto another: exact, and refused where it does not fit."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import elit
from elit import UserError
from elit.lora import load_lora
from tiny_hosts import TINY, inputs, out

FLUX, SD3, WAN = TINY["FluxTransformer2DModel"], TINY["SD3Transformer2DModel"], TINY["WanTransformer3DModel"]


def spoiled(transformer):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in transformer.elit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return transformer


def quarter(transformer, tiny):
    with torch.no_grad(), elit.budget(transformer, 0.25):
        return out(transformer, inputs(tiny))


@pytest.mark.parametrize("name", TINY)
def test_what_was_saved_comes_back_to_the_bit(name, tmp_path):
    """Onto a transformer with the same weights; the folder holds what was added and no more."""
    tiny = TINY[name]
    elastic = spoiled(tiny.elastic(window=(1, 2, 2), anchor="pyramid", read_depth=2, mlp_ratio=2.0))
    elit.save_elastic(elastic, tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["elastic.json", "interface.safetensors"]
    other = elit.load_elastic(tiny.made(), tmp_path / "kept")
    assert torch.equal(quarter(other, tiny), quarter(elastic, tiny))
    added = sum(p.numel() for p in elastic.elit.parameters())
    assert sum(t.numel() for t in load_file(tmp_path / "kept/interface.safetensors").values()) == added


def test_loras_are_kept_too(tmp_path):
    """Two of them, one on the interface's own linears as well; which is loaded after that interface."""
    elastic = spoiled(FLUX.elastic())
    for seed, (name, targets) in enumerate({"blocks": ["to_q"], "of/all": ["to_q", "fc1", "kv"]}.items()):
        torch.manual_seed(seed)
        elastic.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), adapter_name=name)
    elastic.set_adapters(["blocks", "of/all"])
    elit.save_elastic(elastic, tmp_path / "kept")
    other = elit.load_elastic(FLUX.made(), tmp_path / "kept")
    other.set_adapters(["blocks", "of/all"])
    torch.testing.assert_close(quarter(other, FLUX), quarter(elastic, FLUX), rtol=1e-5, atol=1e-6)
    elastic.disable_adapters()
    assert not torch.allclose(quarter(other, FLUX), quarter(elastic, FLUX), atol=1e-4)


def test_half_precision_is_kept_as_it_is(tmp_path):
    elit.save_elastic(spoiled(SD3.elastic()).bfloat16(), tmp_path / "kept")
    kept = load_file(tmp_path / "kept/interface.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    assert elit.load_elastic(SD3.made(), tmp_path / "kept").elit.read.queries.dtype == torch.float32


def test_what_does_not_fit_is_refused_and_the_transformer_left_as_it_is(tmp_path):
    elit.save_elastic(SD3.elastic(), tmp_path / "kept")
    config = json.loads((tmp_path / "kept/elastic.json").read_text())

    def refused(sentence: str, transformer=None, **changes) -> None:
        transformer = SD3.made() if transformer is None else transformer
        changed = config | {"config": config["config"] | changes}
        (tmp_path / "kept/elastic.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=sentence):
            elit.load_elastic(transformer, tmp_path / "kept")
        assert not hasattr(transformer, "elit")

    refused("is of a SD3Transformer2DModel, not of a WanTransformer3DModel", WAN.made())
    refused("with 12 blocks of width 32 and 2 heads; this one has 6, 32 and 2", depth=12)
    refused("width 32 and 4 heads; this one has 6, 32 and 2", heads=4)
    refused("read.queries is", window=[1, 3, 3])
    refused("missing read.layers.1", read_depth=2)
    refused(r"window.* is 0; ", window=[1, 0, 2])
    refused("unknown key 'config.depht'; did you mean", depht=3)
    refused("leave no core", head=5)
    (tmp_path / "kept/elastic.json").write_text(json.dumps(config | {"adapters": ["style"]}))
    with pytest.raises(UserError, match=r"has no lora-0\.safetensors"):
        elit.load_elastic(SD3.made(), tmp_path / "kept")
    taken = SD3.made()
    taken.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    (tmp_path / "kept/lora-0.safetensors").touch()
    with pytest.raises(UserError, match="has a LoRA called 'style' already"):
        elit.load_elastic(taken, tmp_path / "kept")
    (tmp_path / "kept/elastic.json").write_text(json.dumps(config))
    weights = tmp_path / "kept/interface.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"read.queries": tensors["read.queries"] * float("nan")}, weights)
    with pytest.raises(UserError, match=r"read\.queries holds NaN"):
        elit.load_elastic(SD3.made(), tmp_path / "kept")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        elit.load_elastic(SD3.made(), tmp_path / "kept")
    with pytest.raises(UserError, match=r"holds no elastic\.json"):
        elit.load_elastic(SD3.made(), tmp_path)


def test_damaged_loras_are_refused_and_change_nothing(tmp_path):
    """In the folder of an interface, and beside an exported transformer; one of other linears is another's."""
    elastic = SD3.elastic()
    elastic.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    elit.save_elastic(elastic, tmp_path / "kept")
    file = tmp_path / "kept/lora-0.safetensors"
    whole = load_file(file)
    name = next(iter(whole))
    for damage, sentence in (
        (lambda: save_file({"a": torch.zeros(1)}, file), "holds no LoRA; fetch or write it again"),
        (lambda: save_file(whole | {name: whole[name] * float("nan")}, file), "holds NaN"),
        (lambda: file.write_bytes(file.read_bytes()[:50]), "is not a whole safetensors file"),
    ):
        damage()
        transformer = SD3.made()
        with pytest.raises(UserError, match=sentence):
            elit.load_elastic(transformer, tmp_path / "kept")
        with pytest.raises(UserError, match=sentence):
            load_lora(transformer, file)
        assert not hasattr(transformer, "elit") and not getattr(transformer, "peft_config", {})
    save_file({name: value[:1] if ".lora_B" in name else value for name, value in whole.items()}, file)
    with pytest.raises(UserError, match="is no LoRA of this SD3Transformer2DModel"):
        load_lora(SD3.made(), file)


def test_nothing_is_overwritten_unasked(tmp_path):
    elastic, kept = SD3.elastic(), tmp_path / "kept"
    elit.save_elastic(elastic, kept)
    with pytest.raises(UserError, match="overwrite=True"):
        elit.save_elastic(elastic, kept)
    elit.save_elastic(spoiled(elastic), kept, overwrite=True)
    assert torch.equal(quarter(elit.load_elastic(SD3.made(), kept), SD3), quarter(elastic, SD3))
    (tmp_path / "others").mkdir()
    (tmp_path / "others/thesis.txt").write_text("years of work")
    for place, sentence in ((tmp_path / "others", "thesis.txt"), (tmp_path / "others/thesis.txt", "is a file")):
        with pytest.raises(UserError, match=sentence):
            elit.save_elastic(elastic, place, overwrite=True)
    with pytest.raises(UserError, match="no latent core"):
        elit.save_elastic(SD3.made(), tmp_path / "new")
    with pytest.raises(UserError, match="elastic already"):
        elit.load_elastic(elastic, kept)
    with torch.no_grad():
        elastic.elit.read.queries[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the interface cannot be saved.*NaN"):
        elit.save_elastic(elastic, tmp_path / "new")
    assert not (tmp_path / "new").exists()
