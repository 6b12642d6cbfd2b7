"""What hosts cost: the paper's Qwen-Image, counted at its real width, and a tiny transformer counted whole."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch

import elit
from elit import UserError
from tiny_hosts import SIZES, TINY, inputs

BENCHMARK = Path(__file__).parents[2] / "benchmarks/host_costs.py"


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("host_costs", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_qwen_image_costs_what_the_paper_says(costs: Any) -> None:
    """The shares of a step's FLOPs with cheap CFG, within 3 %; the text's length and the weak budget are assumed."""
    _, _, step = costs.shares(costs.SHAPES[0])
    for budget, published in {1.0: 0.69, 0.5: 0.49, 0.25: 0.41, 0.125: 0.37}.items():
        assert step[budget] == pytest.approx(published, rel=0.03)


def test_few_blocks_tell_what_many_cost(costs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Flux of 3 and 5 blocks, counted whole: dense, and elastic at two budgets."""
    monkeypatch.setattr(costs, "BUDGETS", (1.0, 0.125))
    flux = costs.SHAPES[2]
    small = replace(
        flux,
        make=lambda double, single: diffusers.FluxTransformer2DModel(
            **SIZES, in_channels=8, num_layers=double, num_single_layers=single, joint_attention_dim=24,
            pooled_projection_dim=12, axes_dims_rope=(4, 6, 6),
        ),
        inputs=lambda: {
            name: value.to("meta") if isinstance(value, torch.Tensor) else value
            for name, value in inputs(TINY["FluxTransformer2DModel"], batch=1).items()
        },
        blocks=(3, 5),
        head=2,
        tail=1,
        window=(1, 4, 2),
        grid=(4, 6),
    )  # fmt: skip
    dense, shares, _ = costs.shares(small)
    with torch.device("meta"):
        whole = small.make(3, 5)
    assert elit.count_flops(whole, inputs=small.inputs()) == dense
    elit.elasticize(whole, 2, 1, (1, 4, 2))
    for budget, share in shares.items():
        assert elit.count_flops(whole, budget, small.inputs(), (4, 6)) == pytest.approx(share * dense, rel=1e-9)
    assert sorted(shares.values(), reverse=True) == list(shares.values())


def test_flops_are_counted_on_meta_tensors_alone() -> None:
    tiny = TINY["SD3Transformer2DModel"]
    with pytest.raises(UserError, match=r'torch.device\("meta"\)'):
        elit.count_flops(tiny.made(), inputs=inputs(tiny))


def test_core_blocks_cost_what_their_latents_do() -> None:
    """One Wan block by hand: projections and MLP by token, self-attention by pairs, cross-attention by text."""
    wan = diffusers.WanTransformer3DModel
    tokens, text, width, hidden = 24, 5, 32, 48
    made = {}
    for layers in (1, 2):
        for budget in (None, 1.0, 0.25):
            with torch.device("meta"):
                transformer = wan(**SIZES, in_channels=4, out_channels=4, text_dim=24, freq_dim=16, ffn_dim=hidden,
                                  num_layers=layers, rope_max_seq_len=32)  # fmt: skip
                arguments = {"hidden_states": torch.empty(1, 4, 1, 8, 12), "timestep": torch.empty(1),
                             "encoder_hidden_states": torch.empty(1, text, 24)}  # fmt: skip
            if budget is not None:
                elit.elasticize(transformer, 0, 0, (1, 2, 2))
            made[layers, budget] = elit.count_flops(transformer, budget, arguments)
    for budget, n in ((None, tokens), (1.0, tokens), (0.25, tokens // 4)):
        linears = 2 * n * width * (4 * width + 2 * width + 2 * hidden) + 2 * text * width * 2 * width
        attention = 4 * n * n * width + 4 * n * text * width
        assert made[2, budget] - made[1, budget] == linears + attention
