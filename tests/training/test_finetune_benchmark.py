"""The fine-tuning benchmark, at a tiny size: what it trains, measures and keeps."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from elit import DiT
from elit.training.reading import load_config
from elit.weights import load_model, save_weights
from small_world import narrow_features

ROOT = Path(__file__).parents[2]
TINY = [
    "--device=cpu", "--compile=false", "--dtype=fp32", "--batch_size=4", "--model.width=16", "--model.heads=2",
    "--model.depth=3", "--model.patch_size=8", "--log.preview_every=0",
]  # fmt: skip


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_benchmark", ROOT / "benchmarks" / "finetune.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_conversion_is_measured_beside_the_dense_model(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row per model and budget; each run by its own rule."""
    dense = tmp_path / "dense"
    dense.mkdir()
    save_weights(DiT(load_config(ROOT / "configs" / "emoji-tiny-dense.yaml", TINY).model), dense)
    assert benchmark.BUDGETS == (1 / 16, 1 / 4, 1.0)
    monkeypatch.setattr(benchmark, "BUDGETS", (1 / 4,))
    narrow_features(monkeypatch)
    work = tmp_path / "work"
    arguments = ["--dense", str(dense), "--steps", "2", "--count", "8", "--sampling-steps", "1", "--work", str(work), *TINY]
    rows = benchmark.main(arguments)
    assert rows == json.loads((work / "results.json").read_text())["rows"]
    kinds = ["converted, distilled", "converted", "from scratch"]
    assert [(row["model"], row["budget"]) for row in rows] == [("dense", 1.0), *((kind, 1 / 4) for kind in kinds)]
    assert all(row["frechet"] > 0 for row in rows)
    configs = [json.loads((work / kind / "config.json").read_text()) for kind in
               ("converted-distilled", "converted", "from-scratch")]  # fmt: skip
    assert [config["init_from"] for config in configs] == [str(dense), str(dense), None]
    assert [config["finetune"]["distill"] > 0 for config in configs] == [True, False, False]
    assert [config["finetune"]["interface_first"] > 0 for config in configs] == [True, True, False]
    ends = [load_model(work / kind / "checkpoints" / "step_00000002") for kind in ("converted", "from-scratch")]
    source = load_model(dense).patch_embedding.weight
    assert torch.equal(ends[0].patch_embedding.weight, source)  # the interface learned alone so far
    assert not torch.allclose(ends[1].patch_embedding.weight, source)
