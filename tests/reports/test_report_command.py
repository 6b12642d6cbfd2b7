"""`elit report` refuses in a sentence what it cannot show before its folder is touched, and keeps files of other making."""

from pathlib import Path

import pytest

from elit.cli import main
from elit.cli.report import MOST_SAMPLES, MOST_VALUES
from elit.data.emoji import emoji_table

MANY = ",".join(str(i / 1000) for i in range(1, MOST_VALUES + 2))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("budgets --count 1", "give --count 0 to leave it out"),
        ("budgets --count -1", "0 to 949"),
        (f"budgets --count {MOST_SAMPLES + 1}", "0 to 949"),
        ("guidance --count 1e9", "not a whole number"),
        ("guidance --seeds 1000000000", "--seeds"),
        ("guidance --scales 1,nan", "not a finite number"),
        (f"guidance --scales {MANY}", "list fewer"),
        ("schedule --steps 1000000000", "--steps"),
        (f"schedule --times {MANY}", "list fewer"),
        (f"schedule --budgets {MANY}", "list fewer"),
        ("attention --times 0", "between 0 and 1"),
        (f"attention --times {MANY}", "list fewer"),
        ("budgets --labels 7", "there is no label"),
        ("budgets --labels balanced", "labels that are listed"),
        ("budgets --model nowhere", "nowhere"),
        ("results nowhere.jsonl", "there is no results file"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_leaves_no_folder(
    line: str, said: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model_folder.parent)
    kind, *options = line.split()
    model = [] if kind == "results" or "--model" in options else ["--model", "model"]
    assert main(["report", kind, *options, *model, "--out", "new/report"]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and len(told.splitlines()) == 1
    assert [p.name for p in Path().iterdir()] == ["model"]


def test_a_file_of_anothers_making_is_kept_and_told_before_the_work(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model_folder.parent)
    monkeypatch.setattr("elit.reports.budgets.report_budgets", lambda *_: pytest.fail("the work began"))
    Path("mine").mkdir()
    Path("mine/report.html").write_text("my own")
    assert main(["report", "budgets", "--model", "model", "--out", "mine"]) == 2
    assert "mine/report.html is no report's" in capsys.readouterr().err
    assert main(["report", "budgets", "--model", "model", "--out", "mine/report.html"]) == 2
    assert [p.read_text() for p in Path("mine").iterdir()] == ["my own"]


def test_the_most_samples_are_half_of_the_real_pictures() -> None:
    assert len(list(emoji_table())) // 2 == MOST_SAMPLES
