"""How a configuration is read: defaults, then a preset, then a YAML file, then options. What it may hold says `config`."""

import dataclasses
import os
import re
import typing
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elit.errors import UserError
from elit.records import checked, parse_yaml, read_yaml
from elit.training.config import TrainConfig
from elit.words import suggest

COMMAND_LINE = "the command line"
T = typing.TypeVar("T")


@dataclass(frozen=True)
class Key:
    """A key of the configuration, such as optimizer.lr: whether it holds a text, its default, and what it means."""

    name: str
    is_text: bool
    default: Any
    meaning: str


def load_config(file: str | Path | None, options: list[str]) -> TrainConfig:
    """A run's configuration: defaults, then the preset, then the YAML file, then options such as --optimizer.lr 1e-3.

    The file, and then options too, may have the authors' keys (see `foreign`); what became of them is told on the console.
    Raises UserError for a file that cannot be read, an unknown key (naming the nearest known one) or a value out of range.
    """
    given = parse_options(options, [key.name for key in keys_of(TrainConfig) if key.is_text])
    values = {} if file is None else read_values(Path(file))
    if "exp_name" in values or isinstance(values.get("model"), str):
        from elit.training.foreign import DEFAULTS, read_foreign

        theirs = {key: given.pop(key) for key in list(given) if key in DEFAULTS}
        values = read_foreign(values | theirs, [key.name for key in keys_of(TrainConfig)], list(given), str(file))
    kind, base = kind_and_preset(values | given)
    return merged(kind, base, values, given, file)


def merged(
    kind: type[T],
    base: dict[str, object],
    values: dict[str, object],
    given: dict[str, object],
    file: Any,
    command: str = "train",
) -> T:
    """The record of a kind that a base, the values of a file and then options say; errors as of `load_config`."""
    known = {key.name: key for key in keys_of(kind)}
    check_known(known, values, str(file), command)
    check_known(known, given, None, command)
    plain = {key: as_text(value) if known[key].is_text else value for key, value in (values | given).items()}

    def origin(place: str) -> str:
        by_option = any(place == key or place.startswith(f"{key}.") for key in given)
        return COMMAND_LINE if by_option else str(file or "the configuration")

    return checked(nested(base | plain), kind, origin)


def kind_and_preset(given: dict[str, object]) -> tuple[type[TrainConfig], dict[str, object]]:
    """The kind of configuration that some values are of, and the values of their preset.

    Raises UserError for a preset or an architecture that is not known, and for two that do not go together.
    """
    name = as_text(given.get("preset"))
    if not isinstance(name, str):
        return kind_of(given.get("architecture", "DiT")), {}
    from elit.backbones.table import backbone_of, preset_config

    preset = preset_config(name)
    architecture = backbone_of(preset).architecture
    if given.get("architecture", architecture) != architecture:
        raise UserError(f"preset {name} is a {architecture}, not a {given['architecture']}; leave one of them out")
    values = {f"model.{key}": value for key, value in dataclasses.asdict(preset).items()}
    return kind_of(architecture), {"architecture": architecture, **values}


def kind_of(architecture: Any) -> type[TrainConfig]:
    """TrainConfig with a `model` of an architecture's own configuration. Raises UserError for an unknown one."""
    if architecture == "DiT":
        return TrainConfig
    from elit.backbones.table import BACKBONES, backbone_named

    backbone = backbone_named(architecture)
    if backbone is None:
        known = [row.architecture for row in BACKBONES]
        raise UserError(f"unknown architecture {architecture!r}; {suggest(str(architecture), known)}")
    return _kind_with(typing.cast(Hashable, backbone.config))


@cache
def _kind_with(model: Any) -> type[TrainConfig]:
    fields: list[Any] = [("model", model, dataclasses.field(default_factory=model))]
    kind = dataclasses.make_dataclass("TrainConfig", fields, bases=(TrainConfig,), frozen=True)
    kind.__doc__, kind.__module__ = TrainConfig.__doc__, TrainConfig.__module__
    return typing.cast(type[TrainConfig], kind)


