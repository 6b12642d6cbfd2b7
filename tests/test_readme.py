"""Every command and every line of Python in the README and in docs/ runs as written, and every link leads somewhere.

They run on small stand-ins of the bundled model and of the recipes in configs/: what is tested is that each does what it
says, not how long it takes.
"""

import argparse
import functools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import elit
from elit.backbones.table import BACKBONES
from elit.cli import COMMANDS, main, parse, parser_of
from elit.training.host_config import HostTrainConfig, load_host_config
from elit.training.reading import keys_of, kind_of, load_config
from ranks import run_ranks
from small_world import small_recipes, use_as_bundled

ROOT = Path(__file__).parents[1]
PAGES = {
    page: (ROOT / page).read_text(encoding="utf8")
    for page in ["README.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")))]
}
INSTALLING = ("python3.11 -m venv .venv", ".venv/bin/pip install --constraint constraints.txt", "source .venv/bin/activate")
OTHERS = {
    "--nproc-per-node",
    "--nproc_per_node",
    "--max-restarts",
    "--shutdown-timeout",
    "--help",
    "--version",
}  # torchrun's
# What is run in place of what the pages say, to take less time: models of a quarter of the weights, fewer steps.
CHEAPER = {
    **{"SiT-XL/2": "SiT-S/2", "SiT-B/2": "SiT-S/2"},
    **{
        "--steps 10": "--steps 3",
        "--steps 20": "--steps 3",
        "step_00000020": "step_00000003",
        "preview_every 20": "preview_every 3",
    },
    **{"steps=25": "steps=3", "num_inference_steps=10": "num_inference_steps=3"},
    **{"--count 24": "--count 9", "--count 200": "--count 24", "--count 40": "--count 12"},
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each block of a page, in order."""
    return FENCE.findall(PAGES[page])


def lines(block: str) -> list[str]:
    """The commands of a block: continued lines joined, without empty ones and those that are remarks."""
    return [line for line in block.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


def words_of(command: str) -> list[str] | None:
    """What `elit` is given by a command, also under torchrun; None for another program's."""
    program, *words = shlex.split(command, comments=True)
    if program == "torchrun":
        asked = get_args_parser().parse_args(words)
        assert (asked.module, asked.training_script) == (True, "elit"), command
        return list(asked.training_script_args)
    return words if program == "elit" else None


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bundled_model: Path) -> Path:
    """A folder of its own with the recipes in it."""
    small_recipes(tmp_path)
    use_as_bundled(small_bundled_model, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("elit.reports.budgets.LATENCY_REPEATS", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cheaper(text: str) -> str:
    """A command or Python, alike in everything but what it costs."""
    for long, short in CHEAPER.items():
        text = text.replace(long, short)
    return text


def run(command: str) -> None:
    """Runs a line of a bash block; of what is long or changes the machine only that it could be run."""
    command = cheaper(command)
    program, *words = shlex.split(command, comments=True)
    if program == "elit":
        assert main(words) == 0, command
    elif program == "torchrun":
        count, ours = int(get_args_parser().parse_args(words).nproc_per_node), words_of(command)
        codes = run_ranks(count, lambda: sys.exit(main(ours)), Path("ranks.log"))  # forked from this process
        assert not any(codes), command + Path("ranks.log").read_text()
    elif program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
    elif program == "python" and words[0].startswith("benchmarks/"):
        check_benchmark(words)
    else:
        assert command.startswith(INSTALLING), f"{command} is none that this test can run"


def check_benchmark(words: list[str]) -> None:
    """That a benchmark is there, and knows each option it is given."""
    text = (ROOT / words[0]).read_text(encoding="utf8")
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in text, words


def check(words: list[str]) -> None:
    """That a command which is not run would be understood: its options, and for training its configuration too."""
    options = parse(words)
    if words[0] == "train":
        assert options.config is None or (ROOT / options.config).is_file(), words
        load_config(None if options.config is None else ROOT / options.config, options.rest)
    if words[0] == "finetune":
        assert options.config is None or (ROOT / options.config).is_file(), words
        load_host_config(None if options.config is None else ROOT / options.config, options.rest)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(language in ("bash", "python") for language, _ in blocks(page))]
)
def test_every_block_of_a_page_runs(page: str, elsewhere: Path) -> None:
    """One after another, in a folder where nothing was done before; text blocks are for what needs other machines."""
    for language, block in blocks(page):
        if language == "bash":
            for line in lines(block):
                run(line)
        elif language == "python":
            exec(compile(cheaper(block), page, "exec"), {})


