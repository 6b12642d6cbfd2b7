"""`elit sample`, `elit evaluate` and `elit report` of runs of `elit finetune`, whose models are told prompts."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit import Guidance, sample
from elit.backbones.hosts.model import HostModel
from elit.cli import main, parse
from elit.cli.evaluate import open_sources
from elit.cost import count_flops, flops_by_level
from elit.data.prompts import prepare_prompts
from elit.evaluation.evaluate import facts_of
from elit.generation import read_sample
from elit.host_models import load_host_model, read_checkpoint
from elit.imprint import Imprint, png
from elit.lora import Lora, add_lora
from elit.pictures import to_image
from elit.pixels import as_tensor, to_uint8
from elit.prompt_tables import open_prompts
from elit.serving.messages import Settings
from elit.serving.opened import opened
from elit.target import cache_folder, calibrated
from elit.text_encoder import load_text_encoder
from elit.weights import fingerprint
from tiny_runs import HOSTS, TEXTS, save_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def made_by(arguments: list[str], out: Path) -> tuple[Path, dict[str, object]]:
    """The folder that a command of `elit sample` wrote, and its dataset.json."""
    assert main(["sample", *arguments, "--out", str(out)]) == 0
    (folder,) = (file.parent for file in out.glob("*/settings.json"))
    return folder, json.loads((folder / "dataset.json").read_text())


def pixels(folder: Path, index: int) -> torch.Tensor:
    return as_tensor(read_sample(folder / "00000" / f"{index:06d}.png"))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("budget", ["1/4", "1/4@t>0.5,1"])
def test_samples_of_prompts_are_those_of_elit_sample(world: Path, tmp_path: Path, name: str, budget: str) -> None:
    """Prompts of the run's own, one of them twice and one with a comma; with the run's own guidance and shift."""
    asked = [TEXTS[3], TEXTS[0], TEXTS[3]]
    told = [word for text in asked for word in ("--prompt", f" {text}")]
    given = ["--model", str(world / name), *told, "--steps", "3", "--budget", budget, "--seed", "5"]
    folder, listing = made_by(given, tmp_path)
    assert listing["label_names"] == [TEXTS[3], TEXTS[0]]
    assert [label for _, label in listing["labels"]] == [0, 1, 0]
    model, table = load_host_model(world / name), open_prompts(world / "prompts")
    schedule = 0.25 if budget == "1/4" else _Late()
    expected = to_uint8(sample(model, table.find(asked), "euler", 3, schedule, Guidance(2.0), 5, shift=1.5))
    for index, image in enumerate(expected):
        assert torch.equal(pixels(folder, index), image)
    assert not torch.equal(expected[0], expected[2])  # the same prompt, another noise
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size[0] > 3 * 8


class _Late:
    """A quarter while the noise is large."""

    def at(self, t: float) -> float:
        return 0.25 if t > 0.5 else 1.0


def test_an_exported_pipeline_is_sampled_as_its_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the bit; one that we did not write is refused."""
    pipe = tmp_path / "pipe"
    assert main(["export", str(world / "sd3"), "--pipeline", "--dtype", "fp32", "--out", str(pipe)]) == 0
    given = ["--prompt", "star", "--prompt", TEXTS[0], "--steps", "2", "--budget", "1/2"]
    run, _ = made_by(["--model", str(world / "sd3"), *given], tmp_path / "of-run")
    folder, listing = made_by(["--model", str(pipe), *given], tmp_path / "of-pipe")
    assert listing["label_names"] == ["star", TEXTS[0]] and folder.name == run.name
    for index in range(2):
        assert torch.equal(pixels(folder, index), pixels(run, index))
    assert opened(Settings(model=str(pipe)), "cpu").words.names == tuple(TEXTS)
    (pipe / "elit.json").unlink()
    capsys.readouterr()
    for model in (pipe, pipe / "transformer"):
        assert main(["sample", "--model", str(model), *given, "--out", str(tmp_path / "none")]) == 2
        assert ("pipeline of diffusers" if model == pipe else "is not a model folder") in said(capsys)


