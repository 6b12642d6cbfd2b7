"""The command line as a whole: quick to answer, told in sentences, and never ended by who reads it."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

import elit
import elit.console
from elit.cli import COMMANDS, main, parse, parser_of
from elit.cli.parsing import Parser, folder, option, place, whole
from elit.console import Lines, duration, progress_bar, say, show
from elit.errors import NumbersError, UserError
from elit.streams import Stream


def parsers() -> dict[str, Parser]:
    """Every command and every kind of one, by its name."""
    found = {name: parser_of(name) for name in COMMANDS}
    for name, parser in list(found.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {kind}": child for kind, child in action.choices.items()}
    return found


@pytest.mark.parametrize("name", list(parsers()))
def test_every_command_explains_itself_within_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description, examples that parse, a word on each option and, where it has one, its default."""
    monkeypatch.setenv("COLUMNS", "200")
    parser = parsers()[name]
    text = argparse.ArgumentParser.format_help(parser)
    assert len(parser.description) > 50 and all(len(line) <= 80 for line in text.splitlines()), text
    examples = parser.epilog.replace("\\\n", " ").splitlines()[1:]
    assert examples
    for example in examples:
        program, *words = shlex.split(example)
        parse(words if program == "elit" else words[words.index("elit") + 1 :])
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action
        default = action.default
        if action.option_strings and isinstance(default, int | float | str) and not isinstance(default, bool):
            assert default in ("", argparse.SUPPRESS) or f"(default: {default})" in " ".join(text.split()), action


def test_help_and_version_load_nothing_heavy(tmp_path: Path) -> None:
    """In a process of its own: the list of commands without rich, and a command's help without torch."""
    code = (
        "import sys, time\n"
        "from elit.cli import COMMANDS, main\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        "assert not {'rich', 'torch', 'numpy', 'yaml'} & set(sys.modules)\n"
        "print(time.process_time())\n"
        "for name in COMMANDS:\n"
        "    assert main([name, '--help']) == 0\n"
        "for kind in ('images', 'latents', 'folder'): assert main(['prepare', kind, '--help']) == 0\n"
        "assert main(['sample', '--stpes', '3']) == 2\n"
        "assert not {'torch', 'numpy', 'PIL', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, version = done.stdout.split("\n\nelit COMMAND --help")[0], f"elit {elit.__version__}\n"
    assert all(f"\n  {name} " in first for name in COMMANDS) and version in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert not list(tmp_path.iterdir())


def test_elit_is_a_module_too() -> None:
    for module in ("elit", "elit.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"elit {elit.__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "elit: no command was given; begin with elit demo, and see elit --help"),
        (["smaple"], "elit: there is no command 'smaple'; did you mean sample?"),
        (["sample", "--buget", "1"], "elit: unknown argument '--buget' (did you mean --budget?); see elit sample --help"),
        (["report", "bugdets"], "invalid choice: 'bugdets'"),
        (["prepare"], "KIND; see elit prepare --help"),
        (["sample", "--count", "0"], "elit: --count: 0 is not from 1 to 10000000; give a number in that range; see elit"),
        (["sample", "--count", "-3"], "--count: -3 is not from 1"),
        (["sample", "--count", "1e3"], "'1e3' is not a whole number; write one from 1 to 10000000"),
        (["sample", "--count", "9" * 5000], "is not a whole number"),
        (["sample", "--tile", "99999999"], "--tile: 99999999 is not from 1 to"),
        (["sample", "--out", ""], "elit: --out: it names nothing; give a folder, such as . for the one you are in"),
        (["sample", "--out", "a\0b"], "is no name of a file"),
        (["sample", "--guidance.scale", "nan"], "--guidance.scale: nan is not a finite number"),
        (["evaluate", "emoji", "--reference", "emoji", "--bootstrap", "1000000000"], "--bootstrap: 1000000000 is not from"),
        (["evaluate", "emoji", "--reference", "emoji", "--seeds", "1000000000"], "--seeds: 1000000000 is not from"),
        (["report", "guidance", "--seeds", "0"], "--seeds: 0 is not from 1"),
        (["prepare", "images", "x", "--out", "y", "--workers", "100000"], "--workers: 100000 is not from 1"),
        (["export", "x"], "the following arguments are required: --out; see elit export --help"),
    ],
)
def test_a_mistyped_command_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("elit: ") and err.count("\n") == 1 and not out


