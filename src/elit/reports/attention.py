"""What Read looks at: its attention over images beside the loss of every patch, and the maps of single latents."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from elit.console import progress_bar
from elit.elastic.grouping import group
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.flow import FlowPath
from elit.pictures import Row
from elit.reports.drawing import ImageSheet, heat, visible
from elit.reports.page import Table
from elit.reports.read_maps import DRAWS, ReadMaps, correlations, latent_map, mean_maps, read_maps, require_read
from elit.reports.report import Part, Picture, Report
from elit.reports.subject import Subject

PER_LABEL = 4  # images that the correlations are taken over; the first is shown


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of attention and loss at a time: mean and deviation over images, and the mean within windows."""

    t: str
    image: float
    windows: float
    image_std: float


def report_attention(subject: Subject, times: Sequence[float], path: FlowPath = FlowPath.LINEAR) -> Report:
    """Attention, loss and their rank correlation at every time, on real pictures or, where there are none, on samples.

    `path`: of the flow that the model was trained on. Raises UserError for times outside (0, 1), and for a model whose
    Read has nothing to choose (see `require_read`).
    """
    model, times = subject.model, sorted(set(times))
    require_read(model)
    for time in times:
        if not 0 < time < 1:
            raise UserError(f"time {time:g} is not between 0 and 1; write times such as 0.25,0.5,0.75, with 1 = noise")
    images, labels = images_of(subject)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(times) * DRAWS, unit="images", per_step=len(images))
        maps = [read_maps(model, images, labels, t, path, subject.seed, lambda: bar.advance(task)) for t in times]
    rows = correlation_rows(maps, model)
    shown = range(len(subject.labels))  # the first image of every label
    middle = maps[len(maps) // 2]
    parts: list[Part] = [
        subject.describe(),
        *subject.notes(),
        f"{len(images)} {'real pictures' if subject.data is not None else 'samples of the model'}, {PER_LABEL} for each"
        f" label, each with {DRAWS} draws of the noise. t = 1 is noise. Attention: the weights of Read's latents on a token,"
        " the mean of the heads and layers, summed over the latents. Loss: the flow-matching loss of the token's patch"
        + (f", the sum of its {model.stages} stages, all at that time." if model.stages > 1 else "."),
        correlation_table(rows),
        Picture(
            "attention.png",
            "An image of each label, with the attention over it and its loss at every time. Dark is low, bright is high,"
            " each map on its own scale.",
            attention_sheet(subject, images, maps, shown),
        ),
        Picture(
            "latents.png",
            f"What the first and last latents of each window attend to, at t = {middle.t:g}; each window shows its own.",
            latents_sheet(subject, images, middle, shown),
        ),
    ]
    results = {
        **subject.results(),
        "images": len(images),
        "of": "samples" if subject.data is None else "real pictures",
        "path": str(path),
        "rank_correlation": [asdict(row) for row in rows],
    }
    return Report("What Read looks at", parts, results)


def images_of(subject: Subject) -> tuple[Tensor, Tensor]:
    """PER_LABEL images of each label (B, C, H, W) and the labels (B,): first one of each, then the others."""
    labels = torch.tensor(subject.labels).repeat(PER_LABEL)
    if subject.data is not None:
        return subject.real_examples(PER_LABEL).flatten(0, 1), labels
    return subject.recipe.draw(subject.model, labels).cpu(), labels


def correlation_rows(maps: Sequence[ReadMaps], model: ElasticModel) -> list[Correlation]:
    """The correlation at each time and, last, of the means over the times, over whole images and within windows."""
    core, grid = require_read(model), model.config.grid
    pairs = [(str(m.t), m.token_attention, m.loss) for m in maps] + [("all", *mean_maps(maps))]
    rows = []
    for t, attention_BN, loss_BN in pairs:
        over = correlations(attention_BN, loss_BN)
        windows = (group(x[..., None], grid, core.window).flatten(0, 1)[..., 0] for x in (attention_BN, loss_BN))
        within = statistics.fmean(correlations(*windows))
        rows.append(Correlation(t, statistics.fmean(over), within, statistics.stdev(over)))
    return rows


def correlation_table(rows: Sequence[Correlation]) -> Table:
    """A line for each time, and one for all."""
    cells = [[row.t, f"{row.image:+.3f} ± {row.image_std:.3f}", f"{row.windows:+.3f}"] for row in rows]
    note = (
        "Spearman's rank correlation over the tokens of an image: mean and standard deviation over the images. Every window"
        " has the same latents and each hands out a weight of 1, so attention cannot rise in one window above another:"
        " beside it, the mean of the correlations within windows. all: of the maps averaged over the times."
    )
    return Table("Does Read attend to what is hard?", ("t", "over the image", "within windows"), cells, note)


def attention_sheet(subject: Subject, images: Tensor, maps: Sequence[ReadMaps], shown: Sequence[int]) -> ImageSheet:
    """Rows of an image, then its attention and loss at every time; the image beside those of each time in every piece."""
    columns, names = [], ["image"]
    for m in maps:
        columns += [picture_of(m.token_attention, subject.model), picture_of(m.loss, subject.model)]
        names += [f"attention\nt = {m.t:g}", f"loss\nt = {m.t:g}"]
    together = [[0, 2 * i + 1, 2 * i + 2] for i in range(len(maps))]
    return ImageSheet(rows_of(subject, images, columns, shown), names, together)


def latents_sheet(subject: Subject, images: Tensor, maps: ReadMaps, shown: Sequence[int]) -> ImageSheet:
    """Rows of an image and the maps of the first two and the last two latents."""
    latents = subject.model.latents
    chosen = sorted({0, 1, latents - 2, latents - 1})
    columns = [picture_of(latent_map(maps, j, subject.model), subject.model) for j in chosen]
    names = ["image", *(f"latent {j + 1}\nof {latents}" for j in chosen)]
    return ImageSheet(rows_of(subject, images, columns, shown), names, [range(len(names))])


def picture_of(map_BN: Tensor, model: ElasticModel) -> Tensor:
    """A map over the tokens as colours (B, 3, H, W), at the images' size."""
    grid = model.config.grid
    return heat(map_BN.unflatten(1, (grid.height, grid.width)), (model.samples.extent.height, model.samples.extent.width))


def rows_of(subject: Subject, images: Tensor, columns: Sequence[Tensor], shown: Sequence[int]) -> list[Row]:
    """A row for each label shown: its image, and its picture in every column."""
    pictures = visible(images)
    names = subject.label_names
    return [Row(names[i], torch.stack([pictures[i], *(column[i] for column in columns)])) for i in shown]
