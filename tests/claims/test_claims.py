"""`elit claims` from end to end at a tiny size, what a kill leaves, the page, and bad input."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from elit import UserError
from elit.claims.claim import Drawn, HeldOut, Seen, Trained
from elit.claims.difference import difference
from elit.claims.page import outcomes, summary, write_page
from elit.claims.queue import Measured, Queue, open_queue, read_map
from elit.claims.table import CLAIMS, RUNS, SCALES
from elit.cli import main
from elit.data.prepare import ImageSettings, prepare_images
from elit.evaluation.heldout import heldout_loss
from elit.evaluation.kept import keep
from elit.read_attention import attention_weights
from elit.training.loop import train
from elit.weights import load_model

TINY = SCALES["tiny"]
PADDING = next(claim for claim in CLAIMS if claim.name == "zero-padding")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures to train on and as many that are held out."""
    folder = tmp_path_factory.mktemp("data")
    pixels = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for i, picture in enumerate(pixels):
        file = folder / f"pictures{i // 6}" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    for i, split in enumerate(("train", "test")):
        prepare_images(ImageSettings(str(folder / f"pictures{i}"), 32), folder / split, workers=1)
    return folder


@pytest.fixture(scope="module")
def padded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one claim, tried as its user would, without a break."""
    out = tmp_path_factory.mktemp("claims") / "work"
    arguments = ["claims", "run", "zero-padding", "--scale", "tiny", "--data", str(data), "--out", str(out)]
    assert main(arguments) == 0
    return out


def measured(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder / "measured").iterdir()}


def test_a_claim_is_tried_and_paged(padded: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are those of its arms, its verdict is that of the differences, and nothing is done twice."""
    queue = Queue(padded, TINY, str(data))
    assert list(queue.jobs([PADDING])) == []
    arms = PADDING.arms()
    assert len(measured(padded)) == len(arms) * TINY.seeds
    loss = HeldOut(Trained("full", 0.25))
    for seed, found in enumerate(queue.results(loss)):
        model = load_model(padded / "models" / f"full-seed{seed}-step{found.steps}")
        assert found.values == tuple(heldout_loss(model, queue.test_data, 4, (1.0,))[0].of_each.tolist())
    looks, chance = (found.values for found in queue.results(Seen(Trained("elastic-padded")))), 0.25
    values = torch.tensor([*looks], dtype=torch.float64)
    first = outcomes(queue, PADDING)[0]
    assert first.difference == difference(torch.full_like(values, chance), values)

    told = summary(queue, [PADDING]).splitlines()
    assert told[0] == f"zero-padding: {first.verdict}" and max(map(len, told)) <= 80

    page = tmp_path / "claims.md"
    assert main(["claims", "page", "--out", str(padded), "--page", str(page)]) == 0
    text = page.read_text(encoding="utf8")
    assert f"**Verdict: {first.verdict}.**" in text and "2 seeds x 4" in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert 0 < (tmp_path / target).stat().st_size <= 150_000
    assert main(["claims", "page", "--out", str(padded), "--page", str(page)]) == 0
    assert page.read_text(encoding="utf8") == text
    page.write_text("my own page")
    assert main(["claims", "page", "--out", str(padded), "--page", str(page)]) == 2
    assert "is not a page of claims" in capsys.readouterr().err and page.read_text() == "my own page"


