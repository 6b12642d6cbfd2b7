"""The .npy format, read with bounds: the header first, and nothing that the file does not hold."""

import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from elit.errors import UserError
from elit.files import open_regular
from elit.words import one_line


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran's order, type) of the array that begins here. Raises UserError for what is no array."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # the header is a Python literal, which fails in many ways
        raise UserError(one_line(str(error))[:200] or type(error).__name__) from error
    if dtype.hasobject:
        raise UserError("it holds Python objects")
    if any(side < 0 for side in shape):
        raise UserError(f"its shape is {shape}")
    return shape, fortran, dtype


def read_npy(file: Path) -> np.ndarray[Any, Any]:
    """The array in an .npy file. Raises UserError for what is none, is not as large as it says, or cannot be read."""
    try:
        with open_regular(file) as stream:
            shape, _, dtype = npy_header(stream)
            size = stream.tell() + math.prod(shape) * dtype.itemsize
            if size != os.fstat(stream.fileno()).st_size:
                raise UserError(f"{shape} of {dtype} are {size} bytes with the header, and the file has other")
            stream.seek(0)
            array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{error.strerror or error}") from error
    return array
