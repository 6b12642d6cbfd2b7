"""LatentCore: Read, blocks and Write put together, against loops over samples and windows in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import reference
from elit.backbones.layers import Block
from elit.elastic.anchors import Anchor, Anchors, anchor_order, covered_cells
from elit.elastic.core import LatentCore, Layout, Trunk
from elit.elastic.grid import Grid, Window
from elit.elastic.interface import Read, Write
from elit.elastic.levels import Level, PerSample
from randomised import randomised
from reference import below, weights_of

C, H, TABLE = 24, 2, 40


@dataclass(frozen=True)
class Case:
    """A core on a grid of tokens, with or without RoPE and sight of the dropped latents."""

    grid: Grid
    window: Window
    rope: bool = False
    sees_dropped: bool = False
    anchor: Anchor = "none"

    def core(self) -> LatentCore:
        size = self.window.size
        return randomised(
            LatentCore(
                Read(C, H, size, table=0 if self.rope else TABLE),
                Trunk([Block(C, H, 2.0, qk_norm=True) for _ in range(2)]),
                Write(C, H, size),
                self.window,
                C // H if self.rope else None,
                self.sees_dropped,
                anchors=None if self.anchor == "none" else Anchors(self.window, self.anchor),
            )
        )

    def seat(self, latent: int) -> int:
        """The number, in the window, of the token that a latent sits on."""
        return latent if self.anchor == "none" else anchor_order(self.window)[latent]

    def inputs(self, batch: int = 2) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return (
            torch.randn(batch, self.grid.size, C, generator=generator),
            torch.randn(batch, C, generator=generator),
        )

    def layout(self, level: Level | None) -> Layout:
        return Layout(self.grid, None, level)


SQUARE, OBLONG = (Grid(4, 4), Window(2, 2)), (Grid(4, 6), Window(4, 2))
CASES = {
    "table": Case(*SQUARE),
    "table, sees dropped": Case(*SQUARE, sees_dropped=True),
    "table, oblong": Case(*OBLONG),
    "table, oblong, sees dropped": Case(*OBLONG, sees_dropped=True),
    "rope": Case(*SQUARE, rope=True),
    "rope, oblong, sees dropped": Case(*OBLONG, rope=True, sees_dropped=True),
    "rope, video": Case(Grid(2, 4, frames=4), Window(2, 2, frames=2), rope=True),
    "table, one group": Case(Grid(2, 3), Window(2, 3)),
    "table, ragged": Case(Grid(3, 5), Window(2, 2)),
    "table, ragged, sees dropped": Case(Grid(5, 4), Window(2, 3), sees_dropped=True),
    "rope, ragged": Case(Grid(3, 5), Window(2, 2), rope=True),
    "rope, ragged video": Case(Grid(3, 3, frames=3), Window(2, 2, frames=2), rope=True),
    "table, smaller than the window": Case(Grid(1, 2), Window(2, 2)),
    "sharp": Case(*SQUARE, anchor="sharp"),
    "pyramid": Case(*OBLONG, anchor="pyramid"),
    "sharp, rope": Case(*SQUARE, rope=True, anchor="sharp"),
    "pyramid, rope": Case(*SQUARE, rope=True, anchor="pyramid"),
    "sharp, rope, ragged video": Case(Grid(3, 3, frames=3), Window(2, 2, frames=2), rope=True, anchor="sharp"),
    "cells": Case(*OBLONG, anchor="cells"),
    "cells, rope": Case(Grid(4, 8), Window(4, 4), rope=True, anchor="cells"),
    "cells, rope, ragged": Case(Grid(5, 4), Window(3, 3), rope=True, anchor="cells"),
    "cells, rope, ragged video": Case(Grid(3, 3, frames=3), Window(2, 2, frames=2), rope=True, anchor="cells"),
    "sharp, ragged": Case(Grid(5, 4), Window(2, 3), anchor="sharp"),
    "pyramid, rope, ragged": Case(Grid(5, 4), Window(2, 3), rope=True, anchor="pyramid"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


Shares = dict[int, dict[int, float]]  # of each token of a window, by number, among the latents there


def shares(case: Case, seats: dict[int, int], some: list[int]) -> Shares:
    """How the tokens of a group are shared out among some latents, where anchors are cells."""
    if case.anchor != "cells":
        return {}
    at = {case.seat(j): j for j in some}
    found = {s: reference.cell_shares(case.window.axes, s, list(at)) for s in seats}
    return {s: {at[token]: share for token, share in of.items()} for s, of in found.items()}


def logit(shared: Shares, token: int, latent: int) -> float:
    """What a share adds to what is learned."""
    share = shared[token].get(latent, 0.0) if shared else 1.0
    return max(-16.0, math.log(share)) if share else -16.0


def middle(case: Case, latent: int, shared: Shares) -> list[float]:
    """(frame, row, column), within the window, of the middle of what an anchored latent stands for."""
    _, rows, columns = case.window.axes
    if shared:
        weights = {place(s, rows, columns): of.get(latent, 0.0) for s, of in shared.items()}
        total = sum(weights.values())
        return [sum(weight * p[axis] for p, weight in weights.items()) / total for axis in range(3)]
    first, end = covered_cells(case.window, case.anchor)[latent]
    every = [place(number, rows, columns) for number in range(case.window.size)]
    places = [p for p in every if all(a <= i < b for a, i, b in zip(first, p, end, strict=True))]
    return [sum(axis) / len(places) for axis in zip(*places, strict=True)]


def place(number: int, rows: int, columns: int) -> tuple[int, int, int]:
    return number // (rows * columns), number // columns % rows, number % columns


def latent_place(case: Case, window: int, latent: int, shared: Shares) -> tuple[float, ...]:
    """Where RoPE has a latent: its number and its group's place, or the middle of what it stands for in the whole grid."""
    counts = [-(-n // w) for n, w in zip(case.grid.axes, case.window.axes, strict=True)]
    at = place(window, *counts[1:])
    if case.anchor == "none":
        where: list[float] = [latent, *at] if case.grid.frames > 1 else [latent, *at[1:]]
        return tuple(where)
    where = [g * w + m for g, w, m in zip(at, case.window.axes, middle(case, latent, shared), strict=True)]
    return tuple(where if case.grid.frames > 1 else where[1:])


def one_sample(case: Case, weights: reference.Weights, x_NC: Tensor, c_C: Tensor, keep: int) -> Tensor:
    """Read, core and Write as the paper tells them, window by window, with what an anchored interface adds."""
    windows = reference.window_seats(case.grid.axes, case.window.axes)
    made = case.window.size if case.sees_dropped else keep
    tokens = [
        torch.stack([x_NC[index] + weights["read.token_positions"][number] for number, index in seats.items()])
        for seats in windows
    ]
    there = [[j for j in range(made) if case.seat(j) in seats] for seats in windows]
    latents = []
    for seats, group, some in zip(windows, tokens, there, strict=True):
        start = torch.stack([weights["read.queries"][j] for j in some])
        if case.anchor != "none":
            logits = weights["anchors.read_logits"]
            of = shares(case, seats, some)
            summed = [reference.softmax([float(logits[j, s]) + logit(of, s, j) for s in seats]) for j in some]
            share = torch.tensor(summed).double()
            start = start + share @ group
        made_here = reference.read_group(below(weights, "read"), H, 1, group, c_C, start)
        if not case.rope:
            rows = [seats[case.seat(j)] for j in some]
            made_here = made_here + weights["read.latent_positions"][rows]
        latents.append(made_here)

    kept = [[j for j in some if j < keep] for some in there]
    core_NC = torch.cat([group[: len(some)] for group, some in zip(latents, kept, strict=True)])
    places = [latent_place(case, g, j, shares(case, windows[g], some)) for g, some in enumerate(kept) for j in some]
    for i in range(2):
        core_NC = reference.block(below(weights, f"blocks.{i}"), H, core_NC, c_C, places if case.rope else None)

    out_NC = torch.empty_like(x_NC)
    after = core_NC.split([len(some) for some in kept])
    for seats, group, before, made_there, some in zip(windows, tokens, latents, after, kept, strict=True):
        if case.anchor != "none":
            logits = weights["anchors.write_logits"]
            of = shares(case, seats, some)
            summed = [reference.softmax([float(logits[s, j]) + logit(of, s, j) for j in some]) for s in seats]
            share = torch.tensor(summed).double()
            group = group + share @ (made_there - before[: len(some)])
        table = torch.stack([weights["write.token_positions"][number] for number in seats])
        source = torch.cat([made_there, before[len(some) :]])  # beyond `keep` only where Write sees the dropped
        out_NC[list(seats.values())] = reference.write_group(below(weights, "write"), H, 1, group + table, source)
    return out_NC


@every_case
def test_every_level_is_the_statement(case):
    """At each number of latents, with and without the dropped ones, positions by table and by rotation."""
    core = case.core()
    x, c = case.inputs()
    weights = weights_of(core)
    for keep in range(1, case.window.size + 1):
        expected = torch.stack([one_sample(case, weights, x[b].double(), c[b].double(), keep) for b in range(2)])
        actual = core(x, c, case.layout(keep)).double()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=lambda m, k=keep: f"level {k}: {m}")


@every_case
def test_no_level_means_all_latents(case):
    core = case.core()
    x, c = case.inputs()
    assert torch.equal(core(x, c, case.layout(None)), core(x, c, case.layout(case.window.size)))


@every_case
def test_a_budget_per_sample_is_each_sample_alone(case):
    """Levels in any order, repeated or not: every sample gets its own, in its own place; gradients too."""
    core = case.core()
    levels = (3, 1, 3, 4, 1)
    x, c = case.inputs(batch=5)
    x_together, x_alone = x.clone().requires_grad_(), x.clone().requires_grad_()

    together = core(x_together, c, case.layout(PerSample(levels)))
    alone = torch.cat([core(x_alone[i : i + 1], c[i : i + 1], case.layout(k)) for i, k in enumerate(levels)])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().sum(), [of, *core.parameters()], allow_unused=True)
        for out, of in ((together, x_together), (alone, x_alone))
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@every_case
@pytest.mark.parametrize("keep", [1, 3])
def test_gradients_reach_the_latents_that_take_part(case, keep):
    """The queries of kept latents learn at every level; those of dropped ones only where Write sees them."""
    core = case.core()
    x, c = case.inputs()
    core(x, c, case.layout(keep)).square().sum().backward()

    taking_part = case.window.size if case.sees_dropped else keep
    learns = core.read.queries.grad.abs().sum(1) > 1e-4
    windows = reference.window_seats(case.grid.axes, case.window.axes)
    there = [any(case.seat(j) in seats for seats in windows) for j in range(case.window.size)]
    assert learns.tolist() == [j < taking_part and there[j] for j in range(case.window.size)]
    if not case.rope:
        rows = core.read.latent_positions.grad.abs().sum(1) > 1e-4
        used = {seats[case.seat(j)] for seats in windows for j in range(taking_part) if case.seat(j) in seats}
        assert set(rows.nonzero().flatten().tolist()) == used
    seen = [any(number in seats for seats in windows) for number in range(case.window.size)]
    for parameter in (core.read.token_positions, core.write.token_positions):
        assert (parameter.grad.abs().sum(1) > 1e-4).tolist() == seen


def test_dropped_latents_do_not_exist_unless_write_sees_them():
    """A change to the last query leaves a smaller budget as it was, except where Write attends to all."""
    for sees_dropped in (False, True):
        case = Case(*SQUARE, sees_dropped=sees_dropped)
        core = case.core()
        x, c = case.inputs()
        before = core(x, c, case.layout(2))
        with torch.no_grad():
            core.read.queries[-1] += 1
        assert ((core(x, c, case.layout(2)) - before).abs().max() > 1e-3) == sees_dropped
