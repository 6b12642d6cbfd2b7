"""What a report is about: a model of any kind, how to sample it, and the labels whose images are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from elit.card import Card
from elit.codec import Codec, makes_pixels
from elit.condition import Condition
from elit.data.images import LabelledImages
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.exam import Exam, exam_of, known_data
from elit.labels import LabelRule
from elit.model_words import Words
from elit.opened import Vocabulary, open_model
from elit.pixels import to_float
from elit.recipe import Recipe, steps_text
from elit.words import spread

MOST_LABELS = 100
DEMO_LABELS = (
    "country-flag",
    "time",
    "face-smiling",
    "heart",
    "animal-mammal",
    "food-fruit",
    "transport-ground",
    "keycap",
    "arrow",
    "person-role",
    "plant-flower",
    "zodiac",
)


STYLED_LABELS = (
    "face-concerned/fluent-3d",
    "face-tongue/noto",
    "cat-face/twemoji",
    "heart/twemoji",
    "keycap/fluent",
    "alphanum/emojione",
    "time/noto",
    "arrow/noto",
    "plant-flower/noto-v1",
    "animal-mammal/twemoji",
    "transport-ground/fluent-flat",
    "person-role/emojione",
)


@dataclass(frozen=True)
class Subject:
    """A model and its card, the data it was made for where that is known, and labels by number and by name.

    rule: which the labels are of. codec: decodes a model of latents, whose first channels are shown where none is given.
    """

    name: str
    model: ElasticModel
    card: Card
    data: LabelledImages | None
    labels: list[int]
    label_names: list[str]
    rule: LabelRule
    seed: int
    codec: Codec | None = None

    @property
    def exam(self) -> Exam | None:
        """What the model's samples are judged beside, where its data are known."""
        return exam_of(self.model, self.card)

    @property
    def told(self) -> Sequence[int] | Condition:
        """What the model is told of an image of each label."""
        return self.rule.told(self.labels)

    @property
    def recipe(self) -> Recipe:
        """The full budget, sampled as the card says, from the noise of the subject's seed."""
        return replace(self.card.recipe, seed=self.seed)

    def describe(self) -> str:
        """The model and how it is sampled, in two sentences."""
        model, sampling = self.model, self.card.sampling
        count = sum(p.numel() for p in model.parameters())
        size = " x ".join(str(n) for n in model.samples.shape)
        budgets = f"{model.latents} budgets" if model.latents > 1 else "one budget"
        return (
            f"Model {self.name}: {count / 1e6:.2f} M parameters, inputs of {size}, {model.grid} tokens, {budgets}."
            f" Images: Euler's method, {steps_text(sampling.steps)}, seed {self.seed}."
        )

    def results(self) -> dict[str, object]:
        """What every results.json begins with."""
        sampling = self.card.sampling.told()
        return {"model": self.name, "seed": self.seed, "sampling": sampling, "labels": self.label_names}

    def notes(self) -> list[str]:
        """What a reader must know of a model whose data are not known."""
        out = []
        if self.data is None:
            out.append("The model's data are not known here, so there are no real pictures and no measured quality.")
        if self.codec is None and not makes_pixels(self.card.encoding, self.model.samples.channels):
            out.append(
                f"The model makes latents of {self.model.samples.channels} channels and not RGB. Its first three are shown,"
                " on one scale; to see pictures, give --codec, the codec that made its training data."
            )
        return out

    def shown(self, samples: Sequence[Tensor]) -> list[Tensor]:
        """What the model made, as pictures or clips where that is known."""
        return [x if self.codec is None else self.codec.decode(x).cpu() for x in samples]

    def real_examples(self, count: int) -> Tensor:
        """(count, L, 3, H, W) real pictures of each label, spread over those there are; white where there are none."""
        assert self.data is not None
        columns = []
        for label in self.labels:
            found = (self.data.labels == label).nonzero()[:, 0]
            rows = [i * len(found) // count for i in range(count if len(found) else 0)]
            columns.append(to_float(self.data.images[found[rows]]) if rows else torch.ones(count, *self.data.shape))
        return torch.stack(columns, dim=1)


def load_subject(
    folder: Path,
    labels: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    name: str | None = None,
    codec: str | None = None,
    prompts: Sequence[str] = (),
    vocabulary: Vocabulary = Vocabulary(),
) -> Subject:
    """The subject of a model folder.

    labels: as `elit.labels.parse_labels` takes a list of them, such as "heart,3,10-12"; a dozen if None. steps: instead of
    the card's. name: what the report calls the model; the folder's own name if None. codec: as `load_codec` finds it.
    prompts, vocabulary: of a run of `elit finetune`, as `elit.opened` has it, prompts instead of labels.

    Raises UserError for a folder that is no model's, a label that it does not have, or a codec that does not fit.
    """
    one = open_model(folder, torch.device("cpu"), vocabulary)
    model, card = one.model, one.card
    if steps is not None:
        checked = replace(card.recipe, steps=steps)
        card = replace(card, sampling=replace(card.sampling, steps=checked.steps))
    data = known_data(model, card)
    rule = listed_labels(one.words, labels, prompts, demo_labels(data))
    known = one.words.called(rule)
    names = [known[i] if i < len(known) else str(i) for i in rule.values]
    decoder = None if codec is None else one.codec(codec)
    return Subject(name or folder.name or str(folder), model, card, data, list(rule.values), names, rule, seed, decoder)


def demo_labels(data: LabelledImages | None) -> tuple[str, ...]:
    """The names of labels that are shown where none are given: a dozen that look unlike each other."""
    return next((names for names in (DEMO_LABELS, STYLED_LABELS) if data is not None and names[0] in data.label_names), ())


def require_known(subject: Subject) -> None:
    """Raises UserError for a model whose data do not come with the package."""
    if subject.data is None:
        size = " x ".join(str(side) for side in subject.model.samples.shape)
        raise UserError(
            f"the demo needs a model of the emoji, at 32 or 64 pixels, by the names in its card; {subject.name} has"
            f" {subject.model.null_class} classes and inputs of {size}: use elit report budgets"
        )


def listed_labels(words: Words, labels: str | None, prompts: Sequence[str] = (), otherwise: Sequence[str] = ()) -> LabelRule:
    """Labels given by name, number or range, or prompts, each once; of None those of the names `otherwise`, or some.

    Raises UserError for a label that is not there, naming close ones, for a rule in place of a list, and for too many.
    """
    rule = words.rule(labels, prompts)
    if labels is None and not prompts:
        some = [words.names.index(name) for name in otherwise] or spread(len(DEMO_LABELS), rule.classes)
        return replace(rule, kind="list", values=tuple(some), whole=())
    if rule.kind != "list":
        raise UserError(f"a report shows labels that are listed, not {labels}; give names or numbers, such as 0-9")
    chosen = tuple(dict.fromkeys(rule.values))
    if len(chosen) > MOST_LABELS:
        raise UserError(f"a report shows at most {MOST_LABELS} labels, not {len(chosen):,}; list fewer")
    return replace(rule, values=chosen)
