"""Emoji in several styles, from packages made here: their names and codes, their labels, the split and the pictures."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elit import UserError
from elit.data.dataset import PreparedData
from elit.data.emoji_styles import STYLES, EmojiStyles, Icon, IconSet, Style, fetch_packages, render, split_of
from elit.data.prepare import ImageSettings, prepare_images
from elit.labels import factor_names

CODES = {"grapes": "1f347", "melon": "1f348", "frog": "1f438", "red-heart": "2764"}  # the heart as one set writes it
RED = '<path fill="red" d="M0 0h5v10H0z"/>'  # the left half of a frame of 10 x 10


def pack(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def icons(names: list[str], aliases: dict[str, dict[str, object]]) -> bytes:
    drawn = {name: {"body": RED, "more": 1} for name in names}
    return json.dumps({"prefix": "x", "icons": drawn, "aliases": aliases, "width": 10, "height": 10}).encode()


def webp() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 255, 255)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Style, ...]]:
    """Three sets: one that tells its codes, one that has names alone, one of pictures."""
    folder = tmp_path_factory.mktemp("packages")
    styles = tuple(
        Style(name, f"@made/{name}", "1.0.0", "", "MIT", count) for name, count in (("coded", 4), ("named", 3), ("flat", 2))
    )
    chars = {"1F347": "grapes", "1f348": "melon", "1f438": "frog", "2764-fe0f": "red-heart", "1f1e6": "a-letter"}
    flipped: dict[str, dict[str, object]] = {"melon": {"parent": "grapes", "hFlip": True}}
    drawn = icons(["grapes", "frog", "red-heart", "a-letter"], flipped)
    pack(folder / styles[0].file, {"icons.json": drawn, "chars.json": json.dumps(chars).encode()})
    other = icons(["grapes", "toad", "heart"], {"frog": {"parent": "toad"}, "red-heart": {"parent": "heart"}})
    pack(folder / styles[1].file, {"icons.json": other, "chars.json": b"{}"})
    pack(
        folder / styles[2].file, {"assets/1f347.webp": webp(), "assets/2764-fe0f.webp": webp(), "assets/1f1e6.webp": webp()}
    )
    sums = [hashlib.sha512((folder / style.file).read_bytes()).hexdigest() for style in styles]
    return folder, tuple(replace(style, sha512=value) for style, value in zip(styles, sums, strict=True))


def keys(folder: Path, styles: tuple[Style, ...]) -> dict[str, int]:
    listed = [*EmojiStyles(folder, "train", styles).listing(), *EmojiStyles(folder, "test", styles).listing()]
    return {key: label for key, label in listed if label is not None}


def test_pictures_are_found_by_code_and_by_name(packages: tuple[Path, tuple[Style, ...]]) -> None:
    assert set(keys(*packages)) == {
        *(f"food-fruit/coded/{CODES[name]}" for name in ("grapes", "melon")),
        *("animal-amphibian/coded/1f438", "heart/coded/2764"),
        *("food-fruit/named/1f347", "animal-amphibian/named/1f438", "heart/named/2764"),
        *("food-fruit/flat/1f347", "heart/flat/2764"),
    }


def test_labels_are_pairs_of_subgroup_and_style(packages: tuple[Path, tuple[Style, ...]]) -> None:
    source = EmojiStyles(packages[0], "train", packages[1])
    for key, label in keys(*packages).items():
        assert source.label_names[label] == key.rpartition("/")[0]
    subgroups, styles = factor_names(source.label_names)
    assert styles == ["coded", "named", "flat"] and "flags" not in subgroups and len(subgroups) == 96


def test_a_concept_is_in_one_split_in_every_style(packages: tuple[Path, tuple[Style, ...]]) -> None:
    folder, styles = packages
    for split in ("train", "test"):
        for key, _ in EmojiStyles(folder, split, styles).listing():  # type: ignore[arg-type]
            assert split_of(key.rpartition("/")[2]) == split
    shares = [split_of(f"{code:x}") for code in range(0x1F300, 0x1FAFF)]
    assert 0.08 < shares.count("test") / len(shares) < 0.12


def test_drawings_are_rendered_on_white_and_mirrored_where_the_set_says(
    packages: tuple[Path, tuple[Style, ...]], tmp_path: Path
) -> None:
    folder, styles = packages
    source = EmojiStyles(folder, split_of(CODES["melon"]), styles)
    prepare_images(ImageSettings("styles", 8, "center-crop"), tmp_path / "data", workers=1, source=source)
    data, rows = PreparedData(tmp_path / "data"), [key for key, _ in source.listing()]
    assert data.label_names == source.label_names
    mirrored = data.image(rows.index("food-fruit/coded/1f348"))
    for column, colour in ((1, (255, 255, 255)), (6, (255, 0, 0))):
        assert mirrored[:, 4, column].tolist() == pytest.approx(colour, abs=3)  # an edge rings a little
    drawn = np.asarray(Image.open(io.BytesIO(source.read("food-fruit/coded/1f347"))))
    assert drawn.shape == (128, 128, 4) and drawn[60, 10].tolist() == [255, 0, 0, 255] and drawn[60, 120, 3] == 0
    assert Image.open(io.BytesIO(source.read("food-fruit/flat/1f347"))).size == (16, 16)


def test_a_frame_of_its_own_is_kept() -> None:
    """A drawing that is twice as wide as high keeps its frame, and lies in the middle of the square."""
    wide = IconSet(icons={"a": Icon(RED, width=20)}, width=10, height=10, aliases={})
    picture = np.asarray(Image.open(io.BytesIO(render(wide.svg("a")))))
    assert picture[64, 10].tolist() == [255, 0, 0, 255] and picture[64, 64, 3] == picture[10, 10, 3] == 0


def test_an_altered_package_is_refused(packages: tuple[Path, tuple[Style, ...]], tmp_path: Path) -> None:
    folder, styles = packages
    fetch_packages(folder, styles)  # whole ones are fine, and nothing is fetched
    file = tmp_path / styles[0].file
    file.write_bytes((folder / styles[0].file).read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not @made/coded 1.0.0 \(its checksum differs\); remove it"):
        fetch_packages(tmp_path, styles[:1])


def test_a_set_whose_codes_changed_is_refused(packages: tuple[Path, tuple[Style, ...]]) -> None:
    folder, styles = packages
    changed = (replace(styles[0], pictures=5), *styles[1:])
    with pytest.raises(
        UserError, match=r"made-coded-1\.0\.0\.tgz gives 4 pictures of emoji, not 5: its codes or names changed"
    ):
        list(EmojiStyles(folder, "train", changed).listing())


def test_what_is_missing_without_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"npm is not installed, and fetches @iconify-json/noto@1.2.9; install Node.js, or put"
    ):
        fetch_packages(tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


def test_npm_that_fails_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such host >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match=r"npm could not fetch @iconify-json/noto@1.2.9 \(no such host\)"):
        fetch_packages(tmp_path / "packages")


def test_the_packages_are_seven_with_licences() -> None:
    assert len({style.name for style in STYLES}) == 7 and sum(style.pictures for style in STYLES) == 10_356
    assert {style.licence for style in STYLES} == {"Apache-2.0", "CC-BY-4.0", "MIT"}
