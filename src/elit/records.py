"""One typed, bounded reader for every file of ours and every configuration.

A record is a frozen dataclass whose fields say what they may hold: `steps: Count` is a whole number of at least 1. What is
read from elsewhere is checked against it, field by field; an error is one sentence with the file, the field and its value.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from annotated_types import Ge, Gt, Le

from elit.errors import UserError
from elit.files import read_bytes
from elit.words import one_line, shown, suggest

T = TypeVar("T")

LARGEST = 2**40  # of a whole number in a file: enough for any count, far from what arithmetic cannot hold
KINDS = ("function-", "tuple[", "list[", "dict[", "union", "constrained-", "literal[")  # of a union's choices, in an error
JSON_BYTES = 64 * 2**20
PLAIN = {  # what pydantic calls by the names of types
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid tuple": "a list",
    "a valid array": "a list",
    "a valid list": "a list",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}

Whole = Annotated[int, Ge(0), Le(LARGEST)]
Count = Annotated[int, Ge(1), Le(LARGEST)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Gt(0), Le(1)]
Shift = Annotated[float, Gt(0), Le(1000)]  # of times towards the noise: see `flow.shifted`


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose fields `checked` knows: no unknown ones, and numbers that are finite."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


def check_fields(values: Any) -> None:
    """For a record's `__post_init__`: what was given in Python is checked as what is read from a file is.

    Raises UserError that names the field and its value.
    """
    from pydantic import ValidationError

    kind: Any = type(values)
    try:
        _fields_model(kind).model_validate(vars(values), strict=True)
    except ValidationError as error:
        raise UserError(_sentence(error, kind)) from error


@cache
def _fields_model(kind: type[Any]) -> Any:
    """The fields of a record as a model of pydantic's own, which makes no record and so calls no `__post_init__`."""
    import typing

    from pydantic import ConfigDict, create_model

    fields: dict[str, Any] = {name: (hint, ...) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    return create_model(kind.__name__, __config__=ConfigDict(allow_inf_nan=False, protected_namespaces=()), **fields)


def read_json(file: Path, kind: type[T], limit: int = JSON_BYTES) -> T:
    """A JSON file as a `kind`: a record, or any type such as dict[str, int].

    Raises UserError, naming file, field and value, for what is missing, too large, no JSON, or does not fit.
    """
    return parse_json(read_bytes(file, limit), kind, str(file))


def checked(values: Any, kind: type[T], origin: str | Callable[[str], str]) -> T:
    """Plain values, as a parser leaves them, as a `kind`.

    origin: what the UserError calls their file; or a function that tells it of a field, such as "model.width", where they
    come from several places ("" is none field in particular).
    """
    try:
        text = json.dumps(values, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        file = origin if isinstance(origin, str) else origin("")
        raise UserError(f"{file} holds what is no plain value ({one_line(str(error))}); write it plainly") from error
    return parse_json(text, kind, origin)


def parse_json(text: str | bytes, kind: type[T], origin: str | Callable[[str], str]) -> T:
    """A JSON text as a `kind`; `origin` is what the UserError calls its file, or a function as `checked` takes it."""
    from pydantic import ValidationError  # an import that only reading needs

    try:
        reader = _reader(kind)  # type: ignore[arg-type]  # every type can be hashed
        return cast(T, reader.validate_json(text, strict=True))
    except ValidationError as error:
        file = origin if isinstance(origin, str) else origin(_place(error.errors(include_url=False)[0]))
        raise UserError(f"{file}: {_sentence(error, kind)}") from error


@cache
def _reader(kind: Any) -> Any:
    """What pydantic makes of a type, which takes longer than to read with it."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _place(mistake: Any) -> str:
    """The field that a mistake is in, such as "model.width"."""
    return ".".join(str(part) for part in mistake["loc"] if not str(part).startswith(KINDS))


def _sentence(error: Any, kind: type[Any]) -> str:
    """The first of the mistakes that pydantic found, in words, and how many more there are."""
    mistakes = error.errors(include_url=False)
    first, more = mistakes[0], len(mistakes) - 1
    place = _place(first)
    tail = f" (and {more} more)" if more else ""
    value = shown(first["input"])
    if first["type"] == "json_invalid":
        return f"it is not JSON ({one_line(first['msg'])}); fetch or write it again"
    if first["type"] in ("missing", "missing_argument"):
        return f"it has no {place}{tail}"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(kind, first["loc"][:-1])
        return (
            f"unknown key {place!r}; {suggest(str(first['loc'][-1]), known)}{tail}"
            if known
            else f"unknown key {place!r}{tail}"
        )
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{message}{tail}"
    message = re.sub("^(Input|String|Tuple|List) ", "", message)
    for theirs, ours in PLAIN.items():
        message = message.replace(theirs, ours)
    return f"{place or 'it'} is {value}; it {message[:1].lower()}{message[1:]}{tail}"


def _fields_at(kind: Any, place: tuple[Any, ...]) -> list[str]:
    """The names of the fields of the record at a place within another."""
    import dataclasses
    import typing

    for part in place:
        kind = typing.get_type_hints(kind).get(str(part)) if dataclasses.is_dataclass(kind) else None
        kind = next((one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)), kind)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def read_yaml(file: Path, limit: int = 2**20) -> Any:
    """A YAML file as plain values: numbers as everybody reads them (1e-3 is one, 1:30 is none), no aliases, no key twice.

    Raises UserError for what is missing, too large, or none of this.
    """
    return parse_yaml(read_bytes(file, limit), str(file))


def parse_yaml(text: str | bytes, origin: str) -> Any:
    """The same of a text; `origin` is what the UserError calls it."""
    import yaml

    from elit.yaml_values import PlainLoader

    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{origin} is not plain YAML: {one_line(str(error))}") from error
