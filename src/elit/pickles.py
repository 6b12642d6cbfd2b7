"""Pickled torch files, read without running anything from them."""

import pickletools
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HARMLESS = ("torch.", "argparse.Namespace", "collections.OrderedDict", "_codecs.encode")  # what a torch.save may name
LARGEST = 2**26  # bytes of a pickle, whose tensors lie elsewhere


def read_pickle(file: Path) -> Any:
    """What `torch.save` put into a file: tensors, containers, plain values and argparse.Namespace, and nothing else.

    Tensors are mapped from the disk where the format allows, so what is not used is not read into memory.
    Raises ValueError for a file that is not there, is damaged, or asks for any other name of Python, which is told.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"  # torch's older format cannot be mapped
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch makes of strange files: the sentence below is enough
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # bytes chosen by anyone can make the reader raise anything
        name = refused_name(error, file, is_zip)
        if name is not None:
            raise ValueError(
                f"{file} asks for {name}, which could run code and which no weights need; it was refused and nothing of it"
                " ran; take weights from a source that you trust"
            ) from error
        raise ValueError(f"{file} is damaged, cut short, or no plain torch.save of weights; fetch it again") from error


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
