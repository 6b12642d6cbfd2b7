"""A model's measured results: quality and latency per budget, its dense twin beside it, what it copies; as card and table.

The table of docs/evaluation.md is `results_block` of the bundled model's card, and nothing else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from elit.card import Card, DenseTwin, Figures, Provenance, Quality, load_card
from elit.console import progress_bar
from elit.cost import count_flops, cpu_name
from elit.data.dataset import PreparedData
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.evaluation.exam import exam_of
from elit.evaluation.metrics import memorisation
from elit.evaluation.quality import FIRST, Drawn, Judge, drawn_once, kept_name, measure, measure_recipes, told_sampling
from elit.files import digest, write_whole
from elit.pictures import pairs
from elit.pixels import to_float
from elit.recipe import Recipe
from elit.reports.budgets import budget_rows, measure_latency
from elit.reports.drawing import Panel
from elit.reports.scores import FIGURES, figure_text, numbers, quality_panels
from elit.weights import fingerprint, load_model, model_in, read_tensors, save_tensors

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
COPY = 1 / 3  # a sample this much nearer to one real picture than to the next is called a copy (Yoon et al., 2023)
SHOWN = 48  # pairs of the picture
NAMES = {
    "frechet": "Fréchet distance",
    "frechet_squeezenet": "by SqueezeNet",
    "kernel": "KID x 1000",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "in the asked category",
}
assert NAMES.keys() == FIGURES.keys()


@dataclass(frozen=True)
class Scorecard:
    """quality: what the card holds. pairs: samples beside the training pictures they are nearest to."""

    quality: Quality
    pairs: Image.Image | None


def measure_results(
    model: ElasticModel,
    card: Card,
    budgets: Sequence[float],
    seeds: Sequence[int],
    work: Path,
    dense: Path | None = None,
    count: int | None = None,
    training: PreparedData | None = None,
) -> Scorecard:
    """Quality at every budget and seed, latency, the dense twin in the folder `dense`, and how much is copied of `training`.

    Without `dense`, the twin's figures that the card has are kept if they were measured alike. `work` is as in
    `evaluation.quality.measure`, `count` as in its `Judge`.
    """
    twin = None if dense is None else load_dense(dense)
    judge = Judge(count, exam_of(model, card))
    quality = measure(judge, model, budgets, seeds, card.recipe, work)
    before = None if card.quality is None else card.quality.get("dense")
    if dense is not None and twin is not None:
        quality["dense"] = measure_dense(judge, twin, card.recipe, seeds, work, dense)
    elif before is not None and measured_alike(before, quality):
        quality["dense"] = before
    quality["latency"] = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "budgets": latency_rows(model, budgets)}
    if training is None:
        return Scorecard(quality, None)
    full = replace(card.recipe, budget=max(budgets), seed=seeds[0])
    kept = work / kept_name(fingerprint(model), full, judge.count)
    drawn = drawn_once(judge, model, full, kept)
    quality["copies"], picture = copies(judge, drawn, training, features_once(judge, training, work))
    return Scorecard(quality, picture)


def load_dense(folder: Path) -> ElasticModel:
    """A dense model of the emoji. Raises UserError for another."""
    model = load_model(folder)
    if model.core is not None or exam_of(model, load_card(folder)) is None:
        raise UserError(f"{folder} holds no dense model of the emoji; train one with configs/emoji-styles-dense.yaml")
    return model


def measure_dense(
    judge: Judge, model: ElasticModel, recipe: Recipe, seeds: Sequence[int], work: Path, folder: Path
) -> DenseTwin:
    """The quality of a dense model sampled alike, and what it costs."""
    [score] = measure_recipes(judge, model, [recipe], seeds, work)
    figures = {**score, "gflops": count_flops(model) / 1e9, **measure_latency(model, [1.0])[0].told()}
    told: DenseTwin = {
        "samples": judge.count,
        "seeds": list(seeds),
        "sampling": told_sampling(recipe),
        "provenance": provenance(model, folder),
    }
    return cast(DenseTwin, {**figures, **told})


def measured_alike(dense: DenseTwin, quality: Quality) -> bool:
    """Whether a dense twin's figures and these are of as many samples, drawn alike."""
    ours = (quality["samples"], quality["seeds"], quality.get("sampling"))
    return (dense.get("samples"), dense.get("seeds"), dense.get("sampling")) == ours


