"""The report on budgets: any model's costs with their spread, and quality only where it can be known."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import DENSE, EMOJI, LATENT, subject_of

import elit
from elit.card import Card
from elit.reports.budgets import measure_latency, quality_of, quartiles, report_budgets
from elit.reports.page import Sheet
from elit.reports.report import Picture, write_report


def test_median_and_quartiles() -> None:
    assert quartiles([5, 1, 2, 4, 3]) == {"latency_ms": 3, "latency_ms_q1": 2, "latency_ms_q3": 4}


def test_latency_has_a_spread_at_every_budget(tiny: elit.DiT) -> None:
    for row in measure_latency(tiny, [0.25, 1.0]):
        assert 0 < row["latency_ms_q1"] <= row["latency_ms"] <= row["latency_ms_q3"]


@pytest.mark.parametrize("config", [LATENT, DENSE], ids=["latent", "dense"])
def test_any_model_gets_images_and_costs(config: elit.DiTConfig, tmp_path: Path) -> None:
    subject = subject_of(tmp_path, config)
    assert quality_of(subject, None, 16, tmp_path / "work") is None
    report = report_budgets(subject)
    rows = report.results["budgets"]
    assert [row["latents_per_group"] for row in rows] == list(range(1, subject.model.latents + 1))
    for row in rows:
        assert row["gflops"] == elit.count_flops(subject.model, row["budget"]) / 1e9 and "frechet" not in row
    assert report.results["quality"] is None and report.results["labels"] == ["0", "1", "2", "3", "4"]
    write_report(report, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"budgets.png", "tradeoff.png", "results.json", "report.html"}
    with pytest.raises(ValueError, match="omit --quality"):
        quality_of(subject, [1.0], 16, tmp_path / "work")


def test_quality_is_the_cards_for_its_own_sampling_alone_and_measured_otherwise(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, EMOJI, ["heart"])
    known = {"sampling": {"steps": 2, "guidance_scale": 2.0}}
    carded = replace(subject, card=Card(subject.card.sampling, known))
    assert quality_of(carded, None, 8, tmp_path) is known
    faster = replace(carded, card=Card(replace(subject.card.sampling, steps=1), known))
    assert quality_of(faster, None, 0, tmp_path) is None
    measured = quality_of(faster, None, 8, tmp_path / "work")
    assert measured is not None and [row["budget"] for row in measured["budgets"]] == [0.25, 1.0]
    assert (measured["samples"], measured["sampling"]["steps"]) == (8, 1)
    report = report_budgets(faster, measured)
    rows = {row["budget"]: row for row in report.results["budgets"]}
    assert rows[1.0]["frechet"] == measured["budgets"][1]["frechet"] and "frechet" not in rows[0.5]
    table = next(part for part in report.parts if isinstance(part, Sheet))
    assert f"{rows[1.0]['frechet']:.1f}" in table.rows[3] and table.rows[4][0] == "real"
    assert [part.name for part in report.parts if isinstance(part, Picture)] == ["budgets.png", "tradeoff.png"]
