"""What all commands parse alike: a parser whose mistakes are sentences, and the types of options."""

import argparse
import difflib
import os
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from elit.errors import UserError

if TYPE_CHECKING:
    import torch

    from elit.reports.report import Report

T = TypeVar("T")
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
WIDTH = 80  # columns of a help text
MOST = 10_000_000  # images, pictures, rounds: more than anybody waits for
MOST_AT_ONCE = 65_536  # images in one call of a network
MOST_SEEDS = 10_000
MOST_SEED = 2**63 - 1
DTYPES = ("fp32", "fp16", "bf16")
FORMATS = ("png", "gif", "mp4")  # of `elit.media`, which no help text loads


class Help(argparse.RawDescriptionHelpFormatter):
    """Help of at most 80 columns, with the default of every option that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(WIDTH, shutil.get_terminal_size().columns))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        said = any(action.default is none for none in (None, False, argparse.SUPPRESS)) or action.default in ("", [])
        return text if said or "%(default)" in text or not action.option_strings else f"{text} (default: %(default)s)"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser of one command, or of one kind of it. A mistake raises UserError; nothing is printed but a help text.

    open_ended: whether options that it does not know are handed on, as `rest`, instead of refused.
    """

    def __init__(self, *args: Any, open_ended: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help, **kwargs})
        self.open_ended = open_ended

    def describe(self, text: str, *examples: str, takes: str = "") -> None:
        """What the command does, in paragraphs; how it is called, an example each; and what it `takes` beside options."""
        self.usage = self.usage or " ".join([self.prog, *takes.split(), "[options]"])
        self.description = "\n\n".join(textwrap.fill(part, WIDTH - 2) for part in text.split("\n\n"))
        self.epilog = "\n".join(["examples:", *(f"  {line}" for example in examples for line in example.splitlines())])

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        from elit.streams import print_out

        print_out(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        known, rest = super().parse_known_args(args, namespace)
        if rest and not self.open_ended:
            self.error(f"unknown argument {rest[0]!r}{self._near(rest[0])}")
        return known, rest

    def _near(self, wrong: str) -> str:
        known = set(re.findall(r"(?<![\w-])--?[\w.-]*\w", self.format_help()))
        near = difflib.get_close_matches(wrong.partition("=")[0], known, n=1, cutoff=0.6)
        return f" (did you mean {near[0]}?)" if near else ""


def option(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A function that raises UserError, as the `type=` of an option: argparse keeps its sentence, and names the option."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that is a whole number in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()):
            raise UserError(f"{text!r} is not a whole number; write one from {least} to {most}")
        value = int(text)
        if not least <= value <= most:
            raise UserError(f"{value} is not from {least} to {most}; give a number in that range")
        return value

    return option(parse)


@option
def number(text: str) -> float:
    """A finite number."""
    return _finite(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{text.strip()!r} is not a number; write numbers such as 0.5,1,1.5") from None
    if not -1e308 <= value <= 1e308:
        raise UserError(f"{text.strip()} is not a finite number; write numbers such as 0.5,1,1.5")
    return value


@option
def folder(text: str) -> Path:
    """A path that a command writes to or reads from: of no name it is refused, and ~ is the user's own folder."""
    return Path(place(text))


@option
def place(text: str) -> str:
    """A path, or a name that is looked up elsewhere (a hub's, a preset's): as it is, but for ~ at the start of a path."""
    if not text.strip():
        raise UserError("it names nothing; give a folder, such as . for the one you are in")
    if "\0" in text:
        raise UserError(f"{text!r} is no name of a file; give another")
    return os.path.expanduser(text)  # noqa: PTH111 - Path would change what is no path, such as s3://


def finish(report: "Report", out: Path, typed: str, device: "torch.device | None" = None) -> None:
    """Prints a report's tables, writes it, and says where it is.

    typed: the command line, which the page names. device: of the model, where there is one.
    """
    from elit.console import say, show
    from elit.reports.colophon import write_colophon
    from elit.reports.report import print_table, write_report, written_files

    for table in report.tables:
        print_table(table)
    if report.verdict:
        show(report.verdict)
    write_report(report, out, write_colophon(typed, device))
    say(f"pictures and figures are in {out}: {written_files(report)}")


def parse_numbers(text: str) -> list[float]:
    """ "1, 1.5" to numbers. Raises UserError for what is none, and for what is not finite."""
    return [_finite(part) for part in text.split(",")]


def parse_budgets(text: str) -> list[float]:
    """ "1/16, 0.5" to fractions. Raises UserError for what is not a fraction in (0, 1]."""
    from elit.target import parse_fraction

    return [parse_fraction(part) for part in text.split(",")]


def torch_dtype(name: str) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
