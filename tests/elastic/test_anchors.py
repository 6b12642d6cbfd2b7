"""Anchors: orders that are spread evenly, what a latent stands for, and a conversion that loses nothing."""

import dataclasses
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch

from elit import DiT, UserError
from elit.elastic.anchors import Anchors, anchor_order, anchor_places, covered_cells, kinship
from elit.elastic.grid import Window
from randomised import randomised
from reference import cell_shares

Place = tuple[float, ...]
WINDOWS = [Window(1, 1), Window(2, 2), Window(3, 3), Window(4, 4), Window(2, 5), Window(3, 4, frames=2), Window(6, 1)]
every_window = pytest.mark.parametrize("window", WINDOWS, ids=str)


def places(window: Window) -> list[Place]:
    frames, rows, columns = window.axes
    return [(f, r, c) for f in range(frames) for r in range(rows) for c in range(columns)]


def furthest(kept: tuple[int, ...] | list[int], at: list[Place]) -> float:
    """How far the token that is worst off has to the nearest kept one."""
    return max(min(sum((a - b) ** 2 for a, b in zip(p, at[k], strict=True)) for k in kept) for p in at) ** 0.5


@every_window
def test_the_order_has_every_token_once_and_begins_at_the_corner(window: Window) -> None:
    """The first token of a window is there in every window that a grid's edge cuts short."""
    order = anchor_order(window)
    assert sorted(order) == list(range(window.size))
    assert order[0] == 0


@every_window
def test_every_prefix_is_spread_evenly(window: Window) -> None:
    """No token is further from a kept one than 2.3 times what the best choice of as many could reach, by trying them all."""
    order, at = anchor_order(window), places(window)
    for count in range(1, window.size + 1):
        if math.comb(window.size, count) > 1000:
            continue  # too many to try
        best = min(furthest(some, at) for some in combinations(range(window.size), count))
        assert furthest(order[:count], at) <= 2.3 * best + 1e-9, count


