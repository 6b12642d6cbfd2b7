"""A model to be served: one of this library, which is told labels, or a run of `elit finetune`, which is told prompts."""

from dataclasses import dataclass

import torch

from elit.card import Card
from elit.codec import Codec
from elit.cost import flops_by_level
from elit.distributed import local_device
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.labels import factor_names
from elit.model_words import Words
from elit.opened import Vocabulary, open_model
from elit.serving.messages import Settings
from elit.weights import fingerprint

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    one = open_model(settings.model, local_device(device), Vocabulary(settings.prompts, settings.encoder))
    model = one.model.to(DTYPES[settings.dtype])
    if model.stages > 1:
        raise UserError("models of several stages are not served yet; sample them with elit sample")
    if model.samples.of_clips:
        raise UserError("models of clips are not served; sample them with elit sample")
    return Opened(model, one.card, one.codec(settings.codec), one.words, fingerprint(model), flops_by_level(model))
