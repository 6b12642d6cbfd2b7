"""Files of statistics: ours round-trip, ADM's, EDM's and EDM2's are read; others and damaged ones are refused."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractors_for_tests import WIDTH, tiny_extractor

from elit.evaluation.moments import Moments, MomentSums
from elit.evaluation.statistics import Provenance, Statistics, load_statistics, save_statistics
from elit.pickles import read_arrays
from elit.seeding import generator_for

TINY = tiny_extractor()
INCEPTION = replace(TINY, name="inception")


def moments(width: int = WIDTH, seed: int = 0) -> Moments:
    sums = MomentSums(width)
    sums.add(torch.randn(20, width, generator=generator_for("statistics", seed)))
    return sums.moments()


def arrays(suffix: str = "", width: int = WIDTH, seed: int = 0) -> dict[str, Any]:
    made = moments(width, seed)
    return {f"mu{suffix}": made.mean.numpy(), f"sigma{suffix}": made.covariance.numpy()}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A file of 20 images of 8 x 4."""
    told = Provenance("pictures", "tiny", 20, (4, 8), TINY.fingerprint, "none")
    save_statistics(Statistics(moments(), told, moments(3, seed=1)), tmp_path / "new" / "ours.npz")
    return tmp_path / "new" / "ours.npz"


def test_ours_come_back_and_others_can_read_them(ours: Path) -> None:
    """Bit for bit with their provenance; `mu` and `sigma` are plain arrays, as ADM's and EDM's tools expect."""
    found = load_statistics(ours, TINY)
    assert found.spatial is not None
    for kept, made in ((found.pooled, moments()), (found.spatial, moments(3, seed=1))):
        assert torch.equal(kept.mean, made.mean)
        assert torch.equal(kept.covariance, made.covariance)
    assert found.provenance == Provenance("pictures", "tiny", 20, (4, 8), "tiny-made", "none")
    assert str(found.provenance) == "pictures: 20 images of 8 x 4, tiny (tiny-made)"
    with np.load(ours, allow_pickle=False) as archive:
        assert np.array_equal(archive["mu"], moments().mean.numpy())
        assert archive["sigma"].shape == (WIDTH, WIDTH)
    assert [p.name for p in ours.parent.iterdir()] == ["ours.npz"]


def test_adms_and_edms_files_are_read(tmp_path: Path) -> None:
    """mu and sigma are Inception's, mu_s and sigma_s those of sFID; float32 too."""
    file = tmp_path / "adm.npz"
    np.savez(file, **arrays(), **arrays("_s", 4, seed=1))
    found = load_statistics(file, INCEPTION)
    assert np.array_equal(found.pooled.covariance.numpy(), arrays()["sigma"])
    assert found.spatial is not None and np.array_equal(found.spatial.mean.numpy(), arrays("_s", 4, seed=1)["mu_s"])
    assert found.provenance == Provenance(str(file), "inception")
    np.savez(tmp_path / "edm.npz", **{name: array.astype(np.float32) for name, array in arrays().items()})
    edm = load_statistics(tmp_path / "edm.npz", INCEPTION)
    assert edm.spatial is None
    torch.testing.assert_close(edm.pooled.mean, moments().mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("protocol", range(6))
def test_edm2s_pickles_are_read_by_their_features(tmp_path: Path, protocol: int) -> None:
    """Of every protocol, in either order of memory, and under numpy's older names."""
    file = tmp_path / "img512.pkl"
    dinov2 = {name: np.asfortranarray(array) for name, array in arrays(seed=2).items()}
    text = pickle.dumps({"fid": arrays(), "fd_dinov2": dinov2}, protocol=protocol)
    for content in (text, text.replace(b"cnumpy._core.", b"cnumpy.core.")):
        file.write_bytes(content)
        assert np.array_equal(load_statistics(file, INCEPTION).pooled.covariance.numpy(), arrays()["sigma"])
        found = load_statistics(file, replace(TINY, name="dinov2"))
        assert np.array_equal(found.pooled.covariance.numpy(), dinov2["sigma"])
    with pytest.raises(ValueError, match="holds statistics of fid, fd_dinov2, and none of tiny"):
        load_statistics(file, TINY)


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_runs(tmp_path: Path, protocol: int) -> None:
    file, ran = tmp_path / "evil.pkl", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"fid": Runs(ran)}, protocol=protocol))
    with pytest.raises(ValueError, match=r"asks for \S+, which could run code .* nothing of it ran"):
        load_statistics(file, INCEPTION)
    assert not ran.exists()
    file.write_bytes(pickle.dumps(np.array([Runs(ran)], dtype=object), protocol=protocol))
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        read_arrays(file)
    assert not ran.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(np.zeros(9))[:-30], pickle.dumps(np.array(["text"]))]
)
def test_damaged_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cut.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.pkl is damaged, or no pickle of plain arrays"):
        read_arrays(file)


