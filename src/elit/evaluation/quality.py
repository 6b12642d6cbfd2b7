"""The quality that a budget buys: an emoji model's samples against real pictures, budget by budget.

The real pictures (see `evaluation.exam`) are cut into two halves by a fixed draw. The reference half gives the Fréchet and
kernel distances their other side, and trains a linear probe of the categories. Samples carry the labels of the other half,
one for one, and the other half itself is the yardstick: what real pictures score. Features: EfficientNet-Lite0, 1280 wide;
and SqueezeNet, 512 wide, for a Fréchet distance by a second, unlike network.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from elit.card import Figures, SamplingFacts
from elit.card import Quality as CardQuality
from elit.console import progress_bar, say
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.exam import Exam, emoji_exam, extract
from elit.evaluation.extractors import load_extractor
from elit.evaluation.features import LinearProbe
from elit.evaluation.kept import keep, kept
from elit.evaluation.metrics import (
    frechet_distance,
    kernel_distance,
    mean_and_covariance,
    precision_recall,
    rank_correlation,
)
from elit.files import check_writable, digest
from elit.pixels import to_uint8
from elit.precision import fast_bfloat16
from elit.recipe import Recipe
from elit.records import Share, record
from elit.sampling import image_noise
from elit.seeding import generator_for
from elit.weights import fingerprint, read_tensors, save_tensors

FIRST, SECOND = NETWORKS = ("efficientnet-lite0", "squeezenet")
NEIGHBOURS = 3  # precision's and recall's k
BATCH = 13  # 949 samples are 73 whole batches, whose activations stay in the caches


Features = dict[str, Tensor]  # (N, D) of N images, by network


@record
class Quality:
    """Of one set of images: Fréchet distances, KID times 1000, precision, recall, share in the asked category."""

    frechet: float
    frechet_squeezenet: float
    kernel: float
    precision: Share
    recall: Share
    accuracy: Share


@record
class KeptQuality(Quality):
    """The quality as a work folder keeps it, with the recipe in words: the file's name is a hash, so it says of what."""

    setting: str = ""

    @property
    def figures(self) -> Quality:
        return Quality(**{field.name: getattr(self, field.name) for field in fields(Quality)})


@dataclass(frozen=True)
class Drawn:
    """What was drawn by one recipe: images (N, 3, H, W) uint8, and their features, (N, D) float32 by network."""

    images: Tensor
    features: Features


class Basis(TypedDict):
    """What figures stand on, and the yardstick: what the other half of the real pictures scores."""

    features: str
    dtype: str
    samples: int
    neighbours: int
    real: Figures


class MeasuredOn(Basis):
    """What the figures of several recipes stand on."""

    seeds: list[int]


class Verdict(TypedDict, total=False):
    """See `verdict`."""

    rank_correlation: float
    separation: float