def test_what_a_kill_leaves_goes_on_to_the_same_figures(padded: Path, data: Path, tmp_path: Path) -> None:
    """A process that is killed once it has measured something, or on its way to that; then the rest, in another."""
    out = tmp_path / "work"
    child = os.fork()
    if child == 0:
        try:
            open_queue(out, TINY, str(data)).work([PADDING])
        finally:
            os._exit(0)
    until = time.monotonic() + 60
    while not list(out.glob("measured/*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = measured(out)
    queue = open_queue(out, TINY, str(data))
    left = len(list(queue.jobs([PADDING])))
    assert before and 0 < left < len(list(Queue(tmp_path / "empty", TINY, str(data)).jobs([PADDING])))
    queue.work([PADDING])
    assert measured(out) == measured(padded)
    assert before.items() <= measured(out).items()


def test_a_training_that_was_stopped_between_two_marks_is_the_one_without_a_stop(data: Path, tmp_path: Path) -> None:
    queue, other = (open_queue(tmp_path / name, TINY, str(data)) for name in ("a", "b"))
    total = queue.steps("multi")
    train(queue.config("multi", 0, 1))
    queue.train_to("multi", 0, total)
    other.train_to("multi", 0, total)
    for name, tensor in load_model(queue.folder_of("multi", 0, total)).state_dict().items():
        assert torch.equal(tensor, load_model(other.folder_of("multi", 0, total)).state_dict()[name]), name


def test_trainings_that_claims_share_are_planned_once_and_for_the_same_flops(data: Path, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "work", TINY, str(data))
    jobs = [job.says for job in queue.jobs(CLAIMS)]
    assert len(jobs) == len(set(jobs))
    trained = {run: queue.steps(run) * queue.step_gflops(run) for run, kind in RUNS.items() if kind.like is None}
    for run, gflops in trained.items():
        assert abs(gflops - trained["dense"]) <= queue.step_gflops(run) / 2 + 1e-9, run
    assert queue.mark(Trained("quarter", like="full")) == queue.steps("full") < queue.steps("quarter")
    assert queue.steps("elastic-padded") == queue.mark(Trained("full", 0.25))
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert {arm.model.run for claim in CLAIMS for arm in claim.arms()} == set(RUNS)


def test_samples_of_equal_cost_cost_the_same(data: Path, tmp_path: Path, make_dit: Callable[..., torch.nn.Module]) -> None:
    """CFG takes as many steps as cheap CFG pays for, within half a step of its own."""
    model = make_dit(depth=6)
    queue = Queue(tmp_path, SCALES["desk"], str(data))
    cheap = Drawn(Trained("multi"), scale=2.0, weak_budget=0.25)
    whole = Drawn(Trained("multi"), scale=2.0, paid=cheap)
    paid, taken = queue.recipe(cheap, model), queue.recipe(whole, model)
    assert paid.total_steps == SCALES["desk"].sampler_steps > taken.total_steps
    assert abs(taken.gflops(model) - paid.gflops(model)) <= taken.gflops_per_step(model) / 2


def test_samples_are_judged_row_by_row(data: Path, tmp_path: Path, make_dit: Callable[..., torch.nn.Module]) -> None:
    queue = open_queue(tmp_path / "work", TINY, str(data))
    model = make_dit(input_size=32, patch_size=8, num_classes=2)
    blank = Measured("", "", (), 1, 0.0, 0.0)
    arms = [Drawn(Trained("multi"), budget) for budget in ("1/4", "1")]
    low, full = (queue.drawn(arm, model, 0, blank) for arm in arms)
    assert len(full.values) == TINY.samples and full.values != low.values and full.gflops > low.gflops
    assert full.sampler_steps == TINY.sampler_steps and full.frechet is not None and full.frechet > 0


def test_reads_map_is_its_attention_token_by_token(
    data: Path, tmp_path: Path, make_dit: Callable[..., torch.nn.Module]
) -> None:
    """Against the weights of each group, put in their places one by one."""
    from elit import DiT
    from elit.backbones.config import PaddedConfig
    from elit.backbones.padded import PaddedDiT
    from randomised import randomised

    fields = {**vars(make_dit().config), "rope": True, "group_size": 4, "padding": 2, "patch_size": 2}
    model = randomised(PaddedDiT(PaddedConfig(**fields))).eval()
    x, y = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3])
    seen: list[torch.Tensor] = []
    layer = model.core.read.layers[0].attention
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(attention_weights(module, *inputs)))
    found = read_map(model, x, y, torch.zeros_like(x), 0.0)
    handle.remove()
    assert isinstance(model, DiT) and found.shape == (2, 8, 8)
    weights = seen[0].double().mean(2).sum(2)  # (B, G, S)
    for row in range(8):
        for column in range(8):
            group, token = row // 4 * 2 + column // 4, row % 4 * 4 + column % 4
            expected = weights[:, group, token] / weights.sum((1, 2))
            torch.testing.assert_close(found[:, row, column].double(), expected, rtol=1e-5, atol=0)


def test_a_page_says_what_was_not_decided(data: Path, tmp_path: Path) -> None:
    """Of what one seed measured, and of what nothing measured."""
    queue = open_queue(tmp_path / "work", TINY, str(data))
    claim = next(claim for claim in CLAIMS if claim.name == "one-for-all")
    with pytest.raises(UserError, match=r"nothing in .* is measured yet"):
        write_page(queue, tmp_path / "page.md")
    for arm in claim.arms():
        keep(Measured("loss", "a machine", (0.5, 0.7, 0.9, 1.0), 4, 0.1, 0.2), queue.file_of(arm, 0))
    write_page(queue, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "**Verdict: not decided.**" in text and "1 seed x 4" in text and "a machine" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "tail-droping"], "there is no claim 'tail-droping'; did you mean tail-dropping"),
        (["run", "--scale", "smal"], "there is no scale 'smal'; did you mean small"),
        (["run", "--seeds", "0"], "0 is not from 1 to"),
        (["run", "--data", "nowhere"], "--data nowhere has no folders train and test"),
        (["page", "--out", "nowhere"], "nowhere holds no claims; make some with"),
        (["rum"], "invalid choice: 'rum'"),
    ],
)
def test_a_mistake_is_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["claims", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split()) and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_settings_is_refused(
    padded: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = measured(padded)
    assert main(["claims", "run", "zero-padding", "--scale", "small", "--data", str(data), "--out", str(padded)]) == 2
    assert "holds claims of width 16, not 96; give another --out" in " ".join(capsys.readouterr().err.split())
    assert main(["claims", "run", "zero-padding", "--scale", "tiny", "--out", str(padded)]) == 2
    assert "not emoji; give another --out" in " ".join(capsys.readouterr().err.split())
    other = tmp_path / "work"
    other.mkdir()
    (other / "settings.json").write_text((padded / "settings.json").read_text().replace('"format": 1', '"format": 2'))
    assert main(["claims", "run", "zero-padding", "--scale", "tiny", "--data", str(data), "--out", str(other)]) == 2
    assert "holds claims of another version (2, and not 1)" in " ".join(capsys.readouterr().err.split())
    assert measured(padded) == before


def test_the_list_names_every_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(claim.name in shown for claim in CLAIMS)
    assert max(map(len, shown.splitlines())) <= 80
