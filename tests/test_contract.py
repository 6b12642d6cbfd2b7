"""What every model keeps to, whatever its configuration: dense and elastic, by table and by rotation."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from elit import DiTConfig, count_flops, load_model
from elit.backbones.config import HDiTConfig, pair
from elit.backbones.layers import Block, SelfAttention
from elit.backbones.table import BACKBONES, build_model
from elit.cost import flops_by_level
from elit.elastic.grid import regions
from elit.elastic.grouping import token_index
from elit.elastic.model import ElasticModel
from elit.weights import save_weights
from models import CONFIGS, ELASTIC, inputs_of, made

every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
elastic_configs = {name: config for name, config in CONFIGS.items() if config.group_size is not None}
every_elastic_model = pytest.mark.parametrize("config", elastic_configs.values(), ids=elastic_configs.keys())
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def fractions(model: ElasticModel) -> list[float]:
    """Every valid budget: k/J for each step of the levels, which are fours in an HDiT."""
    step = 4 if isinstance(model.config, HDiTConfig) and model.core is not None else 1
    return [k / model.latents for k in range(step, model.latents + 1, step)]


@every_model
def test_a_fresh_model_predicts_zero(config):
    """adaLN-Zero and the zero output layer: at init the velocity is exactly zero at every budget."""
    model = build_model(config)
    for budget in fractions(model):
        v = model(*inputs_of(config), budget)
        assert torch.equal(v, torch.zeros_like(inputs_of(config)[0]))


@every_model
def test_a_forward_is_the_same_in_train_and_eval_mode(config):
    """Nothing is drawn inside a forward: two calls, two modes and another global seed give one result bit for bit."""
    model = made(config)
    first = model(*inputs_of(config))
    torch.manual_seed(99)
    assert torch.equal(model(*inputs_of(config)), first)
    assert torch.equal(model.train()(*inputs_of(config)), first)


@every_model
def test_no_budget_is_the_full_one(config):
    model = made(config)
    for full in (1.0, 1):
        assert torch.equal(model(*inputs_of(config), full), model(*inputs_of(config)))


@every_model
def test_the_velocity_depends_on_all_of_its_inputs(config):
    """Per sample: each of image, time and label moves its own velocity, and no other sample's."""
    model = made(config)
    x, t, y = inputs_of(config)
    v = model(x, t, y)
    moved_x, moved_t, moved_y = x.clone(), t.clone(), y.clone()
    moved_x[1] += 0.5
    moved_t[1] += 0.5
    moved_y[1] = (moved_y[1] + 1) % 4
    for inputs in ((moved_x, t, y), (x, moved_t, y), (x, t, moved_y)):
        change = (model(*inputs) - v).abs().flatten(1).amax(1)
        assert change[1] > 1e-2
        assert change[[0, 2, 3]].max() < 1e-5


OF_MANY_LEVELS = {
    "whole windows": CONFIGS["oblong input and group, rope"],
    "windows cut short": dataclasses.replace(ELASTIC, group_size=(2, 3)),
    **{row.architecture: CONFIGS[row.architecture] for row in BACKBONES if row.architecture in CONFIGS},
}


@pytest.mark.parametrize("config", OF_MANY_LEVELS.values(), ids=OF_MANY_LEVELS.keys())
def test_a_few_levels_tell_what_all_cost(config):
    """Every level's FLOPs, told by those of a few where every window is whole, are those counted."""
    model = made(config)
    told = flops_by_level(model)
    assert list(told) == list(model.levels.counts())
    assert told == {level: count_flops(model, level / model.latents) for level in told}


@every_elastic_model
def test_budgets_differ(config):
    """Neighbouring levels of a randomised model are different functions; so the checks below cannot hold by default."""
    model = made(config)
    outputs = [model(*inputs_of(config), budget) for budget in fractions(model)]
    for low, high in pairwise(outputs):
        assert (low - high).abs().max() > 1e-3


@every_elastic_model
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_budget_per_sample_is_each_sample_alone(config, as_tensor):
    """Mixed budgets, in no order and with one repeated: every image is the one made alone at its budget."""
    model = made(config)
    x, t, y = inputs_of(config)
    budgets = [fractions(model)[i] for i in (2, 0, -1, 0)]
    together = model(x, t, y, torch.tensor(budgets) if as_tensor else budgets)
    alone = [model(x[i : i + 1], t[i : i + 1], y[i : i + 1], budget) for i, budget in enumerate(budgets)]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


