"""Where models are written: whole under one name at every moment, and never at the cost of anybody's files."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elit import DiT, ElitPipeline, UserError, load_model
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.cli import main
from elit.weights import CONFIG_FILE, OURS, WEIGHTS_FILE, check_target, new_model_folder, save_weights

OPERATIONS = ("rename", "replace", "mkdir", "unlink", "rmdir", "chmod")


class Stop(BaseException):
    """What Ctrl-C is like."""


def write(model: DiT, steps: int, out: Path) -> None:
    """A model folder that its card tells from another's, and its weights too."""
    with torch.no_grad():
        model.final.linear.bias.fill_(steps)
    with new_model_folder(out, overwrite=True) as part:
        save_weights(model, part)
        save_card(Card(SamplingDefaults(steps=steps)), part)


def whole(out: Path) -> int:
    """Which of the folders above is there: its card and its weights agree."""
    steps = int(load_model(out).final.linear.bias[0])
    assert load_card(out).sampling.steps == steps
    return steps


def at_operation(monkeypatch: pytest.MonkeyPatch, number: int, stop: Callable[[], None], after: bool) -> list[str]:
    """Has the operation on files of that number stop the process, before or after it; returns those that were done."""
    done: list[str] = []

    def wrapped(name: str) -> Callable[..., object]:
        plain = getattr(os, name)

        def operation(*arguments: object, **options: object) -> object:
            done.append(name)
            mine = len(done) == number
            if mine and not after:
                stop()
            try:
                return plain(*arguments, **options)
            finally:
                if mine and after:
                    stop()

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, wrapped(name))
    return done


@pytest.fixture
def operations(tiny: DiT, tmp_path: Path) -> int:
    """How many operations on files one replacement takes."""
    with pytest.MonkeyPatch.context() as patch:
        write(tiny, 1, tmp_path / "counted" / "model")
        done = at_operation(patch, 0, lambda: None, after=False)
        write(tiny, 2, tmp_path / "counted" / "model")
    assert done.count("rename") == 2 and len(done) > 10
    return len(done)


@pytest.mark.parametrize("after", [False, True])
def test_an_interruption_at_any_operation_leaves_one_whole_folder(tiny: DiT, tmp_path: Path, operations: int, after: bool):
    """Under its name at once; and the next replacement leaves nothing beside it."""

    def stop() -> None:
        raise Stop

    for number in range(1, operations + 1):
        out = tmp_path / f"{number}" / "model"
        write(tiny, 1, out)
        with pytest.MonkeyPatch.context() as patch:
            at_operation(patch, number, stop, after)
            with pytest.raises(Stop):
                write(tiny, 2, out)
        assert out.is_dir() and whole(out) in (1, 2)
        write(tiny, 3, out)
        assert whole(out) == 3 and [place.name for place in out.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_operation_leaves_one_whole_folder(tiny: DiT, tmp_path: Path, operations: int, after: bool):
    """Under its name or beside it, where reading finds it; and the next replacement leaves nothing beside it."""
    for number in range(1, operations + 1):
        out = tmp_path / f"{number}" / "model"
        write(tiny, 1, out)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # threads of torch are not in the child, which needs none
            child = os.fork()
        if child == 0:
            try:
                at_operation(pytest.MonkeyPatch(), number, lambda: os._exit(9), after)
                write(tiny, 2, out)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert whole(out) in (1, 2)
        write(tiny, 3, out)
        assert whole(out) == 3 and [place.name for place in out.parent.iterdir()] == ["model"]


def test_only_an_empty_folder_or_a_model_of_ours_is_written_to(tiny: DiT, model_folder: Path, tmp_path: Path):
    """A run's own folder, another program's model, strangers' files, a file, and links to nowhere stay as they are."""
    (tmp_path / "empty").mkdir()
    assert check_target(tmp_path / "empty") == tmp_path / "empty"
    assert check_target(tmp_path / "deep" / "absent") == tmp_path / "deep" / "absent"
    assert not (tmp_path / "deep").exists()
    assert check_target(model_folder, overwrite=True) == model_folder
    run, theirs, beside = tmp_path / "run", tmp_path / "theirs", tmp_path / "beside"
    for folder, files in (
        (run, {CONFIG_FILE: '{"steps": 3}'}),
        (theirs, {CONFIG_FILE: '{"architecture": "UNet"}', WEIGHTS_FILE: "x"}),
        (beside, {CONFIG_FILE: (model_folder / CONFIG_FILE).read_text(), WEIGHTS_FILE: "x", "notes.txt": "mine"}),
    ):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, said in (
        (model_folder, "--overwrite"),
        (run, "no model of this library"),
        (theirs, "'UNet'"),
        (beside, "notes.txt"),
        (tmp_path / "file", "no folder"),
        (tmp_path / "loop", "leads nowhere"),
        (tmp_path / "file" / "below", "could not be written"),
        (Path(), "holds other files"),
    ):
        with pytest.raises((UserError, OSError), match=said):
            check_target(place, overwrite=place != model_folder)


def test_the_folder_where_one_is_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="where you are"):
        check_target(Path())


