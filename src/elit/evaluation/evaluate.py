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
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from elit.console import say
from elit.cost import count_flops
from elit.data.emoji_styles_test import NAME as EMOJI_STYLES
from elit.distributed import barrier, from_main, is_main
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.evaluation.arrays import Array, array_names
from elit.evaluation.extractors import Extractor
from elit.evaluation.intervals import bootstrap, check_rounds
from elit.evaluation.kept import keep, kept
from elit.evaluation.measure import HeldRows, Measured, Rows, Wanted, measure_all
from elit.evaluation.metrics import (
    density_coverage_rows,
    frechet_distance,
    frechet_distance_interval,
    inception_score,
    kernel_distance_interval,
    memorisation,
    precision_recall_rows,
)
from elit.evaluation.results import ResultRow
from elit.evaluation.sources import Pictures, Sampled, Source, open_images
from elit.evaluation.statistics import OtherFeaturesError, Statistics, load_statistics
from elit.evaluation.styles_reference import load_styles_reference
from elit.files import check_writable, digest, told, write_whole
from elit.generation import SETTINGS_FILE, folder_of, settings_of
from elit.labels import LabelRule
from elit.records import read_json
from elit.target import parse_fraction

MEASURES = ("fd", "kid", "is", "pr", "dc", "memorisation")
OF_ROWS = ("kid", "pr", "dc", "memorisation")  # these compare images one by one, and need those of the reference
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
LISTED = 200  # labels that a row of results holds one by one, at most
Facts = dict[str, Any]  # fields of ResultRow


@dataclass(frozen=True)
class Reference:
    """What samples are compared with in the features of a network: statistics from a file, images, or both (ADM's
    reference batches); or statistics and the rows of features they are of."""

    name: str
    extractor: Extractor
    statistics: Statistics | None
    images: Source | None
    rows: Array | None = None

    @property
    def count(self) -> int | None:
        """Of its images, where known."""
        if self.statistics is not None:
            return self.statistics.provenance.count
        return None if self.images is None else self.images.count


def open_references(
    name: str, extractors: Sequence[Extractor], size: tuple[int, int], square: int | None = None
) -> list[Reference]:
    """The reference of a name for every network: "emoji", "emoji-styles", a folder of pictures or one that `elit prepare`
    wrote, an .npz of images or statistics, or a .pkl of EDM2. size: (height, width) of the samples. square: to resize
    pictures to.

    Raises UserError for one that cannot be read, of other features, or of images of another size.
    """
    if name == EMOJI_STYLES:
        kept = [(extractor, *load_styles_reference(extractor)) for extractor in extractors]
        found = [Reference(name, extractor, statistics, None, rows) for extractor, statistics, rows in kept]
    else:
        found = _read_references(name, extractors, size, square)
    for one in found:
        known = one.images.size if one.images is not None else one.statistics and one.statistics.provenance.size
        if known and known != size:
            raise UserError(
                f"the samples are {size[1]} x {size[0]} and those of {name} {known[1]} x {known[0]}: distances between sizes"
                " mean nothing; give a reference of the samples' size, such as with --size"
            )
    return found


def _read_references(
    name: str, extractors: Sequence[Extractor], size: tuple[int, int], square: int | None
) -> list[Reference]:
    """A reference of files or of images, as `open_references` takes it."""
    file = Path(name).expanduser()
    held = array_names(file) if file.suffix == ".npz" else []
    read: list[Statistics | None] = [None for _ in extractors]
    if file.suffix == ".pkl" or "mu" in held:
        for i, extractor in enumerate(extractors):
            try:
                read[i] = load_statistics(file, extractor)
            except OtherFeaturesError:
                if "arr_0" not in held:  # as ADM's reference batches have it, whose images have any features
                    raise
    images = open_images(name, square, like=size) if None in read or "arr_0" in held else None
    return [Reference(name, extractor, one, images) for extractor, one in zip(extractors, read, strict=True)]


def open_reference(name: str, extractor: Extractor, size: tuple[int, int], square: int | None = None) -> Reference:
    """The reference of a name for one network, as `open_references` has it."""
    return open_references(name, [extractor], size, square)[0]


