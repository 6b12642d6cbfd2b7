"""Anchors: an interface whose latents start from the tokens they stand for, and whose core's change is written back.

The paper's interface starts from learned queries with closed gates and a zero Write, so at first the core sees nothing of
the image and changes nothing. Anchored, latent j starts from a mean of its group's tokens,

    l0_j = query_j + sum over s of P[j, s] token_s,        P = softmax over s of a learned (J, S) table,

and what the core makes of the kept latents is added to the tokens,

    token_s <- token_s + sum over k < K of W[s, k] (l_k after - l_k before),   W = softmax over the kept k of another,

before the paper's Write, zero as ever, comes on top. Where every latent starts as one token ("sharp"), the full budget
of a fresh model computes the dense model; where the first ones are means of whole regions ("pyramid"), low budgets are
better from the start. With "cells" what a latent stands for depends on how many are kept: the window is shared out among
them, so that a fresh model runs the dense one's middle on means, coarser and coarser, and at the full budget on the tokens.

Shapes: B batch, G groups, S tokens in a group, J latents in a group, K latents kept, C width.
"""

from functools import cache
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from elit.elastic.constants import made_once
from elit.elastic.grid import Window

Anchor = Literal["none", "sharp", "pyramid", "cells"]
NEAR = 12.0  # W's logits fall by so much per squared distance: at the full budget a token hears its own latent alone
FAR = 8.0  # and P's and W's are so far apart for what a latent does not stand for
FINER = 4.0  # and so much higher for the finer of two latents that cover a token


class Cell(NamedTuple):
    """A box of tokens in a window: the first of each axis (frame, row, column), and the one behind the last."""

    first: tuple[int, int, int]
    end: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Tokens inside."""
        return len(self.places())

    def places(self) -> list[tuple[int, int, int]]:
        """(frame, row, column) of every token inside, in row-major order."""
        frames, rows, columns = (range(a, b) for a, b in zip(self.first, self.end, strict=True))
        return list(product(frames, rows, columns))

    def halves(self) -> list["Cell"]:
        """The box cut in two along each axis that is longer than one; next to each other in the list lie opposite ones."""
        cut = [(a, (a + b + 1) // 2, b) for a, b in zip(self.first, self.end, strict=True)]
        long = [axis for axis, (a, _, b) in enumerate(cut) if b - a > 1]
        cells = []
        for bits in product((0, 1), repeat=max(0, len(long) - 1)):
            for sides in ((0, *bits), (1, *(1 - bit for bit in bits))):
                upper = dict(zip(long, sides, strict=True))
                first = tuple(m if upper.get(axis) else a for axis, (a, m, _) in enumerate(cut))
                end = tuple(m if upper.get(axis) == 0 else b for axis, (_, m, b) in enumerate(cut))
                cells.append(Cell(first, end))  # type: ignore[arg-type]
        return cells


@cache
def anchor_order(window: Window, step: int = 1) -> tuple[int, ...]:
    """The tokens of a window, as row-major numbers, so that every prefix is spread evenly over it.

    The window is halved along every axis again and again, and the parts take turns: of 4 x 4 tokens the first four are one
    of each quadrant. The first is the first of the window, which every smaller window at a grid's edge has too. With a
    `step` of 4 it is 2 x 2 neighbours that take turns, row by row within each.
    """
    numbers = {place: number for number, place in enumerate(_whole(window).places())}
    return tuple(numbers[cell.first] for cell in covered_cells(window, "sharp", step))


def _whole(window: Window) -> Cell:
    return Cell((0, 0, 0), window.axes)


def _ordered(cell: Cell) -> list[tuple[int, int, int]]:
    if cell.size == 1:
        return [cell.first]
    parts = [_ordered(half) for half in cell.halves()]
    return [part[turn] for turn in range(max(map(len, parts))) for part in parts if turn < len(part)]


@cache
def covered_cells(window: Window, anchor: Anchor, step: int = 1) -> tuple[Cell, ...]:
    """What each latent stands for: a token where it is sharp; in a pyramid the whole window, then halves, then tokens.

    Latent j of a pyramid covers the cell around its place in the order, at the first depth that has more than j cells.
    With a `step` of 4 latents come in fours, which share such a cell among them as its quarters, row by row.
    """
    if step == 4:
        half = Window(window.height // 2, window.width // 2, window.frames)
        return tuple(quarter for cell in covered_cells(half, anchor) for quarter in _quarters(cell))
    depths = _depths(window)
    if anchor != "pyramid":
        depths = depths[-1:]
    cells = []
    for j, place in enumerate(_ordered(_whole(window))):
        around = next(level for level in depths if len(level) > j)
        cells.append(next(cell for cell in around if place in cell.places()))
    return tuple(cells)


def _depths(window: Window) -> list[list[Cell]]:
    """The window, its halves, theirs, and so on to single tokens."""
    depths = [[_whole(window)]]
    while any(cell.size > 1 for cell in depths[-1]):
        depths.append([half for cell in depths[-1] for half in (cell.halves() if cell.size > 1 else [cell])])
    return depths


@made_once
def kinship(window: Window, device: torch.device | None = None) -> Tensor:
    """(S, J) how many times the window must be halved less than to the end for a token to share a box with a latent's token.

    0 for its own token; the largest number for one that only the whole window has in common with it.
    """
    depths = _depths(window)
    places = _whole(window).places()
    boxes = [{place: number for number, cell in enumerate(level) for place in cell.places()} for level in depths]
    order = [places[token] for token in anchor_order(window)]
    common = [[sum(box[a] == box[b] for box in boxes) for b in order] for a in places]
    return len(depths) - torch.tensor(common, device=device)


def shares(
    window: Window, latents: slice | Tensor, tokens: slice | Tensor = slice(None), device: torch.device | None = None
) -> Tensor:
    """(S, K) how a window's tokens are shared out among some latents: each to the nearest of kin, or evenly to several."""
    apart_SK = kinship(window, device)[tokens][:, latents]
    nearest_SK = (apart_SK == apart_SK.min(dim=1, keepdim=True).values).float()
    return nearest_SK / nearest_SK.sum(dim=1, keepdim=True)