def test_statistics_of_other_features_are_refused(ours: Path, tmp_path: Path) -> None:
    """Another network, the same one with other weights, a file that does not say, and another width."""
    with pytest.raises(ValueError, match=r"is of the features tiny \(tiny-made\), not other \(other-made\)"):
        load_statistics(ours, tiny_extractor("other"))
    with pytest.raises(ValueError, match=r"is of the features tiny \(tiny-made\), not tiny \(tuned\)"):
        load_statistics(ours, replace(TINY, fingerprint="tuned"))
    np.savez(tmp_path / "adm.npz", **arrays())
    with pytest.raises(ValueError, match=r"does not say of which features .* of inception, not of tiny"):
        load_statistics(tmp_path / "adm.npz", TINY)
    with pytest.raises(ValueError, match="statistics of 6 features, and inception has 2048"):
        load_statistics(tmp_path / "adm.npz", replace(INCEPTION, width=2048))


def told(count: Any) -> np.ndarray[Any, Any]:
    """The provenance of statistics of so many images."""
    fields = {
        "source": "s",
        "features": "inception",
        "count": count,
        "size": None,
        "fingerprint": "f",
        "resize": "",
        "hash": "",
    }
    return np.array(json.dumps(fields))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mu": np.zeros(6)}, r"holds no statistics \(mu and sigma\); it holds mu"),
    ({"mu": np.zeros(6), "sigma": np.zeros((6, 5))}, r"are \(6,\) and \(6, 5\), not \(D,\) and \(D, D\)"),
    ({"mu": np.full(6, np.nan), "sigma": np.zeros((6, 6))}, "not arrays of finite numbers"),
    ({"mu": np.zeros(6, dtype=np.int64), "sigma": np.zeros((6, 6))}, "not arrays of finite numbers"),
    ({"mu": np.array([None]), "sigma": np.zeros((6, 6))}, "cannot be read"),
    ({**arrays(), "provenance": np.array("[1]")}, r"the provenance in .*bad\.npz: it is \[1\]; it "),
    ({**arrays(), "provenance": np.array("{}")}, r"the provenance in .*bad\.npz: it has no source"),
    ({**arrays(), "provenance": np.array("[" * 100_000)}, r"the provenance in .*bad\.npz: it is not JSON"),
    ({**arrays(), "provenance": np.array(7)}, "the provenance in .* is no text"),
    *(
        ({**arrays(), "provenance": told(count)}, "the provenance in .* count is")
        for count in ("many", -1, 0, 2.5, math.nan)
    ),
    ({**arrays(), "sigma": -arrays()["sigma"]}, r"sigma in .*bad\.npz is no covariance: it has negative eigenvalues"),
    ({**arrays(), "sigma": arrays()["sigma"] - 0.5 * np.eye(6)}, "is no covariance: it has negative eigenvalues"),
    ({**arrays(), "sigma": arrays()["sigma"] + np.triu(np.ones((6, 6)), 1)}, "is no covariance: it is not symmetric"),
    ({**arrays(), **arrays("_s"), "sigma_s": -np.eye(6)}, "sigma_s in .* is no covariance"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_files_that_cannot_be_are_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(ValueError, match=said):
        load_statistics(tmp_path / "bad.npz", INCEPTION)


def test_a_changed_or_truncated_file_is_refused(ours: Path, tmp_path: Path) -> None:
    with np.load(ours) as archive:
        content = dict(archive)
    content["mu"][2] += 1e-9
    np.savez(tmp_path / "changed.npz", **content)
    with pytest.raises(ValueError, match="is damaged: its arrays are not those that were written"):
        load_statistics(tmp_path / "changed.npz", TINY)
    (tmp_path / "cut.npz").write_bytes(ours.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut.npz is not an \.npz"):
        load_statistics(tmp_path / "cut.npz", TINY)
    assert json.loads(str(content["provenance"]))["count"] == 20