@pytest.mark.parametrize(("window", "parts"), [(Window(4, 4), 4), (Window(8, 8), 4), (Window(4, 4, frames=2), 8)], ids=str)
def test_the_first_are_one_of_each_part(window: Window, parts: int) -> None:
    """Of a window halved along every axis: and so again within each part, by turns."""
    halves = [max(1, n // 2) for n in window.axes]
    part = [tuple(i // h for i, h in zip(p, halves, strict=True)) for p in places(window)]
    order = [part[token] for token in anchor_order(window)]
    for first in range(0, window.size, parts):
        assert len(set(order[first : first + parts])) == parts


def test_a_pyramid_covers_the_window_then_its_quadrants_then_tokens() -> None:
    cells = covered_cells(Window(4, 4), "pyramid")
    assert [cell.size for cell in cells] == [16] + [4] * 3 + [1] * 12
    assert anchor_places(Window(4, 4), "pyramid")[:4].tolist() == [
        [0, 1.5, 1.5],
        [0, 2.5, 2.5],
        [0, 0.5, 2.5],
        [0, 2.5, 0.5],
    ]
    assert [cell.size for cell in covered_cells(Window(4, 4), "sharp")] == [1] * 16


@every_window
def test_a_fresh_pyramid_reads_means_and_writes_by_the_finest(window: Window) -> None:
    """A latent starts within e^-16 of the mean of its cell; a token hears most of the finest kept latent that covers it."""
    anchors = Anchors(window, "pyramid")
    anchors.reset()
    at, cells = places(window), covered_cells(window, "pyramid")
    tokens = torch.randn(1, 1, window.size, 3, generator=torch.Generator().manual_seed(0))
    started = anchors.start(tokens, slice(None))[0, 0]
    for latent, cell in zip(started, cells, strict=True):
        inside = [token for token, place in zip(tokens[0, 0], at, strict=True) if place in cell.places()]
        torch.testing.assert_close(latent, torch.stack(inside).mean(0), rtol=1e-4, atol=1e-4)
    for keep in range(1, window.size + 1):
        weights = anchors.write_logits[:, :keep].softmax(-1)
        torch.testing.assert_close(weights.sum(-1), torch.ones(window.size))
        for place, row in zip(at, weights, strict=True):
            covering = [j for j in range(keep) if place in cells[j].places()]
            assert cells[int(row.argmax())].size == min(cells[j].size for j in covering)


@every_window
def test_fresh_cells_read_means_and_write_to_what_they_stand_for(window: Window) -> None:
    """At every level: each latent starts as the mean of its shares, and each token hears the latents it has shares in."""
    anchors = Anchors(window, "cells")
    anchors.reset()
    tokens = torch.randn(1, 1, window.size, 3, generator=torch.Generator().manual_seed(0))
    for keep in range(1, window.size + 1):
        kept = list(anchors.order[:keep])
        of = [cell_shares(window.axes, s, kept) for s in range(window.size)]
        weights = torch.tensor([[shared.get(token, 0.0) for token in kept] for shared in of])
        started, written = (f(tokens[:, :, :n], slice(keep)) for f, n in ((anchors.start, None), (anchors.spread, keep)))
        torch.testing.assert_close(started[0, 0], (weights / weights.sum(0)).T @ tokens[0, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(written[0, 0], weights @ tokens[0, 0, :keep], rtol=1e-4, atol=1e-4)


def test_cells_of_four_are_quadrants_and_of_one_the_window() -> None:
    anchors = Anchors(Window(4, 4), "cells")
    assert anchors.middles(torch.arange(1)).tolist() == [[0, 1.5, 1.5]]
    assert anchors.middles(torch.arange(4)).tolist() == [[0, 0.5, 0.5], [0, 2.5, 2.5], [0, 0.5, 2.5], [0, 2.5, 0.5]]
    assert torch.equal(anchors.middles(torch.arange(16)), anchor_places(Window(4, 4), "sharp"))


def test_latents_of_four_are_neighbours_row_by_row() -> None:
    """With a step of 4: quadrants in their order, of each its four tokens; in a pyramid its quarters, then tokens."""
    window = Window(4, 4)
    assert anchor_order(window, 4) == (0, 1, 4, 5, 10, 11, 14, 15, 2, 3, 6, 7, 8, 9, 12, 13)
    assert [cell.size for cell in covered_cells(window, "pyramid", 4)] == [4] * 4 + [1] * 12
    assert anchor_places(window, "pyramid", 4)[:5, 1:].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5], [2, 2]]


def test_kin_share_the_smallest_box() -> None:
    """Of 2 x 2 tokens, which are halved once, and of 4 x 4, twice: none for itself, one in its quadrant, two elsewhere."""
    assert kinship(Window(2, 2)).tolist() == [[int(token != latent) for latent in (0, 3, 1, 2)] for token in range(4)]
    assert kinship(Window(4, 4))[0].view(4, 4)[:, 0].tolist() == [0, 1, 1, 1]
    assert set(kinship(Window(4, 4))[5][1:4].tolist()) == {2}


def converted(dense: DiT, **fields: Any) -> DiT:
    """A dense model's weights in an elastic one that is fresh otherwise."""
    elastic = DiT(dataclasses.replace(dense.config, **fields)).eval()
    state, own = dense.state_dict(), elastic.canonical_names()
    elastic.load_state_dict({own[name]: state[given] for name, given in dense.canonical_names().items()}, strict=False)
    return elastic


GRIDS = {"divided": (8, 2), "oblong": ((4, 8), (2, 4)), "ragged": (7, 2), "larger than the grid": (3, 4)}


@pytest.mark.parametrize("rope", [False, True], ids=["table", "rope"])
@pytest.mark.parametrize(("size", "window"), GRIDS.values(), ids=GRIDS)
def test_a_dense_model_made_elastic_sharply_computes_the_same(
    make_dit: Callable[..., DiT], rope: bool, size: Any, window: Any
) -> None:
    """At the full budget, within 1e-4 of its size; a smaller budget changes it, a pyramid less than a sharp start."""
    dense = make_dit(group_size=None, input_size=size, patch_size=1, rope=rope)
    x = torch.randn(2, 3, *dense.input.shape[1:], generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.3, 0.8]), torch.tensor([1, 7])
    expected = dense(x, t, y)

    def error(anchor: str, budget: float) -> float:
        made = converted(dense, group_size=window, head_depth=1, tail_depth=1, anchor=anchor)
        return float((made(x, t, y, budget) - expected).norm() / expected.norm())

    assert error("sharp", 1.0) < 1e-4
    assert error("cells", 1.0) < 1e-4
    assert error("none", 1.0) > 1e-2
    assert error("sharp", 0.25) > 1e-2


def test_an_interface_without_anchors_has_the_weights_and_names_that_it_had(make_dit: Callable[..., DiT]) -> None:
    plain = make_dit()
    assert not [name for name in plain.state_dict() if "anchor" in name]
    sharp = make_dit(anchor="sharp")
    assert sorted(sharp.state_dict().keys() - plain.state_dict().keys()) == [
        "blocks.1.anchors.read_logits",
        "blocks.1.anchors.write_logits",
    ]
    assert sharp.interface_parameters().keys() - plain.interface_parameters().keys() == {
        "blocks.1.anchors.read_logits",
        "blocks.1.anchors.write_logits",
    }


@pytest.mark.parametrize("anchor", ["pyramid", "cells"])
def test_anchors_learn(make_dit: Callable[..., DiT], anchor: str) -> None:
    """Both tables get gradients below the full budget, of kept latents alone, and of tokens that are not theirs too."""
    model = randomised(make_dit(anchor=anchor))
    model(*model.example(1)[:1], torch.tensor([0.5]), torch.tensor([1]), 0.5).square().sum().backward()
    read, write = model.core.anchors.read_logits, model.core.anchors.write_logits
    assert (read.grad.abs().sum(1) > 0).tolist() == [True, True, False, False]
    assert (write.grad.abs().sum(0) > 0).tolist() == [True, True, False, False]
    for latent, other in ((0, 3), (1, 0)):  # of two latents, each the other's own token, in which it has no share
        assert read.grad[latent, other] != 0 and write.grad[other, latent] != 0


@pytest.mark.parametrize("fields", [{"anchor": "blunt"}, {"anchor": "sharp", "write_sees_dropped": True}])
def test_what_has_no_meaning_is_refused(make_dit: Callable[..., DiT], fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="anchor"):
        make_dit(**fields)
