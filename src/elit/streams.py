"""The standard streams, written to in a way that no reader that leaves can end."""

import os
import sys
from collections.abc import Callable
from typing import Any

from elit.files import WriteError


class Stream:
    """sys.stdout or sys.stderr, whichever object that is when something is written.

    Where its reader has left, what is written is dropped, for good. Another failure, such as of a full disk, raises
    WriteError, or is dropped too where `forgiving`. Letters that its encoding lacks are written as escapes.
    """

    def __init__(self, name: str, forgiving: bool) -> None:
        self.name, self.forgiving = name, forgiving

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def _stream(self) -> Any:
        stream = getattr(sys, self.name)
        return getattr(stream, "rich_proxied_file", stream)  # a progress bar puts a stream of its own in place of it

    def write(self, text: str) -> int:
        stream = self._stream()
        if stream is not None:
            encoding = getattr(stream, "encoding", None) or "utf8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            self._try(lambda: stream.write(text))
        return len(text)

    def flush(self) -> None:
        stream = self._stream()
        if stream is not None:
            self._try(stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._drop()
            if not self.forgiving and not isinstance(error, BrokenPipeError):
                why = error.strerror or error
                raise WriteError(
                    error.errno, f"what was asked for could not be printed ({why}); print it elsewhere"
                ) from error

    def _drop(self) -> None:
        """Sends this and all that follows nowhere, also what the interpreter flushes at its end."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream().fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass  # a stream without a descriptor, such as a test's


def print_out(text: str) -> None:
    """A text on the standard output, without loading what tables and bars need."""
    stream = Stream("stdout", forgiving=False)
    stream.write(text)
    stream.flush()