def check_measures(measures: Sequence[str], references: Sequence[Reference]) -> None:
    """Raises UserError for a measure that is unknown, or that the reference or all of the features do not allow."""
    if not measures:
        raise UserError(f"no metric was asked for; give --metrics with some of {', '.join(MEASURES)}")
    for measure in measures:
        if measure not in MEASURES:
            raise UserError(f"there is no metric {measure!r}; known: {', '.join(MEASURES)}")
        if measure == "is" and not any(reference.extractor.logits_width for reference in references):
            names = " and ".join(reference.extractor.name for reference in references)
            raise UserError(f"the inception score needs logits, which {names} has not; give --features inception")
        for reference in references:
            if measure in OF_ROWS and reference.images is None and reference.rows is None:
                raise UserError(
                    f"{measure} compares single images, and {reference.name} holds statistics alone; give the images as the"
                    " --reference, or leave it out of --metrics"
                )


def evaluate(
    sources: Sequence[Source],
    references: Sequence[Reference],
    measures: Sequence[str],
    out: Path,
    batch: int = 16,
    rounds: int = 0,
) -> list[ResultRow]:
    """A row of results for each set of images and each network, in the main process; none in the others of a torchrun.

    Each image is read, or sampled, once for all networks. rounds: of a bootstrap, for 95 % intervals (see `compute`); 0 for
    none. Rows of models, which take long, are kept in `out`/kept, so that the same call goes on after an interruption.
    Raises UserError as `open_references`, `check_measures` and `measure_all` do, and OSError where `out` cannot be written,
    before the work.
    """
    check_measures(measures, references)
    if rounds:
        check_rounds(rounds)
    from_main(lambda: check_writable(out))
    results, say_once = [], SayOnce()
    with ExitStack() as stack:
        sides = _sides(references, measures, batch, out, stack)
        for source in sources:
            rows = _rows_of(source, sides, measures, out, batch, rounds)
            for row in rows:
                for note in row.notes:
                    say_once(f"{row.samples}: {note}")
            results += rows
        barrier()
    return results if is_main() else []


class SayOnce:
    """Says a text in the main process, and never again: budgets and seeds have most of their notes in common."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _say(text)


@dataclass(frozen=True)
class _Side:
    """One network's side of a comparison: the reference's statistics, and its rows where they are needed."""

    extractor: Extractor
    statistics: Statistics
    measured: Measured

    def wanted(self, measures: Sequence[str], rounds: int) -> Wanted:
        """What is to be measured of the samples."""
        rows = self.measured.pooled is not None or ("fd" in measures and rounds > 0)
        return Wanted(self.extractor, rows, "is" in measures)


def _sides(references: Sequence[Reference], measures: Sequence[str], batch: int, out: Path, stack: ExitStack) -> list[_Side]:
    """The references' features, in one pass over their images; none where statistics from a file are enough."""
    rows = any(measure in OF_ROWS for measure in measures)
    looked_at = [one for one in references if one.statistics is None or (rows and one.rows is None)]
    found: dict[int, Measured] = {}
    if looked_at:
        images, name = looked_at[0].images, looked_at[0].name
        assert images is not None
        text = f"{_names([reference.extractor for reference in looked_at])} of {name}"
        wanted = [Wanted(reference.extractor, rows) for reference in looked_at]
        measured = measure_all(images, wanted, batch, out / f".reference-{digest(name.encode())}", text)
        found = {id(reference): stack.enter_context(one) for reference, one in zip(looked_at, measured, strict=True)}
        for note in images.notes():
            _say(f"{name}: {note}")
    sides = []
    for reference in references:
        held = HeldRows(reference.rows) if rows and reference.rows is not None else None
        against = found.get(id(reference)) or Measured(_known(reference.statistics), held)
        sides.append(_Side(reference.extractor, reference.statistics or against.statistics, against))
    return sides


def _known(statistics: Statistics | None) -> Statistics:
    assert statistics is not None
    return statistics


