"""How good a run's samples are while it trains: Fréchet distances of the averaged weights at some budgets."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elit.codec import Codec
from elit.data.images import to_uint8
from elit.data.loader import Data, sample_generators
from elit.distributed import is_main
from elit.evaluation.evaluate import Reference, open_reference
from elit.evaluation.extractors import Extractor, load_extractor
from elit.evaluation.measure import measure_features
from elit.evaluation.metrics import frechet_distance
from elit.evaluation.sources import Sampled
from elit.evaluation.statistics import Statistics, load_statistics, save_statistics
from elit.generation import Recipe
from elit.labels import LabelRule
from elit.pictures import spread
from elit.training.config import TrainConfig
from elit.training.step import TrainState, autocast, averaged_model

BATCH, STEPS, LARGEST_REFERENCE = 16, 20, 50_000


def evaluate_ema(
    config: TrainConfig, state: TrainState, data: Data, device: torch.device, codec: Codec | None
) -> dict[str, float]:
    """The Fréchet distance at each of `config.evaluate.budgets`, by a name such as "FID at 0.25".

    The same `count` images each time: 20 Euler steps without guidance, balanced labels, the noise of the run's seed. A
    model without latents is measured at 1 alone. The reference's statistics are kept in the run's folder. Changes no random
    state. Every process of a group calls this, and they share the work. Raises ValueError for latents without a codec, and
    for a reference that does not fit.
    """
    wanted = config.evaluate
    if codec is None:
        raise ValueError("evaluate.every measures pictures, and the data are latents: give data.codec, which decodes them")
    with torch.random.fork_rng(devices=[]):  # networks are drawn before their weights are loaded
        extractor = load_extractor(wanted.features, device)
    reference = reference_statistics(config, data, extractor, codec)
    budgets = wanted.budgets if config.model.window is not None else (1.0,)
    labels = LabelRule("balanced", config.model.num_classes)
    model, found = averaged_model(state, device), {}
    with autocast(config, device):
        for budget in budgets:
            recipe = Recipe(labels, "euler", STEPS, budget, seed=config.seed, path=config.flow.path)
            source = Sampled(f"samples at {budget:g}", model, recipe, codec, wanted.count)
            a, b = measure_features(source, extractor, BATCH, Path(config.out)).statistics.pooled, reference.pooled
            found[f"{extractor.distance} at {budget:g}"] = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    return found


def reference_statistics(config: TrainConfig, data: Data, extractor: Extractor, codec: Codec) -> Statistics:
    """Those of `config.evaluate.reference`: read from a file, or made once and kept in the run's folder."""
    kept = Path(config.out) / "reference.npz"
    if kept.is_file():
        return load_statistics(kept, extractor)
    name, images = config.evaluate.reference, RunImages(config.data.source, data, config.seed, codec)
    reference = Reference(name, None, images) if name == "data" else open_reference(name, extractor, images.size)
    if reference.statistics is not None:
        return reference.statistics
    assert reference.images is not None
    statistics = measure_features(reference.images, extractor, BATCH, kept).statistics
    if is_main():
        save_statistics(statistics, kept)
    return statistics


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

    def notes(self) -> list[str]:
        return []