@every_model
def test_fixed_is_the_forward_at_that_budget(config):
    """A count of latents (int) or a fraction (float), bit for bit, and with the model's own weights."""
    model = made(config)
    for budget in fractions(model):
        expected = model(*inputs_of(config), budget)
        assert torch.equal(model.fixed(level=round(budget * model.latents))(*inputs_of(config)), expected)
        assert torch.equal(model.fixed(budget=budget)(*inputs_of(config)), expected)
    assert {id(p) for p in model.fixed(budget=1.0).parameters()} == {id(p) for p in model.parameters()}


@every_model
def test_fixed_refuses_what_the_model_has_not(config):
    """Counts from 1 to J and fractions in (0, 1]."""
    model = made(config)
    for k in (0, -1, model.latents + 1):
        with pytest.raises(ValueError, match=rf"{k} latents .* has \d to {model.latents}"):
            model.fixed(level=k)
    for budget in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"{model.latents}/{model.latents}"):
            model.fixed(budget=budget)


def idle_rows(model: ElasticModel, name: str, grad: Tensor) -> Tensor:
    """Rows that are documented never to learn: Read's unused chunk, and those of the table beyond the grid."""
    idle = torch.zeros(len(grad), dtype=torch.bool)
    if ".read.layers." in name and ".modulation." in name:
        idle[-model.config.width :] = True
    if name.endswith("latent_positions"):
        idle[model.config.grid.size :] = True
    return idle


