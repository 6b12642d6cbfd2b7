"""Arrays in .npz files of anyone: looked at before they are read, mapped from the disk where they are not compressed."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from elit.data.arrays import Header, npy_header
from elit.errors import UserError
from elit.files import open_regular
from elit.words import one_line

Array: TypeAlias = np.ndarray[Any, Any]
SHOWN = 6  # names of arrays in a message


def array_names(file: Path) -> list[str]:
    """The names of an .npz's arrays. Raises UserError for a file that is none."""
    with _opened(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def told_names(file: Path) -> str:
    """The names of all that an .npz holds, for a message."""
    with _opened(file) as archive:
        names = [one_line(repr(name.removesuffix(".npy"))[1:-1])[:40] for name in archive.namelist()]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "") or "nothing"


def read_array(file: Path, name: str, limit: int) -> Array:
    """An array in memory. Raises UserError for one that is not there, damaged, or of more than `limit` bytes."""
    with _opened(file) as archive:
        header, _ = _header(archive, file, name, limit)
        with archive.open(f"{name}.npy") as stream:
            stream.read(header.length)
            content = stream.read(header.size)
        return np.ndarray(header.shape, header.dtype, bytearray(content), order="F" if header.fortran else "C")


def map_array(file: Path, name: str) -> Array:
    """An array mapped from the disk; read into memory where it is compressed.

    Raises UserError for one that is not there or damaged, and for a compressed one that the machine's memory cannot hold.
    """
    with _opened(file) as archive:
        header, entry = _header(archive, file, name, None)
    if entry.compress_type != zipfile.ZIP_STORED:
        return read_array(file, name, _memory())
    with file.open("rb") as raw:  # the file's own header, of a length that it tells, is before the array
        raw.seek(entry.header_offset + 26)
        lengths = sum(int.from_bytes(raw.read(2), "little") for _ in range(2))
    start = entry.header_offset + 30 + lengths + header.length
    if start + header.size > file.stat().st_size:
        raise UserError(f"{name} of {file} cannot be read (it is cut short); fetch or make it again")
    return np.memmap(file, header.dtype, "r", start, header.shape, "F" if header.fortran else "C")


def _memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file to read; what the reader meets inside in a damaged one is a UserError."""
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            yield archive
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{file} is not an .npz, or damaged ({one_line(str(error))}); fetch or make it again") from error
    except NotImplementedError as error:
        raise UserError(
            f"{file} is compressed in a way that cannot be read here ({error}); write it with numpy.savez"
        ) from error
    except (OSError, ValueError, EOFError, RuntimeError, OverflowError, zipfile.LargeZipFile) as error:
        why = one_line(str(error)) or type(error).__name__  # RuntimeError: it is encrypted
        raise UserError(f"{file} cannot be read ({why}); fetch or make it again") from error
    except Exception as error:  # zlib.error, lzma.LZMAError and other decoders' own
        raise UserError(f"{file} is damaged ({one_line(str(error))}); fetch or make it again") from error


def _header(archive: zipfile.ZipFile, file: Path, name: str, limit: int | None) -> tuple[Header, zipfile.ZipInfo]:
    """The header of an array, which agrees with the size of its file. Raises UserError for one that does not."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        unnamed = f"; {name} there is not named {name}.npy, as NumPy has it" if name in archive.namelist() else ""
        raise UserError(f"{file} has no array {name}{unnamed}; write it with numpy.savez") from None
    with archive.open(entry) as stream:
        try:
            header = npy_header(stream)
        except UserError as error:
            raise UserError(f"{name} of {file} cannot be read ({error}); write it with numpy.savez") from error
    if header.length + header.size != entry.file_size:
        raise UserError(f"{name} of {file} cannot be read (it is no array of the shape it says); fetch or make it again")
    if limit is not None and header.size > limit:
        raise UserError(
            f"{name} of {file} takes {header.size:,} bytes of memory, more than the {limit:,} that it may; write it"
            " uncompressed, with numpy.savez, or give a smaller one"
        )
    return header, entry
