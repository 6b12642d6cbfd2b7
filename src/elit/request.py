"""What is asked for in words, such as on a command line: a model by name, labels, a budget; and the samples made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from elit.cache_fit import cached, told
from elit.card import Card
from elit.console import say
from elit.distributed import from_main, is_main, local_device, process_group
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import check_writable, read_bytes, written_whole
from elit.front import wants_front, within
from elit.generation import check_count, fitting_tile, generate
from elit.guidance import Guidance
from elit.imprint import PICTURE_BYTES, png, read_imprint
from elit.media import Format, chosen_format
from elit.model_words import PromptWords
from elit.opened import Vocabulary, open_model
from elit.pictures import to_image
from elit.recipe import Recipe
from elit.sampling import sample
from elit.target import Budget, cost_in
from elit.weights import fingerprint

USUAL_COUNT = 16  # of images, where neither a number nor labels are given


@dataclass(frozen=True)
class Wishes:
    """How to sample, where it is said: None leaves a thing to the model's card. Fields are those of Recipe and Guidance."""

    sampler: str = "euler"
    steps: int | tuple[int, ...] | None = None
    scale: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    weak_budget: float | None = None
    weak_label: Literal["null", "same"] | int = "null"
    seed: int = 0
    tile: int | None = None
    thresholds: tuple[float, ...] | None = None
    stages: int | None = None
    cache: float | None = None
    shift: float | None = None

    def over(self, recipe: Recipe) -> Recipe:
        """A card's recipe with what is wished for in its place. Raises UserError for what is out of range."""
        scale = recipe.guidance.scale if self.scale is None else self.scale
        return replace(
            recipe,
            sampler=self.sampler,
            steps=recipe.steps if self.steps is None else self.steps,
            guidance=Guidance(scale, self.interval, self.weak_budget, self.weak_label),
            seed=self.seed,
            tile=recipe.tile if self.tile is None else self.tile,
            thresholds=recipe.thresholds if self.thresholds is None else self.thresholds,
            stages=self.stages,
            shift=recipe.shift if self.shift is None else self.shift,
        )


@dataclass(frozen=True)
class Request:
    """Samples of one model, to be made in a folder.

    model: as `find_model` finds it. labels: as `parse_labels` reads them, None for any; or prompts, of a model that is told
    texts, and what it is to know of them. budget: as `Budget.parse` does. count: None is one of each that is listed, or 16.
    codec: as `load_codec` finds it. batch, npz: as `generate` takes them. form: of the files, as `chosen_format` takes it.
    """

    out: Path
    wishes: Wishes
    model: str | None = None
    labels: str | None = None
    prompts: tuple[str, ...] = ()
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    budget: str = "1"
    count: int | None = None
    codec: str | None = None
    dtype: torch.dtype = torch.float32
    device: str = "auto"
    batch: int = 1
    npz: bool = False
    form: Format | None = None

    def make(self) -> tuple[str, Path]:
        """What is there now, such as "16 images", and its folder. Every process of a torchrun calls this.

        Raises UserError for what does not fit the model or cannot be read, and OSError for what cannot be written.
        """
        one = open_model(self.model, local_device(self.device), self.vocabulary)
        source, card, model = one.folder, one.card, one.model
        if self.wishes.cache is not None:
            one.check_cache()
        form = chosen_format(self.form, model.samples.of_clips)
        weights = fingerprint(model) if self.wishes.cache is not None or card.front is not None else ""
        model = model.to(self.dtype)
        labels = one.words.rule(self.labels, self.prompts)
        count = (len(labels.values) or USUAL_COUNT) if self.count is None else self.count
        check_count(count)
        recipe = self.wishes.over(card.recipe)
        if self.wishes.cache is not None:
            recipe = cached(recipe, self.wishes.cache, source, weights)
        recipe = recipe if self.wishes.tile is not None else replace(recipe, tile=min(recipe.tile, count))
        recipe = self.budgeted(recipe, card, model, source, weights)
        if recipe.cache is not None and is_main():
            say(told(recipe, source, model))
        codec = one.codec(self.codec)
        with process_group():
            if self.wishes.tile is None:
                recipe = from_main(lambda: fitting_tile(model, recipe, labels, codec, self.out, form))
            settings = (codec, self.batch, self.npz, one.words.called(labels), form)
            made = generate(model, recipe, labels, count, self.out, *settings)
        return f"{count} {'image' if form == 'png' else 'clip'}{'' if count == 1 else 's'}", made

    def budgeted(self, recipe: Recipe, card: Card, model: ElasticModel, source: Path, weights: str) -> Recipe:
        """The recipe at the budget that was asked for; of a cost, where the card has a front and neither steps nor a cache
        are given, with the steps and the cache that do best within it. Says what a cost came to.
        """
        wishes = self.wishes
        if card.front and wants_front(self.budget, card.front, wishes.steps, wishes.cache, recipe.guidance):
            chosen, point = within(self.budget, card.front, model, recipe, source, weights)
            quality = f"{card.front.measure} {point.distance:.1f} \u00b1 {point.spread:.1f} where it was measured"
            text = f"{self.budget} an image: {point.told()}; {chosen.gflops(model):.3g} GFLOPs, {quality}"
        else:
            chosen = replace(recipe, budget=Budget.parse(self.budget, model, recipe.tile))
            text = ""
            if isinstance(chosen.budget, float) and cost_in(self.budget) is not None:
                text = f"budget {self.budget}: {model.levels.of(chosen.budget)}/{model.latents} of the latents"
        if text and is_main():
            say(text)
        return chosen


