"""The command `elit`, a file per command.

Only this folder parses. A user's mistake is one sentence on the error stream and exit code 2, never a traceback.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from elit.cli.demo import add_demo
from elit.cli.evaluate import add_evaluate
from elit.cli.models import add_export, add_import, add_info
from elit.cli.prepare import add_prepare
from elit.cli.report import add_report
from elit.cli.results import add_results
from elit.cli.sample import add_sample
from elit.cli.train import add_train
from elit.console import console

COMMANDS = (
    *(add_demo, add_report, add_prepare, add_train, add_sample, add_evaluate),
    *(add_import, add_export, add_info, add_results),
)
INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="elit", description="Elastic diffusion transformers: one model, many budgets.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command != "train":
        parser.error(f"unknown argument {rest[0]!r}; see elit {known.command} --help")
    try:
        run: Callable[[argparse.Namespace, list[str]], None] = known.run
        run(known, rest)
    except (ValueError, OSError, FloatingPointError) as error:
        from elit.distributed import OneRankError, is_main

        if is_main() or isinstance(error, OneRankError):  # processes of a torchrun fail alike, and one says why
            console.print(f"elit: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except (RuntimeError, MemoryError) as error:
        from elit.distributed import LostRankError

        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            why = " ".join(str(error).split())[:160]
            console.print(
                f"elit: memory ran out ({why}); ask for fewer or smaller things at once", markup=False, soft_wrap=True
            )
            return 2
        if not isinstance(error, LostRankError):
            raise
        console.print(f"elit: {error}; the same command goes on from the last checkpoint", markup=False, soft_wrap=True)
        sys.stderr.flush()
        os._exit(1)  # threads may wait for the dead process: nothing in order can be expected of them
    except KeyboardInterrupt:
        console.print("elit: stopped; what was finished is kept, and the same command goes on from there", markup=False)
        return INTERRUPTED
    return 0
