"""A text encoder of a few thousand weights with a tokenizer of a few words, as transformers keeps them in a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "red", "blue", "heart", "star", "fish", "a", "of")
WIDTH = 16


def tokenizer(longest: int = 12) -> PreTrainedTokenizerFast:
    """Words by spaces, a token each."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[UNK]", model_max_length=longest
    )


def save_encoder(folder: Path, width: int = WIDTH) -> Path:
    """A BERT of one layer, its weights drawn."""
    torch.manual_seed(3)
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * width}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
