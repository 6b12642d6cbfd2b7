"""The weights and inputs behind `data/published/expected.safetensors`, and the names of the published tensors as ours.

No file holds the weights: each tensor is drawn from a seed made of its own published name.
"""

import math
import re
import zlib

import torch
from torch import Tensor

State = dict[str, Tensor]


def drawn_tensor(name: str, shape: list[int]) -> Tensor:
    """Standard normal from the CRC-32 of the name, then brought to the size that its kind has in a trained model."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if re.search(r"[qk]_norm\.scale$", name) or re.search(r"norm.*weight$", name):
        return 1 + 0.1 * normal
    if len(shape) < 2:
        return 0.1 * normal
    if "embed" in name and "mlp" not in name and len(shape) == 2:
        return 0.5 * normal
    unit_gain = normal / math.prod(shape[1:]) ** 0.5
    return 0.5 * unit_gain if "adaLN" in name else unit_gain


def drawn_state(shapes: dict[str, list[int]]) -> State:
    """Every learned tensor; `pos_embed` is the fixed sin-cos table and is not learned."""
    return {name: drawn_tensor(name, shape) for name, shape in shapes.items() if name != "pos_embed"}


def drawn_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x (2, 4, 32, 32), t (2,) and y (2,), in this order from seed 1."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 32, 32, generator=generator)
    t = torch.rand(2, generator=generator)
    return x, t, torch.randint(0, 1000, (2,), generator=generator)


# published name -> ours, applied one after another; {core} is the place of the latent core among the blocks
RENAMED = [
    (r"^x_embedder\.proj", "patch_embedding"),
    (r"^t_embedder\.mlp\.0", "time_embedding.fc1"),
    (r"^t_embedder\.mlp\.2", "time_embedding.fc2"),
    (r"^y_embedder\.embedding_table", "label_embedding"),
    (r"^final_layer", "final"),
    (r"^input_token_editor\.adapters\.0\.(fit_layer\.)?", "blocks.{core}.read."),
    (r"^output_token_editor\.adapters\.0\.", "blocks.{core}.write."),
    (r"\.(latents_attend_to_patches|patches_attend_to_latents)\.0\.", ".layers.0.attention."),
    (r"\.(read_ff|write_ff)\.0\.", ".layers.0.mlp."),
    (r"\.read\.adaLN_modulation\.1\.", ".read.layers.0.modulation."),
    (r"\.adaLN_modulation\.1\.|^adaLN_modulation\.1\.", ".modulation."),
    (r"\.learned_query_embed$", ".queries"),
    (r"\.latent_pos_embed$", ".latent_positions"),
    (r"\.pos_embed$", ".token_positions"),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.proj\.", ".attention.out."),
    (r"\.attention\.(q|kv)_proj\.", r".attention.\1."),
]


def our_block(index: int, head: int, tail_begins: int) -> str:
    """Where published block `index` stands in `[*head, core, *tail]`."""
    if index < head:
        return f"blocks.{index}."
    if index < tail_begins:
        return f"blocks.{head}.blocks.{index - head}."
    return f"blocks.{head + 1 + index - tail_begins}."


def our_name(published: str, split: tuple[int, int] | None) -> str:
    """A published name as ours. `split`: the first block of the core and the first of the tail; None in a dense model."""
    name = published
    if split is not None:
        name = re.sub(r"^blocks\.(\d+)\.", lambda block: our_block(int(block[1]), *split), name)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement.replace("{core}", str(split and split[0])), name)
    return name


def our_state(published: State, split: tuple[int, int] | None) -> State:
    """A published state dict under our names, the patch convolution as a linear over (row, column, channel)."""
    state = {our_name(name, split): tensor for name, tensor in published.items()}
    convolution = state["patch_embedding.weight"]
    return {**state, "patch_embedding.weight": convolution.permute(0, 2, 3, 1).flatten(1)}
