"""Emoji in seven styles: about 10,300 pictures of 96 subgroups, from seven packages of the npm registry.

A picture's label is a pair, its subgroup in Unicode's list and its style ("animal-mammal/noto"). Skin tones and flags are
left out. Train and test are split by concept, the code points, so that no style of a test picture was trained on.
"""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from elit.data.pictures_on_disk import PassedOver
from elit.data.twemoji import emoji_table
from elit.errors import UserError
from elit.files import check_writable, read_bytes, written_whole
from elit.labels import joined_names, joined_number
from elit.records import parse_json
from elit.words import one_line

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
RENDERED = 128  # pixels of a side; the preparation resamples them to the size that is asked for
PACKAGE_BYTES, MEMBER_BYTES = 2**26, 2**28
TEST_SHARE = 10  # one concept in so many is a test concept


@dataclass(frozen=True)
class Style:
    """A set of pictures: its npm package, the SHA-512 of the package's file, its licence, and the pictures it gives."""

    name: str
    package: str
    version: str
    sha512: str
    licence: str
    pictures: int

    @property
    def file(self) -> str:
        """The name that npm gives the package's file."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


STYLES = (
    Style(
        *("noto", "@iconify-json/noto", "1.2.9"),
        "0d08ae5c435bba7e35721f973d2579e47f456962a91d3cb3e3a6082ad49a2980f87c80c3ccbd6d47a1f89e9fd3dfc8dfad301e237adc285d26a8761e65502e6b",
        *("Apache-2.0", 1629),
    ),
    Style(
        *("noto-v1", "@iconify-json/noto-v1", "1.2.5"),
        "fc3b15322bacebd4347d14b9df3ed02b54d1392b9aafad3a8e2231fa5697b5db1818c5e97fa2ed1c1c7a0867e8a375071dbfd7a41b30fb52f5c777b23ea32e54",
        *("Apache-2.0", 1219),
    ),
    Style(
        *("twemoji", "@iconify-json/twemoji", "1.2.5"),
        "b8aa6e204574bfa2b9056dcc8ddca5f972855406db70fc408227cabc432d668519079f98898e7368c9b6b8d342c725f301653dc8d2e58f8d5653afe6be000bb3",
        *("CC-BY-4.0", 1629),
    ),
    Style(
        *("fluent", "@iconify-json/fluent-emoji", "1.2.7"),
        "0fc1ba6ca03222ccb13f5af366d216aff820fdf3b8460d7e0f209695fa8a2b887c5bee049bf6343fa4188095104e551c6a0cc9bd2ca0fbd381bf8873e0773f40",
        *("MIT", 1587),
    ),
    Style(
        *("fluent-flat", "@iconify-json/fluent-emoji-flat", "1.2.6"),
        "458e3b4603dbe3b7d8522cab03ae2c20e2f4f94534dacdbdb17a4d05b2104415253e57cd1532949990c4446bb10ecffbc8d196a9062fb9a4983353387d15e553",
        *("MIT", 1586),
    ),
    Style(
        *("emojione", "@iconify-json/emojione", "1.2.3"),
        "4fdf93dc721b24d2ca2ac9b160a95a621be71d8933fc73584d5ed21c25d564f7de522e05aac918ef461e37cc980194fc702bfbc39bc9c52e10d66f336fd08c32",
        *("CC-BY-4.0", 1107),
    ),
    Style(
        *("fluent-3d", "@lobehub/fluent-emoji-3d", "1.1.0"),
        "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb445d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
        *("MIT", 1599),
    ),
)


def fetch_packages(folder: Path, styles: tuple[Style, ...] = STYLES) -> None:
    """Has npm write the packages that `folder` lacks, and checks all of them.

    Raises UserError where npm is missing or fails, and for a file that is not the package that was published.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for style in styles:
        file = folder / style.file
        if not file.exists():
            _pack(style, file)
        found = hashlib.sha512(read_bytes(file, PACKAGE_BYTES)).hexdigest()
        if found != style.sha512:
            raise UserError(
                f"{file} is not {style.package} {style.version} (its checksum differs); remove it and run this again"
            )


