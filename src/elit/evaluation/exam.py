"""The real pictures that samples are judged beside: the embedded emoji, or the test split of emoji in seven styles.

Of the latter the package holds the features of all pictures, and the pictures of some.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elit.card import Card
from elit.data.emoji import load_emoji
from elit.data.emoji_styles_test import label_names as style_label_names
from elit.data.emoji_styles_test import load_styles_test, read_split, split_labels
from elit.data.images import LabelledImages
from elit.data.twemoji import emoji_table
from elit.elastic.model import ElasticModel
from elit.evaluation.extractors import Extractor
from elit.evaluation.styles_reference import load_styles_reference

BATCH = 16  # images in one call of a network of features


@dataclass(frozen=True)
class Exam:
    """labels, categories (N,): of N real pictures. features: of some rows of them by a network, (n, D) float32."""

    labels: Tensor
    categories: Tensor
    features: Callable[[Extractor, Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)


def extract(network: Extractor, images_NCHW: Tensor) -> Tensor:
    """(N, D) float32 features of uint8 images on the processor."""
    return torch.cat([network(some).pooled.cpu() for some in images_NCHW.split(BATCH)])


def emoji_exam() -> Exam:
    """All embedded emoji, which models are trained on too."""
    data = load_emoji()
    return Exam(data.labels, data.categories, lambda network, rows: extract(network, data.images[rows]))


def styles_exam() -> Exam:
    """The 1,035 pictures of emoji in seven styles that no model is trained on."""
    kind = {row["subcategory"]: row["category"] for row in emoji_table()}
    names = sorted(set(kind.values()))
    categories = [names.index(kind[key.split("/")[0]]) for key in read_split().keys]

    def features(network: Extractor, rows: Tensor) -> Tensor:
        return torch.from_numpy(load_styles_reference(network)[1])[rows]

    return Exam(torch.tensor(split_labels()), torch.tensor(categories), features)


def known_data(model: ElasticModel, card: Card) -> LabelledImages | None:
    """Pictures of a model's own labels that come with the package, where its size and its card's names are theirs."""
    names = card.label_names
    if not names or len(names) != model.null_class:
        return None
    if model.samples.shape == (3, 32, 32) and names == load_emoji().label_names:
        return load_emoji()
    if model.samples.shape == (3, 64, 64) and names == style_label_names():
        return load_styles_test()
    return None


def exam_of(model: ElasticModel, card: Card) -> Exam | None:
    """What a model's samples are judged beside; None for a model of data that are not known here."""
    data = known_data(model, card)
    if data is None:
        return None
    return styles_exam() if data is load_styles_test() else emoji_exam()
