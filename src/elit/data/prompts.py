"""Prompts to be embedded, as `elit prepare prompts` does it; and pictures joined to prompts."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from elit.codec import DataEncoding
from elit.condition import Prompts
from elit.data.dataset import PreparedData, is_prepared
from elit.data.emoji import load_emoji
from elit.data.loader import Data, NewGenerators
from elit.errors import UserError
from elit.files import check_writable, locked, read_bytes, remove_leftovers, write_whole
from elit.prompt_tables import (
    EMOJI,
    INFO_FILE,
    NOTHING_FILE,
    PART,
    TEXT_BYTES,
    TEXTS_FILE,
    PromptInfo,
    PromptTable,
    part_file,
    parts_of,
)
from elit.records import read_json
from elit.text_encoder import Encoder
from elit.weights import save_tensors
from elit.words import shown

AT_ONCE = 32  # in one call of the encoder
LONGEST = 20_000  # letters of a prompt


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

    Raises UserError where the encoder reads fewer tokens, for a prompt of several lines, and for a folder that holds
    something else; WriteError where nothing can be written.
    """
    if several := [one for one in texts if "\n" in one]:
        raise UserError(f"the prompt {shown(several[0])} has several lines; write it on one")
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
        for number in range(parts_of(info)):
            part = texts[number * PART : (number + 1) * PART]
            if not (out / part_file(number)).is_file():
                _write_part(out / part_file(number), part, encoder, tokens)
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


def _write_part(file: Path, texts: Sequence[str], encoder: Encoder, tokens: int) -> None:
    made = [encoder.encode(texts[i : i + AT_ONCE], tokens) for i in range(0, len(texts), AT_ONCE)]
    tensors = {"pooled": torch.cat([text.pooled for text in made]).half()} if encoder.pooled else {}
    if tokens:
        tensors |= {
            "tokens": torch.cat([text.tokens for text in made]).half(),
            "mask": torch.cat([text.mask for text in made]).to(torch.uint8),
        }
    save_tensors(tensors, file)


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