def test_any_text_is_drawn_where_there_is_an_encoder(world: Path, tmp_path: Path) -> None:
    other = "a blue fish"
    prepare_prompts([other], load_text_encoder(str(world / "encoder")), world / "other", tokens=5)
    given = ["--model", str(world / "sd3"), "--prompt", other, "--steps", "2", "--guidance.scale", "1"]
    folder, _ = made_by([*given, "--encoder", str(world / "encoder")], tmp_path / "encoded")
    prepared, _ = made_by([*given, "--prompts", str(world / "other")], tmp_path / "prepared")
    model = load_host_model(world / "sd3")
    expected = to_uint8(sample(model, open_prompts(world / "other").find([other]), steps=2, shift=1.5))
    assert torch.equal(pixels(folder, 0), expected[0]) and torch.equal(pixels(prepared, 0), expected[0])


def test_without_a_prompt_those_of_the_run_take_turns_or_are_drawn(world: Path, tmp_path: Path) -> None:
    given = ["--model", str(world / "qwen"), "--steps", "1"]
    drawn, listing = made_by([*given, "--count", "6"], tmp_path / "drawn")
    assert listing["label_names"] == TEXTS and len(listing["labels"]) == 6
    assert len({label for _, label in listing["labels"]}) > 1
    settings = json.loads((drawn / "settings.json").read_text())
    info = open_prompts(world / "prompts").info
    assert settings["prompts"] == {"texts": info.texts, "encoder": info.weights, "tokens": 5}
    _, balanced = made_by([*given, "--count", "5", "--labels", "balanced"], tmp_path / "balanced")
    assert [label for _, label in balanced["labels"]] == [0, 1, 2, 3, 0]
    _, listed = made_by([*given, "--labels", "star,0,2-3"], tmp_path / "listed")
    assert [label for _, label in listed["labels"]] == [1, 0, 2, 3]
    _, whole = made_by([*given, "--labels", TEXTS[3]], tmp_path / "whole")
    assert [label for _, label in whole["labels"]] == [3]


def test_a_sample_goes_on_and_other_prompts_go_elsewhere(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(world / "sd3"), "--prompt", "star", "--steps", "1", "--tile", "2"]
    folder, _ = made_by([*given, "--count", "1"], tmp_path)
    first = (folder / "00000" / "000000.png").read_bytes()
    same, _ = made_by([*given, "--count", "3"], tmp_path)
    assert same == folder and (folder / "00000" / "000000.png").read_bytes() == first
    for option in (["--stages", "2"], ["--thresholds", "0.5"]):  # whether or not anything is left to be drawn
        assert main(["sample", *given, *option, "--count", "3", "--out", str(tmp_path)]) == 2
        assert "for models of several stages, and this has one" in said(capsys)
    assert main(["sample", *given[:3], "red heart", *given[4:], "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*/settings.json"))) == 2


