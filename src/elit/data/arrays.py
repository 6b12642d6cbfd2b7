"""The .npy format, read with bounds: the header first, and nothing that the file does not hold."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from elit.errors import UserError
from elit.files import open_regular
from elit.words import one_line


@dataclass(frozen=True)
class Header:
    """What the beginning of an array's file says: shape, order in memory, type, and how many bytes it takes itself."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(stream: IO[bytes]) -> Header:
    """The header of the array that begins here, after which the stream stands.

    Raises UserError for Python objects and for lengths below zero; for what is no array NumPy's errors, of many kinds, for
    the header is a Python literal.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UserError("it holds Python objects")
    if any(side < 0 for side in shape):
        raise UserError(f"it is no array of the shape it says, {shape}")
    return Header(shape, fortran, dtype, stream.tell())


def _checked_header(stream: IO[bytes]) -> Header:
    """The header that begins here. Raises UserError for what is no array."""
    try:
        return npy_header(stream)
    except UserError:
        raise
    except Exception as error:
        raise UserError(one_line(str(error))[:200] or type(error).__name__) from error


def read_npy(file: Path) -> np.ndarray[Any, Any]:
    """The array in an .npy file. Raises UserError for what is none, is not as large as it says, or cannot be read."""
    try:
        with open_regular(file) as stream:
            header = _checked_header(stream)
            size = header.length + header.size
            if size != os.fstat(stream.fileno()).st_size:
                raise UserError(f"{header.shape} of {header.dtype} are {size} bytes with the header, and the file has other")
            stream.seek(0)
            array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{error.strerror or error}") from error
    return array
