"""The GPU's benchmark where there is none: its parts at a tiny size, and what becomes of one that fails or does not fit."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from elit import UserError

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FOLDER / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    return module


def run(gpu: ModuleType, out: Path, *arguments: str) -> int:
    code: int = gpu.main(["--device", "cpu", "--small", "--out", str(out), *arguments])
    return code


def test_hosts_and_what_every_file_names(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of two hosts at four budgets, after the machine; the table is printed."""
    assert run(gpu, tmp_path / "gpu.json", "--parts", "hosts") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["torch"] == torch.__version__ and "cpu" in found["machine"]
    rows = [(row["host"], row["budget"]) for row in found["hosts"]]
    assert rows == [(host, budget) for host in ("flux", "qwen-image") for budget in ("1", "1/2", "1/4", "1/8")]
    assert all(row["ms"] > 0 for row in found["hosts"])
    assert "qwen-image" in capsys.readouterr().out


def test_a_part_that_fails_leaves_the_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it had found is kept, the next part runs, and the exit code is 1."""

    def fails(bench: object) -> None:
        bench.keep("works", {"case": "first", "passed": True})  # type: ignore[attr-defined]
        raise RuntimeError("the card is on fire")

    monkeypatch.setitem(gpu.PARTS, "works", fails)
    monkeypatch.setitem(gpu.PARTS, "training", lambda bench: bench.keep("training", {"case": "second"}))
    assert run(gpu, tmp_path / "gpu.json", "--parts", "works,training") == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["works"] == [{"case": "first", "passed": True}] and found["training"] == [{"case": "second"}]
    told = capsys.readouterr().err
    assert "the card is on fire" in told and "failed: works" in told


def test_a_batch_that_does_not_fit_is_made_smaller_or_left_out(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of the batches that fits is run, once; where none does, a row says so."""
    bench = gpu.Bench(torch.device("cpu"), True, tmp_path / "gpu.json", tmp_path)
    tried: list[int] = []

    def run(batch: int) -> None:
        tried.append(batch)
        if batch > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    most = 64
    gpu.largest_that_fits(bench, "training", "XL/2, 256 pixels", (192, 64, 32), run)
    assert tried == [192, 64] and not bench.found
    assert "XL/2, 256 pixels, batch 192: too little memory" in capsys.readouterr().err
    most = 0
    gpu.largest_that_fits(bench, "training", "XL/2, 256 pixels", (192, 64), run)
    assert tried == [192, 64, 192, 64]
    assert json.loads(bench.out.read_text()) == {"training": [{"run": "XL/2, 256 pixels: left out, too little memory"}]}


def found_on_a_card(slower: float = 1.0) -> dict[str, list[dict[str, object]]]:
    """Rows as the parts keep them, of which every figure is as good as its mark; `slower` makes the elastic ones worse."""
    training: list[dict[str, object]] = []
    for pixels in (256, 512):
        rows = {"dense": (1.0, 1.0), "1": (0.95 / slower, 1.0), "1/4": (1.2, 1.1 * slower), "drawn": (1.35 / slower, 1.0)}
        for run, (of_dense, cost) in rows.items():
            training.append({"size": "XL/2", "pixels": pixels, "run": run, "of dense": of_dense, "time / FLOPs": cost})
            training[-1]["images/s"] = 450.0 * of_dense
    sampling: list[dict[str, object]] = []
    for batch, how, worst in ((64, "compiled", 1.1), (1, "graph", 1.3), (1, "eager", 9.0)):
        common: dict[str, object] = {"batch": batch, "how": how}
        for run, cost in (("1", 1.0), ("1/16", worst * slower)):
            sampling.append({**common, "kind": "budget", "run": run, "time / FLOPs": cost, "ms": 10.0})
        for run, ms in (("CFG", 20.0), ("cheap CFG", 14.4 * slower)):
            sampling.append({**common, "kind": "guided", "run": run, "time / FLOPs": 9.0, "ms": ms})
    return {
        "machine": {"card": "H100"},  # type: ignore[dict-item]
        "training": training,
        "loading": [{"model": "ELIT-SiT-XL/2", "overhead": 0.03 * slower}],
        "sampling": sampling,
    }


