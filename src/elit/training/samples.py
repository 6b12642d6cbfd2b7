"""Samples of a run's averaged weights on its way: what they are drawn by, and the sheets that show them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from elit.card import SamplingDefaults
from elit.codec import Codec
from elit.distributed import is_main
from elit.elastic.model import ElasticModel
from elit.flow import FlowPath
from elit.media import save_clip
from elit.pictures import moving_sheet, save_png, sheet
from elit.sampling import sample
from elit.training.step import Products, TrainState, averaged_weights, model_of
from elit.words import spread

SHOWN = 12  # classes, in a sheet
STEPS = 20


@dataclass(frozen=True)
class Sampler:
    """How the averaged weights of a run are sampled.

    sampling: how the model's card says that it is. classes: those that the data have. elastic: whether the model has
    budgets; one without is sampled at 1 alone.
    """

    path: FlowPath
    sampling: SamplingDefaults
    codec: Codec
    classes: tuple[int, ...]
    elastic: bool
    products: Products

    def budgets(self, wanted: tuple[float, ...]) -> tuple[float, ...]:
        """Those of the wanted that the model has."""
        return wanted if self.elastic else (1.0,)

    def model(self, state: TrainState, everywhere: bool) -> ElasticModel | None:
        """A model of the averaged weights, in every process or in the first alone. All ranks call this."""
        wanted = everywhere or is_main()
        weights = averaged_weights(state, wanted)
        return model_of(state, weights, self.products.device) if wanted else None


@torch.no_grad()
def save_preview(
    sampler: Sampler, budgets: tuple[float, ...], names: tuple[str, ...], state: TrainState, file: Path
) -> None:
    """A sheet of samples: a row per budget, the same noise and labels down a column. All ranks call this.

    It is `file`.png, or of a model of clips `file`.gif.

    A model of several stages has a row for each of them at every budget: the image that so many stages make.

    names: of the classes, as far as they are known; the others are shown by number.
    """
    model = sampler.model(state, everywhere=False)
    if model is None:
        return
    labels = [sampler.classes[i] for i in spread(SHOWN, len(sampler.classes))]
    budgets = sampler.budgets(budgets)
    with sampler.products.autocast():
        thresholds = sampler.sampling.thresholds
        rows = {
            f"budget {budget:g}{_stage_name(stages, model.stages)}": sample(
                *(model, labels, "euler", STEPS, budget),
                path=sampler.path,
                thresholds=thresholds,
                stages=None if model.stages == 1 else stages,
                shift=sampler.sampling.shift,
            )
            for budget in budgets
            for stages in range(1, model.stages + 1)
        }
    images = torch.cat([sampler.codec.decode(row).cpu() for row in rows.values()])
    file.parent.mkdir(exist_ok=True)
    columns = [names[i] if i < len(names) else str(i) for i in labels]
    if model.samples.of_clips:
        save_clip(moving_sheet(images, columns, list(rows)), file.with_suffix(".gif"))
    else:
        save_png(sheet(images, columns, list(rows)), file.with_suffix(".png"))


def _stage_name(stages: int, of: int) -> str:
    return "" if of == 1 else f", stage {stages} of {of}"
