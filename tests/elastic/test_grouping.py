"""Windows: tokens to groups and back."""

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from elit.elastic.grid import Grid, Window, regions
from elit.elastic.grouping import cut, group, joined, token_index, ungroup
from reference import window_seats, window_tokens

side = st.integers(1, 4)
sides = st.tuples(side, side, side)  # (frames, height, width)


def grid_of(axes: tuple[int, int, int]) -> Grid:
    return Grid(frames=axes[0], height=axes[1], width=axes[2])


def window_of(axes: tuple[int, int, int]) -> Window:
    return Window(frames=axes[0], height=axes[1], width=axes[2])


def tiled(window: tuple[int, int, int], counts: tuple[int, int, int]) -> tuple[int, int, int]:
    """The grid on which `counts` windows fit along each axis."""
    frames, height, width = (w * n for w, n in zip(window, counts, strict=True))
    return frames, height, width


def divides(window: tuple[int, int, int], grid: tuple[int, int, int]) -> bool:
    return all(n % w == 0 for n, w in zip(grid, window, strict=True))


@given(window=sides, counts=sides)
def test_group_gathers_each_window_in_row_major_order(window, counts):
    """Against a loop over windows and over the tokens inside: images, videos, rectangles, windows of any shape."""
    grid = tiled(window, counts)
    expected = window_tokens(grid, window)
    tokens = torch.arange(grid[0] * grid[1] * grid[2])
    x_BNC = torch.stack([tokens, -tokens]).unsqueeze(-1).repeat(1, 1, 3) * torch.tensor([1, 10, 100])

    grouped = group(x_BNC, grid_of(grid), window_of(window))

    assert grouped[0, :, :, 0].tolist() == expected
    assert torch.equal(grouped[1], -grouped[0])
    assert torch.equal(grouped[..., 2], 100 * grouped[..., 0])
    assert token_index(grid_of(grid), regions(grid_of(grid), window_of(window))[0]).tolist() == expected


@given(window=sides, counts=sides)
def test_ungroup_is_the_inverse_of_group(window, counts):
    """Both ways round, so that neither only happens to undo the other on row-major input."""
    grid = tiled(window, counts)
    size = grid[0] * grid[1] * grid[2]
    x_BNC = torch.arange(2 * size * 3).reshape(2, size, 3)
    x_BGSC = x_BNC.reshape(2, counts[0] * counts[1] * counts[2], -1, 3)

    assert torch.equal(ungroup(group(x_BNC, grid_of(grid), window_of(window)), grid_of(grid), window_of(window)), x_BNC)
    assert torch.equal(group(ungroup(x_BGSC, grid_of(grid), window_of(window)), grid_of(grid), window_of(window)), x_BGSC)


def test_group_on_a_drawn_example():
    """A 2 x 6 grid under windows of 2 x 3, numbered by hand."""
    assert token_index(Grid(2, 6), regions(Grid(2, 6), Window(2, 3))[0]).tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
    ]


@given(window=sides, counts=sides)
def test_a_window_counts_its_groups_along_every_axis(window, counts):
    """(frames, height, width) groups, and sizes that are products of the sides."""
    grid = grid_of(tiled(window, counts))
    assert window_of(window).groups(grid) == counts
    assert grid.size == window_of(window).size * counts[0] * counts[1] * counts[2]


def named_windows(message: str, grid: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The windows that the error proposes, as (frames, height, width)."""
    proposed = message.split("the nearest that do: ")[1]
    found = [tuple(int(n) for n in text.split("x")) for text in re.findall(r"\d+(?:x\d+)+", proposed)]
    return [window if len(window) == 3 else (1, *window) for window in found]


def nearest_by_search(n: int, w: int) -> tuple[int, int]:
    """Walks down and up from w to a divisor of n; past n, n itself."""
    below, above = min(w, n), min(w, n)
    while n % below:
        below -= 1
    while n % above:
        above += 1
    return below, above


@given(grid=st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24)), window=sides)
def test_a_window_that_does_not_divide_is_refused_with_the_nearest_that_do(grid, window):
    """ValueError from every entrance; each proposal divides the grid, and none lies nearer below or above."""
    assume(not divides(window, grid))
    x_BNC = torch.zeros(1, grid[0] * grid[1] * grid[2], 1)
    for call in (
        lambda: window_of(window).groups(grid_of(grid)),
        lambda: group(x_BNC, grid_of(grid), window_of(window)),
        lambda: ungroup(x_BNC[:, None], grid_of(grid), window_of(window)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        proposals = named_windows(str(error.value), grid)
        assert proposals
        assert all(divides(proposal, grid) for proposal in proposals)
        nearest = [nearest_by_search(n, w) for n, w in zip(grid, window, strict=True)]
        assert set(proposals) == {tuple(below for below, _ in nearest), tuple(above for _, above in nearest)}


@given(grid=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), window=sides)
def test_regions_cover_every_token_once_window_by_window(grid, window):
    """Against a loop over windows that may stick out of the grid: each one's tokens, in their order, in one region."""
    expected = [list(seats.items()) for seats in window_seats(grid, window)]
    found = []
    for region in regions(grid_of(grid), window_of(window)):
        inside = region.inside(window_of(window))
        for tokens in token_index(grid_of(grid), region).tolist():
            found.append(list(zip(inside, tokens, strict=True)))
    assert sorted(found) == sorted(expected)


@given(grid=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), window=sides)
def test_joined_is_the_inverse_of_cut(grid, window):
    size, where = grid[0] * grid[1] * grid[2], grid_of(grid)
    x_BNC = torch.arange(2 * size * 3).reshape(2, size, 3)
    parts = regions(where, window_of(window))
    assert torch.equal(joined([cut(x_BNC, where, region) for region in parts], where, parts), x_BNC)
    if divides(window, grid):
        assert [(region.grid, region.window) for region in parts] == [(where, window_of(window))]


def test_the_refusal_is_a_sentence_with_both_sizes():
    """What a user reads: the window asked for, the grid there is, and two ways out."""
    with pytest.raises(ValueError, match=r"window of 4x4 .* grid of 6x9 tokens; .*: 3x3 or 6x9$"):
        Window(4, 4).groups(Grid(6, 9))


@pytest.mark.parametrize("sides", [(0, 4), (4, -1), (4, 4, 0), (2.0, 4)])
@pytest.mark.parametrize("kind", [Grid, Window])
def test_sides_are_whole_and_positive(kind, sides):
    """A zero, negative or fractional side is refused when the size is made, by the size's own name."""
    with pytest.raises(ValueError, match=f"a {kind.__name__.lower()} has whole positive sides"):
        kind(*sides)
