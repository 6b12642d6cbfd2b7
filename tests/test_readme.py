"""Every command and every line of Python in the README runs as written.

They run on small stand-ins of the bundled model and of the recipes in configs/: what is tested is that each does what it
says, not how long it takes.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from elit.cli import main
from ranks import run_ranks
from small_world import small_recipes, use_as_bundled

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
INSTALLING = ("python3.11 -m venv", ".venv/bin/pip install", "source ")  # what `make` itself does


SECTIONS = dict(re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", README, re.S | re.M))


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands(*programs: str, text: str = README) -> list[str]:
    joined = [block.replace("\\\n", " ") for block in blocks("bash", text)]
    lines = [line.split("#")[0].strip() for block in joined for line in block.splitlines()]
    return [line for line in lines if line.startswith(programs)]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Path) -> Path:
    """A folder of its own with the recipes in it."""
    small_recipes(tmp_path)
    use_as_bundled(stand_in, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> None:
    """A command of `elit`, or of torchrun, whose processes are forked from this one."""
    program, *words = shlex.split(command)
    if program == "elit":
        assert main(words) == 0, command
        return
    asked = get_args_parser().parse_args(words)
    assert (asked.module, asked.training_script) == (True, "elit.cli"), command
    codes = run_ranks(int(asked.nproc_per_node), lambda: sys.exit(main(asked.training_script_args)), Path("ranks.log"))
    assert not any(codes), command + Path("ranks.log").read_text()


@pytest.mark.parametrize("section", [name for name, text in SECTIONS.items() if commands("elit ", "torchrun ", text=text)])
def test_every_elit_command_runs(elsewhere: Path, section: str) -> None:
    """Those of a section, one after another, in a folder where nothing was done before."""
    for command in commands("elit ", "torchrun ", text=SECTIONS[section]):
        run(command)


def test_no_command_is_outside_the_sections() -> None:
    ours = ("elit ", "torchrun ")
    assert commands(*ours) == [command for text in SECTIONS.values() for command in commands(*ours, text=text)]


def test_every_python_block_runs(elsewhere: Path) -> None:
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_every_make_target_exists() -> None:
    targets = [command.split()[1] for command in commands("make ")]
    assert {"demo", "test", "results"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_no_other_kind_of_command_stands_in_the_readme() -> None:
    assert all(line.startswith(("elit ", "make ", "torchrun ", *INSTALLING)) for line in commands("") if line)


def test_the_tree_names_every_module() -> None:
    tree = README.split("## The house")[1]
    for file in (ROOT / "src/elit").rglob("*.py"):
        assert file.name == "__init__.py" or file.name in tree, file


def test_every_picture_is_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