def keys_of(kind: type[Any], prefix: str = "") -> Iterator[Key]:
    """Every key of a record and of those within it, in their order."""
    hints, meanings = typing.get_type_hints(kind, include_extras=True), explained(kind)
    for entry in dataclasses.fields(kind):
        name, hint = f"{prefix}{entry.name}", hints[entry.name]
        if dataclasses.is_dataclass(hint):
            yield from keys_of(typing.cast(type[Any], hint), f"{name}.")
        else:
            yield Key(name, _holds_text(hint), entry.default, meanings.get(entry.name, ""))


def explained(kind: type[Any]) -> dict[str, str]:
    """What a record's docstring says of each field: all from `name:`, or `name, another:`, to the next one."""
    names = "|".join(entry.name for entry in dataclasses.fields(kind))
    meanings: dict[str, str] = {}
    for one in reversed([part for part in kind.__mro__ if dataclasses.is_dataclass(part)]):
        parts = re.split(rf"(?<![\w.`])((?:(?:{names}), )*(?:{names})): ", " ".join((one.__doc__ or "").split()))
        meanings |= {name: parts[i + 1].strip() for i in range(1, len(parts), 2) for name in parts[i].split(", ")}
    return meanings


def _holds_text(hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:  # a list is written as YAML has it
        return False
    return hint is str or any(_holds_text(part) for part in typing.get_args(hint) if not isinstance(part, str))


def check_known(known: Collection[str], values: Collection[str], file: str | None, command: str = "train") -> None:
    """Raises UserError for a key of a file, or of the options where there is none, that is unknown, with the nearest one."""
    for key in values:
        if key in known:
            continue
        what = f"unknown option --{key}" if file is None else f"unknown key {key!r} in {file}"
        below = next((name for name in known if name.startswith(f"{key}.")), None)
        if below is not None:
            raise UserError(f"{key} takes no value of its own{f' in {file}' if file else ''}; set its keys, such as {below}")
        dashes = "--" if file is None else ""
        inner = [f"{dashes}{name}" for name in known if name.endswith(f".{key.rpartition('.')[2]}")]  # lr is optimizer.lr
        if inner:
            raise UserError(f"{what}; did you mean {' or '.join(inner)}?")
        every = [f"{dashes}{name}" for name in known]
        raise UserError(f"{what}; {suggest(f'{dashes}{key}', every, f'elit {command} --help lists all')}")


def as_text(value: Any) -> Any:
    """The value of a key that holds a text: a number is taken as it is written, and ~ is the user's own folder.

    Raises UserError for a text that no file can be named by.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return value
    if "\0" in value or (not value.isascii() and value.encode("utf8", "replace").decode() != value):
        raise UserError(f"{value!r} holds letters that no name has; write it in UTF-8")
    return os.path.expanduser(value)  # noqa: PTH111  # a Path would drop a slash of a URL


def read_values(file: Path) -> dict[str, object]:
    """The values of a YAML file by their whole keys, such as optimizer.lr. Raises UserError for what is no such file."""
    if not file.is_file():
        raise UserError(f"there is no config file {file}; give one of configs/, or one of your own")
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no settings; write lines such as steps: 1000")
    out: dict[str, object] = {}
    for key, value in flat_pairs(values):
        if key in out:
            raise UserError(f"{file}: {key} stands twice, whole and by its section; write it once")
        out[key] = value
    return out


def parse_options(arguments: list[str], texts: Collection[str]) -> dict[str, object]:
    """["--a.b", "1", "--c=2"] to {"a.b": 1, "c": 2}. Values are YAML, and those of `texts` are taken as they stand.

    Raises UserError for what is no option, or has no value.
    """
    out: dict[str, object] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            file = word.endswith((".yaml", ".yml"))
            remedy = f"a file is given as --config {word}" if file else "options look like --optimizer.lr 1e-3"
            raise UserError(f"{word!r} is not an option; {remedy}")
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise UserError(f"--{key} is no option, or has no value; options look like --optimizer.lr 1e-3")
            value = rest.pop(0)
        key = key.replace("-", "_")
        as_it_stands = key in texts and value != "null"
        out[key] = value if as_it_stands else parse_yaml(value, f"the value {value!r} of --{key}")
    return out


def flat_pairs(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts by their whole keys, a.b for {"a": {"b": 1}}; a key may come twice."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat_pairs(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat(values: dict[str, object]) -> dict[str, object]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    return dict(flat_pairs(values))


def nested(values: dict[str, object]) -> dict[str, object]:
    """The inverse of `flat`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = out
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return out
