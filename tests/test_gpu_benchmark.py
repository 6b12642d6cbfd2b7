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
    assert rows == [(host, budget) for host in ("flux", "qwen-image") for budget in (1.0, 0.5, 0.25, 0.125)]
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


def test_what_does_not_fit_is_left_out_and_said(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = gpu.Bench(torch.device("cpu"), True, tmp_path / "gpu.json", tmp_path)
    with gpu.fits(bench, "training", "XL/2 at 512 pixels"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert json.loads(bench.out.read_text()) == {
        "training": [{"case": "XL/2 at 512 pixels", "left out": "too little memory"}]
    }
    assert "XL/2 at 512 pixels: too little memory; left out" in capsys.readouterr().err


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
    assert list(budgets) == ["budget 1", "budget 0.5", "budget 0.25", "budget 0.0625", "drawn"]
    assert budgets["drawn"] == [0.25, 0.5, 0.75, 1.0]


def test_mistakes_are_sentences(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU here; run it where one is, or give --device cpu --small"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    with pytest.raises(UserError, match="there is no part 'speed'; known: works, training, sampling, hosts, bundled"):
        run(gpu, tmp_path / "gpu.json", "--parts", "speed")
    assert not (tmp_path / "gpu.json").exists()