@dataclass(frozen=True)
class Granted:
    """A level for every time that a sampler asks for, as an imprint tells them."""

    budgets: dict[float, float]

    def at(self, t: float) -> float:
        return self.budgets[t]


def repeat(
    picture: Path,
    out: Path,
    model: str | None,
    codec: str | None,
    device: str,
    vocabulary: Vocabulary = Vocabulary(),
) -> Path:
    """Draws a picture again as its imprint says, and writes it below `out` under its name: to the byte, on the same kind of
    device, where it shared no call with others.

    Raises UserError for a picture without an imprint, for another model or codec than drew it, and where another file of
    that name is there.
    """
    imprint = read_imprint(picture)
    one = open_model(model, local_device(device), vocabulary)
    network = one.model.to(getattr(torch, imprint.dtype))
    if fingerprint(network) != imprint.model:
        raise UserError(
            f"{picture} was drawn by the model {imprint.model}, and this is {fingerprint(network)}; give --model"
        )
    decoder = one.codec(codec)
    if decoder.name != imprint.codec:
        raise UserError(f"{picture} was decoded by {imprint.codec}, and this is {decoder.name}; give --codec")
    weak = imprint.guidance_budget
    guidance = Guidance(imprint.guidance_scale, imprint.guidance_interval, weak, imprint.weak_label)
    recipe = replace(
        one.card.recipe, sampler=imprint.sampler, steps=imprint.steps, guidance=guidance, seed=imprint.seed, tile=1
    )
    recipe = replace(recipe, shift=imprint.shift)
    budget = granted(recipe, network, imprint.levels)
    if not (imprint.prompts if isinstance(one.words, PromptWords) else imprint.labels):
        raise UserError(f"{picture} does not say what it is of; its settings were changed")
    labels = one.words.rule(None, imprint.prompts)
    drawn = labels.values if imprint.prompts else imprint.labels
    x = sample(
        *(network, labels.told(drawn), imprint.sampler, imprint.steps, budget, guidance, imprint.seed),
        path=recipe.path,
        shift=recipe.shift,
    )
    if imprint.index >= len(x):
        raise UserError(f"{picture} is to be image {imprint.index} of {len(x)}; its settings were changed")
    content = png(to_image(decoder.decode(x)[imprint.index].cpu()), imprint)
    file = out / picture.name
    if file.exists() and read_bytes(file, PICTURE_BYTES) != content:
        raise UserError(f"{file} is there and is another picture; give another --out")
    check_writable(out)
    with written_whole(file) as part:
        part.write_bytes(content)
    return file


def granted(recipe: Recipe, model: ElasticModel, levels: Sequence[int]) -> float | Granted:
    """The budget of a recipe at which these levels were granted, one for every time that the sampler asked for."""
    times = list(dict.fromkeys(recipe.asked(recipe.parts(model)[0][1])))
    if len(times) != len(levels) or max(levels) > model.latents:
        raise UserError(f"{len(levels)} levels were told for {len(times)} steps of this model; the settings were changed")
    budgets = [level / model.latents for level in levels]
    return budgets[0] if len(set(budgets)) == 1 else Granted(dict(zip(times, budgets, strict=True)))
