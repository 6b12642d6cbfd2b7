"""A model to be served: one of this library, which is told labels, or a run of `elit finetune`, which is told prompts."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from elit.card import Card, SamplingDefaults, load_card
from elit.codec import Codec, load_codec
from elit.condition import Condition, Labels, Prompts, Text
from elit.cost import flops_by_level
from elit.data.prompts import PromptTable, check_encoder, embedded, open_prompts
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.hub import find_model
from elit.labels import factor_names, label_indices
from elit.serving.messages import Settings
from elit.text_encoder import Encoder, load_text_encoder
from elit.weights import TRANSFORMER_FILE, fingerprint, load_model
from elit.words import shown, suggest

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STEPS, SCALE = 25, 3.0  # of a transformer of diffusers, where nothing says which are best
LISTED = 5000  # prompts of a table, at most, that a list to choose from holds
SEARCHED = 2000  # prompts of a table in which near ones are looked for, which takes a while for more
REMEMBERED = 256  # texts whose embeddings are kept


@dataclass(frozen=True)
class Told:
    """What the model is told of the images of a request, and what their imprints say of it: labels, or prompts."""

    condition: Condition
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()


class Words(Protocol):
    """What the words of a request mean to a model.

    names: of labels, in order of their numbers, or prompts to choose from.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def told(self, prompt: str, count: int) -> Told:
        """Of a request for so many images. Raises UserError for words that mean nothing."""


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


@dataclass(frozen=True)
class PromptWords:
    """A prompt by its text: one of a table, or any text where there is an encoder."""

    table: PromptTable
    encoder: Encoder | None = None
    known: dict[str, Text] = field(default_factory=dict)  # embeddings of texts that are not in the table

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of the prompts in the table, by their text."""
        return {text: i for i, text in reversed([*enumerate(self.table.texts)]) if text}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.table.texts[:LISTED])

    def told(self, prompt: str, count: int) -> Told:
        text = prompt.strip()
        if not text:
            raise UserError("the prompt is empty; say what is to be drawn")
        one = self.found(text)
        alike = one.each(lambda value: value.expand(count, *value.shape))
        return Told(Prompts(alike, self.table.nothing), prompts=(text,) * count)

    def found(self, text: str) -> Text:
        """The embedding of a text. Raises UserError for one that is not in the table, where there is no encoder."""
        if text in self.numbers:
            return self.table.of(torch.tensor([self.numbers[text]])).text.each(lambda all_B: all_B[0])
        if self.encoder is None:
            near = list(self.numbers) if len(self.numbers) <= SEARCHED else []
            some = f"there are {len(self.numbers):,}, such as {shown(next(iter(self.numbers), ''))}"
            raise UserError(f"this model has no prompt {shown(text)}; {suggest(text, near, some)}")
        if text not in self.known:
            while len(self.known) >= REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[text] = embedded(text, self.encoder, self.table.info)
        return self.known[text]


@dataclass(frozen=True)
class Opened:
    """A model on its device, and what is known of it.

    fingerprint: as imprints have it. flops: of one forward of one image, by level.
    """

    model: ElasticModel
    card: Card
    codec: Codec
    words: Words
    fingerprint: str
    flops: dict[int, int]

    @property
    def factors(self) -> tuple[tuple[str, ...], ...]:
        """The names of each factor of a label, where labels have several."""
        return tuple(map(tuple, factor_names(self.card.label_names)))


def opened(settings: Settings, device: str) -> Opened:
    """The model that a server is to serve. Raises UserError where it is none that can be, or what it needs is missing."""
    folder = find_model(settings.model)
    if (folder / TRANSFORMER_FILE).is_file():
        return opened_host(folder, settings, torch.device(device))
    given = [f"--{name}" for name in ("prompts", "encoder") if getattr(settings, name) is not None]
    if given:
        raise UserError(f"{given[0]} is for a run of elit finetune, and this model is told labels; leave it out")
    card, model = load_card(folder), load_model(folder, device).to(DTYPES[settings.dtype])
    if model.stages > 1:
        raise UserError("models of several stages are not served yet; sample them with elit sample")
    if model.samples.of_clips:
        raise UserError("models of clips are not served; sample them with elit sample")
    codec = load_codec(settings.codec, model.input.channels, torch.device(device), card.encoding)
    words = LabelWords(card.label_names, model.null_class)
    return Opened(model, card, codec, words, fingerprint(model), flops_by_level(model))


def opened_host(folder: Path, settings: Settings, device: torch.device) -> Opened:
    """A run of `elit finetune`, which is told prompts."""
    from elit.backbones.hosts.model import HostModel, check_embeddings  # only who serves hosts loads diffusers
    from elit.host_models import host_fingerprint, host_outline, read_checkpoint

    transformer, kept = read_checkpoint(folder)
    place = kept.prompts if settings.prompts is None else settings.prompts
    if place is None:
        raise UserError(f"{folder} does not say what its prompts are; give them with --prompts, a folder or emoji")
    table = open_prompts(place)
    model = HostModel(transformer, (kept.height, kept.width), table.tokens).eval()
    takes = model.form.widths(model.config)
    check_embeddings(model.name, takes, table.info.width, table.info.pooled, str(table.folder))
    encoder = None if settings.encoder is None else load_text_encoder(settings.encoder, device)
    if encoder is not None:
        check_encoder(encoder, table)
    codec = load_codec(settings.codec, model.input.channels, device, kept.encoding)
    scale = SCALE if kept.guidance_scale is None else kept.guidance_scale
    card = Card(SamplingDefaults(STEPS, scale, shift=kept.shift), encoding=kept.encoding)
    name, flops = host_fingerprint(model, kept), flops_by_level(host_outline(model, kept))
    return Opened(model.to(device, DTYPES[settings.dtype]), card, codec, PromptWords(table, encoder), name, flops)
