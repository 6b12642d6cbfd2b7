"""The report of results files: rows measured again count once, seeds are averaged, settings are told apart."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from elit.cli import main
from elit.errors import UserError
from elit.evaluation.results import read_results, result_row
from elit.reports.results import results_panels, results_table


def row(budget: float | None, seed: int = 0, steps: int = 10, **metrics: float) -> dict[str, Any]:
    model = {} if budget is None else {"budget": budget, "gflops": 2 * budget, "seed": seed, "steps": steps, "model": "m1"}
    told = {"features": "net", "dtype": "float32", "reference": "data: 9 images", "reference_hash": "r"}
    return {"samples": "runs/mine/model", **model, **told, "count": 1000, "metrics": metrics, "notes": []}


ROWS = [
    row(0.25, FD=30.0, **{"KID x 1000": 2.0, "KID x 1000 low": 1.0, "KID x 1000 high": 3.0}),
    row(0.25, seed=1, FD=33.0, **{"KID x 1000": 4.0, "KID x 1000 low": 3.0, "KID x 1000 high": 5.0}),
    row(1.0, FD=20.0, **{"KID x 1000": 1.0, "KID x 1000 low": 0.5, "KID x 1000 high": 1.5}),
    row(1.0, steps=50, FD=19.0),
    row(None, FD=5.0),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The rows, the first of them measured twice, the first time worse."""
    path = tmp_path / "results.jsonl"
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in [{**ROWS[0], "metrics": {**ROWS[0]["metrics"], "FD": 99.0}}, *ROWS])
    )
    return path


def test_tables_average_seeds_and_show_intervals(file: Path) -> None:
    table = results_table(read_results([file]))
    assert list(table.columns) == ["samples", "budget", "GFLOPs", "seeds", "n", "FD", "KID x 1000"]
    assert [list(line) for line in table.rows] == [
        ["model", "0.25", "0.50", "2", "1,000", f"31.50 ± {statistics.stdev([30, 33]):.2f}", "3.000 ± 1.414"],
        ["model", "1", "2.00", "1", "1,000", "20.00", "1.000 (0.500 to 1.500)"],
        ["model", "1", "2.00", "1", "1,000", "19.00", ""],
        ["model", "", "", "1", "1,000", "5.000", ""],
    ]
    assert "net, float32, beside data: 9 images" in table.note


def test_sets_whose_settings_are_known_are_called_by_them() -> None:
    known, unknown = ({**row(None, FD=1.0), "samples": f"samples/{name}"} for name in ("5b1c", "3fa2"))
    known["called"] = "4/16, 10 steps"
    table = results_table([result_row(known, "a"), result_row(unknown, "b")])
    assert [line[0] for line in table.rows] == ["4/16, 10 steps", "3fa2"]


def test_curves_are_of_one_setting_each(file: Path) -> None:
    """Means over the seeds with their extremes, over budget and GFLOPs; sets that are no model's are not drawn."""
    panels = results_panels(read_results([file]))
    assert [(panel.title, panel.x_label) for panel in panels] == [
        (name, axis) for name in ("FD", "KID x 1000") for axis in ("budget", "GFLOPs of one forward")
    ]
    curves = panels[1].curves
    assert list(curves) == ["model, steps 10", "model, steps 50"]
    assert curves["model, steps 10"] == [(0.5, 31.5, 1.5, 1.5), (2.0, 20.0, 0.0, 0.0)]
    assert list(panels[2].curves) == ["model, steps 10"]


def test_the_command_writes_the_report(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two files, whose curves are told apart."""
    other = file.with_name("other.jsonl")
    other.write_text(json.dumps(row(0.5, FD=25.0)) + "\n")
    assert main(["report", "results", str(file), str(other), "--out", str(tmp_path / "report")]) == 0
    assert "31.50 ±" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"results.png", "results.json", "report.html"}
    rows = json.loads((tmp_path / "report" / "results.json").read_text())["rows"]
    assert len(rows) == 6
    names = list(results_panels([result_row(one, "r") for one in rows])[0].curves)
    assert names == [f"model, file {f.name}, steps {s}" for f, s in ((file, 10), (file, 50), (other, 10))]


def test_keys_of_other_versions_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({**row(None, FD=5.0), "of_the_future": [1]}) + "\n\n")
    assert [one.metrics for one in read_results([file])] == [{"FD": 5.0}]


def test_sets_alone_have_a_table_and_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(row(None, FD=5.0)) + "\n")
    assert main(["report", "results", str(file), "--out", str(tmp_path / "report")]) == 0
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"results.json", "report.html"}


def without(name: str) -> str:
    return json.dumps({key: value for key, value in row(1.0, FD=1.0).items() if key != name}) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no results"),
        *((without(name), f"line 1 of .*: it has no {name}") for name in ("samples", "count", "features", "dtype")),
        *((without(name), f"line 1 of .*: it has no {name}") for name in ("reference", "metrics")),
        (json.dumps({**row(1.0, FD=1.0), "count": 0}), "count is 0"),
        (json.dumps({**row(1.0, FD=1.0), "count": "many"}), "count is 'many'"),
        (json.dumps({**row(1.0, FD=1.0), "budget": 2}), "budget is 2"),
        (json.dumps(row(1.0, FD=float("nan"))), "metrics.FD is nan"),
        (json.dumps(row(1.0, FD=1.0)) + "\nnot json\n", r"line 2 of .* is no row"),
        ("[" * 100_000, "line 1 of .* is no row"),
        ("[]\n", "line 1 of .* is no row"),
        (None, "there is no results file"),
    ],
)
def test_files_that_are_none_are_refused(
    tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=said):
        read_results([file])
    assert main(["report", "results", str(file), "--out", str(tmp_path / "report")]) == 2
    assert not (tmp_path / "report").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_curves_are_named_by_what_tells_them_apart() -> None:
    """Paths without what they share, and hashes only where nothing else differs."""
    first, second = row(1.0, FD=1.0), {**row(1.0, FD=1.0), "model": "m2"}
    assert names_of(first, {**second, "samples": "runs/other/model"}) == ["mine/model", "other/model"]
    assert names_of(first, second) == ["model, model m1", "model, model m2"]
    assert names_of({**first, "called": "4/16"}, {**second, "called": "16/16"}) == ["4/16", "16/16"]


def names_of(*rows: dict[str, Any]) -> list[str]:
    return list(results_panels([result_row(one, "r") for one in rows])[0].curves)