def _quarters(cell: Cell) -> list[Cell]:
    """The four boxes, row by row, of a cell of half the rows and columns, as tokens of the whole."""
    (t, y, x), (t_end, y_end, x_end) = cell
    high, wide = y_end - y, x_end - x
    corners = [(2 * y + row * high, 2 * x + column * wide) for row in (0, 1) for column in (0, 1)]
    return [Cell((t, top, left), (t_end, top + high, left + wide)) for top, left in corners]


def anchor_places(window: Window, anchor: Anchor, step: int = 1) -> Tensor:
    """(J, 3) float32: frame, row and column, within the window, of the middle of what each latent stands for."""
    cells = covered_cells(window, anchor, step)
    return torch.tensor([[(a + b - 1) / 2 for a, b in zip(cell.first, cell.end, strict=True)] for cell in cells])


class Anchors(nn.Module):
    """The two learned tables of an anchored interface.

    Args:
        window: of a group: S tokens and as many latents.
        anchor: how they start, "sharp", "pyramid" or "cells"; there what is learned comes on top of each level's shares.
        step: how many latents go together; 4 where the core folds 2 x 2 of them into one.
    """

    def __init__(self, window: Window, anchor: Anchor, step: int = 1) -> None:
        super().__init__()
        self.window, self.anchor, self.step = window, anchor, step
        self.order = anchor_order(window, step)  # the token that each latent sits on
        self.read_logits = nn.Parameter(torch.empty(window.size, window.size))  # (J, S)
        self.write_logits = nn.Parameter(torch.empty(window.size, window.size))  # (S, J)

    def places(self) -> Tensor:
        """(J, 3) the middle of what each latent stands for, within the window."""
        return anchor_places(self.window, self.anchor, self.step)

    @torch.no_grad()
    def reset(self) -> None:
        """The tables as a fresh model has them."""
        if self.anchor == "cells":
            self.read_logits.zero_()
            self.write_logits.zero_()
            return
        cells = covered_cells(self.window, self.anchor, self.step)
        places = _whole(self.window).places()
        covers_JS = torch.tensor([[place in cell.places() for place in places] for cell in cells])
        self.read_logits.copy_(torch.where(covers_JS, FAR, -FAR))
        if self.anchor == "sharp":
            at_S3 = torch.tensor(places, dtype=torch.float32)
            to_J3 = self.places()
            self.write_logits.copy_(-NEAR * torch.cdist(at_S3, to_J3).square())
        else:
            sizes = sorted({cell.size for cell in cells}, reverse=True)
            finer_J = torch.tensor([FINER * sizes.index(cell.size) for cell in cells])
            self.write_logits.copy_(torch.where(covers_JS, finer_J[:, None], -FAR).T)

    def start(self, tokens_BGSC: Tensor, latents: slice | Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """What some latents of every group start from (B, G, K, C), of the window's tokens of these numbers."""
        logits_KS = self.read_logits[latents][:, tokens]
        if self.anchor == "cells":
            logits_KS = logits_KS + self._log_shares(latents, tokens).T
        weights_KS = logits_KS.softmax(-1)
        return weights_KS.to(tokens_BGSC.dtype) @ tokens_BGSC

    def spread(self, change_BGKC: Tensor, latents: slice | Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """What the change of the kept latents, of these numbers, adds to every token of these (B, G, S, C)."""
        logits_SK = self.write_logits[tokens][:, latents]
        if self.anchor == "cells":
            logits_SK = logits_SK + self._log_shares(latents, tokens)
        weights_SK = logits_SK.softmax(-1)
        return weights_SK.to(change_BGKC.dtype) @ change_BGKC

    def middles(self, latents: Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """(K, 3) frame, row and column, within the window, of the middle of what each of the kept latents stands for."""
        if self.anchor != "cells":
            return _places_on(self.window, self.anchor, self.step, latents.device)[latents]
        weights_SK = shares(self.window, latents, tokens, latents.device)
        at_S3 = torch.tensor(_whole(self.window).places(), dtype=torch.float32, device=latents.device)[tokens]
        return (weights_SK / weights_SK.sum(dim=0)).T @ at_S3

    def _log_shares(self, latents: slice | Tensor, tokens: slice | Tensor) -> Tensor:
        """(S, K) the logits that make `shares` of a softmax, nearly: what a latent has no share in can still be learned."""
        shares_SK = shares(self.window, latents, tokens, self.read_logits.device)
        return shares_SK.log().clamp(min=-2 * FAR)


@made_once
def _places_on(window: Window, anchor: Anchor, step: int, device: torch.device) -> Tensor:
    return anchor_places(window, anchor, step).to(device)
