"""A row of results: what `elit evaluate` measured of one set of images, as lines of results.jsonl hold it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from elit.errors import UserError
from elit.files import read_bytes
from elit.records import JSON_BYTES, Count, Fraction, NotNegative, checked, record


@record
class ResultRow:
    """One set of images beside a reference.

    samples: their folder, file or model; called: what they are in words, where that is known. count: how many there are.
    features, fingerprint, resize and dtype: of the network that saw them. reference, reference_hash: what they are compared
    with. metrics: the figures by name, with "NAME low", "NAME high" or "NAME deviation" beside some. Of samples of a model
    the rest is known too: its weights' hash, the budget and the GFLOPs of a forward, and how it was sampled. shift, cache,
    stages and thresholds are there where steps were moved or left out, or were those of several stages.
    """

    samples: str
    count: Count
    features: str
    dtype: str
    reference: str
    metrics: dict[str, float]
    called: str | None = None
    fingerprint: str | None = None
    resize: str | None = None
    reference_hash: str | None = None
    notes: tuple[str, ...] = ()
    time: str | None = None
    model: str | None = None
    budget: Fraction | None = None
    gflops: NotNegative | None = None
    seed: int | None = None
    labels: str | None = None
    sampler: str | None = None
    steps: Count | None = None
    guidance: float | None = None
    weak_budget: Fraction | None = None
    weak_label: str | int | None = None
    interval: tuple[float, float] | None = None
    shift: float | None = None
    cache: float | None = None
    stages: tuple[Count, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    codec: str | None = None
    precision: str | None = None
    file: str | None = None

    def told(self) -> dict[str, object]:
        """What is known of it, as JSON holds it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def result_row(values: Any, origin: str) -> ResultRow:
    """Values as a row; keys of other versions are left out. Raises UserError, which begins with `origin`, for others."""
    if not isinstance(values, dict):
        raise UserError(f"{origin} is no row of results but {str(values)[:40]!r}; remove it")
    names = {field.name for field in fields(ResultRow)}
    try:
        return checked({name: value for name, value in values.items() if name in names}, ResultRow, origin)
    except UserError as error:
        raise UserError(f"{error}: this is no row of results; remove it, or evaluate again") from error


def read_results(files: Sequence[Path]) -> list[ResultRow]:
    """The rows of `results.jsonl` files, each with its `file`; of rows measured again, the last.

    Raises UserError for a file that is not there, or a line that is not a row.
    """
    rows: dict[tuple[object, ...], ResultRow] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no results file {file}; elit evaluate writes one, such as evaluations/results.jsonl")
        for number, line in enumerate(read_bytes(file, JSON_BYTES).splitlines(), start=1):
            if not line.strip():
                continue
            origin = f"line {number} of {file}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{origin} is no row of results ({error}); remove it") from error
            row = result_row({**values, "file": str(file)} if isinstance(values, dict) else values, origin)
            rows[(*group_of(row), row.budget, row.seed, *row.metrics)] = row
    if not rows:
        raise UserError(f"{', '.join(map(str, files))} holds no results; give a file that elit evaluate wrote")
    return list(rows.values())


SETTINGS = (
    *("file", "samples", "model", "count", "labels", "sampler", "steps", "guidance", "weak_budget", "weak_label"),
    *("interval", "shift", "cache", "stages", "thresholds"),
    *("codec", "precision", "features", "fingerprint", "dtype", "reference_hash"),
)


def group_of(row: ResultRow) -> tuple[object, ...]:
    """What rows have in common that differ by budget and seed alone."""
    return tuple(getattr(row, name) for name in SETTINGS)