def _rows_of(
    source: Source, sides: Sequence[_Side], measures: Sequence[str], out: Path, batch: int, rounds: int
) -> list[ResultRow]:
    """A row for each network; the measures themselves are computed in the main process alone."""
    facts, sampled = facts_of(source), isinstance(source, Sampled)
    keys = [_key(source, facts, side, measures, batch, rounds) for side in sides]
    files = [out / "kept" / f"{key}.json" for key in keys]
    rows = from_main(lambda: [kept(file, ResultRow) if sampled else None for file in files])
    for row, file in zip(rows, files, strict=True):
        if row is not None:
            _say(f"{_named(row)}: taken from {file}, measured before")
    left = [i for i, row in enumerate(rows) if row is None]
    if not left:
        return [row for row in rows if row is not None]
    text = f"{_names([sides[i].extractor for i in left])} of {source.name}{_at(facts)}"
    wanted = [sides[i].wanted(measures, rounds) for i in left]
    with ExitStack() as stack:
        found = [stack.enter_context(one) for one in measure_all(source, wanted, batch, out / f".{keys[left[0]]}", text)]
        notes = source.notes()
        for i, one in zip(left, found, strict=True):
            row = from_main(partial(_row, source, facts, one, sides[i], measures, rounds, notes))
            rows[i] = row
            if sampled:
                from_main(partial(keep, row, files[i]))
    return [row for row in rows if row is not None]


def _row(
    source: Source,
    facts: Facts,
    found: Measured,
    side: _Side,
    measures: Sequence[str],
    rounds: int,
    notes: Sequence[str],
) -> ResultRow:
    values = compute(found, side.measured, side.statistics, side.extractor, measures, rounds)
    return ResultRow(
        samples=source.name,
        count=source.count,
        features=side.extractor.name,
        fingerprint=side.extractor.fingerprint,
        resize=side.extractor.resize,
        dtype=str(side.extractor.dtype).removeprefix("torch."),
        reference=str(side.statistics.provenance),
        reference_hash=side.statistics.hash,
        metrics=values,
        notes=(*notes, *few_samples(source.count, side.statistics, measures)),
        **facts,
    )


def facts_of(source: Source) -> Facts:
    """What is known of how a set of images was made, as fields of `ResultRow`: of a model's samples, and of a folder of
    `elit sample`, whose settings.json says it."""
    if isinstance(source, Sampled):
        recipe, settings = source.recipe, settings_of(source.model, source.recipe, source.labels, source.codec)
        facts: Facts = {"model": settings["model"], "sampler": recipe.sampler, "steps": recipe.total_steps}
        if not isinstance(recipe.budget, Schedule):
            facts |= {"budget": recipe.budget, "gflops": count_flops(source.model, recipe.budget) / 1e9}
        guidance = recipe.guidance
        facts |= {"guidance": guidance.scale, "interval": guidance.interval, "weak_budget": guidance.weak_budget}
        facts |= {"weak_label": guidance.weak_label, "codec": source.codec.name, "labels": _labels_text(settings)}
        return {**facts, **_course(settings), "precision": PRECISIONS[str(settings["dtype"])], "seed": recipe.seed}
    return _facts_of_folder(Path(source.name)) if isinstance(source, Pictures) else {}


def _facts_of_folder(folder: Path) -> Facts:
    """What the settings.json of a folder of `elit sample`, or of the one sample in it, says."""
    places = [folder] if (folder / SETTINGS_FILE).is_file() else sorted(f.parent for f in folder.glob(f"*/{SETTINGS_FILE}"))
    if len(places) != 1:
        return {}
    try:
        settings = read_json(places[0] / SETTINGS_FILE, dict[str, Any])
        guidance = settings["guidance"]
        steps = settings["steps"]  # a list of those of every stage, in a model of several
        total = sum(steps) if isinstance(steps, list) else steps
        facts: Facts = {"sampler": settings["sampler"], "steps": total, "seed": settings["seed"]}
        facts |= {"guidance": guidance["scale"], "interval": tuple(guidance["interval"]), "model": settings["model"]}
        facts |= {"weak_label": guidance["weak_label"], "codec": settings["codec"]}
        facts |= {"labels": _labels_text(settings), "precision": PRECISIONS[settings["dtype"]]}
        if guidance["weak_budget"] is not None:
            facts["weak_budget"] = parse_fraction(guidance["weak_budget"])
        if len(settings["budget"]) == 1:
            facts["budget"] = parse_fraction(settings["budget"][0])
        facts |= _course(settings)
        own = places[0].name == folder_of(Path(), settings).name  # a hash says nothing to people; the folder above does
        return {**facts, "called": (places[0].absolute().parent if own else places[0].absolute()).name}
    except (UserError, KeyError, TypeError, AttributeError, ValueError):  # settings of another program
        return {}


