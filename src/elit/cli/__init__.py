"""The command `elit`, a file per command.

Only this folder parses. A user's mistake is one sentence on the error stream and exit code 2; any other exception is a
fault of the program, and keeps its traceback. Nothing heavy is imported before a command needs it.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse

    from elit.cli.parsing import Parser

INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


class Command(NamedTuple):
    """What the list of commands says of one, and the function of a module of this folder that fills its parser."""

    summary: str
    module: str
    fill: str


COMMANDS = {
    "demo": Command("sample the bundled model at every budget, with what it costs", "demo", "add_demo"),
    "info": Command("parameters and GFLOPs per budget of a preset or of a model", "models", "add_info"),
    "sample": Command("make images in any number, with any budget and guidance", "sample", "add_sample"),
    "report": Command("pictures, figures and one page on what a model does", "report", "add_report"),
    "app": Command("a page to move the budget on, and see what it draws", "serve", "add_app"),
    "serve": Command("serve a model over HTTP, with budgets that meet deadlines", "serve", "add_serve"),
    "prepare": Command("make data for training: pictures, clips, latents, prompts", "prepare", "add_prepare"),
    "train": Command("train a model, or go on with a run", "train", "add_train"),
    "finetune": Command("train a transformer of diffusers, or make it elastic", "finetune", "add_finetune"),
    "evaluate": Command("Fréchet distances and more, of images or of a model's samples", "evaluate", "add_evaluate"),
    "export": Command("make a model folder for inference from a checkpoint of a run", "models", "add_export"),
    "import": Command("make a model folder of one of the authors' checkpoints", "models", "add_import"),
    "calibrate-cache": Command("let steps of a model reuse earlier ones: fit and try a cache", "cache", "add_cache"),
    "claims": Command("try the paper's claims at a small scale", "claims", "add_claims"),
    "results": Command("measure a model's quality per budget, for its card", "results", "add_results"),
}

HELP = """\
usage: elit COMMAND [options]

Elastic diffusion transformers: one model, many budgets.

commands:
{commands}

options:
  -h, --help  show this help
  --version   show the version

elit COMMAND --help explains a command. To begin: elit demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0; 2 for a mistake, told in a sentence; 130 where Ctrl-C ended it."""
    try:
        run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt as stop:
        complain(str(stop) or "stopped")
        return INTERRUPTED
    except Exception as error:
        code = failed(error)
        if code is None:
            raise
        return code
    return 0


def run(arguments: list[str]) -> None:
    """Runs a command. What goes wrong is raised."""
    if arguments and arguments[0] in ("-h", "--help", "--version"):
        from elit import __version__
        from elit.streams import print_out

        wide = max(map(len, COMMANDS)) + 2
        known = "\n".join(f"  {name:{wide}}{command.summary}" for name, command in COMMANDS.items())
        print_out(f"elit {__version__}\n" if arguments[0] == "--version" else HELP.format(commands=known))
        return
    try:
        options = parse(arguments)
    except SystemExit:  # a help text, which is printed
        return
    options.run(options)


def parse(arguments: list[str]) -> "argparse.Namespace":
    """The options of a command; `options.run(options)` is to run it, `options.rest` what an open-ended one hands on, and
    `options.typed` the whole line, such as a report names it.

    Raises UserError for what the command does not take, and SystemExit where it has printed its help text.
    """
    if not arguments or arguments[0] not in COMMANDS:
        from elit.errors import UserError
        from elit.words import suggest

        if not arguments:
            raise UserError("no command was given; begin with elit demo, and see elit --help")
        raise UserError(f"there is no command {arguments[0]!r}; {suggest(arguments[0], list(COMMANDS))}")
    options, rest = parser_of(arguments[0]).parse_known_args(arguments[1:])
    options.rest, options.typed = rest, shlex.join(["elit", *arguments])
    return options


def parser_of(name: str) -> "Parser":
    """The parser of a command, as its module fills it."""
    import importlib

    from elit.cli.parsing import Parser

    command = COMMANDS[name]
    parser = Parser(prog=f"elit {name}", open_ended=name in ("train", "finetune"))
    getattr(importlib.import_module(f"elit.cli.{command.module}"), command.fill)(parser)
    return parser


def failed(error: Exception) -> int | None:
    """Says in a sentence what went wrong, and returns the exit code; None, and no word, for a fault of the program."""
    from elit.errors import UserError

    if interrupted(error):
        complain("stopped")
        return INTERRUPTED
    if isinstance(error, UserError | OSError):
        if speaks(error):
            complain(sentence(error))
        return 2
    if out_of_memory(error):
        complain(f"memory ran out ({' '.join(str(error).split())[:160]}); ask for fewer or smaller things at once")
        return 2
    if is_lost_rank(error):
        complain(f"{error}; the same command goes on from the last checkpoint")
        sys.stderr.flush()
        os._exit(1)  # threads may wait for the dead process: nothing in order can be expected of them
    return None


def complain(text: str) -> None:
    from elit.console import say

    say(f"elit: {text}", style="red")


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: a library that it meets while it is imported raises an error of its own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def sentence(error: Exception) -> str:
    """What a mistake says of itself: the system's own errors with the file that they met."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def speaks(error: Exception) -> bool:
    """Whether this process tells of an error: those of a torchrun mostly fail alike, and then the first one does."""
    if "RANK" not in os.environ:  # no need to load torch for a mistyped option
        return True
    from elit.distributed import OneRankError, is_main

    return is_main() or isinstance(error, OneRankError)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On CPUs torch has no type for that, only its allocator's name in the text."""
    torch = sys.modules.get("torch")
    known = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error))


def is_lost_rank(error: Exception) -> bool:
    distributed = sys.modules.get("elit.distributed")
    return distributed is not None and isinstance(error, distributed.LostRankError)
