"""The authors' weight layout and outputs: the same weights give the same velocities."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from elit import DiT, create_model
from published_weights import drawn_inputs, drawn_state, our_state

DATA = Path(__file__).parent / "data" / "published"
EXPECTED = load_file(DATA / "expected.safetensors")
SHAPES = json.loads((DATA / "tensors.json").read_text())


@pytest.fixture(scope="module")
def dense() -> DiT:
    """SiT-S/2 with the drawn weights."""
    model = create_model("SiT-S/2")
    model.load_state_dict(our_state(drawn_state(SHAPES["sit_s2_256"]), None))
    return model.eval()


@pytest.fixture(scope="module")
def elastic() -> DiT:
    """ELIT-SiT-S/4 as released, 8 - 2 - 2 blocks, with the drawn weights."""
    model = create_model("ELIT-SiT-S/4", qk_norm=True, head_depth=8, write_sees_dropped=True)
    model.load_state_dict(our_state(drawn_state(SHAPES["elit_s4_qknorm"]), (8, 10)))
    return model.eval()


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


def test_fixed_positions_are_the_one_published_tensor_that_no_file_of_ours_holds(dense, elastic):
    """The sin-cos table is computed: it has the published shape and no place among the weights."""
    for model, name in ((dense, "sit_s2_256"), (elastic, "elit_s4_qknorm")):
        assert [1, *model.positions.shape] == SHAPES[name]["pos_embed"]
        assert len(model.state_dict()) == len(SHAPES[name]) - 1