def _course(settings: dict[str, Any]) -> Facts:
    """What moves, leaves out or divides the steps of a sampler, where anything does, as fields of `ResultRow`."""
    facts: Facts = {name: settings[name] for name in ("shift", "thresholds") if name in settings}
    if "cache" in settings:
        facts["cache"] = settings["cache"]["threshold"]
    if isinstance(settings["steps"], list):
        facts["stages"] = settings["steps"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def _labels_text(settings: dict[str, Any]) -> str:
    """A rule in words, as its settings tell it; of a long list how many there are, and a hash of them; of prompts their hash
    too, for their numbers say nothing without them.
    """
    labels = LabelRule(**settings["labels"])
    listed = ",".join(map(str, labels.values))
    text = listed if labels.kind == "list" else labels.kind
    if len(labels.values) > LISTED:
        text = f"{len(labels.values):,} listed ({digest(listed.encode())})"
    if "prompts" in settings:
        text += f" of prompts {digest(json.dumps(settings['prompts'], sort_keys=True).encode())}"
    return text


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


def _tensor(rows: Rows | HeldRows) -> torch.Tensor:
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


def _names(extractors: Sequence[Extractor]) -> str:
    return ", ".join(extractor.name for extractor in extractors)


def _at(facts: Facts) -> str:
    """ " (budget 0.25, seed 0)", where these are known."""
    known = ", ".join(f"{name} {facts[name]:g}" for name in ("budget", "seed") if facts.get(name) is not None)
    return f" ({known})" if known else ""


def _named(row: ResultRow) -> str:
    return f"{row.samples}{_at({'budget': row.budget, 'seed': row.seed})}"


def _say(text: str) -> None:
    if is_main():
        say(text)


def _key(source: Source, facts: Facts, side: _Side, measures: Sequence[str], batch: int, rounds: int) -> str:
    """A hash of all that a row of results depends on, but for the content of files of images."""
    settings = None
    if isinstance(source, Sampled):
        settings = settings_of(source.model, source.recipe, source.labels, source.codec)
    parts = [source.name, source.count, facts, settings, side.statistics.hash, sorted(measures), batch, rounds]
    text = json.dumps([*parts, side.extractor.fingerprint, str(side.extractor.dtype)], sort_keys=True)
    return digest(text.encode())


def write_results(rows: Sequence[ResultRow], out: Path) -> Path:
    """Writes OUT/KEY.json and OUT/KEY.csv, and appends a line for each row to OUT/results.jsonl; returns the .json.

    KEY is a hash of what was measured, measures and settings but not figures: the same evaluation keeps its name. A line is
    written whole or not at all.
    """
    flat = [row.told() for row in rows]
    identity = [{key: value for key, value in row.items() if key not in ("metrics", "notes")} for row in flat]
    text = json.dumps([identity, [sorted(row.metrics) for row in rows]], sort_keys=True)
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    file = out / f"{digest(text.encode())}.json"
    write_whole(file, json.dumps(flat, indent=2) + "\n")
    table = io.StringIO()
    lines = [{**told_of, **row.metrics} for told_of, row in zip(identity, rows, strict=True)]
    order = [field.name for field in fields(ResultRow)]
    columns = sorted({name for line in lines for name in line if name in order}, key=order.index)
    columns += dict.fromkeys(name for row in rows for name in row.metrics)
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(file.with_suffix(".csv"), table.getvalue())
    when = datetime.now(UTC).isoformat(timespec="seconds")
    append_lines(out / "results.jsonl", [json.dumps({"time": when, **row}) for row in flat])
    return file


def append_lines(file: Path, lines: Sequence[str]) -> None:
    """Appends lines to a text file, all or none; one that a kill cut short is ended before. Raises WriteError."""
    with told(file), file.open("ab+") as stream:
        size = stream.seek(0, io.SEEK_END)
        if size:
            stream.seek(size - 1)
        begun = bool(size) and stream.read(1) != b"\n"
        try:
            stream.write(("\n" * begun + "".join(f"{line}\n" for line in lines)).encode())
            stream.flush()
        except OSError:
            stream.truncate(size)
            raise
