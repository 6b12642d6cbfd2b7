"""Emoji in several styles, from packages made here: their names and codes, their labels, the split and the pictures."""

import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elit import UserError
from elit.data.dataset import PreparedData
from elit.data.emoji_styles import (
    STYLES,
    Alias,
    EmojiStyles,
    Icon,
    IconSet,
    Package,
    Style,
    fetch_packages,
    names_by_code,
    render,
    split_of,
)
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
    for code in (f"{number:x}" for number in range(0x1F300, 0x1F400)):
        number = int(hashlib.sha256(code.encode()).hexdigest()[:16], 16)
        assert (split_of(code) == "test") == (number % 10 == 0)
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


def test_a_mirrored_frame_stays_where_it_is() -> None:
    """x becomes 2 left + width - x, which maps the frame onto itself."""
    icons = IconSet({"a": Icon(RED, left=-4, top=3)}, 10, 10, {"b": Alias("a", hFlip=True)})
    assert 'viewBox="-4 3 10 10"' in icons.svg("b") and "translate(2 0) scale(-1 1)" in icons.svg("b")


def test_names_of_a_set_without_codes_are_found_in_the_others() -> None:
    """All codes that a name has; another name of a drawing counts unless it is mirrored; what is not drawn does not."""

    def drawn(*names: str, **aliases: Alias) -> IconSet:
        return IconSet({name: Icon(RED) for name in names}, 10, 10, aliases)

    chars = {"a": {"1": "left", "2": "same", "9": "gone"}, "b": {"3": "same"}, "c": {}}
    icons = {"a": drawn("left", "same"), "b": drawn("same"), "c": drawn("z", "y", left=Alias("z", True), same=Alias("y"))}
    found = names_by_code(chars, icons)
    assert found["a"] == {"1": "left", "2": "same"} and found["b"] == {"3": "same"}
    assert found["c"] == {"1": "left", "2": "y", "3": "y"}


def test_a_source_is_the_same_in_another_process(packages: tuple[Path, tuple[Style, ...]]) -> None:
    source = EmojiStyles(packages[0], "test", packages[1])
    assert list(pickle.loads(pickle.dumps(source)).listing()) == list(source.listing())


def test_what_a_package_lacks_or_has_too_much_of_is_told(
    packages: tuple[Path, tuple[Style, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(packages[0] / packages[1][0].file)
    monkeypatch.setattr("elit.data.emoji_styles.MEMBER_BYTES", len(package.read("chars.json")))
    assert len(package.chars()) == 5
    for name in ("nothing.json", "icons.json"):
        with pytest.raises(UserError, match=rf"holds no {name} that can be read; remove it"):
            package.read(name)


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


def test_what_npm_writes_is_taken_and_its_failure_told(
    packages: tuple[Path, tuple[Style, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence with what it said, also where it wrote something before it failed."""
    npm, (folder, styles) = tmp_path / "npm", packages
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for ends in ("exit 1", "cp '%s' $4/made.tgz; exit 1", "exit 0", "cp '%s' $4/made.tgz"):
        written = ends.replace("%s", str(folder / styles[0].file))
        npm.write_text(f"#!/bin/sh\n[ $1 = pack ] || exit 9\necho no such host >&2\n{written}\n")
        npm.chmod(0o755)
        if ends.startswith("cp") and not ends.endswith("1"):
            fetch_packages(tmp_path / "packages", styles[:1])
            break
        with pytest.raises(UserError, match=r"npm could not fetch @made/coded@1.0.0 \(no such host\)"):
            fetch_packages(tmp_path / "packages", styles[:1])
        assert not list((tmp_path / "packages").iterdir())
    assert [file.name for file in (tmp_path / "packages").iterdir()] == [styles[0].file]


def test_the_packages_are_seven_with_licences() -> None:
    assert len({style.name for style in STYLES}) == 7 and sum(style.pictures for style in STYLES) == 10_356
    assert {style.licence for style in STYLES} == {"Apache-2.0", "CC-BY-4.0", "MIT"}