class Judge:
    """Scores sets of images against the reference half of an exam's real pictures, or against `count` of it.

    The exam is that of the embedded emoji if none is given.
    """

    def __init__(self, count: int | None = None, exam: Exam | None = None) -> None:
        self.exam = exam or emoji_exam()
        order = torch.randperm(len(self.exam), generator=generator_for("halves"))
        half = min(len(order) // 2, count or len(order))
        self.reference, self.other = order[:half].sort().values, order[half : 2 * half].sort().values
        self.labels = self.exam.labels[self.other]
        self.networks = {name: load_extractor(name) for name in NETWORKS}
        self.features = self.real(self.reference)
        self.statistics = {name: mean_and_covariance(rows) for name, rows in self.features.items()}
        self.probe = LinearProbe(self.features[FIRST], self.exam.categories[self.reference])

    @property
    def count(self) -> int:
        """Images in each set."""
        return len(self.other)

    def real(self, rows: Tensor) -> Features:
        """Of some of the exam's pictures."""
        return {name: self.exam.features(network, rows) for name, network in self.networks.items()}

    def extract(self, images: Tensor) -> Features:
        """Of images in [-1, 1], rounded to 8 bits as a file would hold them, or uint8."""
        pixels = images if images.dtype == torch.uint8 else to_uint8(images)
        return {name: extract(network, pixels) for name, network in self.networks.items()}

    def score(self, images: Tensor) -> Quality:
        """Of images that stand for the other half, one for one."""
        return self.score_features(self.extract(images))

    def score_features(self, features: Features) -> Quality:
        """Of images with these features."""
        frechet = {name: frechet_distance(*self.statistics[name], *mean_and_covariance(features[name])) for name in NETWORKS}
        precision, recall = precision_recall(self.features[FIRST], features[FIRST], NEIGHBOURS)
        return Quality(
            frechet=frechet[FIRST],
            frechet_squeezenet=frechet[SECOND],
            kernel=1000 * kernel_distance(features[FIRST], self.features[FIRST]),
            precision=precision,
            recall=recall,
            accuracy=self.probe.accuracy(features[FIRST], self.exam.categories[self.other]),
        )

    def yardstick(self) -> Quality:
        """The score of the other half of the real images."""
        return self.score_features(self.real(self.other))

    def draw(self, model: ElasticModel, recipe: Recipe, done: Callable[[int], None] | None = None) -> Tensor:
        """Samples with the other half's labels, in batches of its own; image i's noise comes from (seed, i).

        Matrix products are in bfloat16 where the device multiplies it fast.
        """
        parts = []
        device = next(model.parameters()).device
        for first in range(0, self.count, BATCH):
            some = self.labels[first : first + BATCH]
            noise = image_noise(recipe.seed, (len(some), *model.input.shape), first=first)
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
                parts.append(recipe.draw(model, some, noise=noise).cpu())
            if done is not None:
                done(len(some))
        return torch.cat(parts)

    def describe(self) -> Basis:
        """What the figures stand on, and the score of the other half of the real images, the yardstick."""
        fast = fast_bfloat16(torch.device("cpu"))
        features = "EfficientNet-Lite0, 1280 wide; SqueezeNet, 512 wide"
        dtype = f"{'bfloat16' if fast else 'float32'} products"
        real = asdict(self.yardstick())
        return {"features": features, "dtype": dtype, "samples": self.count, "neighbours": NEIGHBOURS, "real": real}


def measure(
    judge: Judge,
    model: ElasticModel,
    budgets: Sequence[float],
    seeds: Sequence[int],
    recipe: Recipe,
    work: Path | None = None,
) -> CardQuality:
    """The quality at each budget and seed, as the card holds it.

    `work`: a folder that keeps every finished (budget, seed), so that an interrupted measurement goes on.
    """
    recipes = [replace(recipe, budget=budget) for budget in budgets]
    scores = measure_recipes(judge, model, recipes, seeds, work)
    rows = [{"budget": budget, **score} for budget, score in zip(budgets, scores, strict=True)]
    known = {"seeds": list(seeds), "sampling": told_sampling(recipe), "budgets": rows}
    return cast(CardQuality, {**judge.describe(), **known, **verdict(rows)})


def told_sampling(recipe: Recipe) -> SamplingFacts:
    """Steps and guidance scale, as the card holds them."""
    told: SamplingFacts = {"steps": recipe.steps, "guidance_scale": recipe.guidance.scale}
    if recipe.thresholds is not None:
        told["thresholds"] = recipe.thresholds
    if recipe.shift != 1:
        told["shift"] = recipe.shift
    return told


def measure_recipes(
    judge: Judge, model: ElasticModel, recipes: Sequence[Recipe], seeds: Sequence[int], work: Path | None = None
) -> list[Figures]:
    """The `summary` over the seeds of each recipe's quality, whatever its own seed; equal recipes are measured once.

    `work`: a folder that keeps every finished (recipe, seed), so that an interrupted measurement goes on: its figures, and
    the images and features that they are of, so that a new figure needs no new samples.
    """
    if work is not None:
        check_writable(work)
    weights, different = fingerprint(model), dict.fromkeys(recipes)
    found = {}
    with progress_bar() as bar:
        task = bar.add_task("measuring quality", total=len(different) * len(seeds) * judge.count, unit="images")
        for recipe in different:
            scores = []
            for seed in seeds:
                one = replace(recipe, seed=seed)
                file = None if work is None else work / kept_name(weights, one, judge.count)
                scores.append(_one(judge, model, one, file, lambda n: bar.advance(task, n)))
            found[recipe] = summary(scores)
    return [found[recipe] for recipe in recipes]


def measured(
    judge: Judge, model: ElasticModel, recipes: Sequence[Recipe], seeds: Sequence[int], work: Path
) -> tuple[list[Figures], MeasuredOn]:
    """The quality of each recipe, as `measure_recipes` gives it, and what it stands on (see `Judge.describe`)."""
    scores = measure_recipes(judge, model, recipes, seeds, work)
    return scores, {**judge.describe(), "seeds": list(seeds)}


def _one(judge: Judge, model: ElasticModel, recipe: Recipe, file: Path | None, done: Callable[[int], None]) -> Quality:
    if file is not None and (found := kept(file, KeptQuality)) is not None:
        done(judge.count)
        return found.figures
    quality = judge.score_features(drawn_once(judge, model, recipe, file, done).features)
    if file is not None:
        keep(KeptQuality(**asdict(quality), setting=repr(recipe)), file)
    return quality


def drawn_once(
    judge: Judge,
    model: ElasticModel,
    recipe: Recipe,
    figures: Path | None,
    done: Callable[[int], None] = lambda count: None,
) -> Drawn:
    """The judge's samples of a recipe and their features; kept beside the file `figures`, and read where they are there."""
    file = None if figures is None else figures.with_suffix(".safetensors")
    kept_before = {} if file is None else _drawn_before(file, judge.count)
    if kept_before.keys() == {"images", *judge.networks}:
        done(judge.count)
        return Drawn(kept_before.pop("images"), kept_before)
    images = kept_before.get("images")
    if images is None:
        images = to_uint8(judge.draw(model, recipe, done))
    drawn = Drawn(images, judge.extract(images))
    if file is not None:
        save_tensors({"images": images.contiguous(), **drawn.features}, file)
    return drawn


def _drawn_before(file: Path, count: int) -> Features:
    """What a work folder keeps of samples; nothing where it is not there, or is damaged, which is said."""
    if not file.is_file():
        return {}
    try:
        tensors = read_tensors(file)
        if "images" in tensors and all(len(tensor) == count for tensor in tensors.values()):
            return tensors
        why = "it holds no images with their features"
    except UserError as error:
        why = str(error)
    say(f"{file} is not used ({why}): sampled anew")
    return {}


def kept_name(weights: str, recipe: Recipe, count: int) -> str:
    """The file of one figure in a work folder; `weights` is the model's fingerprint. Euler's are named as they ever were."""
    text = f"Setting(steps={recipe.steps}, guidance={recipe.guidance!r}, budget={recipe.budget!r})"
    if recipe.sampler != "euler":
        text += f" {recipe.sampler} {recipe.path}"
    if recipe.thresholds is not None:
        text += f" {recipe.thresholds}"
    if recipe.shift != 1:
        text += f" shift={recipe.shift!r}"
    if recipe.cache is not None:
        text += f" {recipe.cache!r}"
    return f"{weights}_{digest(text.encode())}_n{count}_seed{recipe.seed}.json"


def summary(scores: Sequence[Quality]) -> Figures:
    """Mean and, of more than one seed, standard deviation of each figure."""
    out = {}
    for name in (field.name for field in fields(Quality)):
        values = [getattr(score, name) for score in scores]
        out[name] = statistics.fmean(values)
        if len(values) > 1:
            out[f"{name}_std"] = statistics.stdev(values)
    return out


def verdict(rows: Sequence[Figures]) -> Verdict:
    """Whether a larger budget buys quality.

    rank_correlation: Spearman's, of budget with minus the mean Fréchet distance. separation: how far the lowest budget's
    Fréchet distance is above the full one's, in standard deviations of their difference over the seeds.
    """
    if len(rows) < 2:
        return {}
    ordered = sorted(rows, key=lambda row: row["budget"])
    frechet = torch.tensor([row["frechet"] for row in ordered])
    low, full = ordered[0], ordered[-1]
    out: Verdict = {"rank_correlation": rank_correlation(torch.tensor([row["budget"] for row in ordered]), -frechet)}
    spread = (low.get("frechet_std", 0.0) ** 2 + full.get("frechet_std", 0.0) ** 2) ** 0.5
    if spread > 0:
        out["separation"] = (low["frechet"] - full["frechet"]) / spread
    return out