def test_marks_are_held_against_what_was_measured(gpu: ModuleType) -> None:
    """All that are met exactly are reached, but the goal of 500 images/s; a little slower, none of the elastic ones is."""
    page = sys.modules["gpu_page"]
    assert [row["verdict"] for row in page.marks_rows({})] == ["not measured"] * 12
    exact = {row["mark"]: row for row in page.marks_rows(found_on_a_card())}
    assert {mark: row["verdict"] for mark, row in exact.items() if row["verdict"] != "reached"} == {
        "the same: the goal": "NOT reached"
    }
    assert exact["cheap CFG's time of CFG's, batch 64, compiled"]["measured"] == "0.72"
    slower = page.marks_rows(found_on_a_card(1.01))
    assert [row["verdict"] for row in slower] == ["reached", *["NOT reached"] * 11]


def test_the_page_is_written_between_its_lines(gpu: ModuleType, tmp_path: Path) -> None:
    """The machine, the marks, and the parts that were run; what stood around them stays."""
    page, file = sys.modules["gpu_page"], tmp_path / "gpu.md"
    file.write_text("# On a GPU\n\n<!-- table:begin -->\nold\n<!-- table:end -->\n\nend\n")
    gpu.write_block(file, page.page(found_on_a_card()))
    text = file.read_text()
    assert text.startswith("# On a GPU\n\n<!-- table:begin -->\nMeasured on card: H100.\n\n| mark | bound |")
    assert text.endswith("<!-- table:end -->\n\nend\n") and "old" not in text
    assert "| XL/2 | 256 | drawn | 1.35 | 1 | 608 |" in text and "### Hosts" not in text


def test_tests_that_are_run_on_the_device_ask_for_it(gpu: ModuleType, tmp_path: Path) -> None:
    bench = gpu.Bench(torch.device("cpu"), True, tmp_path / "gpu.json", tmp_path)
    files = [word for command in gpu.commands(bench, tmp_path).values() for word in command if word.startswith("tests/")]
    assert len(files) == 3 and all("device: torch.device" in (FOLDER.parent / file).read_text() for file in files)


def test_rounds_end_when_the_time_is_up(gpu: ModuleType, tmp_path: Path) -> None:
    """After the warm-up and one round of all; every round has each once."""
    bench = gpu.Bench(torch.device("cpu"), True, tmp_path / "gpu.json", tmp_path, deadline=time.monotonic() - 1)
    made: list[str] = []
    taken = bench.interleaved({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, rounds=50, warm=1)
    assert made == ["a", "b", "a", "b"] and set(taken) == {"a", "b"}


def test_budgets_of_training(gpu: ModuleType) -> None:
    """A dense model's one; of an elastic one four, and every level once where they are drawn."""
    from elit import create_model

    options = {"input_size": 8, "width": 32, "heads": 2, "num_classes": 3}
    assert gpu.budgets_of(create_model("SiT-S/2", **options)) == {"dense": (None,)}
    budgets = gpu.budgets_of(create_model("ELIT-SiT-S/2", group_size=2, **options))
    assert list(budgets) == ["1", "1/2", "1/4", "1/16", "drawn"]
    assert budgets["drawn"] == [0.25, 0.5, 0.75, 1.0]


def test_mistakes_are_sentences(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU here; run it where one is, or give --device cpu --small"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    with pytest.raises(
        UserError, match="there is no part 'speed'; known: works, training, loading, sampling, hosts, bundled"
    ):
        run(gpu, tmp_path / "gpu.json", "--parts", "speed")
    assert not (tmp_path / "gpu.json").exists()
