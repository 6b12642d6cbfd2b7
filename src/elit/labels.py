"""Which label image i of a large sample has: a function of (rule, seed, i) alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from elit.errors import UserError
from elit.seeding import generator_for
from elit.words import suggest


@dataclass(frozen=True)
class LabelRule:
    """kind: "uniform", drawn for each image; "balanced", class i mod classes; "list", `values` over and over.

    classes: how many the model has, for the first two.
    """

    kind: Literal["uniform", "balanced", "list"]
    classes: int
    values: tuple[int, ...] = ()

    def label(self, seed: int, index: int) -> int:
        """The label of one image."""
        if self.kind == "list":
            return self.values[index % len(self.values)]
        if self.kind == "balanced":
            return index % self.classes
        return int(torch.randint(self.classes, (), generator=generator_for("label", seed, index)))


def parse_labels(text: str, classes: int, names: Sequence[str] = ()) -> LabelRule:
    """ "uniform", "balanced", a list of numbers or names ("3,heart"), ranges ("0-9"), or a file with one label per line.

    Raises UserError for a label that the model does not have; a file's error names the line.
    """
    if text == "uniform":
        return LabelRule("uniform", classes)
    if text == "balanced":
        return LabelRule("balanced", classes)
    file = Path(text)
    if file.is_file():
        return LabelRule("list", classes, tuple(_file_labels(file, classes, names)))
    values = [value for part in text.split(",") for value in _one_part(part.strip(), classes, names)]
    return LabelRule("list", classes, tuple(values))


def _file_labels(file: Path, classes: int, names: Sequence[str]) -> list[int]:
    try:
        lines = file.read_text(encoding="utf8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file ({error}); write one label per line") from error
    values = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                values.append(label_index(line.strip(), classes, names))
            except ValueError as error:
                raise UserError(f"line {number} of {file}: {error}") from error
    if not values:
        raise UserError(f"{file} holds no labels; write one per line")
    return values


def _one_part(text: str, classes: int, names: Sequence[str]) -> list[int]:
    ends = re.fullmatch(r"(\d+)-(\d+)", text)
    if ends is None or text in names:
        return [label_index(text, classes, names)]
    first, last = (label_index(end, classes, names) for end in ends.groups())
    if last < first:
        raise UserError(f"the range {text} runs backwards; write {last}-{first}")
    return list(range(first, last + 1))


def label_index(text: str, classes: int, names: Sequence[str] = ()) -> int:
    """The index of a label given by name or number. Raises UserError, naming close ones, for one that is not there."""
    if text in names:
        return list(names).index(text)
    if text.isascii() and text.isdigit() and int(text) < classes:
        return int(text)
    numeric = text.lstrip("-").isdigit()
    known = f"labels are 0 to {classes - 1}" if numeric or not names else suggest(text, list(names))
    file = " (and no such file)" if "/" in text or text.endswith(".txt") else ""
    raise UserError(f"there is no label {text!r}{file}; {known}")