def test_a_picture_of_a_prompt_is_drawn_again(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the byte; of levels that changed on the way, and of a text that only an encoder knows."""
    model = load_host_model(world / "sd3")
    encoder = load_text_encoder(str(world / "encoder"))
    prepare_prompts(["a star"], encoder, world / "a-star", tokens=5)
    told = open_prompts(world / "a-star").find(["a star"] * 2)
    levels = (1, 2, 4)
    times = _Levels({t: level / 4 for t, level in zip((1.0, 0.75, 3 / 7), levels, strict=True)})
    x = sample(model, told, "euler", 3, times, Guidance(2.0), 7, shift=1.5)
    imprint = Imprint(fingerprint(model), (), 1, 7, "euler", 3, levels, 2.0, shift=1.5, prompts=("a star",) * 2, alone=True)
    content = png(to_image(x[1]), imprint)
    (tmp_path / "picture.png").write_bytes(content)
    given = ["sample", "--from", str(tmp_path / "picture.png"), "--out", str(tmp_path / "again")]
    assert main([*given, "--model", str(world / "sd3"), "--encoder", str(world / "encoder")]) == 0
    assert (tmp_path / "again" / "picture.png").read_bytes() == content
    capsys.readouterr()
    for labels, prompts in (((), ()), ((0,), ()), ((99_999,), ())):
        (tmp_path / "changed.png").write_bytes(png(to_image(x[1]), replace(imprint, labels=labels, prompts=prompts)))
        changed = ["sample", "--from", str(tmp_path / "changed.png"), "--model", str(world / "sd3")]
        assert main([*changed, "--out", str(tmp_path / "again")]) == 2
        assert "changed.png does not say what it is of" in said(capsys)
    assert main([*given, "--model", str(world / "sd3")]) == 2
    assert "this model has no prompt 'a star'; did you mean star" in said(capsys)
    assert main([*given, "--model", str(world / "qwen")]) == 2
    assert "was drawn by the model" in said(capsys)


class _Levels:
    """A budget for each time, found within a tolerance."""

    def __init__(self, budgets: dict[float, float]) -> None:
        self.budgets = budgets

    def at(self, t: float) -> float:
        return next(budget for time, budget in self.budgets.items() if abs(time - t) < 1e-9)


def test_costs_are_counted_without_the_models_memory(world: Path) -> None:
    """By level, with LoRAs and guidance; and a cost asks for the budget that it buys."""
    for name in HOSTS:
        model = load_host_model(world / name)
        costs = flops_by_level(model)
        kind, sizes = HOSTS[name]
        assert list(costs) == [1, 2, 3, 4] and sorted(set(costs.values())) == list(costs.values())
        assert costs[2] == count_flops(model, 0.5)
        before = costs[4]
        transformer, _ = read_checkpoint(world / name)
        add_lora(transformer, Lora(rank=3, targets=("to_q",)))
        model.transformer = transformer
        tokens = [64 // 4 if block in (0, 2) else 16 for block in range(3)]  # 4 x 4 tokens, all of the latents in the core
        added = sum(2 * count * (32 * 3 + 3 * 32) for count in tokens)
        assert count_flops(model, 1.0) - before == added, (kind, sizes)


def test_a_budget_may_be_a_cost(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = flops_by_level(load_host_model(world / "sd3"))  # of a text of one token
    given = ["--model", str(world / "sd3"), "--prompt", "star", "--steps", "1"]
    folder, _ = made_by([*given, "--budget", f"{1.5 * costs[2] / 1e9}gflops"], tmp_path)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["budget"][0] in ("2/4", "3/4", "4/4")
    assert main(["sample", *given, "--budget", "1e-9gflops", "--out", str(tmp_path)]) == 2
    assert "less than the lowest budget takes" in said(capsys)


def test_times_are_kept_by_the_sizes_of_pictures_and_texts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On which the same transformer's times depend; but not by its weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    transformer, _ = read_checkpoint(world / "qwen")
    for sides, tokens in (((8, 8), 5), ((8, 12), 5), ((8, 8), 4)):
        calibrated(HostModel(transformer, sides, tokens).eval(), 1)
    assert len(list(cache_folder().iterdir())) == 3
    calibrated(HostModel(read_checkpoint(world / "qwen")[0], (8, 8), 5).eval(), 1)
    assert len(list(cache_folder().iterdir())) == 3


def test_a_run_is_evaluated_at_its_budgets(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "real.npz", arr_0=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    given = ["evaluate", str(world / "sd3"), "--reference", str(tmp_path / "real.npz"), "--count", "2", "--steps", "1"]
    out = ["--out", str(tmp_path / "out")]
    assert main([*given, *out, "--budgets", "1/4,1", "--prompt", "star", "--prompt", TEXTS[0]]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    model = load_host_model(world / "sd3")
    model.tokens = 5
    assert [row["budget"] for row in rows] == [0.25, 1.0]
    assert [row["gflops"] for row in rows] == [count_flops(model, budget) / 1e9 for budget in (0.25, 1.0)]
    assert {row["model"] for row in rows} == {fingerprint(model)}
    texts = {"texts": ["star", TEXTS[0]], "encoder": open_prompts(world / "prompts").info.weights, "tokens": 5}
    told = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:12]
    assert {row["labels"] for row in rows} == {f"0,1 of prompts {told}"}  # those of other prompts are another set
    sampled, _ = made_by(["--model", str(world / "sd3"), "--prompt", "star", "--prompt", TEXTS[0], "--steps", "1"], tmp_path)
    (source,) = open_sources(parse(["evaluate", str(sampled), "--reference", "emoji"]))
    assert facts_of(source)["labels"] == f"0,1 of prompts {told}"
    capsys.readouterr()
    assert main([*given, *out, "--cache", "0.1"]) == 2
    assert "a step cache is for models of this library" in said(capsys)


def test_a_report_shows_prompts_by_budgets(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(world / "sd3"), "--steps", "1", "--out", str(tmp_path / "report")]
    assert main(["report", "budgets", *given, "--prompt", "star", "--prompt", TEXTS[3]]) == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["labels"] == ["star", TEXTS[3]]
    assert [row["latents_per_group"] for row in results["budgets"]] == [1, 2, 3, 4]
    assert (tmp_path / "report" / "budgets.png").is_file()
    assert main(["report", "budgets", *given[:4], "--out", str(tmp_path / "all")]) == 0
    assert json.loads((tmp_path / "all" / "results.json").read_text())["labels"] == TEXTS
    capsys.readouterr()
    assert main(["report", "attention", *given[:4], "--out", str(tmp_path / "attention")]) == 2
    assert "told by models of this library alone" in said(capsys)


def test_mistakes_are_one_sentence(world: Path, stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = ["--model", str(world / "sd3")], ["--steps", "1", "--out", str(tmp_path / "out")]
    for given, sentence in [
        ([*run, "--prompt", "red haert"], "this model has no prompt 'red haert'; did you mean red heart"),
        ([*run, "--prompt", " "], "the prompt is empty"),
        ([*run, "--labels", "sta"], "this model has no prompt 'sta'; did you mean star"),
        ([*run, "--labels", "9"], "labels are 0 to 3"),
        ([*run, "--labels", "star", "--prompt", "star"], "--labels and --prompt both say what is drawn"),
        ([*run, "--prompts", "emoji"], "embeddings of 384"),
        ([*run, "--encoder", str(world / "wide")], "is another encoder"),
        ([*run, "--codec", "ema"], "makes pixels"),
        ([*run, "--cache", "0.1"], "a step cache is for models of this library"),
        ([*run, "--guidance.weak_label", "1"], "weak_label 1 was asked of a model whose labels have 0 factors"),
        (["--model", str(world / "untold")], "does not say what its prompts are; give them with --prompts"),
        (["--model", str(stand_in), "--prompt", "a heart"], "this model is told labels; give them as --labels"),
        (["--model", str(stand_in), "--prompts", "emoji"], "--prompts is for a run of elit finetune"),
        ([*run, "--from", "x.png", "--prompt", "star"], "--from says all of it"),
    ]:
        assert main(["sample", *given, *out]) == 2, given
        error = said(capsys)
        assert sentence in error and "Traceback" not in error, (sentence, error)
    assert not list(tmp_path.glob("out/*/00000/*"))
    damaged = shutil.copytree(world / "untold", tmp_path / "damaged")
    for settings in ({}, {"_class_name": 3}):
        (damaged / "transformer.json").write_text(json.dumps(settings))
        assert main(["sample", "--model", str(damaged), "--prompts", str(world / "prompts"), *out]) == 2
        assert "transformer.json names no class of diffusers" in said(capsys)
    for command in (["info", run[1]], ["calibrate-cache", *run]):
        assert main(command) == 2
        assert "a run of elit finetune: elit sample" in said(capsys)