def provenance(model: ElasticModel, folder: Path) -> Provenance:
    """Which weights these are and, of a dense checkpoint of `elit train`, what its training took."""
    out: Provenance = {"weights": fingerprint(model), "parameters": sum(p.numel() for p in model.parameters())}
    if (spent := training_of(folder)) is not None:
        steps, pictures = spent
        out |= {"steps": steps, "training_pflops": 3 * pictures * count_flops(model) / 1e15}
    return out


def training_of(folder: Path) -> tuple[int, int] | None:
    """The steps of a checkpoint and the pictures in their batches, those of the checkpoints that it began from included.

    A run may have begun from another run's folder. None for a folder that is no checkpoint, or began from one that is gone.
    """
    state, config = folder / "training.json", folder.parent.parent / "config.json"
    if not (state.is_file() and config.is_file()):
        return None
    steps = json.loads(state.read_text(encoding="utf8"))["step"]
    run = json.loads(config.read_text(encoding="utf8"))
    try:
        before = (0, 0) if run.get("init_from") is None else training_of(model_in(Path(run["init_from"])))
    except UserError:  # it is not there any more
        return None
    return None if before is None else (before[0] + steps, before[1] + steps * run["batch_size"])


def latency_rows(model: ElasticModel, budgets: Sequence[float]) -> list[dict[str, float]]:
    """Each budget with its milliseconds, median and quartiles."""
    return [{"budget": b, **row.told()} for b, row in zip(budgets, measure_latency(model, budgets), strict=True)]


def copies(judge: Judge, drawn: Drawn, training: PreparedData, features_ND: Tensor) -> tuple[Figures, Image.Image]:
    """The shares of samples, and of real pictures that were not trained on, that are nearly one training picture; and pairs.

    features_ND: of the training pictures.
    """
    told = memorisation(drawn.features[FIRST], features_ND)
    real = memorisation(judge.features[FIRST], features_ND).share(COPY)
    order = told.closest(SHOWN)
    near = torch.stack([training.image(int(row)) for row in told.index[order]])
    shown = pairs(to_float(drawn.images[order]), to_float(near), columns=8, scale=1)
    return {"bound": COPY, "share": told.share(COPY), "real": real}, shown


def features_once(judge: Judge, training: PreparedData, work: Path) -> Tensor:
    """(N, D) of all training pictures; kept in the work folder, and read where they are there."""
    file = work / f"training_{digest(repr(training.info).encode())}.safetensors"
    if file.is_file() and len(found := read_tensors(file)[FIRST]) == len(training):
        return found
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("features of the training pictures", total=len(training), unit="images")
        for first in range(0, len(training), 16):
            images = torch.stack([training.image(row) for row in range(first, min(first + 16, len(training)))])
            rows.append(judge.extract(images)[FIRST])
            bar.advance(task, len(images))
    features = torch.cat(rows)
    save_tensors({FIRST: features}, file)
    return features


def rows_of(model: ElasticModel, quality: Quality) -> list[Figures]:
    """A row for each measured budget, lowest first: cost, latency where it was measured, and figures."""
    budgets = sorted(row["budget"] for row in quality["budgets"])
    latency = {row["budget"]: row for row in quality["latency"]["budgets"]} if "latency" in quality else {}
    return [{**row.told(), **latency.get(row.budget, {})} for row in budget_rows(model, budgets, quality)]


