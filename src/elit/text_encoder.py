"""Text encoders: what prompts are turned into embeddings by.

Any text model that `transformers.AutoModel` loads; or all encoders of a pipeline of diffusers, as it uses them itself.
"""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from elit.condition import Text
from elit.encoder import load_backbone
from elit.errors import UserError
from elit.weights import digest_of

MOST_TOKENS = 4096
TOKENIZERS = {  # of the pipelines whose encode_prompt is known: the one whose tokens are counted
    "StableDiffusion3Pipeline": "tokenizer_3",
    "FluxPipeline": "tokenizer_2",
    "QwenImagePipeline": "tokenizer",
}


class Encoder(Protocol):
    """What makes embeddings of texts.

    name: the folder or hub id. width: D of a token. pooled: P of a whole text, 0 where none is made. most: tokens of a text
    that it reads. beside: tokens of `encode` beyond those that are asked for.
    """

    name: str
    width: int
    pooled: int
    most: int
    beside: int

    def digest(self) -> str:
        """Of the weights."""

    def count(self, text: str) -> int:
        """Tokens of a text, none of them cut off."""

    def length(self, tokens: int) -> int:
        """T of `encode`, 0 where one stands for the whole text. Raises UserError for more tokens than it reads."""

    def encode(self, texts: Sequence[str], tokens: int) -> Text:
        """Of B texts: tokens (B, T, D), zero where a text has fewer, their mask (B, T), and pooled (B, P), float32."""


class TextEncoder:
    """A text model of transformers, whose pooled text is the mean of its tokens."""

    beside = 0

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        model = getattr(model, "text_model", model)  # CLIP and its kin have a vision tower too
        model = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
        width = getattr(model.config, "hidden_size", None) or getattr(model.config, "d_model", None)
        if not isinstance(width, int) or "input_ids" not in inspect.signature(model.forward).parameters:
            raise UserError(f"{name} is no text encoder; give one, such as sentence-transformers/all-MiniLM-L6-v2")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.width = self.pooled = width
        known = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", MOST_TOKENS))
        self.most = min(MOST_TOKENS, *known)

    def digest(self) -> str:
        return digest_of(self.model)

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def length(self, tokens: int) -> int:
        if tokens > self.most:
            raise UserError(f"{self.name} reads {self.most} tokens at most, not {tokens}; keep fewer")
        return tokens

    @torch.no_grad()
    def encode(self, texts: Sequence[str], tokens: int) -> Text:
        """As `Encoder` has it. With `tokens` 0 the mean of all tokens is the one that is given, as sentence encoders are
        made for.
        """
        taken = self.tokenizer(
            list(texts),
            padding="max_length" if tokens else True,
            truncation=True,
            max_length=tokens or self.most,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        ids, mask_BT = taken["input_ids"].to(device), taken["attention_mask"].bool().to(device)
        if not ids.shape[1]:  # no text at all, and a tokenizer that adds nothing
            nothing = torch.zeros(len(texts), 1, self.width)
            return Text(nothing, torch.ones(len(texts), 1, dtype=torch.bool), nothing[:, 0])
        tokens_BTD: Tensor = self.model(input_ids=ids, attention_mask=mask_BT.long()).last_hidden_state.float()
        tokens_BTD = tokens_BTD * mask_BT[..., None]
        pooled_BD = tokens_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)
        if tokens == 0:
            tokens_BTD, mask_BT = pooled_BD[:, None], torch.ones_like(mask_BT[:, :1])
        return Text(tokens_BTD.cpu(), mask_BT.cpu(), pooled_BD.cpu())


class PipelineEncoder:
    """The text encoders of a pipeline of diffusers, whose transformer is to be trained."""

    most = MOST_TOKENS

    def __init__(self, pipe: Any, name: str) -> None:
        self.pipe, self.name = pipe, name
        one = self.encode([""], 16)
        self.beside = one.tokens.shape[1] - 16 if self.kind == "StableDiffusion3Pipeline" else 0  # tokens of CLIP
        self.width, self.pooled = one.tokens.shape[2], one.pooled.shape[1]

    @property
    def kind(self) -> str:
        return type(self.pipe).__name__

    def digest(self) -> str:
        found = hashlib.sha256()
        for name, part in sorted(self.pipe.components.items()):
            if isinstance(part, torch.nn.Module):
                found.update(f"{name} {digest_of(part)}".encode())
        return found.hexdigest()[:12]

    def count(self, text: str) -> int:
        """By the tokenizer of the encoder whose tokens are kept; others have room for the beginning alone, as always."""
        tokenizer = getattr(self.pipe, TOKENIZERS[self.kind]) or self.pipe.tokenizer
        return len(tokenizer(text, verbose=False)["input_ids"])

    def length(self, tokens: int) -> int:
        if not tokens:
            raise UserError(f"a {self.kind} needs the tokens of prompts; say how many, such as --tokens 256")
        return tokens + self.beside

    @torch.no_grad()
    def encode(self, texts: Sequence[str], tokens: int) -> Text:
        """As `Encoder` has it, by the pipeline's own `encode_prompt`; `tokens` is its max_sequence_length."""
        asked: dict[str, Any] = {"prompt": list(texts), "max_sequence_length": tokens}
        if self.kind == "StableDiffusion3Pipeline":
            asked |= {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
            embeds, _, pooled, _ = self.pipe.encode_prompt(**asked)
            mask = None
        elif self.kind == "FluxPipeline":
            embeds, pooled, _ = self.pipe.encode_prompt(**asked)
            mask = None
        else:
            embeds, mask = self.pipe.encode_prompt(**asked)
            pooled = embeds.new_zeros(len(texts), 0)
        mask = torch.ones(embeds.shape[:2]) if mask is None else mask
        missing = max(0, tokens - embeds.shape[1])
        embeds, mask = (torch.cat([one, one.new_zeros(len(one), missing, *one.shape[2:])], 1) for one in (embeds, mask))
        return Text((embeds.float() * mask[..., None].to(embeds.device)).cpu(), mask.bool().cpu(), pooled.float().cpu())


def load_text_encoder(name: str, device: torch.device | str = "cpu") -> Encoder:
    """The text encoder of a folder or hub id, in float32, with its tokenizer; or those of a pipeline's folder.

    Raises UserError for one that cannot be read or fetched, lacks weights, or is none.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UserError(f"there is no folder {name}; give that of a text encoder, or its id on the hub")
    if (Path(name) / "model_index.json").is_file():
        return _of_pipeline(name, device)
    model = load_backbone(name, "text")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} has no tokenizer that can be loaded ({why}); give a folder with its tokenizer.json"
        ) from error
    made = TextEncoder(model, tokenizer, name)
    made.model.to(device)
    return made


def _of_pipeline(name: str, device: torch.device | str) -> PipelineEncoder:
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(name, transformer=None, vae=None, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"no pipeline could be loaded from {name} ({why}); fetch or write it again") from error
    kind = type(pipe).__name__
    if kind not in TOKENIZERS:
        raise UserError(f"{name} is a {kind}, whose prompts are not known here; those that are: {', '.join(TOKENIZERS)}")
    if pipe.text_encoder is None:
        raise UserError(f"{name} holds no text encoder; give the one that its prompts were prepared with")
    return PipelineEncoder(pipe.to(device), name)
