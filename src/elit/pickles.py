"""Pickled torch files and numpy arrays, read without running anything from them."""

import pickle
import pickletools
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from elit.errors import UserError

HARMLESS = ("torch.", "argparse.Namespace", "collections.OrderedDict", "_codecs.encode")  # what a torch.save may name
LARGEST = 2**26  # bytes of a pickle, whose tensors lie elsewhere


def read_pickle(file: Path) -> Any:
    """What `torch.save` put into a file: tensors, containers, plain values and argparse.Namespace, and nothing else.

    Tensors are mapped from the disk where the format allows, so what is not used is not read into memory.
    Raises UserError for a file that is not there, is damaged, or asks for any other name of Python, which is told.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"  # torch's older format cannot be mapped
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch makes of strange files: the sentence below is enough
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # bytes chosen by anyone can make the reader raise anything
        name = refused_name(error, file, is_zip)
        if name is not None:
            raise UserError(
                f"{file} asks for {name}, which could run code and which no weights need; it was refused and nothing of it"
                " ran; take weights from a source that you trust"
            ) from error
        raise UserError(f"{file} is damaged, cut short, or no plain torch.save of weights; fetch it again") from error


def refused_name(error: Exception, file: Path, is_zip: bool) -> str | None:
    """The name of Python that torch refused; None where the file failed for another reason."""
    told = re.search(r"GLOBAL (\S+)", str(error))
    if told:
        return told[1]
    try:  # torch tells no name for a pickle of a later protocol than its own
        names = names_in(instructions(file, is_zip))
        return next((name for name in names if not name.startswith(HARMLESS)), None)
    except Exception:  # damaged after all
        return None


def instructions(file: Path, is_zip: bool) -> bytes:
    """The pickle of a torch file, or the first of those that its older format strings together."""
    if not is_zip:
        with file.open("rb") as stream:
            return stream.read(LARGEST)
    with zipfile.ZipFile(file) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(inside) as part:
            return part.read(LARGEST)


def names_in(pickled: bytes) -> Iterator[str]:
    """Every name of Python that a pickle asks for; its instructions are read and not followed."""
    texts: list[str] = []
    memo: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":  # the two texts on top of the stack: a module and a name in it
            yield ".".join(texts[-2:])
        elif opcode.name == "MEMOIZE":
            memo.append(texts[-1] if texts else "")
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            texts.append(memo[int(argument or 0)])
        elif isinstance(argument, str):
            texts.append(argument)


class PlainArray:
    """Stands for numpy's array in a pickle: takes its state, and makes the array of checked parts."""

    array: np.ndarray[Any, Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: bytes, dtype: "PlainType", shape: tuple[int, ...], order: Literal["F", "C"]) -> "PlainArray":
        self.array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
        return self


class PlainType:
    """Stands for numpy's dtype: numbers only, little-endian."""

    def __init__(self, code: str, *ignored: Any) -> None:
        if code not in ("f2", "f4", "f8", "i4", "i8"):
            raise UserError(f"an array of {code!r}")
        self.numpy = np.dtype("<" + code)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "="):
            raise UserError(f"an array of byte order {state[1]!r}")


class ArrayUnpickler(pickle.Unpickler):
    """Containers, plain values and arrays of numbers. No name of a pickle is looked up: ours stand for the few allowed."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, object] = {
            "numpy.core.multiarray._reconstruct": lambda *ignored: PlainArray(),
            "numpy.core.numeric._frombuffer": lambda *parts: PlainArray().fill(*parts),
            "numpy.ndarray": None,
            "numpy.dtype": PlainType,
            "_codecs.encode": lambda text, encoding: text.encode("latin1"),
        }
        wanted = f"{module}.{name}"
        if (later := wanted.replace("numpy._core.", "numpy.core.")) not in known:  # its name from numpy 2 on
            raise RefusedNameError(wanted)
        return known[later]


class RefusedNameError(Exception):
    """A name of Python that a pickle asks for and no array needs."""


def read_arrays(file: Path) -> Any:
    """What `pickle.dump` put into a file: containers, plain values and numpy arrays of numbers, and nothing else.

    Raises UserError for a file that is not there, is damaged, or asks for any other name of Python, which is told.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        with file.open("rb") as stream:
            return _plain(ArrayUnpickler(stream).load())
    except RefusedNameError as error:
        raise UserError(
            f"{file} asks for {error}, which could run code and which no statistics need; it was refused and nothing of it"
            " ran; take statistics from a source that you trust"
        ) from error
    except Exception as error:  # bytes chosen by anyone can make the reader raise anything
        raise UserError(f"{file} is damaged, or no pickle of plain arrays ({error}); fetch it again") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.array if isinstance(value, PlainArray) else value
