"""The benchmark of what budgets cost in hosts and backbones: what it covers, how it counts, and what it keeps."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from elit import UserError
from elit.backbones.hosts.table import HOSTS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def loaded(monkeypatch: pytest.MonkeyPatch, name: str, called: str) -> ModuleType:
    """A file of the benchmarks as a module, called so that no folder of tests is in its way."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(called, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, called, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loaded(monkeypatch, "hosts", "hosts_benchmark")


def test_every_host_has_a_case(benchmark: ModuleType) -> None:
    with torch.device("meta"):
        made = {type(case.make()).__name__ for case in benchmark.HOSTS.values()}
    assert made == {host.transformer for host in HOSTS}


def test_budgets_are_different_levels_even_of_latents_that_go_by_fours(benchmark: ModuleType) -> None:
    """The full budget costs little more than the dense model, of the same sizes, and the others less and less."""
    dense, full, quarter, least = benchmark.backbone_forwards("HDiT").flops.values()
    assert least < quarter < dense < full < 1.1 * dense


def test_what_is_measured_is_kept_and_not_measured_again(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hosts.json"
    asked = ["--only", "HDiT", "--rounds", "1", "--out", str(file)]
    first = benchmark.main(asked)
    assert set(first["HDiT"]) == {"dense, ms", "efficiency at 1", "efficiency at 0.25", "efficiency at 0.0625"}
    assert 0.5 < first["HDiT"]["efficiency at 1"][0] < 2
    kept = json.loads(file.read_text())
    kept["rows"]["HDiT"]["efficiency at 1"] = [1.5, 1.4, 1.6]
    file.write_text(json.dumps(kept))
    capsys.readouterr()
    assert benchmark.main(asked)["HDiT"]["efficiency at 1"] == (1.5, 1.4, 1.6)
    assert "efficiency at 1 1.500 (1.400 - 1.600) *" in capsys.readouterr().out  # above its mark
    with pytest.raises(UserError, match="of 1 rounds"):
        benchmark.main([*asked[:3], "2", *asked[4:]])
    with pytest.raises(UserError, match="'Hdit'"):
        benchmark.main(["--only", "Hdit"])


def test_efficiency_is_the_time_over_the_flops(benchmark: ModuleType) -> None:
    """A forward of twice the dense one's time and half its FLOPs has an efficiency of 4, whatever the machine does."""
    assert benchmark.efficiency([2.0, 4.0, 60.0], [1.0, 2.0, 30.0], 0.5) == (4.0, 4.0, 4.0)
    assert benchmark.efficiency([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], 1.0) == (2.0, 1.5, 2.5)


@pytest.mark.parametrize("name", ["SiT", "PixArt"])
def test_the_parts_of_a_forward_are_its_whole_time(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks are counted where they run: all outside of a dense model's core, which it has not, and half of an elastic's."""
    monkeypatch.setitem(sys.modules, "hosts", benchmark)
    parts = loaded(monkeypatch, "host_parts", "host_parts_benchmark")
    found = parts.main(["--only", name, "--rounds", "1"])[name]
    assert list(found) == ["dense", "1", "0.25", "0.0625"]
    for variant, took in found.items():
        assert sum(took.get(part, 0.0) for part in parts.PARTS) == pytest.approx(took["whole"])
        assert ("read" in took) == ("core" in took) == (variant != "dense")
    forwards = benchmark.forwards_of(name)
    dense, elastic = (parts.parts_of(model, benchmark.blocks_of(model)) for model in forwards.models)
    assert list(dense.values()) == ["outside"] * 8
    assert [*elastic.values()].count("outside") == 4 and [*elastic.values()].count("blocks") == 4
    assert "whole" in capsys.readouterr().out
