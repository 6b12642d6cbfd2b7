"""What a model answers about itself, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import elit
from elit import DiT
from elit.condition import Labels
from elit.elastic.levels import PerSample
from randomised import randomised

Make = Callable[..., DiT]


def test_canonical_names_do_not_depend_on_the_split(make_dit: Make) -> None:
    """A model cut elsewhere, or dense, has the same names for the same weights; only the interface is beside them."""
    one, other = make_dit(head_depth=1, tail_depth=1), make_dit(head_depth=0, tail_depth=2)
    dense = make_dit(group_size=None)
    assert one.canonical_names().keys() == other.canonical_names().keys()
    beside = one.canonical_names().keys() - dense.canonical_names().keys()
    assert {name.split(".")[0] for name in beside} == {"read", "write"}
    assert {one.canonical_names()[name] for name in beside} == one.interface_parameters().keys()
    for name, own in one.canonical_names().items():
        kind = name.split(".")[0]
        assert one.state_dict()[own].shape == other.state_dict()[other.canonical_names()[name]].shape, kind


def test_the_ith_host_block_is_the_ith_that_runs(make_dit: Make) -> None:
    model, ran = make_dit(), []
    names = model.host_blocks()
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    model(*model.example())
    assert ran == names


def test_units_hold_every_weight_of_the_blocks_but_the_tables(make_dit: Make) -> None:
    """Each weight inside the blocks belongs to one unit, save the queries and the tables of positions."""
    model = make_dit(read_depth=2, write_depth=2)
    inside = [id(p) for unit in model.units() for p in unit.parameters()]
    assert len(inside) == len(set(inside))
    left = [name for name, p in model.blocks.named_parameters() if id(p) not in set(inside)]
    assert {name.split(".", 1)[1] for name in left} == {
        "read.queries", "read.token_positions", "read.latent_positions", "write.token_positions"
    }  # fmt: skip


def test_hidden_matrices_are_the_linears_of_the_blocks(make_dit: Make) -> None:
    model = make_dit()
    ids = {id(p) for p in model.hidden_matrices()}
    names = [name for name, p in model.named_parameters() if id(p) in ids]
    assert all(name.startswith("blocks.") and name.endswith(".weight") and "modulation" not in name for name in names)
    wanted = [
        n for n, p in model.blocks.named_parameters() if p.ndim == 2 and n.endswith("weight") and "modulation" not in n
    ]
    assert len(names) == len(wanted)


def test_checkpointing_recomputes_every_host_block(make_dit: Make) -> None:
    """The same gradients, and each block's forward twice."""
    model, calls = make_dit(), []
    inputs = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.rand(2), torch.tensor([0, 7]))
    model(*inputs).square().sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_checkpointing()
    for name in model.host_blocks():
        block = model.get_submodule(name)
        block.mlp.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(*inputs).square().sum().backward()
    assert sorted(calls) == sorted(2 * model.host_blocks())
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, plain[name], rtol=1e-5, atol=1e-6)


def test_example_is_what_the_model_takes(make_dit: Make) -> None:
    for fields in ({}, {"input_size": (4, 8)}):
        model = make_dit(**fields)
        x, t, y = model.example(3)
        assert model(x, t, y).shape == x.shape == (3, *model.input.shape)


def test_levels_that_run_for_no_sample_change_nothing(tiny: DiT) -> None:
    """Processes must make the same calls whatever their samples: an idle level runs on none, and gives no value."""
    x, t, y = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([1, 2, 7])
    levels = (4, 1, 4)
    ran: list[int] = []
    core = tiny.core
    assert core is not None
    core.write.register_forward_pre_hook(lambda _, inputs: ran.append(inputs[1].shape[2]))
    alone = tiny(x, t, y, PerSample(levels))
    with_idle = tiny(x, t, y, PerSample(levels, always=(2, 4)))
    assert ran == [1, 4, 1, 2, 4]
    assert torch.equal(alone, with_idle)


@pytest.mark.parametrize("rope", [False, True])
def test_the_residual_stream_stays_in_float32_under_autocast(make_dit: Make, rope: bool) -> None:
    """With learned and with rotary positions alike: what enters the first block is float32."""
    model, seen = make_dit(rope=rope), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(*model.example(2))
    assert seen == [torch.float32]


def test_at_budget_is_the_former_name_of_fixed(tiny: DiT) -> None:
    with pytest.warns(DeprecationWarning, match=r"fixed\(level=k\)"):
        assert tiny.at_budget(1).level == 1
    with pytest.warns(DeprecationWarning):
        assert tiny.at_budget(1.0).level == 4
    for wrong in ({}, {"level": 1, "budget": 0.5}, {"level": True}, {"level": 1.0}):
        with pytest.raises(elit.UserError, match=r"fixed\(|latents per group"):
            tiny.fixed(**wrong)


X, T, Y = torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long)
WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "a number for t": ((X, 1.5, Y), "t is a tensor of 2 times"),
    "times of another batch": ((X, torch.zeros(3), Y), "t is a tensor of 2 times"),
    "one time for all": ((X, torch.zeros(()), Y), "t is a tensor of 2 times"),
    "float labels": ((X, T, Y.float()), "y is a tensor of whole numbers"),
    "labels as flags": ((X, T, Y.bool()), "y is a tensor of whole numbers"),
    "labels of another batch": ((X, T, Y[:1]), r"y has the shape \(2,\)"),
    "a list of labels": ((X, T, [0, 1]), "y is a tensor of whole numbers"),
    "no labels": ((X, T, None), "y is a tensor of whole numbers"),
    "a label too high": ((X, T, Y + 8), "labels are 0 to 6"),
    "three axes": ((X[0], T, Y), r"the input is \(B, 3, H, W\)"),
    "a budget in words": ((X, T, Y, "1/4"), "budget 1/4 is not in"),
    "levels of another batch": ((X, T, Y, PerSample((1,))), "1 levels were given for a batch of 2"),
}


@pytest.mark.parametrize(("inputs", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(tiny: DiT, inputs: tuple[Any, ...], told: str) -> None:
    with pytest.raises(elit.UserError, match=told):
        tiny(*inputs)


def test_a_condition_is_taken_as_labels_are(tiny: DiT) -> None:
    tiny = randomised(tiny)
    x, t, y = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([3, 7])
    labels = Labels(y, tiny.null_class)
    assert torch.equal(tiny(x, t, labels), tiny(x, t, y))
    both = labels.joined(labels.null())
    assert both.y.tolist() == [3, 7, 7, 7]
    assert both.rows(torch.tensor([2, 0])).y.tolist() == [7, 3]
    assert len(both) == 4
