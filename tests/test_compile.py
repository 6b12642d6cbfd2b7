"""The form of static shapes goes through torch.export and torch.compile and stays the same function."""

import dataclasses
from pathlib import Path

import pytest
import torch

from elit import DiTConfig, UserError
from elit.compiler import check_compiler
from models import CONFIGS, elastic, inputs_of, made

NAMES = [  # whose graphs differ by more than shapes
    "dense, rope, qk_norm",
    "elastic",
    "sees dropped",
    "rope, sees dropped, qk_norm",
    "oblong input and group, rope",
    "two Write layers",
    "no head, no tail",
    "VideoDiT",
    "VideoDiT, rope",
]
EXPORTED = ["dense, rope, qk_norm", "sees dropped", "oblong input and group, rope", "VideoDiT"]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def no_compiled_code_left():
    """Each test compiles afresh: a cached graph of another model is neither reused nor counted against this one."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def shortened(config: DiTConfig) -> DiTConfig:
    """As many blocks as tell head, core and tail apart: graphs grow with every block."""
    return dataclasses.replace(config, depth=config.head_depth + 1 + config.tail_depth)


def level_below_full(latents: int) -> int:
    return max(1, latents - 1)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_model_is_the_model(name):
    """torch.export of one budget, run on inputs that it was not traced with."""
    config = shortened(CONFIGS[name])
    model = made(config)
    form = model.fixed(level=level_below_full(model.latents))
    x, t, y = inputs_of(config)
    exported = torch.export.export(form, (x, t, y)).module()
    others = x.flip(0) + 1, t.flip(0), y.flip(0)
    torch.testing.assert_close(exported(*others), form(*others), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_one_graph(name):
    """torch.compile with fullgraph=True finds no break, and the graph agrees on inputs of its shapes."""
    config = shortened(CONFIGS[name])
    model = made(config)
    form = model.fixed(level=level_below_full(model.latents))
    x, t, y = inputs_of(config)
    compiled = torch.compile(form, fullgraph=True, backend="eager")
    compiled(x, t, y)
    others = x.flip(0) + 1, t.flip(0), y.flip(0)
    torch.testing.assert_close(compiled(*others), form(*others), **CLOSE)


def test_machine_code_agrees_with_eager():
    """One tiny model through the default compiler."""
    config = elastic(input_size=4, patch_size=1, width=16, depth=1, head_depth=0, tail_depth=0)
    form = made(config).fixed(level=2)
    with torch.no_grad():
        compiled = torch.compile(form, fullgraph=True)
        torch.testing.assert_close(compiled(*inputs_of(config)), form(*inputs_of(config)), **CLOSE)


def test_a_missing_compiler_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls g++ or what CXX names, with its arguments; a GPU's code needs none of it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and \S+ is not here"):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))
    (tmp_path / "mine").touch(0o755)
    monkeypatch.setenv("CXX", "mine -O3")
    check_compiler(torch.device("cpu"))
