"""Rows that were measured before, each in a JSON file of its own, so that an interrupted measurement goes on."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from elit.console import say
from elit.errors import UserError
from elit.files import told, write_whole
from elit.records import read_json

T = TypeVar("T")


def kept(file: Path, kind: type[T]) -> T | None:
    """The record that a file holds; None where the file is not there, or holds none, which is said."""
    if not file.is_file():
        return None
    try:
        return read_json(file, kind)
    except UserError as error:
        say(f"{error}: measured anew")
        return None


def keep(record: Any, file: Path) -> None:
    """Writes a record, whole or not at all, in a folder that is made where it is missing. Raises WriteError."""
    assert is_dataclass(record) and not isinstance(record, type)
    with told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in asdict(record).items() if value is not None}
    write_whole(file, json.dumps(values, indent=2) + "\n")