@every_model
def test_every_parameter_learns(config):
    """At the full budget each gets a gradient: every row of a table, every chunk of a modulation but the unused one."""
    model = made(config)
    model(*inputs_of(config)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("k_norm.bias") and not config.rope:
            continue  # softmax does not see a shift that all keys share, unless each is then turned by its place
        idle = idle_rows(model, name, parameter.grad)
        assert not parameter.grad[idle].any(), name
        if "modulation" in name:
            chunks = parameter.grad[~idle].split(model.config.width)
            assert all(chunk.abs().max() > 1e-6 for chunk in chunks), name
        elif config.anchor == "cells" and name.endswith("_logits"):
            continue  # each latent is its token, and hardly anything else; below that they learn, see test_anchors
        elif name.endswith(("queries", "positions", "label_embedding.weight")):
            assert (parameter.grad[~idle].abs().amax(1) > 1e-6).all(), name
        else:
            assert parameter.grad.abs().max() > 1e-6, name


def loss_and_gradients(model: ElasticModel, config: DiTConfig, budget: float | list[float]) -> tuple[Tensor, list[Tensor]]:
    loss = model(*inputs_of(config), budget).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss, [torch.zeros(()) if g is None else g for g in gradients]


@contextmanager
def counted_calls(model: ElasticModel) -> Iterator[list[SelfAttention]]:
    """Every entry into a block's self-attention, first time or again."""
    calls: list[SelfAttention] = []
    handles = [
        block.attention.register_forward_pre_hook(lambda module, _: calls.append(module))
        for block in model.modules()
        if isinstance(block, Block)
    ]
    yield calls
    for handle in handles:
        handle.remove()


@every_model
def test_checkpointing_recomputes_every_block_and_changes_nothing(config):
    """Loss and gradients stay; every block, those of the core too, runs a second time in the backward pass."""
    model = made(config)
    blocks = [module.attention for module in model.modules() if isinstance(module, Block)]
    for budget in fractions(model)[:: max(1, model.latents - 1)]:
        runs = {}
        for on in (False, True):
            model.set_checkpointing(on)
            with counted_calls(model) as calls:
                runs[on] = loss_and_gradients(model, config, budget)
            assert [calls.count(block) for block in blocks] == [2 if on else 1] * config.depth
        torch.testing.assert_close(runs[True], runs[False], rtol=0, atol=0)


@every_elastic_model
def test_checkpointing_holds_with_a_budget_per_sample(config):
    model = made(config)
    budgets = [fractions(model)[i] for i in (2, 0, -1, 0)]
    plain = loss_and_gradients(model, config, budgets)
    model.set_checkpointing()
    torch.testing.assert_close(loss_and_gradients(model, config, budgets), plain, rtol=0, atol=0)


@every_model
@pytest.mark.parametrize("wrong", [-1, 4, 1000])
def test_a_label_out_of_range_is_refused(config, wrong):
    """0 to 2 are classes and 3 is none; the sentence says so and repeats what came."""
    x, t, y = inputs_of(config)
    y[2] = wrong
    with pytest.raises(ValueError, match=rf"labels are 0 to 2, and 3 for none, not .*{wrong}"):
        made(config)(x, t, y)


@every_model
def test_an_input_of_the_wrong_form_is_refused(config):
    """Wrong channels, no batch axis, sides that patches do not tile: the error has the form wanted and the one given."""
    model = made(config)
    x, t, y = inputs_of(config)
    wrong = [torch.cat([x, x[:, :1]], dim=1), x[:, :-1], x[0]]
    if model.input.patch > 1:
        wrong += [x[..., :-1, :], x[..., :-1]]
    for bad in wrong:
        with pytest.raises(ValueError) as error:
            model(bad, t, y)
        assert str(x.shape[1]) in str(error.value)
        assert f"multiples of {model.input.patch}" in str(error.value)
        assert str(tuple(bad.shape)) in str(error.value)


def doubled(config: DiTConfig) -> DiTConfig:
    """The same model made for inputs of twice the width."""
    height, width = pair(config.input_size)
    return dataclasses.replace(config, input_size=(height, 2 * width))


@every_model
def test_another_grid_runs_where_positions_allow_it(config):
    """Rotations and dense sin-cos positions run at another size as a model made for it; a learned table does not."""
    model, wider = made(config), doubled(config)
    x, t, y = inputs_of(wider)
    if config.group_size is not None and not config.rope:
        with pytest.raises(ValueError, match=r"learned positions .* rope=True"):
            model(x, t, y)
        return
    made_for_it = build_model(wider)
    made_for_it.load_state_dict(model.state_dict())
    for budget in fractions(model):
        torch.testing.assert_close(model(x, t, y, budget), made_for_it(x, t, y, budget))


def test_a_grid_of_as_many_tokens_is_another_grid_still():
    """A table that learned 4 x 6 places does not hold for 6 x 4, though the rows would suffice."""
    config = CONFIGS["oblong input"]
    x, t, y = inputs_of(config)
    with pytest.raises(ValueError, match=r"grid of 4x6 tokens only, not 6x4; .* rope=True"):
        made(config)(x.transpose(2, 3), t, y)


def test_a_grid_that_windows_do_not_tile_is_refused_with_windows_that_do():
    """An HDiT's latents are folded by fours, so its windows are whole; other models have smaller windows at the edges."""
    model = made(dataclasses.replace(CONFIGS["HDiT, rope"], input_size=16))
    with pytest.raises(ValueError, match=r"window of 4x4 does not divide a grid of 6x8 tokens; .*: 3x4 or 6x4"):
        model(torch.zeros(1, 4, 12, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_a_dense_model_has_the_full_budget_alone():
    """A lower budget, or one per sample, is refused rather than ignored."""
    config = CONFIGS["dense"]
    for budget in (0.5, [1.0, 1.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="dense"):
            made(config)(*inputs_of(config), budget)


@pytest.mark.parametrize("budget", [0, -0.5, 1.5, float("nan"), True, [0.5, 2.0, 0.5, 0.5]])
def test_a_bad_budget_is_refused_with_the_valid_levels(budget):
    with pytest.raises(ValueError, match="1/4, 2/4, 3/4, 4/4"):
        made(ELASTIC)(*inputs_of(ELASTIC), budget)


@every_model
def test_a_saved_model_comes_back_as_it_was(config, tmp_path):
    """Through a folder of config.json and model.safetensors: configuration, weights and velocities, bit for bit."""
    model = made(config)
    save_weights(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == config
    assert not loaded.training
    for budget in fractions(model):
        assert torch.equal(loaded(*inputs_of(config), budget), model(*inputs_of(config), budget))


@every_model
def test_autocast_to_bfloat16_stays_close(config):
    """In training's precision the velocity is that of float32 within a few roundings."""
    model = made(config)
    exact = model(*inputs_of(config)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(*inputs_of(config)).detach().float()
    assert ((low - exact).norm() / exact.norm()).item() < 0.05


def test_the_latent_table_is_indexed_by_place_in_the_grid():
    """A latent takes the row of its token: a 4 x 4 grid counts them row by row, not window by window."""
    model = made(ELASTIC)
    assert model.core is not None
    where = token_index(model.config.grid, regions(model.config.grid, model.core.window)[0])
    first_latents_only = model(*inputs_of(ELASTIC), 0.25)
    with torch.no_grad():
        model.core.read.latent_positions[6] += 1.0  # the first token of no window: (row 1, column 2)
    assert 6 not in where[:, 0].tolist()
    assert torch.equal(model(*inputs_of(ELASTIC), 0.25), first_latents_only)
    with torch.no_grad():
        model.core.read.latent_positions[2] += 1.0  # the first token of the second window: (row 0, column 2)
    assert not torch.equal(model(*inputs_of(ELASTIC), 0.25), first_latents_only)
