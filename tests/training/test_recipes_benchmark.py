"""The benchmark of ways to train budgets, at a tiny size: equal FLOPs, what starts where, and what is kept."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from elit import UserError
from elit.data.prepare import ImageSettings, prepare_images
from elit.training.reading import load_config

ROOT = Path(__file__).parents[2]
TINY = [
    "--batch_size=4", "--model.width=16", "--model.heads=2", "--model.depth=3", "--model.patch_size=16",
    "--model.head_depth=1", "--model.tail_depth=1", "--data.workers=0",
    "--device=cpu",
]  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes_benchmark", ROOT / "benchmarks" / "recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recipes_benchmark", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """Six pictures to train on and as many to measure on."""
    pixels = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for i, picture in enumerate(pixels):
        file = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    for split in ("train", "test"):
        prepare_images(ImageSettings(str(tmp_path / "pictures"), 64), tmp_path / "data" / split, workers=1)
    return tmp_path / "data"


def test_every_kind_has_the_same_flops_and_goes_on_from_the_trunk(
    benchmark: ModuleType, styles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    arguments = ["--data", str(styles), "--work", str(work), "--trunk", "3", "--extra", "4", "--count", "4", *TINY]
    rows = benchmark.main([*arguments, "--kinds", "cells-mixed,paper-scratch"])
    assert [row.kind for row in rows] == ["dense", "cells-mixed", "paper-scratch"]
    assert [len(row.losses) for row in rows] == [1, 5, 5]
    dense = rows[0]
    assert dense.steps == 4 and dense.above == (0, 0)
    for row in rows[1:]:
        one_step = row.tflops / row.steps if row.kind == "paper-scratch" else (row.tflops - dense.tflops * 3 / 7) / row.steps
        assert abs(row.tflops - dense.tflops) <= one_step / 2 + 1e-12
    config = load_config(work / "cells-mixed" / "config.json", [])
    assert config.init_from == str(work / "trunk" / "checkpoints" / "step_00000003")
    assert load_config(work / "paper-scratch" / "config.json", []).init_from is None
    shown = capsys.readouterr()
    assert "above dense, %" in shown.out

    written = {file: file.stat().st_mtime_ns for file in work.rglob("*") if file.is_file()}
    assert benchmark.main([*arguments, "--kinds", "cells-mixed,paper-scratch"]) == rows
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*") if file.is_file()} == written


def test_an_unknown_kind_is_refused(benchmark: ModuleType) -> None:
    with pytest.raises(UserError, match="there is no kind fast; known: dense, paper-drawn"):
        benchmark.main(["--kinds", "fast"])
