"""Which label image i of a large sample has: a function of (rule, seed, i) alone."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from elit.condition import Condition
from elit.errors import UserError
from elit.files import read_bytes
from elit.seeding import generator_for
from elit.words import shown, suggest

FILE_BYTES = 64 * 2**20  # of a file of labels
JOINT, ANY = "/", "*"  # between the factors of a label's name, and in place of one that is left open


def joined_names(*factors: Sequence[str]) -> tuple[str, ...]:
    """The names of labels of several factors, such as "animal-mammal/noto": one name of each factor, or "*" for any.

    The last, of which every factor is open, is the null class and has no name.
    """
    return tuple(map(JOINT.join, itertools.product(*[(*names, ANY) for names in factors])))[:-1]


def joined_number(values: Sequence[int], sizes: Sequence[int]) -> int:
    """The label of one value of each factor, or its size for an open one: its index in `joined_names`."""
    number = 0
    for value, size in zip(values, sizes, strict=True):
        number = number * (size + 1) + value
    return number


def factor_names(names: Sequence[str]) -> list[list[str]]:
    """The names of each factor, where labels are called as `joined_names` has it; [] where they are not."""
    if not names or JOINT not in names[-1] or ANY not in names[-1].split(JOINT):
        return []
    split = [name.split(JOINT) for name in names]
    factors = [[part for part in dict.fromkeys(column) if part != ANY] for column in zip(*split, strict=False)]
    return factors if tuple(names) == joined_names(*factors) else []


def labels_in_full(names: Sequence[str]) -> list[int]:
    """The labels of which no factor is open; [] where labels are of one factor."""
    return [i for i, name in enumerate(names) if ANY not in name.split(JOINT)] if factor_names(names) else []


@dataclass(frozen=True)
class LabelRule:
    """kind: "uniform", drawn for each image; "balanced", one after another; "list", `values` over and over.

    classes: how many the model has, for the first two. whole: of these, where labels have several factors, those of which
    none is open; () takes all.
    """

    kind: Literal["uniform", "balanced", "list"]
    classes: int
    values: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()

    def label(self, seed: int, index: int) -> int:
        """The label of one image."""
        if self.kind == "list":
            return self.values[index % len(self.values)]
        count = len(self.whole) or self.classes
        place = index % count
        if self.kind == "uniform":
            place = int(torch.randint(count, (), generator=generator_for("label", seed, index)))
        return self.whole[place] if self.whole else place

    def told(self, labels: Sequence[int]) -> Sequence[int] | Condition:
        """What a model is told of images of these labels, which it may not know by their numbers."""
        return labels

    def settings(self) -> dict[str, object]:
        """All of it, as settings.json holds it."""
        values = {"kind": self.kind, "classes": self.classes, "values": self.values}
        return {"labels": values | ({"whole": self.whole} if self.whole else {})}


def parse_labels(text: str, classes: int, names: Sequence[str] = ()) -> LabelRule:
    """ "uniform", "balanced", a list of names or numbers ("3,heart"), ranges ("0-9"), or a file of them, "@labels.txt".

    A file has one label per line. A path without the @ is taken for a file where it is no label, and looks like a path.
    Raises UserError for a label that the model does not have; a file's error names the line.
    """
    drawn: dict[str, Literal["uniform", "balanced"]] = {"uniform": "uniform", "balanced": "balanced"}
    if text in drawn:
        return LabelRule(drawn[text], classes, whole=tuple(labels_in_full(names)))
    if text.startswith("@") and text not in names:
        return LabelRule("list", classes, tuple(_file_labels(Path(text[1:]), classes, names)))
    parts = [text] if text in names else [part.strip() for part in text.split(",")]
    try:
        return LabelRule("list", classes, tuple(label_indices(parts, classes, names, ranges=True)))
    except UserError:
        if not _is_file(text):
            raise
    return LabelRule("list", classes, tuple(_file_labels(Path(text), classes, names)))


def _is_file(text: str) -> bool:
    """Whether a text looks like a path and names a file; a long list of labels is no path at all."""
    try:
        return ("/" in text or Path(text).suffix != "") and Path(text).is_file()
    except (OSError, ValueError):
        return False


def _file_labels(file: Path, classes: int, names: Sequence[str]) -> list[int]:
    try:
        lines = read_bytes(file, FILE_BYTES).decode("utf8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file ({error}); write one label per line") from error
    values = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                values.append(label_index(line.strip(), classes, names))
            except UserError as error:
                raise UserError(f"line {number} of {file}: {error}") from error
    if not values:
        raise UserError(f"{file} holds no labels; write one per line")
    label_indices([line.strip() for line in lines if line.strip()], classes, names)  # names and numbers are not mixed
    return values


def label_indices(texts: Sequence[str], classes: int, names: Sequence[str] = (), ranges: bool = False) -> list[int]:
    """The indices of labels given by name or number, or, with `ranges`, by ranges of numbers.

    Where classes are named by numbers, a number is a name in all of the list or an index in all of it. Raises UserError
    for a list that mixes the two, a range that means different classes by one and by the other, and unknown labels.
    """
    values: list[int] = []
    numbers: list[str] = []
    for text in texts:
        ends = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text) if ranges and text not in names else None
        if ends is None:
            values.append(label_index(text, classes, names))
            numbers += [text] if re.fullmatch("[0-9]{1,9}", text) else []
        else:
            values += _range(int(ends[1]), int(ends[2]), text, classes, names)
            numbers.append(str(int(ends[1])))
    elsewhere = [number for number in numbers if number in names and list(names).index(number) != int(number)]
    indices = [number for number in numbers if number not in names]
    if elsewhere and indices:
        number = list(names).index(elsewhere[0])
        raise UserError(f"{elsewhere[0]} is the name of class {number}, and {indices[0]} is no name; give names alone")
    return values


def _range(first: int, last: int, text: str, classes: int, names: Sequence[str]) -> range:
    """The indices of a range. Raises UserError where it runs backwards or beyond, or means other classes by their names."""
    for end in (first, last):
        if end >= classes:
            raise UserError(f"there is no label {str(end)!r}; labels are 0 to {classes - 1}")
    if last < first:
        raise UserError(f"the range {text} runs backwards; write {last}-{first}")
    for i in range(first, last + 1):
        if str(i) in names and list(names).index(str(i)) != i:
            raise UserError(
                f"the range {text} may mean names or indices: the class named {i} is number {list(names).index(str(i))};"
                f" list the names, as in {first},{last}"
            )
    return range(first, last + 1)


def label_index(text: str, classes: int, names: Sequence[str] = ()) -> int:
    """The index of a label given by name or number. Raises UserError, naming close ones, for one that is not there."""
    if text in names[:classes]:
        return list(names).index(text)
    if re.fullmatch("[0-9]{1,9}", text) and int(text) < classes:
        return int(text)
    numeric = text.lstrip("-").isdigit()
    if (factors := factor_names(names)) and not numeric:
        raise UserError(_of_factors(text, factors))
    known = f"labels are 0 to {classes - 1}" if numeric or not names else suggest(text, list(names))
    file = " (and no such file)" if "/" in text or text.endswith(".txt") else ""
    raise UserError(f"there is no label {shown(text)}{file}; {known}")


def _of_factors(text: str, factors: Sequence[Sequence[str]]) -> str:
    """What is wrong with a label of several factors."""
    parts, form = text.split(JOINT), JOINT.join(names[0] for names in factors)
    if len(parts) != len(factors):
        open_but_for_one = [name for name in joined_names(*factors) if name.split(JOINT).count(ANY) == len(factors) - 1]
        nearest = suggest(text, open_but_for_one, f"write {ANY} for any")
        return f"labels have {len(factors)} parts, such as {form}, and {shown(text)} has {len(parts)}; {nearest}"
    for part, names in zip(parts, factors, strict=True):
        if part not in (*names, ANY):
            return f"there is no label {shown(text)}: no {shown(part)}; {suggest(part, list(names))}"
    return f"the label {shown(text)} leaves everything open; give one part at least, such as {form}"
