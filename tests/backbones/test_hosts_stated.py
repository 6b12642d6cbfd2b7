"""U-ViT's long skips and HDiT's fold, stated a second time: float64, a sample and a token at a time."""

import dataclasses

import pytest
import torch
from torch import Tensor

import elit
import reference
from elit import UserError
from elit.backbones.config import DiTConfig, HDiTConfig, UViTConfig
from elit.backbones.table import build_model
from elit.elastic.core import Layout
from elit.elastic.rope import token_rope
from randomised import randomised
from reference import below, linear, weights_of

SHARED = {"in_channels": 3, "num_classes": 7, "width": 24, "heads": 2, "patch_size": 1, "latent_table": 64}
SHARED |= {"head_depth": 1, "tail_depth": 1, "qk_norm": True}
UVIT = UViTConfig(**SHARED, input_size=(2, 3), depth=5)
HDIT = HDiTConfig(**SHARED, input_size=(2, 4), depth=5, fold=(2, 4))


def places_of(config: DiTConfig) -> list[tuple[int, ...]] | None:
    grid = config.grid
    return [(r, c) for r in range(grid.height) for c in range(grid.width)] if config.rope else None


def uvit(config: UViTConfig, weights: reference.Weights, x: Tensor, c: Tensor) -> Tensor:
    """Block i of B gives block B - 1 - i what came out of it, where a block lies between."""
    out: dict[int, Tensor] = {}
    for i in range(config.depth):
        early = config.depth - 1 - i
        if early < i - 1:
            x = linear(weights, f"skips.{early}.linear", torch.cat([x, out[early]], dim=-1))
        x = out[i] = reference.block(below(weights, f"blocks.{i}"), config.heads, x, c, places_of(config))
    return x


def hdit(config: HDiTConfig, weights: reference.Weights, x: Tensor, c: Tensor) -> Tensor:
    """Four neighbours side by side through a linear, the wide blocks, and back, onto what went around."""
    start, end = config.fold
    height, width = config.grid.height, config.grid.width
    middle, places = below(weights, "blocks.0"), places_of(config)
    for i in range(start):
        x = reference.block(below(middle, f"before.{i}"), config.heads, x, c, places)
    fours = [
        [(r + dr) * width + col + dc for dr in (0, 1) for dc in (0, 1)]
        for r in range(0, height, 2)
        for col in range(0, width, 2)
    ]
    y = torch.stack([linear(middle, "narrow.linear", torch.cat([x[i] for i in four])) for four in fours])
    where = None if places is None else [places[four[0]] for four in fours]
    for i in range(end - start):
        y = reference.block(below(middle, f"inside.{i}"), 2 * config.heads, y, c, where)
    x = x.clone()
    for four, token in zip(fours, y, strict=True):
        for i, part in zip(four, linear(middle, "widen.linear", token).chunk(4), strict=True):
            x[i] = x[i] + part
    for i in range(config.depth - end):
        x = reference.block(below(middle, f"after.{i}"), config.heads, x, c, places)
    return x


@pytest.mark.parametrize("rope", [False, True], ids=["table", "rope"])
@pytest.mark.parametrize(
    ("config", "statement"),
    [(UVIT, uvit), (dataclasses.replace(UVIT, depth=4), uvit), (HDIT, hdit)],
    ids=["U-ViT", "U-ViT of even depth", "HDiT"],
)
def test_the_dense_stack_is_the_statement(config, statement, rope):
    config = dataclasses.replace(config, rope=rope)
    model = randomised(build_model(config)).eval()
    generator = torch.Generator().manual_seed(3)
    x, c = torch.randn(2, config.grid.size, 24, generator=generator), torch.randn(2, 24, generator=generator)
    turned = token_rope(config.grid, 12, torch.device("cpu")) if rope else None
    made = model.run_stack(x, c, Layout(config.grid, turned)).double()
    expected = torch.stack([statement(config, weights_of(model), x[b].double(), c[b].double()) for b in range(2)])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", [False, True], ids=["table", "rope"])
@pytest.mark.parametrize(
    ("config", "window"), [(UVIT, 2), (HDIT, (2, 4)), (HDIT, 2)], ids=["ragged U-ViT", "HDiT", "HDiT of two groups"]
)
def test_made_elastic_sharply_it_computes_the_same(config, window, rope):
    """Every weight of the dense model has its place in the elastic one, whose full budget loses nothing."""
    dense = randomised(build_model(dataclasses.replace(config, rope=rope))).eval()
    elastic = build_model(dataclasses.replace(dense.config, group_size=window, anchor="sharp")).eval()
    names, state = elastic.canonical_names(), dense.state_dict()
    given = {names[name]: state[own] for name, own in dense.canonical_names().items()}
    fresh = elastic.load_state_dict(given, strict=False).missing_keys
    assert set(fresh) == elastic.interface_parameters().keys()
    x, t, y = dense.example(2)
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    expected = dense(x, t + 0.5, y)
    assert (elastic(x, t + 0.5, y) - expected).norm() < 1e-4 * expected.norm()


XL = [
    ("UViT-XL/2", 707, (196, 861), {}),
    ("ELIT-UViT-XL/2", 730, (202, 886), {"rope": True}),
    ("HDiT-XL/2", 1365, (182, 776), {}),
    ("ELIT-HDiT-XL/2", 1395, (188, 801), {}),
]


@pytest.mark.parametrize(("name", "millions", "teraflops", "fields"), XL, ids=[row[0] for row in XL])
def test_the_papers_sizes_and_costs(name, millions, teraflops, fields):
    """Parameters within 1 % (HDiT's, told as 1.4 B, are ours), and training TFLOPs of 256 images at 256 and 512 px."""
    for side, window, cost in zip((32, 64), (4, 8), teraflops, strict=True):
        elastic = {"group_size": window} if name.startswith("ELIT") else {}
        with torch.device("meta"):
            model = elit.create_model(name, input_size=side, **elastic, **fields)
        assert 3 * 256 * elit.count_flops(model) / 1e12 == pytest.approx(cost, rel=0.01)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_an_hdits_levels_are_fours():
    model = build_model(dataclasses.replace(HDIT, group_size=(2, 4)))
    assert model.levels.fractions() == [0.5, 1.0]
    assert model.fixed(budget=0.1).level == 4
    with pytest.raises(UserError, match="4 to 8, in steps of 4"):
        model.fixed(level=2)


WRONG = {
    "an uneven split of a U-ViT": (UVIT, {"group_size": 1, "tail_depth": 2}, "differ"),
    "an odd grid": (HDIT, {"input_size": (2, 3)}, "cannot be folded"),
    "an odd window": (HDIT, {"group_size": (1, 4)}, "cannot be folded"),
    "a window that is cut short": (HDIT, {"group_size": 4}, "does not divide"),
    "no blocks inside": (HDIT, {"fold": (3, 3)}, "no run of blocks"),
    "a fold outside the core": (HDIT, {"group_size": 2, "fold": (0, 4)}, "within the core"),
}


@pytest.mark.parametrize(("config", "fields", "told"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_built_is_refused(config, fields, told):
    with pytest.raises(UserError, match=told):
        dataclasses.replace(config, **fields)