def test_every_folder_that_is_written_to_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder("~/data") == tmp_path / "data" and place("~/m") == str(tmp_path / "m")
    assert place("user/model") == "user/model" and place("s3://a/b") == "s3://a/b"
    seen = 0
    for name, parser in parsers().items():
        for action in parser._actions:
            if action.dest in ("out", "publish", "work", "readme"):
                assert action.type is folder, (name, action.dest)
                seen += 1
            elif action.dest in ("model", "source", "images", "samples", "codec", "checkpoint", "name", "reference"):
                assert action.type is place or (name, action.dest) == ("import", "model"), (name, action.dest)
    assert seen >= 12
    assert parse(["sample", "--out=~/data"]).out == tmp_path / "data"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Runs a command in whose course an error is raised."""

    def fail(options: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr("elit.cli.models.run_info", fail)
    return main(["info"])


def test_mistakes_and_full_disks_are_sentences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error, said in [
        (UserError("this [is] so"), "elit: this [is] so\n"),
        (NumbersError("not finite"), "elit: not finite\n"),
        (FileNotFoundError(2, "No such file", "a [b] c.png"), "elit: a [b] c.png: No such file\n"),
        (OSError(28, "x could not be written; make room"), "elit: x could not be written; make room\n"),
    ]:
        assert failing(monkeypatch, error) == 2
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("a"), RuntimeError("out of memory, said a path"), FloatingPointError()]
)
def test_faults_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(monkeypatch, error)


def test_memory_that_ran_out_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    for error in (MemoryError("17 TB"), torch.OutOfMemoryError("CUDA"), RuntimeError("[x] DefaultCPUAllocator: can't")):
        assert failing(monkeypatch, error) == 2
        assert capsys.readouterr().err.startswith("elit: memory ran out")


def test_ctrl_c_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a library that is just imported makes another error of it."""
    assert failing(monkeypatch, KeyboardInterrupt()) == 130
    assert failing(monkeypatch, KeyboardInterrupt("stopped; step 3 is kept")) == 130
    error = ImportError("numpy")
    error.__cause__ = KeyboardInterrupt()
    assert failing(monkeypatch, error) == 130
    assert capsys.readouterr().err == "elit: stopped\nelit: stopped; step 3 is kept\nelit: stopped\n"


def test_a_reader_that_leaves_ends_nothing() -> None:
    """A pipe whose reader is gone before anything is written, on both streams; and a full disk is a sentence."""
    code = "import sys; from elit.cli import main; from elit.console import say, show\n"
    goes_on = (
        code + "say('x' * 99999); show('y' * 99999); say('z'); assert main(['train', '--help']) == 0; raise SystemExit(7)"
    )
    for stream in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writing}
        done = subprocess.run([sys.executable, "-c", goes_on], **streams, text=True)
        os.close(writing)
        assert done.returncode == 7 and "Traceback" not in f"{done.stderr}" and "Exception" not in f"{done.stderr}"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code + "sys.exit(main(['--help']))"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.startswith("elit: what was asked for could not be printed (No space left")
    assert done.stderr.count("\n") == 1


def test_what_is_printed_is_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No markup, no emoji, no line that is broken or cut, whatever the width."""
    monkeypatch.setenv("COLUMNS", "50")
    path = "smp[final]/[/x]/:heart:/" + "long/" * 60 + "  two  spaces"
    say(f"images are in {path}")
    show(path)
    table = Table("name", "value")
    table.add_row("a" * 70, "0.123456789" * 9)
    show(table)
    out, err = capsys.readouterr()
    assert err == f"images are in {path}\n" and out.startswith(f"{path}\n")
    assert "a" * 70 in out and "0.123456789" * 9 in out


def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stderr", file)
        say("Fréchet \udcff")
    assert (tmp_path / "log").read_text() == "Fr\\xe9chet \\udcff\n"
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody hears this")
    assert Stream("stderr", forgiving=True).write("nor this") == 8


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousand steps of a second each: a line after five, then after a tenth of the time, at most a minute."""
    now = [0.0]
    monkeypatch.setattr(elit.console.time, "monotonic", lambda: now[0])
    with progress_bar() as bar:
        assert isinstance(bar, Lines)
        task = bar.add_task("sampling [x]", total=1000, unit="images", per_step=2, completed=100)
        hidden = bar.add_task("another", total=10, visible=False)
        for _ in range(900):
            now[0] += 1
            bar.advance(task)
            bar.update(hidden, completed=3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sampling [x]: 105 of 1000, 2.0 images/s, 14:55 left"
    assert 15 < len(lines) < 50 and all(
        re.fullmatch(r"sampling \[x\]: \d+ of 1000, 2.0 images/s, [\d:]+ left", x) for x in lines
    )
    with progress_bar(lines=False) as bar:
        task = bar.add_task("training", total=10)
        now[0] += 99
        bar.update(task, completed=5)
    assert not capsys.readouterr().err
    assert [duration(s) for s in (6.6, 750, 11100, -1)] == ["0:07", "12:30", "3:05:00", "0:00"]


def test_types_of_options_keep_their_sentences() -> None:
    def parse(text: str) -> int:
        raise UserError(f"{text} is no good")

    with pytest.raises(argparse.ArgumentTypeError, match="5 is no good"):
        option(parse)("5")
    assert whole(0, 9)(" 7 ") == 7