def test_links_are_followed_and_stay(tiny: DiT, tmp_path: Path):
    """One to a folder, and one to a folder that is not there yet; a link among the files is a stranger's."""
    link = tmp_path / "link"
    link.symlink_to("deep/model", target_is_directory=True)
    for steps in (1, 2):
        write(tiny, steps, link)
        assert link.is_symlink() and whole(tmp_path / "deep" / "model") == whole(link) == steps
    weights = link / WEIGHTS_FILE
    weights.rename(tmp_path / "large")
    weights.symlink_to(tmp_path / "large")
    with pytest.raises(UserError, match=WEIGHTS_FILE):
        write(tiny, 3, link)


def test_a_readme_of_ones_own_is_kept_by_export(model_folder: Path, tmp_path: Path):
    """As it stood there before; save_pretrained writes its own."""
    out = tmp_path / "out"
    assert main(["export", str(model_folder), "--out", str(out)]) == 0
    (out / "README.md").write_text("mine")
    assert main(["export", str(model_folder), "--out", str(out), "--overwrite"]) == 0
    assert (out / "README.md").read_text() == "mine"
    ElitPipeline.from_pretrained(out).save_pretrained(out)
    assert sorted(place.name for place in out.iterdir()) == sorted(set(OURS) - {"cache.json"})  # a fit, which it has not
    assert (out / "README.md").read_text() != "mine"
    with pytest.raises(UserError, match="holds a model already"):
        ElitPipeline.from_pretrained(out).save_pretrained(out, overwrite=False)


def test_export_leaves_a_runs_own_folder_alone(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And takes the run's folder for its last checkpoint."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    model_folder.rename(run / "checkpoints" / "step_00000002")
    (run / CONFIG_FILE).write_text(json.dumps({"steps": 2}))
    for flags in ([], ["--overwrite"]):
        assert main(["export", str(run), "--out", str(run), *flags]) == 2
        assert "holds other files, such as checkpoints" in " ".join(capsys.readouterr().err.split())
    assert json.loads((run / CONFIG_FILE).read_text()) == {"steps": 2}
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    load_model(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Export and import look at nothing else first; nothing is left behind."""
    (tmp_path / "file").write_text("x")
    for command in ("export", "import"):
        assert main([command, str(tmp_path / "nowhere"), "--out", str(tmp_path / "file" / "out")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "could not be written" in said and "nowhere" not in said
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_with_the_place_and_leaves_nothing(model_folder: Path, tmp_path: Path, capsys, monkeypatch):
    """safetensors has an exception of its own for it."""
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("elit.weights.save_file", full)
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(model_folder), "--out", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in said and "make room" in said and "out" in said
    with pytest.raises(OSError, match="make room"):
        ElitPipeline.from_pretrained(model_folder).save_pretrained(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
