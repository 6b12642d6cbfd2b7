"""LatentCore: Read, blocks and Write put together, against loops over samples and windows in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import reference
from elit.backbones.layers import Block
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
            )
        )

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
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def group_places(case: Case) -> list[tuple[int, ...]]:
    """(row, column) of every group, or (frame, row, column) of a video."""
    frames, rows, columns = (n // w for n, w in zip(case.grid.axes, case.window.axes, strict=True))
    if frames == 1:
        return [(r, c) for r in range(rows) for c in range(columns)]
    return [(f, r, c) for f in range(frames) for r in range(rows) for c in range(columns)]


def one_sample(case: Case, weights: reference.Weights, x_NC: Tensor, c_C: Tensor, keep: int) -> Tensor:
    """Read, core and Write as the paper tells them, window by window."""
    windows = reference.window_tokens(case.grid.axes, case.window.axes)
    tokens_GSC = torch.stack([x_NC[inside] + weights["read.token_positions"] for inside in windows])
    made = case.window.size if case.sees_dropped else keep
    latents_GJC = reference.read(below(weights, "read"), H, 1, tokens_GSC[None], c_C[None], made)[0]
    if not case.rope:  # latent j of a group sits where the group's j-th token does
        table = weights["read.latent_positions"]
        latents_GJC = latents_GJC + torch.stack([table[inside[:made]] for inside in windows])

    core_NC = torch.cat([latents[:keep] for latents in latents_GJC])
    places = [(j, *group) for group in group_places(case) for j in range(keep)] if case.rope else None
    for i in range(2):
        core_NC = reference.block(below(weights, f"blocks.{i}"), H, core_NC, c_C, places)
    sources = [
        torch.cat([core_NC[g * keep : (g + 1) * keep], latents_GJC[g, keep:]]) for g in range(len(windows))
    ]  # beyond `keep` there are latents only where Write sees the dropped

    written_GSC = reference.write(below(weights, "write"), H, 1, tokens_GSC[None], torch.stack(sources)[None])[0]
    out_NC = torch.empty_like(x_NC)
    for inside, written in zip(windows, written_GSC, strict=True):
        out_NC[inside] = written
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
    assert learns.tolist() == [j < taking_part for j in range(case.window.size)]
    if not case.rope:
        rows = core.read.latent_positions.grad.abs().sum(1) > 1e-4
        used = {i for inside in reference.window_tokens(case.grid.axes, case.window.axes) for i in inside[:taking_part]}
        assert set(rows.nonzero().flatten().tolist()) == used
    for parameter in (core.read.token_positions, core.write.token_positions):
        assert (parameter.grad.abs().sum(1) > 1e-4).all()


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
