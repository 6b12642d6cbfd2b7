"""Runs of `elit finetune` as they are kept, of tiny transformers with drawn weights, and the prompts that they are told."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

import elit
from elit.codec import Pixels
from elit.data.prompts import prepare_prompts
from elit.host_models import HostCheckpoint, describe_checkpoint
from elit.lora import Lora
from elit.text_encoder import load_text_encoder
from tiny_hosts import SIZES
from tiny_text import WIDTH, save_encoder

TEXTS = ["red heart", "star", "a fish of heart", "blue heart, red star"]  # of 2, 1, 4 and 5 tokens
HOSTS: dict[str, tuple[type, dict[str, Any]]] = {
    "sd3": (
        diffusers.SD3Transformer2DModel,
        {
            **SIZES, "sample_size": 8, "in_channels": 3, "out_channels": 3, "num_layers": 3, "joint_attention_dim": WIDTH,
            "caption_projection_dim": 32, "pooled_projection_dim": WIDTH, "pos_embed_max_size": 6, "qk_norm": "rms_norm",
        },
    ),
    "qwen": (
        diffusers.QwenImageTransformer2DModel,
        {
            **SIZES, "in_channels": 12, "out_channels": 3, "num_layers": 3, "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
}  # fmt: skip


def checkpoint(folder: Path, name: str, prompts: Path | None) -> Path:
    """An elastic transformer as `elit finetune` keeps it, its weights drawn: 8 x 8 pixels, four levels."""
    kind, sizes = HOSTS[name]
    torch.manual_seed(1)
    made = kind(**sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    elit.elasticize(made, 1, 1, 2, anchor="none")
    with torch.no_grad():
        for parameter in made.elit.parameters():
            parameter.normal_(std=0.2)
    told = None if prompts is None else str(prompts)
    kept = HostCheckpoint("elsewhere", None, made.elit.config, Lora(), 8, 8, 1.5, 0, "", told, Pixels(), 2.0)
    folder.mkdir(parents=True)
    plain = {key: value for key, value in made.config.items() if key[0] != "_"}
    describe_checkpoint(folder, kept, {"_class_name": kind.__name__, **plain})
    tensors = {f"transformer.{key}": value.detach().contiguous() for key, value in made.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def save_world(folder: Path) -> Path:
    """A text encoder, embeddings of five tokens by it, and by another, and a run of each host."""
    encoder = load_text_encoder(str(save_encoder(folder / "encoder")))
    prepare_prompts(TEXTS, encoder, folder / "prompts", tokens=5)
    prepare_prompts(TEXTS, load_text_encoder(str(save_encoder(folder / "wide", 32))), folder / "wide-prompts", tokens=5)
    for name in HOSTS:
        checkpoint(folder / name / "checkpoints" / "step_1", name, folder / "prompts")
    checkpoint(folder / "untold", "sd3", None)
    return folder
