"""The test split of emoji in seven styles, as far as it comes with the package: what its pictures are, and some of them.

`python benchmarks/emoji_styles_test.py` writes the files: a list of all pictures, a sheet of some concepts in all seven
styles, and the features that `elit.evaluation.styles_reference` reads.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from elit.bundled import REFERENCE
from elit.data.emoji_styles import STYLES, EmojiStyles, plain
from elit.data.images import LabelledImages
from elit.data.twemoji import emoji_table
from elit.errors import UserError
from elit.records import read_json, record

NAME = "emoji-styles"
LIST_FILE, SHEET_FILE, FEATURES_FILE = (REFERENCE / f"{NAME}-test.{kind}" for kind in ("json", "webp", "safetensors"))
SIDE = 64  # pixels of a picture


@record
class TestSplit:
    """keys: "subgroup/style/code" of every picture, in order. concepts: the codes of the sheet's rows, whose columns are
    the styles. networks: {name: fingerprint} of those whose features of all pictures are kept."""

    keys: tuple[str, ...]
    concepts: tuple[str, ...]
    networks: dict[str, str]

    __test__ = False  # pytest: no class of tests


@cache
def read_split() -> TestSplit:
    """What the package's list says."""
    return read_json(LIST_FILE, TestSplit)


@cache
def label_names() -> tuple[str, ...]:
    """The names of the pairs, which `elit prepare emoji-styles` numbers alike."""
    return EmojiStyles(Path(), "test").label_names


@cache
def split_labels() -> tuple[int, ...]:
    """The label of every picture of the test split, in order."""
    numbers = {name: i for i, name in enumerate(label_names())}
    return tuple(numbers[key.rpartition("/")[0]] for key in read_split().keys)


@dataclass(frozen=True)
class StylesTest(LabelledImages):
    """Pictures labelled by subgroup and style. names (N,): of what they show, by Unicode."""

    names: tuple[str, ...]


@cache
def load_styles_test() -> StylesTest:
    """The pictures of the test split that come with the package, (N, 3, 64, 64) uint8: concept by concept in all styles.

    They are read once in a process, and whoever has them changes none. Raises UserError for a damaged file.
    """
    concepts, styles = read_split().concepts, [style.name for style in STYLES]
    rows = {plain(row["unified"]): row for row in emoji_table()}
    try:
        with Image.open(SHEET_FILE) as picture:
            sheet = np.array(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"{SHEET_FILE} cannot be read ({error}); install the package anew") from error
    if sheet.shape != (len(concepts) * SIDE, len(styles) * SIDE, 3):
        raise UserError(f"{SHEET_FILE} is no sheet of {len(concepts)} concepts; install the package anew")
    cells = torch.from_numpy(sheet).unflatten(0, (-1, SIDE)).unflatten(2, (-1, SIDE))  # concepts, H, styles, W, 3
    pairs = [(f"{rows[code]['subcategory']}/{style}", rows[code]) for code in concepts for style in styles]
    return StylesTest(
        images=cells.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous(),
        labels=torch.tensor([label_names().index(pair) for pair, _ in pairs]),
        label_names=label_names(),
        names=tuple((row["name"] or row["short_name"]).lower() for _, row in pairs),
    )
