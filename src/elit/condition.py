"""What a model is told beside x and t: the labels of the samples, or prompts.

A condition is a batch of them: `.null()` is the same batch told nothing, `.rows(i)` some of it, `.joined(other)` one batch
after another, `.to(device)` the batch elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from elit.errors import UserError


@runtime_checkable
class Condition(Protocol):
    """What a batch of B samples is conditioned on."""

    def __len__(self) -> int: ...

    def null(self) -> Self:
        """The same batch, told nothing: the weak path of classifier-free guidance."""

    def rows(self, rows: Tensor) -> Self:
        """The samples of these numbers."""

    def joined(self, other: Self) -> Self:
        """This batch, and another behind it."""

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device."""


def factors_of(y: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The value of each factor of labels y (B,), which has so many values and, as its size, an open one.

    y counts through all values of all factors, the last fastest: with sizes (S, T) it is s (T + 1) + t, and the null class,
    of which every factor is open, is the largest.
    """
    values: list[Tensor] = []
    for size in reversed(sizes):
        values.insert(0, y % (size + 1))
        y = y // (size + 1)
    return values


def labels_of(values: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The inverse of `factors_of`."""
    y = torch.zeros_like(values[0])
    for value, size in zip(values, sizes, strict=True):
        y = y * (size + 1) + value
    return y


def opened(y: Tensor, sizes: Sequence[int], factor: int) -> Tensor:
    """Labels y (B,) with one factor left open."""
    values = factors_of(y, sizes)
    values[factor] = torch.full_like(y, sizes[factor])
    return labels_of(values, sizes)


@dataclass(frozen=True)
class Labels:
    """Class labels y (B,) int64, 0 to null_class; `null_class` itself stands for no label."""

    y: Tensor
    null_class: int

    def __len__(self) -> int:
        return len(self.y)

    def null(self) -> "Labels":
        return Labels(torch.full_like(self.y, self.null_class), self.null_class)

    def opened(self, sizes: Sequence[int], factor: int) -> "Labels":
        """The same batch with one factor of its labels left open; sizes: of the factors (see `factors_of`)."""
        return Labels(opened(self.y, sizes, factor), self.null_class)

    def rows(self, rows: Tensor) -> "Labels":
        return Labels(self.y[rows], self.null_class)

    def joined(self, other: "Labels") -> "Labels":
        return Labels(torch.cat([self.y, other.y]), self.null_class)

    def to(self, device: torch.device | str) -> "Labels":
        return Labels(self.y.to(device), self.null_class)

    def check(self, batch: int) -> None:
        """Raises UserError, naming the argument, for labels that are not `batch` whole numbers from 0 to `null_class`."""
        y = self.y
        if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise UserError(f"y is a tensor of whole numbers, one label per sample, not {kind}")
        if y.shape != (batch,):
            raise UserError(f"y has the shape ({batch},), one label per sample, not {tuple(y.shape)}")
        if type(y) is not Tensor or y.device.type != "cpu" or torch.compiler.is_compiling():
            return  # reading them would make the host wait for the device, or break the graph
        if bool(((y < 0) | (y > self.null_class)).any()):
            raise UserError(f"labels are 0 to {self.null_class - 1}, and {self.null_class} for none, not {y.tolist()}")


@dataclass(frozen=True)
class Text:
    """What a text encoder makes of texts, or of one: tokens (..., T, D), mask (..., T) bool, and pooled (..., P)."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Text":
        """The same, changed tensor by tensor."""
        return Text(change(self.tokens), change(self.mask), change(self.pooled))


@dataclass(frozen=True)
class Prompts:
    """Prompts as embeddings of B texts, and of `nothing`, the one text that stands for no prompt."""

    text: Text
    nothing: Text

    def __len__(self) -> int:
        return len(self.text.pooled)

    def null(self) -> "Prompts":
        return Prompts(self.nothing.each(lambda one: one.expand(len(self), *one.shape)), self.nothing)

    def rows(self, rows: Tensor) -> "Prompts":
        return Prompts(self.text.each(lambda all_B: all_B[rows]), self.nothing)

    def joined(self, other: "Prompts") -> "Prompts":
        pairs = zip(vars(self.text).values(), vars(other.text).values(), strict=True)
        return Prompts(Text(*(torch.cat(pair) for pair in pairs)), self.nothing)

    def to(self, device: torch.device | str) -> "Prompts":
        return Prompts(self.text.each(lambda one: one.to(device)), self.nothing.each(lambda one: one.to(device)))
