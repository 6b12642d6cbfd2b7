"""How good a run's samples are while it trains: Fréchet distances of the averaged weights at some budgets."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elit.codec import Codec
from elit.data.loader import Data, sample_generators
from elit.distributed import anywhere, from_main, is_main, together
from elit.errors import UserError
from elit.evaluation.evaluate import Reference, open_reference
from elit.evaluation.extractors import Extractor, load_extractor
from elit.evaluation.measure import measure_features
from elit.evaluation.metrics import frechet_distance
from elit.evaluation.sources import Sampled
from elit.evaluation.statistics import Statistics, load_statistics, save_statistics
from elit.labels import LabelRule
from elit.pixels import to_uint8
from elit.recipe import Recipe
from elit.training.config import EvaluateConfig
from elit.training.samples import Sampler
from elit.training.step import TrainState
from elit.words import spread

BATCH, STEPS, LARGEST_REFERENCE = 16, 20, 50_000


class Evaluator:
    """Measures the averaged weights of a run. Made before its first step, so that what cannot be measured is said then.

    folder: where the reference's statistics are kept. Every process of a group makes one, and they share the work. Raises
    UserError for features or a reference that cannot be had.
    """

    def __init__(
        self, wanted: EvaluateConfig, sampler: Sampler, num_classes: int, images: "RunImages", folder: Path
    ) -> None:
        self.wanted, self.sampler, self.images, self.folder = wanted, sampler, images, folder
        self.labels = LabelRule("list", num_classes, sampler.classes)
        with torch.random.fork_rng(devices=[]):  # networks are drawn before their weights are loaded
            self.extractor = together(lambda: load_extractor(wanted.features, sampler.products.device))
        if wanted.reference != "data":
            together(lambda: open_reference(wanted.reference, self.extractor, images.size))
        self.reference: Statistics | None = None

    def distances(self, state: TrainState) -> dict[str, float]:
        """The Fréchet distance at each of the wanted budgets, by a name such as "FID at 0.25".

        The same `count` images each time: 20 Euler steps without guidance, the noise of the run's seed, and in turn every
        class that the data have. A model without latents is measured at 1 alone. Changes no random state. Every process of
        a group calls this.
        """
        if self.reference is None:
            self.reference = reference_statistics(self.wanted.reference, self.images, self.extractor, self.folder)
        sampler, found = self.sampler, {}
        model = sampler.model(state, everywhere=True)
        assert model is not None
        with sampler.products.autocast():
            for budget in sampler.budgets(self.wanted.budgets):
                recipe = Recipe(
                    *("euler", STEPS, budget),
                    seed=self.images.seed,
                    path=sampler.path,
                    thresholds=sampler.sampling.thresholds,
                    shift=sampler.sampling.shift,
                )
                source = Sampled(f"samples at {budget:g}", model, recipe, self.labels, sampler.codec, self.wanted.count)
                a = measure_features(source, self.extractor, BATCH, self.folder).statistics.pooled
                b = self.reference.pooled
                distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
                found[f"{self.extractor.distance} at {budget:g}"] = distance
        return found


def reference_statistics(name: str, images: "RunImages", extractor: Extractor, folder: Path) -> Statistics:
    """Those of a reference: read from a file, or made once and kept in the run's folder. `name`: as `evaluate.reference`."""
    key = hashlib.sha256(f"{name} {extractor.fingerprint}".encode()).hexdigest()[:12]
    kept = folder / f"reference-{key}.npz"
    if anywhere([is_main() and kept.is_file()])[0]:
        return together(lambda: load_statistics(kept, extractor))
    if name == "data":
        reference = Reference(name, extractor, None, images)
    else:
        reference = together(lambda: open_reference(name, extractor, images.size))
    if reference.statistics is not None:
        return reference.statistics
    assert reference.images is not None
    text = f"{extractor.name} of the reference"
    statistics = measure_features(reference.images, extractor, BATCH, kept, text=text).statistics
    from_main(lambda: save_statistics(statistics, kept))
    return statistics


def check_measurable(reference: str, data: Data, codec: Codec | None) -> Codec:
    """What decodes a run's samples. Raises UserError for latents without a codec, and for data that are no reference."""
    if len(data.shape) > 3:
        raise UserError("evaluate.every measures pictures, and the data are clips; set it to 0")
    if codec is None:
        raise UserError("evaluate.every measures pictures, and the data are latents: give data.codec, which decodes them")
    if reference == "data" and (not data.exact or len(data.members) > 1):
        raise UserError(
            "a stream, or pictures of several sizes, is no reference of evaluate.every; set evaluate.reference to a file"
            " of elit evaluate stats"
        )
    return codec


@dataclass
class RunImages:
    """The images that a run trains on, latents decoded; at most 50,000 of them, spread evenly."""

    name: str
    data: Data
    seed: int
    codec: Codec
    grain = 1
    in_memory = True

    def __post_init__(self) -> None:
        self.rows = torch.tensor(spread(LARGEST_REFERENCE, len(self.data)))
        self.count = len(self.rows)
        height, width = self.codec.decode(torch.zeros(1, *self.data.shape)).shape[2:]
        self.size = (height, width)

    def read(self, first: int, last: int) -> Tensor:
        x, _ = self.data.read(self.rows[first:last], sample_generators("reference", self.seed, 0, first, last))
        return to_uint8(self.codec.decode(x)).cpu()

    def label(self, index: int) -> str:
        return f"image {int(self.rows[index])} of {self.name}"

    def leave_out_broken(self) -> bool:
        return False

    def notes(self) -> list[str]:
        return []