def results_table(model: ElasticModel, quality: Quality) -> str:
    """Markdown: a row for each budget, the dense twin and the real pictures; columns that nobody measured are left out."""
    names = {
        "budget": "budget",
        "latents_per_group": "latents per window",
        "gflops": "GFLOPs",
        "latency_ms": "latency (ms)",
        **NAMES,
    }
    digits = {
        "latents_per_group": 0,
        "gflops": 2,
        "latency_ms": 1,
        **{name: places for name, (_, places) in FIGURES.items()},
    }
    rows = [(model.levels.name(model.levels.of(row["budget"])), row) for row in rows_of(model, quality)]
    if "dense" in quality:
        rows.append(("dense twin", numbers(quality["dense"])))
    rows.append(("real pictures", quality["real"]))
    names = {name: title for name, title in names.items() if name == "budget" or any(name in row for _, row in rows)}
    lines = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    for called, row in rows:
        cells = [called if name == "budget" else figure_text(row, name, digits[name]) for name in names]
        lines.append("| " + " | ".join("" if cell == "-" else cell for cell in cells) + " |")
    return "\n".join(lines)


def results_block(model: ElasticModel, card: Card) -> str:
    """How it was measured, what came of it, and the table of docs/evaluation.md. Raises UserError for an empty card."""
    quality = card.quality
    if quality is None:
        raise UserError("the model's card holds no measured quality; measure it with elit results")
    sampling = quality["sampling"]
    said = [
        f"{quality['samples']} samples a budget and seed, {sampling['steps']} steps, guidance"
        f" {sampling['guidance_scale']:g}; ± is the standard deviation over {len(quality['seeds'])} sampling seeds."
    ]
    if "rank_correlation" in quality:
        said.append(f"Rank correlation of budget and Fréchet distance: {quality['rank_correlation']:.2f}.")
    if "separation" in quality:
        said.append(f"The lowest budget is {quality['separation']:.0f} deviations from the full one.")
    if "latency" in quality:
        latency = quality["latency"]
        said.append(f"Latency: one forward at batch 1, {latency['threads']} threads, {latency['cpu']}.")
    if "dense" in quality:
        said.append(against_dense(rows_of(model, quality)[-1], quality["dense"]))
    if "copies" in quality:
        told = quality["copies"]
        said.append(
            f"Of the full budget's samples {told['share']:.1%} are less than {told['bound']:.2f} times as far from one"
            f" training picture as from the next; of real pictures that were not trained on {told['real']:.1%} are."
        )
    return "\n".join([*said, "", results_table(model, quality)])


def against_dense(full: Figures, dense: DenseTwin) -> str:
    """A sentence: the full budget's Fréchet distance beside the dense twin's, in deviations over the seeds."""
    difference = full["frechet"] - dense["frechet"]
    training = dense["provenance"].get("training_pflops")
    cost = f" (trained for {training:,.1f} PFLOPs)" if training else ""
    out = f"The full budget's Fréchet distance is {abs(difference):.1f} {'above' if difference > 0 else 'below'}"
    out += f" that of the dense twin{cost}"
    spread = (full.get("frechet_std", 0.0) ** 2 + dense.get("frechet_std", 0.0) ** 2) ** 0.5
    return f"{out}, {abs(difference) / spread:.1f} deviations of their difference." if spread else f"{out}."


def results_panels(model: ElasticModel, quality: Quality) -> list[Panel]:
    """Quality over the GFLOPs of a forward, with the deviation over seeds: the budgets, and the dense twin."""
    curves = {"elastic": rows_of(model, quality)}
    if "dense" in quality:
        curves["dense twin"] = [numbers(quality["dense"])]
    scored = {name: [(row["gflops"], row) for row in rows] for name, rows in curves.items()}
    return quality_panels(scored, "GFLOPs of one forward")


def write_block(file: Path, block: str) -> None:
    """Puts the block between the marks of a Markdown file. Raises UserError where they are not there, once each."""
    text = file.read_text(encoding="utf8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{file} has no one place for the table; put the lines {BEGIN} and {END} where it shall stand")
    before, rest = text.split(BEGIN)
    write_whole(file, f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}")
