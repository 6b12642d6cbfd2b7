"""Latents chosen by their numbers: the same as the first ones where these are meant, any others by a permuted model."""

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch

from elit import DiT, UserError
from elit.elastic.levels import Chosen, Levels


def inputs(model: DiT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(2, *model.input.shape, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.3, 0.8]), torch.tensor([1, 4])


@pytest.mark.parametrize("fields", [{}, {"rope": True}, {"anchor": "cells", "rope": True}, {"write_sees_dropped": True}])
def test_the_first_latents_chosen_are_a_budget(make_dit: Callable[..., DiT], fields: dict[str, object]) -> None:
    model = make_dit(**fields)
    for count in (1, 3, 4):
        chosen = model(*inputs(model), Chosen(tuple(range(count))))
        torch.testing.assert_close(chosen, model(*inputs(model), count / 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("latents", [(2,), (1, 3), (0, 2, 3)])
def test_other_latents_are_the_first_ones_of_a_model_with_its_queries_moved(
    make_dit: Callable[..., DiT], latents: Sequence[int]
) -> None:
    """Where the latents have no positions, a latent is its query alone; the core does not see their order."""
    model, moved = make_dit(latent_table=4096), make_dit(latent_table=4096)
    rest = [j for j in range(4) if j not in latents]
    for one in (model, moved):
        one.core.read.latent_positions.data.zero_()
    moved.core.read.queries.data.copy_(model.core.read.queries.data[[*latents, *rest]])
    expected = moved(*inputs(model), len(latents) / 4)
    found = model(*inputs(model), Chosen(tuple(latents)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, model(*inputs(model), len(latents) / 4), atol=1e-4)


@pytest.mark.parametrize("latents", [(), (0, 0), (4,), (-1,)])
def test_latents_that_are_not_there_are_refused(tiny: DiT, latents: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="cannot be chosen; give different ones from 0 to 3"):
        tiny(*inputs(tiny), Chosen(latents))


def test_a_draw_is_uniform_over_the_latents_and_has_the_levels_of_the_other_law() -> None:
    levels = Levels(8)
    drawn = [levels.draw_chosen(0, step, 0.25, 1.0) for step in range(4000)]
    assert [len(one.latents) for one in drawn] == [levels.of(levels.draw(0, step, 0.25, 1.0)) for step in range(4000)]
    counts = torch.bincount(torch.tensor([*chain.from_iterable(one.latents for one in drawn)])) / 4000
    assert (counts - 5 / 8).abs().max() < 0.03  # k is 2 to 8, 5 on average
    assert drawn[:5] == [levels.draw_chosen(0, step, 0.25, 1.0) for step in range(5)]
    with pytest.raises(UserError, match="of a model whose levels go one by one"):
        Levels(16, 4).draw_chosen(0, 0, 0.25, 1.0)