def test_text_blocks_hold_commands_that_would_be_understood() -> None:
    seen = 0
    for page in PAGES:
        for language, block in blocks(page):
            assert language in ("bash", "python", "text"), (page, block)
            if language != "text" or page == "docs/house.md":  # which draws trees
                continue
            if "elit." in block:
                compile(block, page, "exec")
                assert all(hasattr(elit, name) for name in re.findall(r"elit\.(\w+)", block)), block
                continue
            for line in lines(block):
                words = words_of(line)
                assert words, (page, line)
                check(words)
                seen += 1
    assert seen >= 10


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """Every option of a command and of its kinds; of training, every key."""
    kinds = [kind_of(row.architecture) for row in BACKBONES] if command == "train" else []
    kinds += [HostTrainConfig] if command == "finetune" else []
    keys = {key.name for kind in kinds for key in keys_of(kind)}
    return frozenset(
        [*_options(parser_of(command)), *(f"--{form}" for key in keys for form in (key, key.replace("_", "-")))]
    )


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _options(child)


def spans(page: str) -> list[str]:
    """The code within the lines of a page, outside its blocks and beyond the authors' columns of tables."""
    text = FENCE.sub("", PAGES[page])
    theirs = page == "docs/from-the-authors-code.md"
    cells = [line.split("|", 2)[2] if theirs and line.startswith("|") else line for line in text.splitlines()]
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", "\n".join(cells))]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_within_a_line_is_there(page: str) -> None:
    """`elit COMMAND ...` names a command (and kind) and options of it; an option alone is one of some command."""
    everything = OTHERS.union(*(options_of(name) for name in COMMANDS))
    theirs = {"--ckpt", "--max_train_steps"} if page == "docs/from-the-authors-code.md" else set()
    for span in spans(page):
        command, *words = span.split()
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        if command == "elit" and words and not words[0].startswith("-"):
            assert words[0] in COMMANDS, (page, span)
            assert named <= options_of(words[0]) | {"--help"}, (page, span)
            if words[0] in ("prepare", "report") and len(words) > 1 and words[1][0] != "-":
                assert words[1] in {
                    "images",
                    "clips",
                    "latents",
                    "prompts",
                    "folder",
                    "emoji-styles",
                    "budgets",
                    "guidance",
                    "attention",
                    "schedule",
                    "results",
                }
        elif command.startswith("--"):
            assert {command.partition("=")[0], *named} <= everything | theirs, (page, span)
        elif command == "make":
            subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
        elif command == "python" and words[0].startswith("benchmarks/"):
            check_benchmark(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (ROOT / page).parent / file if file else ROOT / page
        assert found.is_file(), (page, target)
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, (page, target)


def test_every_extra_that_is_named_is_there() -> None:
    """In the pages, and in what the package says where one is missing."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]
    texts = [*PAGES.values(), *(file.read_text(encoding="utf8") for file in (ROOT / "src").rglob("*.py"))]
    named = [found for text in texts for found in re.findall(r"\b(elit[\w-]*)\[(\w+)\]['\"]", text)]
    assert {extra for _, extra in named} >= {"serve", "ray", "hosts", "video", "styles"}
    assert all(package == "elit-diffusion" and extra in known for package, extra in named), named
    told = PAGES["README.md"].split("## Install")[1].split("## ")[0]
    assert all(f"`{extra}`" in told for extra in known if extra != "app")  # which is `serve` by another name


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 130
    assert all(f"]({page})" in PAGES["README.md"] for page in PAGES if page != "README.md")
    assert {"make demo", "make test"} <= {
        line.split("#")[0].strip() for _, block in blocks("README.md") for line in lines(block)
    }


def test_the_readmes_figures_are_those_of_the_whole_table() -> None:
    def rows(text: str) -> dict[str, dict[str, str]]:
        table = next(part for part in re.findall(r"(?:^\|.*\n)+", text, re.M) if "Fréchet distance |" in part)
        head, _, *body = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        return {cells[0]: dict(zip(head, cells, strict=True)) for cells in body}

    short, whole = rows(PAGES["README.md"]), rows(PAGES["docs/evaluation.md"].split("<!-- table:begin -->")[1])
    assert len(short) >= 3
    for name, row in short.items():
        assert row.items() <= whole[name].items(), name


@pytest.mark.parametrize(
    "command",
    [
        "elit sample --buget 1/4",
        "elit sample --count 0",
        "elit report nothing",
        "elit train --config configs/nowhere.yaml",
        "elit train --config configs/emoji-tiny.yaml --optimizer.rate 1",
        "torchrun --nproc-per-node 2 -m elit smaple",
        "make nothing",
        "python benchmarks/forward.py --nothing",
        "python benchmarks/nothing.py",
        "pip install elit",
        "ls",
    ],
)
def test_a_wrong_command_would_be_found(command: str, elsewhere: Path) -> None:
    """What runs the pages fails for each kind of mistake, and what only reads them too."""
    with pytest.raises((AssertionError, OSError, subprocess.CalledProcessError, elit.UserError)):
        words = words_of(command)
        if words:
            check(words)
        else:
            run(command)
