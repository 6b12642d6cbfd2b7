"""Prompts as embeddings, made ahead: written by `elit prepare prompts`, read a batch at a time, and joined to pictures.

FOLDER/prompts.json              what they are embeddings of, by which encoder
FOLDER/texts.txt                 the prompts, one a line
FOLDER/nothing.safetensors       the embedding of no prompt, which guidance and dropped prompts need
FOLDER/part-00000.safetensors    of the first 1,024 prompts, in half precision; and so on
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elit.codec import DataEncoding
from elit.condition import Prompts, Text
from elit.data.dataset import PreparedData, is_prepared
from elit.data.emoji import load_emoji
from elit.data.loader import Data, NewGenerators
from elit.errors import UserError
from elit.files import check_writable, locked, read_bytes, remove_leftovers, write_whole
from elit.records import Count, read_json, record
from elit.text_encoder import MOST_TOKENS, Encoder
from elit.weights import save_tensors
from elit.words import shown

INFO_FILE, TEXTS_FILE, NOTHING_FILE = "prompts.json", "texts.txt", "nothing.safetensors"
EMOJI = "emoji"  # names the embedded pictures, and the embeddings of their names that come with the package
PART = 1024  # prompts of a file
AT_ONCE = 32  # in one call of the encoder
LONGEST = 20_000  # letters of a prompt
TEXT_BYTES = 2**30

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


def read_texts(source: str) -> list[str]:
    """The prompts of a source: "emoji", the names of the embedded pictures; a folder that `elit prepare images` wrote, the
    names of its labels; or a text file, one a line.

    Raises UserError for a source that is none of these, is empty, or holds what is no text.
    """
    if source == EMOJI:
        return [name.lower() for name in load_emoji().names]
    place = Path(source)
    if is_prepared(place):
        names = [name.replace("-", " ") for name in PreparedData(place).label_names]
        if not names:
            raise UserError(f"the pictures of {source} have no labels to take prompts from; give a file, one prompt a line")
        return names
    if not place.is_file():
        raise UserError(f"{source} is no file of prompts; give one, a prompt a line, a folder with labels, or {EMOJI}")
    try:
        texts = read_bytes(place, TEXT_BYTES).decode("utf8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not a text file ({error}); write one prompt a line, in UTF-8") from error
    if not any(text.strip() for text in texts):
        raise UserError(f"{source} holds no prompts; write one a line")
    long = next((i for i, text in enumerate(texts) if len(text) > LONGEST), None)
    if long is not None:
        raise UserError(f"line {long + 1} of {source} has {len(texts[long]):,} letters; a prompt has {LONGEST:,} at most")
    return [text.strip() for text in texts]


def prepare_prompts(
    texts: Sequence[str], encoder: Encoder, out: Path, tokens: int = 0, done: Callable[[int], None] | None = None
) -> PromptInfo:
    """Writes the embeddings of prompts, part by part; one that is there stays, so that a stopped command goes on.

    tokens: to keep of each prompt, 0 for the mean of all. done: is told how many prompts were encoded or found.

    Raises UserError where the encoder reads fewer tokens, and for a folder that holds something else; WriteError where
    nothing can be written.
    """
    text = "".join(f"{one}\n" for one in texts)
    found = hashlib.sha256(text.encode()).hexdigest()
    info = PromptInfo(
        encoder.name, encoder.digest(), encoder.length(tokens), encoder.width, encoder.pooled, len(texts), found
    )
    _check_folder(out, info)
    check_writable(out)
    with locked(out, "preparing prompts"):
        _check_folder(out, info)
        remove_leftovers(out, everyones=True)
        write_whole(out / TEXTS_FILE, text)
        write_whole(out / INFO_FILE, json.dumps(asdict(info), indent=2) + "\n")
        _write_part(out / NOTHING_FILE, [""], encoder, tokens)
        for number in range(_parts(info)):
            part = texts[number * PART : (number + 1) * PART]
            if not (out / _part_file(number)).is_file():
                _write_part(out / _part_file(number), part, encoder, tokens)
            if done is not None:
                done(len(part))
    return info


def _check_folder(out: Path, info: PromptInfo) -> None:
    """Raises UserError for a folder that holds anything but what the same command would write."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    if (out / INFO_FILE).is_file():
        old = read_json(out / INFO_FILE, PromptInfo)
        wrong = [name for name, value in asdict(info).items() if getattr(old, name) != value and name != "encoder"]
        if wrong:
            raise UserError(f"{out} holds embeddings of other {_PLAIN[wrong[0]]}; give another folder")
    elif out.is_dir() and (others := [p.name for p in sorted(out.iterdir()) if p.name[0] != "." and p.name != TEXTS_FILE]):
        raise UserError(f"{out} holds other files, such as {others[0]}; give another folder")


_PLAIN = {
    "weights": "weights of an encoder",
    "tokens": "counts of tokens",
    "width": "width",
    "pooled": "width",
    "count": "prompts",
    "texts": "prompts",
    "dtype": "precision",
}


