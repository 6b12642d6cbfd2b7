"""What every host keeps to: the contract of the backbones, for transformers of diffusers made elastic in place."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import elit
from elit.backbones.hosts.table import HOSTS
from tiny_hosts import TINY, Tiny, inputs, out

every_host = pytest.mark.parametrize("tiny", TINY.values(), ids=TINY.keys())
every_grid = pytest.mark.parametrize("ragged", [False, True], ids=["whole windows", "windows cut short"])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def window(tiny: Tiny) -> int | tuple[int, int, int]:
    return (2, 2, 2) if tiny.video else 2


def spoiled(transformer: torch.nn.Module) -> torch.nn.Module:
    """Its interface as training may leave it: no weight is zero."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in transformer.elit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return transformer


def apart(a: Tensor, b: Tensor) -> float:
    """The distance of two outputs, relative to the second."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_every_host_of_the_table_is_tested_and_in_the_manual():
    """By its class on the page of hosts, and by its name in the README's row, which links here."""
    names = {host.transformer for host in HOSTS}
    assert set(TINY) == names
    readme, page = ((Path(__file__).parents[1] / file).read_text(encoding="utf8") for file in ("README.md", "docs/hosts.md"))
    assert all(f"| `{name}` |" in page for name in names)
    (row,) = (line for line in readme.splitlines() if line.startswith("| transformers of diffusers: "))
    told = row.split(": ")[1].split(" (")[0].replace("-", "").split(", ")
    assert len(told) == len(names) and all(any(name.startswith(one) for name in names) for one in told)
    assert "(tests/test_contract_of_hosts.py)" in row


@every_host
@every_grid
def test_the_full_budget_of_a_fresh_core_is_the_transformer_that_it_was(tiny, ragged):
    """Within 1e-3, and far nearer than the lowest budget is."""
    arguments = inputs(tiny, ragged=ragged)
    with torch.no_grad():
        dense, elastic = out(tiny.made(), arguments), tiny.elastic(window=window(tiny))
        assert apart(out(elastic, arguments), dense) < 1e-4
        with elit.budget(elastic, 0.25):
            assert 5e-3 < apart(out(elastic, arguments), dense) < 1


@every_host
def test_no_budget_is_the_full_one_and_budgets_differ(tiny):
    elastic, arguments = spoiled(tiny.elastic()), inputs(tiny)
    with torch.no_grad():
        full = out(elastic, arguments)
        made = []
        for budget in (0.25, 0.5, 0.75, 1.0):
            with elit.budget(elastic, budget):
                made.append(out(elastic, arguments))
        assert torch.equal(made[-1], full)
        assert torch.equal(out(elastic, arguments), full)
        for low, high in pairwise(made):
            assert apart(low, high) > 1e-3


@every_host
@every_grid
def test_a_budget_per_sample_is_each_sample_alone(tiny, ragged):
    """Mixed budgets, in no order and with one repeated."""
    elastic, arguments = spoiled(tiny.elastic()), inputs(tiny, batch=4, ragged=ragged)
    budgets = [0.75, 0.25, 1.0, 0.25]
    with torch.no_grad():
        with elit.budget(elastic, torch.tensor(budgets)):
            together = out(elastic, arguments)
        for budget in set(budgets):
            with elit.budget(elastic, budget):
                alone = out(elastic, arguments)
            rows = [i for i, one in enumerate(budgets) if one == budget]
            torch.testing.assert_close(together[rows], alone[rows], **CLOSE)


@every_host
def test_gradients_reach_every_parameter_and_checkpointing_changes_none(tiny):
    """Of the interface and of the host's blocks, at a budget that the backward pass runs again."""
    elastic, arguments = spoiled(tiny.elastic()), inputs(tiny)
    gradients = {}
    for on in (False, True):
        if on:
            elastic.enable_gradient_checkpointing()
        with elit.budget(elastic, 0.75):
            loss = out(elastic, arguments).square().mean()
        loss.backward()  # outside of the budget: what is run again is run at the same one
        gradients[on] = {name: p.grad.clone() for name, p in elastic.named_parameters() if p.grad is not None}
        elastic.zero_grad()
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-5, atol=1e-8)
    interface = [name for name, _ in elastic.named_parameters() if name.startswith("elit.")]
    assert len(interface) == 27
    assert all(gradients[True][name].abs().max() > 0 for name in interface)
    blocks = {name for name, _ in elastic.named_parameters() if "blocks." in name}
    assert len(blocks & set(gradients[True])) > 0.9 * len(blocks)


@every_host
def test_bfloat16_stays_close(tiny):
    elastic, arguments = spoiled(tiny.elastic()), inputs(tiny)
    with torch.no_grad(), elit.budget(elastic, 0.5):
        exact = out(elastic, arguments)
        low = {
            name: value.bfloat16()
            if isinstance(value, Tensor) and value.is_floating_point() and "ids" not in name
            else value
            for name, value in arguments.items()
        }
        assert apart(out(elastic.bfloat16(), low).float(), exact) < 0.1


@every_host
def test_the_blocks_stay_what_and_where_they_were(tiny):
    """Names of weights, children, numbers and slices of the lists; what is added has a name of its own."""
    dense = tiny.made()
    names, host = list(dense.state_dict()), next(h for h in HOSTS if h.transformer == type(dense).__name__)
    before = [list(getattr(dense, name)) for name in host.lists]
    elastic = elit.elasticize(dense, head=2, tail=1, window=2)
    assert elastic is dense
    assert [name for name in elastic.state_dict() if not name.startswith("elit.")] == names
    assert sum(len(list(getattr(elastic, name))) for name in host.lists) == 4  # head, core, tail
    for name, blocks in zip(host.lists, before, strict=True):
        after = getattr(elastic, name)
        assert len(after) == len(blocks)
        assert [after[i] for i in range(len(blocks))] == blocks
        assert list(after[1:3]) == blocks[1:3] and type(after[1:3]) is torch.nn.ModuleList
