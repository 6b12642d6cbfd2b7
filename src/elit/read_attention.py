"""What Read attends to, noted while a model runs.

Shapes: B batch, G groups, S tokens in a group, K latents kept, C width, H heads, D head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from elit.elastic.core import LatentCore
from elit.elastic.interface import CrossAttention, ReadLayer


def attention_weights(layer: CrossAttention, x_BGKC: Tensor, source_BGSC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)): the (B, G, H, K, S) weights with which a layer called on these would attend."""
    k_BGSC, _ = layer.kv(source_BGSC).chunk(2, dim=-1)
    q, k = (
        y.unflatten(-1, (layer.heads, -1)).transpose(2, 3) for y in (layer.q_norm(layer.q(x_BGKC)), layer.k_norm(k_BGSC))
    )
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


@contextmanager
def captured_reads(core: LatentCore) -> Iterator[list[Tensor]]:
    """A list that every Read layer which runs inside adds its (B, G, K, S) weights to, the mean of its heads."""
    found: list[Tensor] = []

    def note(layer: CrossAttention, inputs: tuple[Tensor, Tensor]) -> None:
        found.append(attention_weights(layer, *inputs).mean(2))

    layers = [layer for layer in core.read.layers if isinstance(layer, ReadLayer)]
    handles = [layer.attention.register_forward_pre_hook(note) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
