"""The report on guidance: three kinds, one price each, and the best scale where quality is measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import DENSE, EMOJI, LATENT, keep, subject_of

import elit
from elit.reports.colophon import write_colophon
from elit.reports.drawing import Panels
from elit.reports.guidance import GuidanceRow, best_scales, guidance_of, panels, panels_caption, report_guidance
from elit.reports.report import Picture, write_report
from small_world import narrow_features


def test_the_three_kinds() -> None:
    assert guidance_of("CFG", 2, 0.25) == elit.Guidance(2)
    assert guidance_of("cheap CFG", 2, 0.25) == elit.Guidance(2, weak_budget=0.25)
    assert guidance_of("autoguidance", 2, 0.25) == elit.Guidance(2, weak_budget=0.25, weak_label="same")
    assert guidance_of("CFG", 1, 0.25) == guidance_of("autoguidance", 1, 0.25) == elit.Guidance()


def test_quality_cost_and_best_scale_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_features(monkeypatch)
    subject = subject_of(tmp_path, EMOJI, "heart,time")
    work = tmp_path / "work"
    figures = {("CFG", 1): 30, ("CFG", 2): 20, ("cheap CFG", 2): 10, ("autoguidance", 2): 40}
    for (kind, scale), frechet in figures.items():
        recipe = replace(subject.recipe, guidance=guidance_of(kind, scale, 0.25))
        keep(work, subject, recipe, count=8, seed=5, frechet=frechet)
    out = report_guidance(subject, [2, 1], weak_budget=0.25, count=8, seeds=[5], work=work).results
    assert len(list(work.iterdir())) == 4, "at scale 1 the kinds are one, and are measured once"
    cells = {(cell["kind"], cell["scale"]): cell for cell in out["cells"]}
    assert len(cells) == 6
    full, weak = (elit.count_flops(subject.model, budget) / 1e9 for budget in (1.0, 0.25))
    for kind, second in (("CFG", full), ("cheap CFG", weak), ("autoguidance", weak)):
        assert (cells[kind, 1]["frechet"], cells[kind, 2]["frechet"]) == (30, figures[kind, 2])
        assert cells[kind, 1]["gflops_per_step"] == pytest.approx(full)
        assert cells[kind, 2]["gflops_per_step"] == pytest.approx(full + second)
    assert {kind: row["scale"] for kind, row in out["best"].items()} == {"CFG": 2, "cheap CFG": 2, "autoguidance": 1}
    assert out["quality"]["samples"] == 8 and out["quality"]["real"]["frechet"] > 0


@pytest.mark.parametrize(("config", "kinds"), [(LATENT, 3), (DENSE, 1)], ids=["latent", "dense"])
def test_any_model_gets_images_and_costs(config: elit.DiTConfig, kinds: int, tmp_path: Path) -> None:
    report = report_guidance(subject_of(tmp_path, config), [1, 3], 1 / 16, count=8, seeds=[0], work=tmp_path / "work")
    assert not (tmp_path / "work").exists()
    assert len(report.results["cells"]) == 2 * kinds and report.results["best"] == {}
    write_report(report, tmp_path / "out", write_colophon("elit report"))
    names = [part.name for part in report.parts if isinstance(part, Picture)]
    assert names == ["guidance.png", "cfg.png", "cheap-cfg.png", "autoguidance.png"][: kinds + 1]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_a_weak_budget_that_is_not_weak_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weaker"):
        report_guidance(subject_of(tmp_path, LATENT), [2], 1.0, count=0, seeds=[0], work=tmp_path)


def test_the_best_scale_tells_when_it_is_at_an_end() -> None:
    def ends(*frechet: float, skip: int = 0) -> tuple[float, bool]:
        rows = [GuidanceRow("CFG", i + 1, 1.0, {"frechet": value}) for i, value in enumerate(frechet)]
        best = best_scales(rows[skip:])["CFG"]
        return best.row.scale, best.at_an_end

    assert ends(3, 1, 2) == (2, False)
    assert ends(3, 2, 1) == (3, True)
    assert ends(1, 2, 3) == (1, False), "no guidance at all is no end"
    assert ends(0, 1, 2, skip=1) == (2, True)


def test_without_quality_the_cost_alone_is_drawn_and_spoken_of() -> None:
    """Cheap CFG and autoguidance cost the same: one curve, with both names."""
    rows = [GuidanceRow(kind, 2.0, cost) for kind, cost in (("CFG", 4.0), ("cheap CFG", 3.0), ("autoguidance", 3.0))]
    (panel,) = Panels(panels(rows)).shown
    assert [names for names, _ in panel.drawn()] == [["CFG"], ["cheap CFG", "autoguidance"]]
    assert "uality" not in panels_caption(rows)
    scored = [replace(row, scores={"frechet": 1.0}) for row in rows]
    assert "Quality" in panels_caption(scored)
    axes = [panel.x_label for panel in Panels(panels(scored)).shown if panel.title.startswith("Fréchet")]
    assert axes == ["scale", "GFLOPs of a step"]
