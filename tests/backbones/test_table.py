"""Presets: the sizes behind the names, overrides, and what an unknown name is answered."""

import pytest
import torch

from elit import DiTConfig, create_model, preset_names
from elit.backbones.layers import Block
from elit.cli import main

# size: depth, width, heads, and the elastic form's head - core - tail
SIZES = {
    "S": (12, 384, 6, (2, 8, 2)),
    "B": (12, 768, 12, (2, 8, 2)),
    "L": (24, 1024, 16, (4, 16, 4)),
    "XL": (28, 1152, 16, (4, 20, 4)),
}
EVERY = [(kind, size, patch) for kind in ("SiT", "ELIT-SiT") for size in SIZES for patch in (2, 4, 8)]


def on_meta(name, **overrides):
    with torch.device("meta"):
        return create_model(name, **overrides)


def test_the_names_are_these():
    others = [f"{kind}{family}-{size}/2" for kind in ("", "ELIT-") for family in ("UViT", "HDiT") for size in SIZES]
    others += [f"{kind}DFM-SiT-{size}/{patch}" for kind in ("", "ELIT-") for size in SIZES for patch in (2, 4, 8)]
    others += [f"{kind}SiT-{size}/1x2x2" for kind in ("", "ELIT-") for size in SIZES]
    assert sorted(preset_names()) == sorted([f"{kind}-{size}/{patch}" for kind, size, patch in EVERY] + others)


@pytest.mark.parametrize(("kind", "size", "patch"), EVERY)
def test_every_preset_has_the_sizes_of_the_paper(kind, size, patch):
    """Read off the modules that were built: blocks, widths, heads, patches, split, latents, label rows, modulations."""
    depth, width, heads, split = SIZES[size]
    model = on_meta(f"{kind}-{size}/{patch}")
    blocks = [module for module in model.modules() if isinstance(module, Block)]

    assert len(blocks) == depth
    for block in blocks:
        assert block.attention.heads == heads
        assert block.attention.q_norm is None
        assert block.mlp.fc1.weight.shape == (4 * width, width)
        assert block.modulation.weight.shape == (6 * width, width)
    assert model.patch_embedding.weight.shape == (width, 4 * patch**2)
    assert model.final.linear.weight.shape == (4 * patch**2, width)
    assert model.label_embedding.weight.shape == (1001, width)
    assert model.input.shape[1:] == (32, 32)
    if kind == "SiT":
        assert model.core is None and model.latents == 1
        return
    before = list(model.blocks).index(model.core)
    assert (before, len(model.core.blocks), len(model.blocks) - before - 1) == split
    assert model.latents == 16
    assert model.core.read.queries.shape == (16, width)
    assert model.core.read.latent_positions.shape == (4096, width)
    assert [layer.attention.heads for layer in (*model.core.read.layers, *model.core.write.layers)] == [heads] * 2
    assert model.core.read.layers[0].mlp.fc1.weight.shape == (width, width)
    assert not model.core.write_sees_dropped


def test_overrides_reach_the_model():
    """Any field of the configuration, the preset's own among them."""
    overrides = {
        "input_size": (16, 24),
        "in_channels": 3,
        "num_classes": 7,
        "group_size": (4, 2),
        "head_depth": 3,
        "tail_depth": 1,
        "qk_norm": True,
        "rope": True,
        "write_sees_dropped": True,
        "read_depth": 2,
        "write_depth": 3,
        "interface_mlp_ratio": 2.0,
        "width": 48,
        "heads": 3,
        "depth": 6,
        "patch_size": 1,
    }
    model = on_meta("ELIT-SiT-S/2", **overrides)
    assert model.config == DiTConfig(**overrides)
    assert model.input.shape[1:] == (16, 24)
    assert model.latents == 8
    assert model.null_class == 7
    assert model.patch_embedding.weight.shape == (48, 3)
    assert len(model.core.blocks) == 2
    assert (len(model.core.read.layers), len(model.core.write.layers)) == (2, 3)
    assert model.core.read.latent_positions is None
    assert model.core.write.layers[0].mlp.fc1.weight.shape == (96, 48)
    assert all(block.attention.q_norm is not None for block in model.core.blocks)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("ELIT-SiT-B2", "ELIT-SiT-B/2"),
        ("elit-sit-xl/2", "ELIT-SiT-XL/2"),
        ("SiT-XL-2", "SiT-XL/2"),
        ("DiT-S/4", "SiT-S/4"),
        ("SiT-B/3", "SiT-B/2"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(wrong, near):
    with pytest.raises(ValueError, match=f"unknown model '{wrong}'; did you mean .*{near}"):
        create_model(wrong)


def test_a_name_like_none_is_answered_with_where_all_are(capsys):
    """That command lists every preset."""
    with pytest.raises(ValueError, match="unknown model 'resnet50'; elit info lists the presets"):
        create_model("resnet50")
    assert main(["info"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())


@pytest.mark.parametrize(("wrong", "near"), [("groupsize", "group_size"), ("qknorm", "qk_norm"), ("classes", "num_classes")])
def test_an_unknown_option_is_answered_with_near_ones(wrong, near):
    with pytest.raises(ValueError, match=f"unknown model option '{wrong}'; did you mean .*{near}"):
        create_model("ELIT-SiT-S/2", **{wrong: 1})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"input_size": 33}, "input_size 33 .* patch_size 2"),
        ({"input_size": (32, 31)}, r"input_size \(32, 31\)"),
        ({"input_size": 0}, "input_size is 0"),
        ({"group_size": 65}, "a group of 65x65 tokens is too large"),
        ({"head_depth": 6, "tail_depth": 6}, "no core in a depth of 12"),
        ({"head_depth": -1}, "head_depth is -1"),
        ({"write_depth": 0}, "write_depth"),
        ({"width": 390}, "width 390"),
        ({"heads": 5}, "heads = 5"),
        ({"heads": 128}, "heads = 128"),
        ({"num_classes": 0}, "num_classes"),
        ({"depth": 0, "group_size": None}, "depth"),
        ({"in_channels": 0}, "in_channels"),
        ({"patch_size": 0}, "patch_size"),
        ({"heads": 0}, "heads"),
        ({"width": 0}, "width"),
        ({"input_size": 160}, "4096 rows of latent_table; set rope=True"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(overrides, said):
    """One sentence that names the field, before anything is built."""
    with pytest.raises(ValueError, match=said):
        create_model("ELIT-SiT-S/2", **overrides)
