"""A padded model is a DiT on an input within zeros, of which only the input's own part is told."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elit import UserError
from elit.backbones.config import DiTConfig, PaddedConfig
from elit.backbones.padded import PaddedDiT
from elit.backbones.table import build_model
from elit.cost import count_flops
from randomised import randomised

FIELDS = {
    **{"input_size": (4, 8), "in_channels": 3, "num_classes": 5, "width": 32, "depth": 3, "heads": 2, "rope": True},
    **{"group_size": 4, "head_depth": 1, "tail_depth": 1},
}


@pytest.mark.parametrize("group_size", [4, None])
def test_it_is_a_dit_on_zeros_around_the_input(group_size: int | None) -> None:
    padded = randomised(PaddedDiT(PaddedConfig(**FIELDS | {"group_size": group_size, "padding": 2}))).eval()
    plain = build_model(DiTConfig(**FIELDS | {"group_size": group_size, "input_size": (12, 16)})).eval()
    plain.load_state_dict(padded.state_dict())
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros(2, 3, 12, 16)
    whole[:, :, 4:8, 4:12] = x
    t, y = torch.tensor([0.2, 0.9]), torch.tensor([0, 5])
    torch.testing.assert_close(padded(x, t, y), plain(whole, t, y)[:, :, 4:8, 4:12])
    assert padded.config.padded_grid == plain.config.grid
    assert count_flops(padded) == count_flops(plain)


def test_without_a_border_it_is_a_dit_and_its_flops_are_those_that_run() -> None:
    padded = randomised(PaddedDiT(PaddedConfig(**FIELDS))).eval()
    plain = build_model(DiTConfig(**FIELDS)).eval()
    plain.load_state_dict(padded.state_dict())
    inputs = (torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5]), torch.tensor([1]))
    assert torch.equal(padded(*inputs), plain(*inputs))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = PaddedDiT(dataclasses.replace(padded.config, padding=1))
        model(*model.example(device="meta"))
    assert counter.get_total_flops() == count_flops(model) > count_flops(plain)


def test_learned_positions_are_refused() -> None:
    with pytest.raises(UserError, match="set rope true"):
        PaddedConfig(**FIELDS | {"rope": False})
