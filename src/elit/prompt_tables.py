"""Prompts as embeddings, made ahead, in a folder that `elit prepare prompts` writes.

FOLDER/prompts.json              what they are embeddings of, by which encoder
FOLDER/texts.txt                 the prompts, one a line
FOLDER/nothing.safetensors       the embedding of no prompt, which guidance and dropped prompts need
FOLDER/part-00000.safetensors    of the first 1,024 prompts, in half precision; and so on
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elit.condition import Prompts, Text
from elit.errors import UserError
from elit.files import read_bytes
from elit.records import Count, read_json, record
from elit.text_encoder import MOST_TOKENS, Encoder
from elit.words import shown, suggest

INFO_FILE, TEXTS_FILE, NOTHING_FILE = "prompts.json", "texts.txt", "nothing.safetensors"
EMOJI = "emoji"  # names the embedded pictures, and the embeddings of their names that come with the package
PART = 1024  # prompts of a file
TEXT_BYTES = 2**30
SEARCHED = 2000  # prompts in which near ones are looked for, which takes a while for more

Tokens = Annotated[int, Ge(0), Le(MOST_TOKENS)]
Width = Annotated[int, Ge(1), Le(2**16)]


@record
class PromptInfo:
    """What prompts.json holds.

    encoder: its folder or hub id. weights: a digest of it. tokens: kept of each prompt, 0 for one that stands for the whole.
    width: of a token. pooled: numbers of a whole prompt, 0 where there are none. count: of the prompts. texts: a digest of
    them.
    """

    encoder: str
    weights: str
    tokens: Tokens
    width: Width
    pooled: Annotated[int, Ge(0), Le(2**16)]
    count: Count
    texts: str
    dtype: Literal["float16"] = "float16"


def parts_of(info: PromptInfo) -> int:
    """How many files of embeddings there are."""
    return -(-info.count // PART)


def part_file(number: int) -> str:
    """The name of one."""
    return f"part-{number:05d}.safetensors"


def embedded(text: str, encoder: Encoder, info: PromptInfo) -> Text:
    """A text (T, D) as a folder of embeddings would hold it, in half precision, for a model that is told those of `info`.

    Raises UserError for a text of more tokens than are kept, which a folder would cut off.
    """
    tokens = info.tokens - encoder.beside if info.tokens else 0
    room, count = tokens or encoder.most, encoder.count(text)
    if count > room:
        raise UserError(f"the prompt has {count:,} tokens, and this model is told {room:,} at most; shorten it")
    found = encoder.encode([text], tokens)
    return found.each(lambda one: one[0] if one.dtype == torch.bool else one[0].half().float())


def check_encoder(encoder: Encoder, table: "PromptTable") -> None:
    """Raises UserError for another encoder than the embeddings of a folder are of."""
    if encoder.digest() != table.info.weights:
        raise UserError(
            f"the prompts of {table.folder} are embeddings by {table.info.encoder}, and {encoder.name} is another encoder or"
            " has other weights; give that one"
        )


@dataclass(frozen=True)
class PromptTable:
    """The embeddings of a folder. Prompt i is that of line i; the number `len(table)` stands for no prompt."""

    folder: Path
    info: PromptInfo

    def __len__(self) -> int:
        return self.info.count

    @property
    def tokens(self) -> int:
        """T, of every prompt."""
        return self.info.tokens or 1

    @cached_property
    def texts(self) -> list[str]:
        """The prompts themselves. Raises UserError for a file of others than the embeddings are of."""
        file = self.folder / TEXTS_FILE
        content = read_bytes(file, TEXT_BYTES)
        if hashlib.sha256(content).hexdigest() != self.info.texts:
            raise UserError(f"{file} was changed, and its prompts are no longer those of the embeddings; prepare them again")
        return content.decode("utf8").split("\n")[:-1]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of the prompts, by their text: of those that are alike the first. The empty one is none."""
        numbers: dict[str, int] = {}
        for number, text in enumerate(self.texts):
            if text:
                numbers.setdefault(text, number)
        return numbers

    @cached_property
    def nothing(self) -> Text:
        """No prompt."""
        return self._row(NOTHING_FILE, 0)

    def of(self, numbers: Tensor) -> Prompts:
        """The embeddings of prompts by their numbers (B,). Raises UserError for a file that cannot be read."""
        rows = [
            self.nothing if number >= len(self) else self._row(part_file(number // PART), number % PART)
            for number in numbers.tolist()
        ]
        tokens, mask, pooled = (torch.stack(values) for values in zip(*(vars(row).values() for row in rows), strict=True))
        return Prompts(Text(tokens, mask, pooled), self.nothing)

    def find(self, texts: Sequence[str]) -> Prompts:
        """The embeddings of prompts by their text, "" for none. Raises UserError for one that is not there."""
        for text in texts:
            if text and text not in self.numbers:
                raise UserError(f"{self.folder} has no prompt {shown(text)}; {self.near(text)}")
        return self.of(torch.tensor([self.numbers[text] if text else len(self) for text in texts]))

    def near(self, text: str) -> str:
        """The end of an error about a text that is not there: those like it, or what there is."""
        known = list(self.numbers)
        some = f"there are {len(known):,}, such as {shown(next(iter(known), ''))}"
        return suggest(text, known if len(known) <= SEARCHED else [], some)

    def _row(self, file: str, row: int) -> Text:
        """One prompt: tokens (T, D), mask (T,), pooled (D,), float32."""
        part = _opened(self.folder / file)
        pooled = part.get_slice("pooled")[row].float() if self.info.pooled else torch.zeros(0)
        tokens = part.get_slice("tokens")[row].float() if self.info.tokens else pooled[None]
        if not bool(pooled.isfinite().all() and tokens.isfinite().all()):
            raise UserError(f"{self.folder / file} holds values that are no numbers; prepare the prompts again")
        mask = part.get_slice("mask")[row].bool() if self.info.tokens else torch.ones(1, dtype=torch.bool)
        return Text(tokens, mask, pooled)


def _opened(file: Path) -> Any:
    """A file of embeddings, mapped into memory: of a file that was written anew the new one."""
    try:
        now = file.stat()
        return _mapped(file, now.st_ino, now.st_mtime_ns, now.st_size)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); prepare the prompts again") from error


@lru_cache(maxsize=256)
def _mapped(file: Path, *which: int) -> Any:
    return safe_open(file, "pt")


def open_prompts(folder: str | Path) -> PromptTable:
    """The embeddings that `elit prepare prompts` wrote into a folder; "emoji" are those that come with the package.

    Raises UserError for a folder that holds none, or not all of them, or whose tensors are not what its prompts.json says.
    """
    place = Path(str(resources.files("elit") / "reference" / "emoji-names")) if str(folder) == EMOJI else Path(folder)
    if not (place / INFO_FILE).is_file():
        raise UserError(f"{place} holds no {INFO_FILE}; give a folder that elit prepare prompts wrote, or {EMOJI}")
    info = read_json(place / INFO_FILE, PromptInfo)
    sizes = [(NOTHING_FILE, 1)]
    sizes += [(part_file(n), min(PART, info.count - n * PART)) for n in range(parts_of(info))]
    for name, count in sizes:
        if not (place / name).is_file():
            raise UserError(f"{place} has no {name}; the command that began to write it goes on where it stopped")
        wanted: dict[str, tuple[int, ...]] = {"pooled": (count, info.pooled)} if info.pooled else {}
        if info.tokens:
            wanted |= {"tokens": (count, info.tokens, info.width), "mask": (count, info.tokens)}
        part = _opened(place / name)
        held = {key: tuple(part.get_slice(key).get_shape()) for key in part.keys()}  # noqa: SIM118 - no mapping
        if held != wanted:
            raise UserError(f"{place / name} is not what {INFO_FILE} says; prepare the prompts again in another folder")
    return PromptTable(place, info)