def _pack(style: Style, file: Path) -> None:
    """Has npm write one package's file."""
    name = f"{style.package}@{style.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed, and fetches {name}; install Node.js, or put {file.name} into {file.parent}")
    with written_whole(file) as part, tempfile.TemporaryDirectory() as packed:
        command = [npm, "pack", "--silent", "--pack-destination", packed, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        written = list(Path(packed).glob("*.tgz"))
        if done.returncode or not written:
            why = one_line(done.stderr or done.stdout)[:200]
            raise UserError(
                f"npm could not fetch {name} ({why}); see that there is a network, or put the file beside {file}"
            )
        shutil.copyfile(written[0], part)


@dataclass(frozen=True)
class Icon:
    """One drawing of a set: the inside of an SVG, and its frame where that is not the set's."""

    body: str
    left: float = 0
    top: float = 0
    width: float | None = None
    height: float | None = None


@dataclass(frozen=True)
class Alias:
    """Another name of a drawing, which may be mirrored."""

    parent: str
    hFlip: bool = False  # noqa: N815 (the file's own name)


@dataclass(frozen=True)
class IconSet:
    """icons.json of an Iconify package, as far as it is used: drawings, and other names of them."""

    icons: dict[str, Icon]
    width: float
    height: float
    aliases: dict[str, Alias]

    def __contains__(self, name: str) -> bool:
        return name in self.icons or name in self.aliases

    def svg(self, name: str) -> str:
        """A drawing as a whole SVG."""
        alias = None if name in self.icons else self.aliases[name]
        icon = self.icons[name if alias is None else alias.parent]
        width, height, body = icon.width or self.width, icon.height or self.height, icon.body
        if alias is not None and alias.hFlip:
            body = f'<g transform="translate({2 * icon.left + width} 0) scale(-1 1)">{body}</g>'
        links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        square = f'width="{RENDERED}" height="{RENDERED}"'  # in whose middle the frame lies
        return f'<svg {links} {square} viewBox="{icon.left} {icon.top} {width} {height}">{body}</svg>'


class Package:
    """A package's file, read member by member."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tar = tarfile.TarFile(fileobj=io.BytesIO(gzip.decompress(read_bytes(file, PACKAGE_BYTES))))

    def read(self, name: str) -> bytes:
        """A member. Raises UserError where it is not there, or too large."""
        try:
            member = self.tar.getmember(f"package/{name}")
            opened = self.tar.extractfile(member) if member.size <= MEMBER_BYTES else None
        except KeyError:
            opened = None
        if opened is None:
            raise UserError(f"{self.file} holds no {name} that can be read; remove it and run this again")
        return opened.read()

    def names(self) -> list[str]:
        """The names of all members."""
        return [name.removeprefix("package/") for name in self.tar.getnames()]

    def icons(self) -> IconSet:
        """The drawings of an Iconify package."""
        return parse_json(self.read("icons.json"), IconSet, f"icons.json of {self.file}")

    def chars(self) -> dict[str, str]:
        """The names of an Iconify package's drawings by code points; empty where a package does not tell them."""
        told = parse_json(self.read("chars.json"), dict[str, str], f"chars.json of {self.file}")
        return {plain(code): name for code, name in told.items()}


def plain(code: str) -> str:
    """Code points without the selector of a coloured form, in small letters: what sets write differently."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def names_by_code(chars: dict[str, dict[str, str]], icons: dict[str, IconSet]) -> dict[str, dict[str, str]]:
    """{style: {code: name}}, with the names of a set that tells no codes found among those of the sets that do.

    A name that means different code points in different sets counts for all of them.
    """
    codes: dict[str, set[str]] = {}
    for told in chars.values():
        for code, name in told.items():
            codes.setdefault(name, set()).add(code)
    for drawings in icons.values():
        for alias, of in drawings.aliases.items():
            if not of.hFlip and (alias in codes) != (of.parent in codes):
                known, new = (alias, of.parent) if alias in codes else (of.parent, alias)
                codes[new] = codes[known]
    out = {}
    for style, drawn in icons.items():
        if chars[style]:
            out[style] = {code: name for code, name in chars[style].items() if name in drawn}
        else:
            names = sorted({*drawn.icons, *drawn.aliases})
            out[style] = {code: name for name in names for code in sorted(codes.get(name, ()))}
    return out


def split_of(code: str) -> Split:
    """Which split a concept is in: a function of its code points alone."""
    number = int.from_bytes(hashlib.sha256(code.encode()).digest()[:8], "big")
    return "test" if number % TEST_SHARE == 0 else "train"


class EmojiStyles:
    """The pictures of one split, as a source: keys are subgroup/style/code, in the order of subgroups, styles and Unicode.

    Raises UserError for packages that are missing, or give another number of pictures than they should.
    """

    def __init__(self, packages: Path, split: Split, styles: tuple[Style, ...] = STYLES) -> None:
        self.packages, self.split, self.styles = packages, split, styles

    def __getstate__(self) -> dict[str, object]:
        return {"packages": self.packages, "split": self.split, "styles": self.styles}

    @cached_property
    def concepts(self) -> dict[str, str]:
        """The subgroup of every concept, in Unicode's order: skin tones and flags are none."""
        rows = sorted(emoji_table(), key=lambda row: row["sort_order"])
        return {plain(row["unified"]): row["subcategory"] for row in rows if row["category"] != "Flags"}

    @cached_property
    def subgroups(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.concepts.values())))

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Names of pairs, with "*" for any: see `joined_names`."""
        return joined_names(self.subgroups, [style.name for style in self.styles])

    @cached_property
    def files(self) -> dict[str, Package]:
        return {style.name: Package(self.packages / style.file) for style in self.styles}

    @cached_property
    def icons(self) -> dict[str, IconSet]:
        """The drawings of every set that is one of drawings."""
        return {name: file.icons() for name, file in self.files.items() if "icons.json" in file.names()}

    @cached_property
    def drawings(self) -> dict[str, dict[str, str]]:
        """{style: {code: what the package calls its picture}}, of concepts alone."""
        out = names_by_code({name: self.files[name].chars() for name in self.icons}, self.icons)
        for name in self.files.keys() - self.icons.keys():
            pictures = [member for member in self.files[name].names() if member.endswith(".webp")]
            out[name] = {plain(Path(member).stem): member for member in pictures}
        for style in self.styles:
            out[style.name] = {code: drawn for code, drawn in out[style.name].items() if code in self.concepts}
            if len(out[style.name]) != style.pictures:
                raise UserError(
                    f"{style.file} gives {len(out[style.name])} pictures of emoji, not {style.pictures}: its codes or"
                    " names changed; use the version that is asked for"
                )
        return out

    def listing(self, passed: PassedOver | None = None) -> Iterator[tuple[str, int | None]]:
        shape = (len(self.subgroups), len(self.styles))
        for i, subgroup in enumerate(self.subgroups):
            codes = [code for code, of in self.concepts.items() if of == subgroup and split_of(code) == self.split]
            for k, style in enumerate(self.styles):
                label = joined_number((i, k), shape)
                yield from (
                    (f"{subgroup}/{style.name}/{code}", label) for code in codes if code in self.drawings[style.name]
                )

    def read(self, key: str) -> bytes:
        """A picture's file: of a drawing, a PNG of 128 x 128 pixels."""
        _, style, code = key.split("/")
        drawn = self.drawings[style][code]
        return render(self.icons[style].svg(drawn)) if style in self.icons else self.files[style].read(drawn)


def render(svg: str) -> bytes:
    """A PNG of 128 x 128 pixels. Raises UserError where the drawing cannot be rendered, or resvg is not installed."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("rendering needs resvg-py, which is not installed; pip install 'elit-diffusion[styles]'") from error
    try:
        return resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED, skip_system_fonts=True)
    except ValueError as error:
        raise UserError(f"the drawing cannot be rendered ({one_line(str(error))})") from error
