"""The report on schedules: what each saves, how far it strays, and a verdict no wider than its evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EMOJI, LATENT, keep, subject_of

import elit
from elit.reports.colophon import write_colophon
from elit.reports.report import Picture, write_report
from elit.reports.schedule import CONSTANT, HIGH, LOW, Plan, ScheduleRow, plans, report_schedule, rms, verdict
from small_world import narrow_features


def test_a_schedule_and_its_mirror(tiny: elit.DiT) -> None:
    high, low = Plan(HIGH, 0.25, 0.5), Plan(LOW, 0.25, 0.5)
    assert isinstance(high.budget, elit.Schedule) and isinstance(low.budget, elit.Schedule)
    assert [high.budget.at(t) for t in (0.9, 0.5, 0.1)] == [0.25, 1.0, 1.0]
    assert [low.budget.at(t) for t in (0.9, 0.5, 0.1)] == [1.0, 0.25, 0.25]
    assert (high.name(tiny), low.name(tiny)) == ("1/4 while t > 0.5", "1/4 while t ≤ 0.5")
    assert Plan(CONSTANT, 0.5).budget == 0.5


def test_plans_are_of_the_levels_the_model_has(tiny: elit.DiT) -> None:
    tried = plans(tiny, [0.5, 0.3], [1 / 16, 0.25, 0.5, 1.0])  # 1/16 of four latents is one, as 1/4 is
    assert [plan.low for plan in tried if plan.kind == CONSTANT] == [1.0, 0.5, 0.25]
    assert len(tried) == 3 + 2 * 2 * 2 and len(set(tried)) == len(tried)
    for wrong in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            plans(tiny, [wrong], [0.25])
    with pytest.raises(ValueError, match="below the full one"):
        plans(tiny, [0.5], [1.0])


def test_a_dense_model_is_refused(make_dit: Any) -> None:
    with pytest.raises(ValueError, match="elastic"):
        plans(make_dit(group_size=None), [0.5], [0.25])


def test_rms() -> None:
    assert rms(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == pytest.approx(12.5**0.5)


def test_any_model_gets_costs_and_distances_and_no_claim(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, LATENT)
    report = report_schedule(subject, [0.5], [0.25], count=8, seeds=[0, 1], work=tmp_path / "work")
    rows = {row["name"]: row for row in report.results["rows"]}
    full, low = rows["4/4"], rows["1/4"]
    for name in ("1/4 while t > 0.5", "1/4 while t ≤ 0.5"):  # two steps: at 1 and at 0.5
        assert rows[name]["gflops_per_step"] == pytest.approx((full["gflops_per_step"] + low["gflops_per_step"]) / 2)
        assert rows[name]["rms"] > 0
    assert full["rms"] == 0 and report.results["quality"] is None
    assert "not measured" in report.results["verdict"]
    write_report(report, tmp_path / "out", write_colophon("elit report"))
    assert report.results["verdict"] in (tmp_path / "out/report.html").read_text(encoding="utf8")
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {p.name for p in report.parts if isinstance(p, Picture)}


def test_quality_is_the_mean_over_the_seeds_and_the_verdict_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow_features(monkeypatch)
    subject, work = subject_of(tmp_path, EMOJI, "heart"), tmp_path / "work"
    figures = {Plan(CONSTANT, 1.0): 100, Plan(CONSTANT, 0.25): 120, Plan(HIGH, 0.25, 0.5): 101, Plan(LOW, 0.25, 0.5): 110}
    for plan, frechet in figures.items():
        for seed, apart in ((3, -1), (4, 1)):
            keep(work, subject, replace(subject.recipe, budget=plan.budget), 6, seed, frechet + apart)
    out = report_schedule(subject, [0.5], [0.25], count=6, seeds=[3, 4], work=work).results
    assert [row["frechet"] for row in out["rows"]] == [100, 120, 101, 110]
    assert all(row["frechet_std"] == pytest.approx(2**0.5) for row in out["rows"])
    assert out["quality"]["seeds"] == [3, 4] and out["quality"]["samples"] == 6
    assert "are free here" in out["verdict"] and "1/4 while t > 0.5" in out["verdict"]
    assert "At low noise, free: none. Throughout, free: none." in out["verdict"]
    assert len(list(work.iterdir())) == 4 * 2, "all of it was taken from the folder"


def row(name: str, kind: str, gflops: float, frechet: float, std: float | None = 2.0) -> ScheduleRow:
    spread = {} if std is None else {"frechet_std": std}
    return ScheduleRow(name, Plan(kind, 0.25), gflops, scores={"frechet": frechet, **spread})


FULL = row("full", CONSTANT, 4, 100)


def test_free_is_within_one_deviation_of_the_full_budget() -> None:
    rows = [FULL, row("tiny", CONSTANT, 1, 150), row("early", HIGH, 3, 102), row("mirror", LOW, 3, 103)]
    said = verdict(rows, 3)
    assert said.startswith("Fewer latents at high noise are free here") and "early (25% cheaper)" in said
    assert "mirror" not in said and "At low noise, free: none. Throughout, free: none." in said and "3 seeds" in said


def test_not_free_names_the_nearest() -> None:
    said = verdict([FULL, row("early", HIGH, 3, 103), row("earlier", HIGH, 2, 110), row("mirror", LOW, 3, 99)], 2)
    assert said.startswith("Fewer latents at high noise are not free here: the nearest, early, is at 103.0")
    assert "At low noise, free: mirror" in said


def test_a_model_that_loses_nothing_anywhere_says_nothing_of_noise() -> None:
    said = verdict([FULL, row("tiny", CONSTANT, 1, 101), row("early", HIGH, 3, 101)], 2)
    assert "says nothing about noise" in said


def test_what_saves_nothing_is_not_called_free() -> None:
    assert "mirror" not in verdict([FULL, row("early", HIGH, 3, 101), row("mirror", LOW, 4, 100)], 2)


def test_one_seed_claims_nothing() -> None:
    rows = [row("full", CONSTANT, 4, 100, None), row("early", HIGH, 3, 90, None)]
    assert "unknown" in verdict(rows, 1) and "are free here" not in verdict(rows, 1)
