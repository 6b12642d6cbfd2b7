"""The report on budgets: any model's costs with their spread, and quality only where it can be known."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import DENSE, EMOJI, LATENT, subject_of

import elit
from elit.card import Card
from elit.reports.budgets import (
    Latency,
    budget_rows,
    measure_latency,
    quality_of,
    quality_over_cost,
    quartiles,
    report_budgets,
    tradeoff_caption,
)
from elit.reports.colophon import write_colophon
from elit.reports.report import Picture, write_report
from small_world import narrow_features


def test_median_and_quartiles() -> None:
    assert quartiles([5, 1, 2, 4, 3]) == Latency(3, 2, 4)


def test_latency_has_a_spread_at_every_budget(tiny: elit.DiT) -> None:
    for row in measure_latency(tiny, [0.25, 1.0]):
        assert 0 < row.first <= row.median <= row.third


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
    write_report(report, tmp_path / "out", write_colophon("elit report"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"budgets.png", "tradeoff.png", "results.json", "report.html"}
    with pytest.raises(ValueError, match="omit --quality"):
        quality_of(subject, [1.0], 16, tmp_path / "work")


def test_quality_is_the_cards_for_its_own_sampling_alone_and_measured_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow_features(monkeypatch)
    subject = subject_of(tmp_path, EMOJI, "heart")
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
    costs, gives = report.tables
    assert [line[0] for line in costs.rows] == ["1/4", "2/4", "3/4", "4/4"] and "first quartile" in costs.columns
    assert [line[0] for line in gives.rows] == ["1/4", "4/4", "real"], "a line for what was measured alone"
    assert f"{rows[1.0]['frechet']:.1f}" in gives.rows[1]
    assert [part.name for part in report.parts if isinstance(part, Picture)] == ["budgets.png", "tradeoff.png"]


def test_quality_is_drawn_over_the_budget_and_over_its_cost(tiny: elit.DiT) -> None:
    """Where it is known; and nothing is said of panels that are not there."""
    quality = {
        "budgets": [{"budget": 1.0, "frechet": 9.0}],
        "real": {"frechet": 3.0, "kernel": 0, "accuracy": 1},
        "seeds": [0],
    }
    rows = budget_rows(tiny, [0.25, 1.0], quality)
    first, *_, other = [panel for panel in quality_over_cost(rows, quality) if panel.drawn()]
    assert (first.x_label, first.curves[""]) == ("budget", [(1.0, 9.0, 0, 0)])
    gflops = elit.count_flops(tiny, 1.0) / 1e9
    assert (other.x_label, other.curves[""]) == ("GFLOPs of one forward", [(gflops, 9.0, 0, 0)])
    assert "Quality" in tradeoff_caption(quality) and "Quality" not in tradeoff_caption(None)
    assert not any(panel.drawn() for panel in quality_over_cost(budget_rows(tiny, [1.0], None), None))
