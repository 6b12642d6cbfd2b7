"""Files of reference statistics: mean and covariance of features, with what they are of. Ours, ADM's and EDM's are read.

A file of ours is an .npz that ADM's and EDM's tools read too: `mu` and `sigma`, of Inception also `mu_s` and `sigma_s` (of
sFID), float64; and `provenance`, a JSON text: the fields of `Provenance` and a hash of the arrays.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elit.errors import UserError
from elit.evaluation.arrays import array_names, read_array
from elit.evaluation.extractors import Extractor
from elit.evaluation.metrics import check_covariance
from elit.evaluation.moments import Moments
from elit.files import told, written_whole
from elit.pickles import read_arrays
from elit.records import Count, parse_json, record

KEYS = ("mu", "sigma", "mu_s", "sigma_s")
LARGEST, LARGEST_TEXT = 2**31, 2**20  # bytes of a covariance, which 16,384 features have, and of the provenance


class OtherFeaturesError(UserError):
    """Statistics are of other features than those that are asked for."""


@record
class Provenance:
    """What statistics are of. source, count: the images. size: (height, width) before `resize`. features, fingerprint:
    the network's name and hash. None where a file of others does not say."""

    source: str
    features: str
    count: Count | None = None
    size: tuple[Count, Count] | None = None
    fingerprint: str | None = None
    resize: str | None = None

    def __str__(self) -> str:
        count = "an unknown number of" if self.count is None else f"{self.count:,}"
        size = "" if self.size is None else f" of {self.size[1]} x {self.size[0]}"
        return f"{self.source}: {count} images{size}, {self.features} ({self.fingerprint or 'not said which'})"


@record
class Told(Provenance):
    """The provenance as a file holds it, with the hash of its arrays."""

    hash: str | None = None


@dataclass(frozen=True)
class Statistics:
    """Moments of the pooled features and, where the network has them, of the spatial ones, with what they are of."""

    pooled: Moments
    provenance: Provenance
    spatial: Moments | None = None

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        both = [self.pooled] if self.spatial is None else [self.pooled, self.spatial]
        parts = [part.cpu().numpy() for moments in both for part in (moments.mean, moments.covariance)]
        return dict(zip(KEYS, parts, strict=False))

    @property
    def hash(self) -> str:
        """Of the arrays."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(name.encode() + np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()[:12]


def save_statistics(statistics: Statistics, file: Path) -> None:
    """Writes the .npz, whole or not at all."""
    text = json.dumps({**asdict(statistics.provenance), "hash": statistics.hash})
    arrays: dict[str, Any] = {**statistics.arrays(), "provenance": np.array(text)}
    with told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)


def load_statistics(file: Path, extractor: Extractor) -> Statistics:
    """The statistics in an .npz of ours, of ADM (mu, sigma, mu_s, sigma_s) or EDM, or a .pkl of EDM2, for an extractor.

    Files of others do not name their network: mu and sigma are taken for Inception's, and of EDM2's the entry `fid` or
    `fd_dinov2` for Inception's or DINOv2's. Nothing is unpickled. Raises UserError for statistics of other features than
    the extractor's, and for a file that is damaged or holds none.
    """
    arrays, says = (_read_pickled(file, extractor), None) if file.suffix == ".pkl" else _read_npz(file)
    if "mu" not in arrays or "sigma" not in arrays:
        raise UserError(
            f"{file} holds no statistics (mu and sigma); it holds {', '.join(sorted(arrays)) or 'nothing of these'}"
        )
    provenance = _provenance(file, says, extractor)
    pooled = _moments(file, arrays, "")
    if pooled.width != extractor.width:
        raise UserError(
            f"{file} holds statistics of {pooled.width} features, and {extractor.name} has {extractor.width};"
            " make them anew with elit evaluate stats"
        )
    spatial = _moments(file, arrays, "_s") if {"mu_s", "sigma_s"} <= arrays.keys() else None
    found = Statistics(pooled, provenance, spatial)
    if says is not None and says.hash != found.hash:
        raise UserError(f"{file} is damaged: its arrays are not those that were written; make it anew")
    return found


def _read_npz(file: Path) -> tuple[dict[str, object], Told | None]:
    names = array_names(file)
    arrays: dict[str, object] = {name: read_array(file, name, LARGEST) for name in KEYS if name in names}
    if "provenance" not in names:
        return arrays, None
    text = read_array(file, "provenance", LARGEST_TEXT)
    if text.ndim or text.dtype.kind != "U":
        raise UserError(f"the provenance in {file} is no text; make it anew with elit evaluate stats")
    return arrays, parse_json(str(text), Told, f"the provenance in {file}")


def _read_pickled(file: Path, extractor: Extractor) -> dict[str, object]:
    found = read_arrays(file)
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no statistics; an .npz or a .pkl of EDM2 is expected")
    if "mu" in found:
        return found
    key = {"inception": "fid", "dinov2": "fd_dinov2"}.get(extractor.name)
    if not isinstance(found.get(key), dict):
        raise UserError(f"{file} holds statistics of {', '.join(map(str, found))}, and none of {extractor.name}")
    inner: dict[str, object] = found[key]
    return inner


def _provenance(file: Path, says: Told | None, extractor: Extractor) -> Provenance:
    if says is None:
        theirs = ("inception", "dinov2") if file.suffix == ".pkl" else ("inception",)
        if extractor.name not in theirs:
            raise OtherFeaturesError(
                f"{file} does not say of which features it is; such files are of inception, not of {extractor.name}:"
                " give --features inception, or make statistics with elit evaluate stats"
            )
        return Provenance(str(file), extractor.name)
    if says.features != extractor.name or says.fingerprint != extractor.fingerprint:
        raise OtherFeaturesError(
            f"{file} is of the features {says.features} ({says.fingerprint}), not {extractor.name}"
            f" ({extractor.fingerprint}); make it anew with elit evaluate stats --features {extractor.name}"
        )
    return Provenance(says.source, says.features, says.count, says.size, says.fingerprint, says.resize)


def _moments(file: Path, arrays: dict[str, object], suffix: str) -> Moments:
    parts = [arrays[f"{name}{suffix}"] for name in ("mu", "sigma")]
    found = [part for part in parts if isinstance(part, np.ndarray) and part.dtype.kind == "f" and np.isfinite(part).all()]
    if len(found) < len(parts):
        raise UserError(f"mu{suffix} and sigma{suffix} in {file} are not arrays of finite numbers")
    mean, covariance = found
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"mu{suffix} and sigma{suffix} in {file} are {mean.shape} and {covariance.shape}, not (D,) and (D, D)"
        )
    moments = Moments(torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(covariance.astype(np.float64)))
    check_covariance(moments.covariance, f"sigma{suffix} in {file}")
    return moments
