"""Budgets from a cost: the largest level that it allows."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from elit import Budget, DiT, Schedule, count_flops
from elit.target import cache_folder, calibrated, timed_levels

Make = Callable[..., DiT]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "elit" / "latency"


def keep(cache: Path, model: DiT, batch: int, milliseconds: dict[float, float], at: float | None = None) -> None:
    """Puts a calibration of our own where the model's is kept."""
    calibrated(model, batch)
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({"at": kept["at"] if at is None else at, "milliseconds": milliseconds}))


def test_flops_allow_the_largest_level_below(tiny: DiT) -> None:
    """At, and just below, the cost of every level; in the text's GFLOPs too."""
    costs = [count_flops(tiny, k / 4) for k in range(1, 5)]
    for k, cost in enumerate(costs, start=1):
        assert Budget.for_flops(tiny, cost) == k / 4
        if k > 1:
            assert Budget.for_flops(tiny, cost - 1) == (k - 1) / 4
    assert Budget.parse(f"{costs[2] / 1e9 * 1.0001}GFLOPs", tiny) == 0.75
    with pytest.raises(ValueError, match="less than the lowest budget takes"):
        Budget.for_flops(tiny, costs[0] - 1)


def test_latency_is_measured_once_and_kept(tiny: DiT, cache: Path, make_dit: Make) -> None:
    """Another call reads the file; another batch size or architecture has one of its own."""
    assert cache_folder() == cache
    first = calibrated(tiny, 2)
    assert sorted(first) == [0.25, 0.5, 0.75, 1.0] and min(first.values()) > 0
    assert calibrated(tiny, 2) == first
    calibrated(tiny, 1)
    calibrated(make_dit(depth=4), 2)
    assert len(list(cache.iterdir())) == 3


def test_latency_allows_the_largest_level_in_time(tiny: DiT, cache: Path) -> None:
    keep(cache, tiny, 2, {0.25: 10.0, 0.5: 20.0, 0.75: 30.0, 1.0: 40.0})
    assert [Budget.for_latency(tiny, ms, 2) for ms in (10, 19.9, 20.1, 30.1, 1000)] == [0.25, 0.25, 0.5, 0.75, 1.0]
    assert Budget.parse(" 31 ms", tiny, 2) == 0.75
    with pytest.raises(ValueError, match=re.escape("9 ms is less than the lowest budget takes, 10 ms")):
        Budget.parse("9ms", tiny, 2)


def test_between_timed_levels_the_time_is_interpolated(cache: Path, make_dit: Make) -> None:
    model = make_dit(input_size=16, group_size=4)
    keep(cache, model, 2, {level: 160.0 * level for level in timed_levels(model)})
    assert [Budget.for_latency(model, 10 * k + 0.1, 2) for k in range(1, 17)] == [k / 16 for k in range(1, 17)]


def test_without_a_place_to_keep_them_timings_are_made_and_it_is_said(
    tiny: DiT, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A file in the cache's place, and no home at all; the command goes on."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sorted(calibrated(tiny, 1)) == [0.25, 0.5, 0.75, 1.0]
    assert "timings are not kept" in capsys.readouterr().err
    assert Budget.parse("100000ms", tiny) == 1.0

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert Budget.parse("100000ms", tiny) == 1.0
    assert "XDG_CACHE_HOME" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "80", None, True])
def test_a_cost_that_is_no_number_is_refused_by_its_name(tiny: DiT, wrong) -> None:
    with pytest.raises(ValueError, match="flops is a finite number"):
        Budget.for_flops(tiny, wrong)
    with pytest.raises(ValueError, match="milliseconds is a finite number"):
        Budget.for_latency(tiny, wrong)
    with pytest.raises(ValueError, match="batch_size"):
        Budget.for_latency(tiny, 10.0, 0)


@pytest.mark.parametrize(
    "broken",
    ["[" * 10**5, '{"at": 1e12, "milliseconds": {}}', "", "[]", '{"at": "x"}', '{"at": 0, "milliseconds": {"1.0": 1.0}}'],
)
def test_a_stale_or_broken_calibration_is_measured_anew(tiny: DiT, cache: Path, broken: str) -> None:
    calibrated(tiny, 1)
    (file,) = cache.iterdir()
    file.write_text(broken)
    assert sorted(calibrated(tiny, 1)) == [0.25, 0.5, 0.75, 1.0]
    assert len(json.loads(file.read_text())["milliseconds"]) == 4


def test_more_levels_than_are_timed(make_dit: Make) -> None:
    """Nine of sixteen, the lowest and the full one among them."""
    timed = calibrated(make_dit(input_size=16, group_size=4), 1)
    assert len(timed) == 9 and {1 / 16, 1.0} <= set(timed)


def test_texts_without_a_cost_are_budgets(tiny: DiT) -> None:
    assert Budget.parse("1/4", tiny) == 0.25
    assert Budget.parse("1/4@t>0.5,1", tiny) == Schedule(((0.5, 0.25),), 1.0)
    for wrong in ("--ms", "4 parsecs", "1e5e5gflops"):
        with pytest.raises(ValueError, match="is not a"):
            Budget.parse(wrong, tiny)