def _parts(info: PromptInfo) -> int:
    return -(-info.count // PART)


def _part_file(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _write_part(file: Path, texts: Sequence[str], encoder: Encoder, tokens: int) -> None:
    made = [encoder.encode(texts[i : i + AT_ONCE], tokens) for i in range(0, len(texts), AT_ONCE)]
    tensors = {"pooled": torch.cat([text.pooled for text in made]).half()} if encoder.pooled else {}
    if tokens:
        tensors |= {
            "tokens": torch.cat([text.tokens for text in made]).half(),
            "mask": torch.cat([text.mask for text in made]).to(torch.uint8),
        }
    save_tensors(tensors, file)


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
        """The prompts themselves."""
        return read_bytes(self.folder / TEXTS_FILE, TEXT_BYTES).decode("utf8").splitlines()

    @cached_property
    def nothing(self) -> Text:
        """No prompt."""
        return self._row(NOTHING_FILE, 0)

    def of(self, numbers: Tensor) -> Prompts:
        """The embeddings of prompts by their numbers (B,). Raises UserError for a file that cannot be read."""
        rows = [
            self.nothing if number >= len(self) else self._row(_part_file(number // PART), number % PART)
            for number in numbers.tolist()
        ]
        tokens, mask, pooled = (torch.stack(values) for values in zip(*(vars(row).values() for row in rows), strict=True))
        return Prompts(Text(tokens, mask, pooled), self.nothing)

    def find(self, texts: Sequence[str]) -> Prompts:
        """The embeddings of prompts by their text, "" for none. Raises UserError for one that is not there."""
        from elit.words import suggest

        numbers = []
        for text in texts:
            if text and text not in self.texts:
                raise UserError(f"{self.folder} has no prompt {shown(text)}; {suggest(text, self.texts)}")
            numbers.append(self.texts.index(text) if text else len(self))
        return self.of(torch.tensor(numbers))

    def _row(self, file: str, row: int) -> Text:
        """One prompt: tokens (T, D), mask (T,), pooled (D,), float32."""
        part = _opened(self.folder / file)
        pooled = part.get_slice("pooled")[row].float() if self.info.pooled else torch.zeros(0)
        tokens = part.get_slice("tokens")[row].float() if self.info.tokens else pooled[None]
        if not bool(pooled.isfinite().all() and tokens.isfinite().all()):
            raise UserError(f"{self.folder / file} holds values that are no numbers; prepare the prompts again")
        mask = part.get_slice("mask")[row].bool() if self.info.tokens else torch.ones(1, dtype=torch.bool)
        return Text(tokens, mask, pooled)


@lru_cache(maxsize=256)
def _opened(file: Path) -> Any:
    """A file of embeddings, mapped into memory."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); prepare the prompts again") from error


def open_prompts(folder: str | Path) -> PromptTable:
    """The embeddings that `elit prepare prompts` wrote into a folder; "emoji" are those that come with the package.

    Raises UserError for a folder that holds none, or not all of them, or whose tensors are not what its prompts.json says.
    """
    place = Path(str(resources.files("elit") / "reference" / "emoji-names")) if str(folder) == EMOJI else Path(folder)
    if not (place / INFO_FILE).is_file():
        raise UserError(f"{place} holds no {INFO_FILE}; give a folder that elit prepare prompts wrote, or {EMOJI}")
    info = read_json(place / INFO_FILE, PromptInfo)
    sizes = [(NOTHING_FILE, 1)]
    sizes += [(_part_file(n), min(PART, info.count - n * PART)) for n in range(_parts(info))]
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


@dataclass(frozen=True)
class PromptedData:
    """Pictures with a prompt each, whose labels are the numbers of the prompts; `-1` is none.

    kept: the rows of `pictures` that are read, all if it is not given.
    """

    pictures: Data
    prompts: PromptTable
    kept: Tensor

    label_names: tuple[str, ...] = ()
    label_counts: tuple[int, ...] = ()

    @property
    def encoding(self) -> DataEncoding:
        return self.pictures.encoding

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pictures.shape

    @property
    def exact(self) -> bool:
        return self.pictures.exact

    @property
    def members(self) -> Sequence[Tensor]:
        return ()

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Inputs (B, C, H, W) float32, and the numbers (B,) of their prompts."""
        rows = self.kept[rows]
        x_BCHW, labels_B = self.pictures.read(rows, generators)
        return x_BCHW, rows if len(self.prompts) == len(self.pictures) else labels_B

    def told(self, numbers: Tensor) -> Prompts:
        """What a model is told of prompts by their numbers (B,)."""
        return self.prompts.of(torch.where(numbers < 0, len(self.prompts), numbers))

    def stored_features(self, encoder: str) -> None:
        """None: nothing is aligned."""

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        return self.pictures.target(encoder, self.kept[rows], x_BCHW, generators)


def with_prompts(pictures: Data, prompts: PromptTable, held_out: float = 0.0, of_held_out: bool = False) -> PromptedData:
    """Pictures with prompts: as many as there are pictures, in their order, or else as there are labels.

    held_out: the share of the pictures, spread evenly over them, that is left out; with `of_held_out` only those are in.
    Raises UserError for another number of prompts, and for data that cannot be read by number or have several sizes.
    """
    if not pictures.exact or len(pictures.members) > 1 or len(pictures.shape) != 3:
        raise UserError("pictures with prompts are of one size and in a folder, no stream and no clips; prepare them so")
    count, labels = len(pictures), len(pictures.label_names)
    if len(prompts) not in (count, labels):
        raise UserError(
            f"{prompts.folder} holds {len(prompts)} prompts for {count} pictures with {labels} labels; give one for each"
            " picture, or one for each label"
        )
    held = torch.floor((torch.arange(count, dtype=torch.float64) + 1) * held_out + 1e-9) > torch.floor(
        torch.arange(count, dtype=torch.float64) * held_out + 1e-9
    )
    kept = torch.arange(count)[held if of_held_out else ~held]
    if not len(kept):
        raise UserError(f"held_out {held_out} leaves no pictures; change it")
    return PromptedData(pictures, prompts, kept)


def told(data: Data, labels: Tensor) -> Tensor | Prompts:
    """What a model is told of the labels of data: those themselves, or of pictures with prompts their embeddings."""
    return data.told(labels) if isinstance(data, PromptedData) else labels
