"""The worth of sets of images beside a reference, by any of the measures, in one go; the same under torchrun.

| measure | what it gives |
|---|---|
| fd | the Fréchet distance of the features: FID of Inception, with sFID where the reference has it; FDD of DINOv2 |
| kid | KID x 1000 of all rows, with its 95 % interval |
| is | the inception score over 10 splits; of features with logits |
| pr | improved precision and recall, k = 3 |
| dc | density and coverage, k = 5 |
| memorisation | the share of samples that are copies of a reference image, and the median distance to the nearest |
"""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from elit.console import say
from elit.distributed import anywhere, barrier, is_main, together
from elit.errors import UserError
from elit.evaluation.arrays import array_names
from elit.evaluation.extractors import Extractor
from elit.evaluation.intervals import bootstrap, check_rounds
from elit.evaluation.measure import Measured, Rows, measure_features
from elit.evaluation.metrics import (
    density_coverage_rows,
    frechet_distance,
    frechet_distance_interval,
    inception_score,
    kernel_distance_interval,
    memorisation,
    precision_recall_rows,
)
from elit.evaluation.sources import Sampled, Source, open_images
from elit.evaluation.statistics import OtherFeaturesError, Statistics, load_statistics
from elit.files import write_whole
from elit.generation import settings_of

MEASURES = ("fd", "kid", "is", "pr", "dc", "memorisation")
OF_ROWS = ("kid", "pr", "dc", "memorisation")  # these compare images one by one, and need those of the reference


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: statistics from a file, images, or both (ADM's reference batches)."""

    name: str
    statistics: Statistics | None
    images: Source | None

    @property
    def count(self) -> int | None:
        """Of its images, where known."""
        if self.statistics is not None:
            return self.statistics.provenance.count
        return None if self.images is None else self.images.count


@dataclass(frozen=True)
class Candidate:
    """A set to measure. about: what it is, such as {"budget": 0.25, "seed": 0}, as results name it."""

    source: Source
    about: dict[str, Any] = field(default_factory=dict)


def open_reference(name: str, extractor: Extractor, size: tuple[int, int], square: int | None = None) -> Reference:
    """ "emoji", a folder, an .npz of images or statistics, or a .pkl of EDM2. size: (height, width) of the samples.

    Raises UserError for one that cannot be read, of other features, or of images of another size.
    """
    file = Path(name)
    statistics = images = None
    held = array_names(file) if file.suffix == ".npz" else []
    if file.suffix == ".pkl" or "mu" in held:
        try:
            statistics = load_statistics(file, extractor)
        except OtherFeaturesError:
            if "arr_0" not in held:  # as ADM's reference batches have it, whose images have any features
                raise
    if statistics is None or "arr_0" in held:
        images = open_images(name, square, like=size)
    known = images.size if images is not None else statistics and statistics.provenance.size
    if known and known != size:
        raise UserError(
            f"the samples are {size[1]} x {size[0]} and those of {name} {known[1]} x {known[0]}: distances between sizes"
            " mean nothing; give a reference of the samples' size, such as with --size"
        )
    return Reference(name, statistics, images)


def check_measures(measures: Sequence[str], reference: Reference, extractor: Extractor) -> None:
    """Raises UserError for a measure that is unknown, or that the reference or the features do not allow."""
    if not measures:
        raise UserError(f"no metric was asked for; give --metrics with some of {', '.join(MEASURES)}")
    for measure in measures:
        if measure not in MEASURES:
            raise UserError(f"there is no metric {measure!r}; known: {', '.join(MEASURES)}")
        if measure == "is" and not extractor.logits_width:
            raise UserError(f"the inception score needs logits, which {extractor.name} has not; give --features inception")
        if measure in OF_ROWS and reference.images is None:
            raise UserError(
                f"{measure} compares single images, and {reference.name} holds statistics alone; give the images as the"
                " --reference, or leave it out of --metrics"
            )


def evaluate(
    candidates: Sequence[Candidate],
    reference: Reference,
    extractor: Extractor,
    measures: Sequence[str],
    out: Path,
    batch: int = 16,
    rounds: int = 0,
) -> list[dict[str, Any]]:
    """A row of results for each candidate, in the main process; none in the others of a torchrun.

    rounds: of a bootstrap, for 95 % intervals (see `compute`); 0 for none. Rows of models, which take long, are kept in
    `out`/kept, so that the same call goes on after an interruption. Raises UserError as `open_reference`, `check_measures`
    and `measure_features` do.
    """
    check_measures(measures, reference, extractor)
    if rounds:
        check_rounds(rounds)
    rows_needed = any(measure in OF_ROWS for measure in measures)
    results = []
    with _reference(reference, extractor, batch, out, rows_needed) as against:
        statistics = against.statistics if reference.statistics is None else reference.statistics
        for note in [] if reference.images is None else reference.images.notes():
            _say(f"{reference.name}: {note}")
        for candidate in candidates:
            key = _key(candidate, statistics, extractor, measures, batch, rounds)
            kept = out / "kept" / f"{key}.json"
            if anywhere([is_main() and isinstance(candidate.source, Sampled) and kept.is_file()])[0]:
                row = json.loads(kept.read_text(encoding="utf8"))
                _say(f"{_named(candidate)}: taken from {kept}, measured before")
            else:
                row = _row(candidate, against, statistics, extractor, measures, out / f".{key}", batch, rounds)
                if is_main() and isinstance(candidate.source, Sampled):
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(kept, json.dumps(row, indent=2) + "\n")
            results.append(row)
        barrier()
    return results if is_main() else []


def _reference(reference: Reference, extractor: Extractor, batch: int, out: Path, rows: bool) -> Measured:
    """The reference's features; nothing is computed where statistics from a file are enough."""
    if reference.statistics is not None and not rows:
        return Measured(reference.statistics)
    assert reference.images is not None
    text = f"{extractor.name} of {reference.name}"
    key = hashlib.sha256(f"{reference.name} {extractor.fingerprint}".encode()).hexdigest()[:12]
    return measure_features(reference.images, extractor, batch, out / f".reference-{key}", rows, text=text)


def _row(
    candidate: Candidate,
    against: Measured,
    statistics: Statistics,
    extractor: Extractor,
    measures: Sequence[str],
    work: Path,
    batch: int,
    rounds: int,
) -> dict[str, Any]:
    """One row of results; the measures themselves are computed in the main process alone."""
    source = candidate.source
    rows, logits = against.pooled is not None or ("fd" in measures and rounds > 0), "is" in measures
    with measure_features(source, extractor, batch, work, rows, logits, f"{extractor.name} of {_named(candidate)}") as found:
        values = together(lambda: compute(found, against, statistics, extractor, measures, rounds) if is_main() else {})
    notes = [*source.notes(), *few_samples(source.count, statistics, measures)]
    for note in notes:
        _say(f"{_named(candidate)}: {note}")
    return {
        "samples": source.name,
        **candidate.about,
        "count": source.count,
        "features": extractor.name,
        "fingerprint": extractor.fingerprint,
        "resize": extractor.resize,
        "dtype": str(extractor.dtype).removeprefix("torch."),
        "reference": str(statistics.provenance),
        "reference_hash": statistics.hash,
        "metrics": values,
        "notes": notes,
    }


def compute(
    found: Measured,
    against: Measured,
    statistics: Statistics,
    extractor: Extractor,
    measures: Sequence[str],
    rounds: int = 0,
) -> dict[str, float]:
    """The measures of one set by name. statistics: of the reference; `against` holds its rows where they are needed.

    rounds: of a bootstrap, which adds "NAME low" and "NAME high", 95 % intervals. Resampled are the rows that a figure is
    a mean over: the samples, and for recall and coverage the reference; the balls stay. For the Fréchet distance of pooled
    features the interval is `bootstrap_deviation`'s, the reference being fixed.
    """
    values: dict[str, float] = {}
    ours, theirs = found.statistics, statistics
    samples = None if found.pooled is None else _tensor(found.pooled)
    if "fd" in measures:
        pairs = [(extractor.distance, ours.pooled, theirs.pooled), ("sFID", ours.spatial, theirs.spatial)]
        for name, a, b in pairs:
            if a is not None and b is not None:
                values[name] = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
        if rounds:
            assert samples is not None
            around = frechet_distance_interval(samples, theirs.pooled.mean, theirs.pooled.covariance, rounds)
            values |= {f"{extractor.distance} low": around.low, f"{extractor.distance} high": around.high}
    if samples is not None and against.pooled is not None:
        references = _tensor(against.pooled)
        if "kid" in measures:
            kid = kernel_distance_interval(samples, references)
            values |= {f"KID x 1000{end}": 1000 * v for end, v in zip(("", " low", " high"), kid, strict=True)}
        means: dict[str, torch.Tensor] = {}
        if "pr" in measures:
            means |= zip(("precision", "recall"), precision_recall_rows(references, samples), strict=True)
        if "dc" in measures:
            means |= zip(("density", "coverage"), density_coverage_rows(references, samples), strict=True)
        memory = memorisation(samples, references) if "memorisation" in measures else None
        if memory is not None:
            means["copies"] = memory.copied().double()
        for name, rows in means.items():
            values[name] = float(rows.mean())
            if rounds:
                resampled = bootstrap(lambda rows: float(rows.mean()), rows, rounds=rounds)
                values |= {f"{name} low": resampled.low, f"{name} high": resampled.high}
        if memory is not None:
            values["median distance"] = float(memory.distance.median())
    if "is" in measures and found.logits is not None:
        values["IS"], values["IS deviation"] = inception_score(_tensor(found.logits))
    return values


def _tensor(rows: Rows) -> torch.Tensor:
    return torch.from_numpy(rows.array)


def few_samples(count: int, statistics: Statistics, measures: Sequence[str]) -> list[str]:
    """A warning where there are fewer images than dimensions, on either side."""
    if "fd" not in measures:
        return []
    width, theirs = statistics.pooled.width, statistics.provenance.count
    counts = ((count, "samples"), (theirs, "reference images"))
    few = [f"{n:,} {name}" for n, name in counts if n is not None and n <= width]
    if not few:
        return []
    return [
        f"{' and '.join(few)} are no more than the features' {width:,} dimensions: the covariance is singular and"
        " the Fréchet distance biased upwards; compare it only with figures of the same counts"
    ]


def _named(candidate: Candidate) -> str:
    told = ", ".join(f"{key} {value:g}" for key, value in candidate.about.items() if key in ("budget", "seed"))
    return f"{candidate.source.name} ({told})" if told else candidate.source.name


def _say(text: str) -> None:
    if is_main():
        say(text)


def _key(
    candidate: Candidate, statistics: Statistics, extractor: Extractor, measures: Sequence[str], batch: int, rounds: int
) -> str:
    """A hash of all that a row of results depends on, but for the content of files of images."""
    source = candidate.source
    settings = None
    if isinstance(source, Sampled):
        settings = settings_of(source.model, source.recipe, source.labels, source.codec)
    parts = [source.name, source.count, candidate.about, settings, statistics.hash, sorted(measures), batch, rounds]
    text = json.dumps([*parts, extractor.fingerprint, str(extractor.dtype)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_results(rows: Sequence[dict[str, Any]], out: Path) -> Path:
    """Writes OUT/KEY.json and OUT/KEY.csv, and appends a line for each row to OUT/results.jsonl; returns the .json.

    KEY is a hash of what was measured, measures and settings but not figures: the same evaluation keeps its name.
    """
    identity = [{key: value for key, value in row.items() if key not in ("metrics", "notes")} for row in rows]
    text = json.dumps([identity, [sorted(row["metrics"]) for row in rows]], sort_keys=True)
    file = out / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(list(rows), indent=2) + "\n")
    table = io.StringIO()
    flat = [{**{k: v for k, v in row.items() if k not in ("metrics", "notes")}, **row["metrics"]} for row in rows]
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_whole(file.with_suffix(".csv"), table.getvalue())
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with (out / "results.jsonl").open("a", encoding="utf8") as stream:
        stream.writelines(json.dumps({"time": when, **row}) + "\n" for row in rows)
    return file
