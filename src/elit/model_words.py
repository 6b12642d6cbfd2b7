"""What words mean to a model: labels by name or number, or prompts by their text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from elit.condition import Condition, Labels, Prompts, Text
from elit.errors import UserError
from elit.labels import LabelRule, label_indices, parse_labels
from elit.prompt_tables import PromptTable, embedded
from elit.text_encoder import Encoder
from elit.words import shown

LISTED = 5000  # prompts of a table, at most, that a list to choose from holds
REMEMBERED = 256  # texts whose embeddings are kept


@dataclass(frozen=True)
class Told:
    """What the model is told of the images of a request, and what their imprints say of it: labels, or prompts."""

    condition: Condition
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()


class Words(Protocol):
    """What words mean to a model.

    names: of labels, in order of their numbers, or prompts to choose from.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def told(self, prompt: str, count: int) -> Told:
        """Of a request for so many images. Raises UserError for words that mean nothing."""

    def rule(self, labels: str | None, prompts: Sequence[str] = ()) -> LabelRule:
        """Which image is of what: labels as `parse_labels` reads them, None for any; or a list of prompts.

        Raises UserError for words that mean nothing, for prompts where the model is told labels, and for both.
        """

    def called(self, rule: LabelRule) -> tuple[str, ...]:
        """What the labels of a rule are called, in order of their numbers; of many prompts the first."""


@dataclass(frozen=True)
class LabelWords:
    """Labels by name or number; several, with commas between them, take turns."""

    names: tuple[str, ...]
    classes: int

    def told(self, prompt: str, count: int) -> Told:
        whole = prompt.strip()
        parts = [whole] if whole in self.names else [part.strip() for part in prompt.split(",")]
        try:
            indices = label_indices(parts, self.classes, self.names)
        except UserError as error:
            if " " not in whole:
                raise
            raise UserError(f"this model is told labels and no text: {error}") from error
        labels = [indices[i % len(indices)] for i in range(count)]
        return Told(Labels(torch.tensor(labels), self.classes), tuple(labels))

    def rule(self, labels: str | None, prompts: Sequence[str] = ()) -> LabelRule:
        if prompts:
            raise UserError(f"--prompt {shown(prompts[0])} was given, and this model is told labels; give them as --labels")
        return parse_labels("uniform" if labels is None else labels, self.classes, self.names)

    def called(self, rule: LabelRule) -> tuple[str, ...]:
        return self.names


@dataclass(frozen=True)
class PromptWords:
    """A prompt by its text: one of a table, or any text where there is an encoder."""

    table: PromptTable
    encoder: Encoder | None = None
    known: dict[str, Text] = field(default_factory=dict)  # embeddings of texts that are not in the table

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The prompts in the table, each once."""
        return tuple(self.table.numbers)

    @property
    def names(self) -> tuple[str, ...]:
        return self.texts[:LISTED]

    def told(self, prompt: str, count: int) -> Told:
        text = prompt.strip()
        return Told(self.of([text] * count), prompts=(text,) * count)

    def of(self, texts: Sequence[str]) -> Prompts:
        """The embeddings of texts, one for each. Raises UserError as `found` does."""
        rows = {text: self.found(text) for text in dict.fromkeys(texts)}
        columns = zip(*(vars(rows[text]).values() for text in texts), strict=True)
        return Prompts(Text(*map(torch.stack, columns)), self.table.nothing)

    def found(self, text: str) -> Text:
        """The embedding of a text. Raises UserError for none, and for one that is not in the table without an encoder."""
        if not text:
            raise UserError("the prompt is empty; say what is to be drawn")
        if text in self.table.numbers:
            return self.table.find([text]).text.each(lambda all_B: all_B[0])
        if self.encoder is None:
            raise self.unknown(text)
        if text not in self.known:
            while len(self.known) >= REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[text] = embedded(text, self.encoder, self.table.info)
        return self.known[text]

    def unknown(self, text: str) -> UserError:
        """What is wrong with a text that is not in the table."""
        return UserError(f"this model has no prompt {shown(text)}; {self.table.near(text)}")

    def listed(self, labels: str) -> LabelRule:
        """A rule for the numbers of `texts`. Raises UserError for one that is not in the table."""
        if labels not in ("uniform", "balanced", *self.texts) and not labels.startswith("@"):
            for part in labels.split(","):
                if part.strip() not in self.table.numbers and not re.fullmatch("[0-9]+(-[0-9]+)?", part.strip()):
                    raise self.unknown(part.strip())
        return parse_labels(labels, len(self.texts), self.texts)

    def rule(self, labels: str | None, prompts: Sequence[str] = ()) -> "PromptRule":
        """As `Words` has it; labels: prompts of the table, by their text or number."""
        if not prompts:
            rule = self.listed("uniform" if labels is None else labels)
            return PromptRule(rule.kind, rule.classes, rule.values, words=self, texts=self.texts)
        if labels is not None:
            raise UserError("--labels and --prompt both say what is drawn; leave one of them out")
        told = [text.strip() for text in prompts]
        texts = tuple(dict.fromkeys(told))
        for text in texts:
            self.found(text)
        return PromptRule("list", len(texts), tuple(map(texts.index, told)), words=self, texts=texts)

    def called(self, rule: LabelRule) -> tuple[str, ...]:
        return rule.texts[:LISTED] if isinstance(rule, PromptRule) else self.names


@dataclass(frozen=True, kw_only=True)
class PromptRule(LabelRule):
    """Which prompt image i has: a rule for the numbers of these texts."""

    words: PromptWords
    texts: tuple[str, ...]

    def told(self, labels: Sequence[int]) -> Prompts:
        return self.words.of([self.texts[label] for label in labels])

    def settings(self) -> dict[str, object]:
        info = self.words.table.info
        texts = info.texts if self.texts is self.words.texts else list(self.texts)
        return {**super().settings(), "prompts": {"texts": texts, "encoder": info.weights, "tokens": info.tokens}}
