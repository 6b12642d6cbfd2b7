"""A model by its name: one of this library, which is told labels, or a run of `elit finetune`, which is told prompts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from elit.card import Card, SamplingDefaults, load_card
from elit.codec import Codec, load_codec
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.hub import find_model
from elit.model_words import LabelWords, PromptWords, Words
from elit.prompt_tables import check_encoder, open_prompts
from elit.text_encoder import load_text_encoder
from elit.weights import is_host, load_model

STEPS, SCALE = 25, 3.0  # of a transformer of diffusers, where nothing says which are best


@dataclass(frozen=True)
class Vocabulary:
    """What a run of `elit finetune` is to know of prompts.

    prompts: a folder of them, or "emoji", instead of its own. encoder: a text encoder by folder or hub id, for any text.
    """

    prompts: str | None = None
    encoder: str | None = None


@dataclass(frozen=True)
class OpenModel:
    """A model on its device, in float32 and eval mode, what is known of it, and what words mean to it.

    folder: where it is.
    """

    folder: Path
    model: ElasticModel
    card: Card
    words: Words

    def check_cache(self) -> None:
        """Raises UserError where it takes no step cache."""
        if isinstance(self.words, PromptWords):
            raise UserError("a step cache is for models of this library; leave --cache out for a run of elit finetune")

    def codec(self, name: str | None) -> Codec:
        """What turns its output into pictures, by a name as `load_codec` takes it; errors are its own."""
        made, device = self.model.samples, next(self.model.parameters()).device
        return load_codec(name, made.channels, device, self.card.encoding, made.extent.frames)


def open_model(name: str | Path | None, device: torch.device, vocabulary: Vocabulary = Vocabulary()) -> OpenModel:
    """The model that a name stands for (see `find_model`).

    Raises UserError where it cannot be read, or what it needs is missing, and for a vocabulary of a model of labels.
    """
    folder = find_model(name)
    if is_host(folder):
        return open_host(folder, device, vocabulary)
    given = [f"--{kind}" for kind, value in vars(vocabulary).items() if value is not None]
    if given:
        raise UserError(f"{given[0]} is for a run of elit finetune, and this model is told labels; leave it out")
    card, model = load_card(folder), load_model(folder, str(device))
    return OpenModel(folder, model, card, LabelWords(card.label_names, model.null_class))


def open_host(folder: Path, device: torch.device, vocabulary: Vocabulary) -> OpenModel:
    """A checkpoint of `elit finetune`, or a pipeline made of one; errors as of `open_model`."""
    from elit.backbones.hosts.model import HostModel, check_embeddings  # only who opens hosts loads diffusers
    from elit.host_models import read_checkpoint, read_known

    kept = read_known(folder)
    place = kept.prompts if vocabulary.prompts is None else vocabulary.prompts
    if place is None:
        raise UserError(f"{folder} does not say what its prompts are; give them with --prompts, a folder or emoji")
    table = open_prompts(place)
    transformer, _ = read_checkpoint(folder)
    model = HostModel(transformer, (kept.height, kept.width), table.tokens).eval()
    takes = model.form.widths(model.config)
    check_embeddings(model.name, takes, table.info.width, table.info.pooled, str(table.folder))
    encoder = None if vocabulary.encoder is None else load_text_encoder(vocabulary.encoder, device)
    if encoder is not None:
        check_encoder(encoder, table)
    scale = SCALE if kept.guidance_scale is None else kept.guidance_scale
    card = Card(SamplingDefaults(STEPS, scale, shift=kept.shift), encoding=kept.encoding)
    return OpenModel(folder, model.to(device), card, PromptWords(table, encoder))
