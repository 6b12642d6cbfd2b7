"""Processes of our own for data: they know only what they are given, and end when the main one does."""

import multiprocessing
import os
import tempfile
import threading
from multiprocessing import util
from multiprocessing.context import ForkServerContext
from pathlib import Path

from elit.errors import UserError

LONGEST = 60  # bytes of the folder in which processes meet: the system's sockets have names of about 100
PLACES = ("/tmp", "/var/tmp", "/dev/shm")


def own_processes(module: str) -> ForkServerContext:
    """Processes that are forked from one that has only loaded `module`: none of this process's threads and locks.

    Raises UserError where the folder of temporary files has too long a name for them to meet in, and there is no other.
    """
    settle_meeting_place()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def settle_meeting_place() -> None:
    """Has processes meet in another folder of temporary files where the usual one's name is too long."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST:
        return
    other = next((place for place in PLACES if Path(place).is_dir() and os.access(place, os.W_OK)), None)
    if other is None:
        raise UserError(
            f"TMPDIR is {usual}, too long a name for processes to meet in; set it to a shorter one, such as /tmp"
        )
    try:
        tempfile.tempdir = other
        util.get_temp_dir()  # made once, and kept
    finally:
        tempfile.tempdir = usual


def end_with_parent() -> None:
    """Ends this process when the main one is gone, killed ones included."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
