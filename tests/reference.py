"""The model's formulas, stated a second time: float64, loops over samples, groups and heads, and an explicit softmax.

Nothing here calls the library. Weights come as the `state_dict` of the layer that is held to the formula.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def weights_of(module: torch.nn.Module) -> Weights:
    """The layer's tensors in float64."""
    return {name: tensor.double() for name, tensor in module.state_dict().items()}


def below(weights: Weights, prefix: str) -> Weights:
    """The weights of a part: those whose names start with `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: w for name, w in weights.items() if name.startswith(prefix + ".")}


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(weights: Weights, x: Tensor) -> Tensor:
    return linear(weights, "fc2", gelu_tanh(linear(weights, "fc1", x)))


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / (torch.sqrt((x**2).mean(-1, keepdim=True)) + 1e-5) * scale


def one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, D) queries over (m, D) keys and values."""
    weight = torch.exp(q @ k.T / math.sqrt(q.shape[-1]))
    return (weight / weight.sum(-1, keepdim=True)) @ v


def multi_head(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(n, C) queries over (m, C) keys and values; head h owns the h-th run of C / heads channels."""
    d = q.shape[-1] // heads
    spans = [slice(h * d, (h + 1) * d) for h in range(heads)]
    return torch.cat([one_head(q[:, s], k[:, s], v[:, s]) for s in spans], dim=-1)


def cross_attention(weights: Weights, heads: int, x: Tensor, source: Tensor) -> Tensor:
    """Of one group: (n, C) queries over (m, C) sources, RMSNorm over the full width before the head split."""
    width = x.shape[-1]
    q = rms_norm(linear(weights, "q", x), weights["q_norm.scale"])
    kv = linear(weights, "kv", source)
    k = rms_norm(kv[:, :width], weights["k_norm.scale"])
    return linear(weights, "out", multi_head(q, k, kv[:, width:], heads))


def read_group(weights: Weights, heads: int, depth: int, tokens_SC: Tensor, c_C: Tensor, latents_KC: Tensor) -> Tensor:
    """l = l + gate_a CA(l, mod(LN(s))); l = l + gate_m MLP(mod(LN(l))), in every layer, for the latents of one group."""
    width = tokens_SC.shape[-1]
    for i in range(depth):
        layer = below(weights, f"layers.{i}")
        shift_kv, scale_kv, gate_a, shift_m, scale_m, gate_m, _ = linear(layer, "modulation", silu(c_C)).split(width)
        source = layer_norm(tokens_SC, 1e-6) * (1 + scale_kv) + shift_kv
        latents_KC = latents_KC + gate_a * cross_attention(below(layer, "attention"), heads, latents_KC, source)
        latents_KC = latents_KC + gate_m * mlp(below(layer, "mlp"), layer_norm(latents_KC, 1e-6) * (1 + scale_m) + shift_m)
    return latents_KC


def read(weights: Weights, heads: int, depth: int, tokens_BGSC: Tensor, c_BC: Tensor, keep: int) -> Tensor:
    """The first latents of every group, which start as the learned queries."""
    queries = weights["queries"][:keep]
    return torch.stack(
        [
            torch.stack([read_group(weights, heads, depth, tokens, c, queries) for tokens in groups])
            for groups, c in zip(tokens_BGSC, c_BC, strict=True)
        ]
    )


def write_group(weights: Weights, heads: int, depth: int, tokens_SC: Tensor, latents_KC: Tensor) -> Tensor:
    """s = s + CA(s, l); s = s + MLP(s) in every layer, for the tokens of one group, which have their table added."""
    for i in range(depth):
        layer = below(weights, f"layers.{i}")
        tokens_SC = tokens_SC + cross_attention(below(layer, "attention"), heads, tokens_SC, latents_KC)
        tokens_SC = tokens_SC + mlp(below(layer, "mlp"), tokens_SC)
    return tokens_SC


def write(weights: Weights, heads: int, depth: int, tokens_BGSC: Tensor, latents_BGKC: Tensor) -> Tensor:
    """s = s + table; then the layers, group by group."""
    table = weights["token_positions"]
    return torch.stack(
        [
            torch.stack([write_group(weights, heads, depth, s + table, z) for s, z in zip(tokens, latents, strict=True)])
            for tokens, latents in zip(tokens_BGSC, latents_BGKC, strict=True)
        ]
    )


def cell_shares(axes: tuple[int, int, int], token: int, kept: Sequence[int]) -> dict[int, float]:
    """How a token of a window is shared out among kept tokens: evenly among those of the smallest box that has any.

    Boxes are the window, its halves along every axis that is longer than one (the first half the larger), and so on.
    """

    def place(number: int) -> tuple[int, int, int]:
        return number // (axes[1] * axes[2]), number // axes[2] % axes[1], number % axes[2]

    inside, box = list(kept), [(0, n) for n in axes]
    while True:
        smaller = []
        for (a, b), at in zip(box, place(token), strict=True):
            middle = (a + b + 1) // 2
            smaller.append((a, b) if b - a == 1 else (a, middle) if at < middle else (middle, b))
        still = [k for k in inside if all(a <= i < b for (a, b), i in zip(smaller, place(k), strict=True))]
        if not still or smaller == box:
            return {k: 1 / len(inside) for k in inside}
        inside, box = still, smaller


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def window_seats(grid: tuple[int, int, int], window: tuple[int, int, int]) -> list[dict[int, int]]:
    """For every window, also those that stick out of the grid: {number in the window: row-major index in the grid}."""
    T, H, W = grid
    t, h, w = window
    return [
        {
            (f * h + r) * w + c: ((f0 + f) * H + r0 + r) * W + c0 + c
            for f in range(t)
            for r in range(h)
            for c in range(w)
            if f0 + f < T and r0 + r < H and c0 + c < W
        }
        for f0 in range(0, T, t)
        for r0 in range(0, H, h)
        for c0 in range(0, W, w)
    ]


def angles(place: tuple[int, ...], pairs: int) -> Tensor:
    """RoPE angles (pairs,) of one place: an equal share of the pairs for each axis, and 0 for those left over."""
    each = pairs // len(place)
    turned = [p * 10000.0 ** (-i / each) for p in place for i in range(each)]
    return torch.tensor(turned + [0.0] * (pairs - len(turned)), dtype=torch.float64)


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Channels i and i + D/2 of the last dimension as one complex number, times e^(i angle)."""
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)


def block(weights: Weights, heads: int, x: Tensor, c: Tensor, places: list[tuple[int, ...]] | None) -> Tensor:
    """The adaLN-Zero block on one sample: (n, C) tokens, (C,) conditioning, and places where RoPE turns q, k."""
    width, d = x.shape[-1], x.shape[-1] // heads
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(weights, "modulation", silu(c)).split(width)
    qkv = linear(weights, "attention.qkv", layer_norm(x, 1e-6) * (1 + scale_a) + shift_a)
    q, k, v = (part.unflatten(-1, (heads, d)) for part in qkv.split(width, dim=-1))
    if "attention.q_norm.weight" in weights:
        q, k = (
            layer_norm(part, 1e-5) * weights[f"attention.{name}.weight"] + weights[f"attention.{name}.bias"]
            for part, name in ((q, "q_norm"), (k, "k_norm"))
        )
    if places is not None:
        q, k = (
            torch.stack([turn(token, angles(place, d // 2)) for token, place in zip(part, places, strict=True)])
            for part in (q, k)
        )
    mixed = torch.cat([one_head(q[:, h], k[:, h], v[:, h]) for h in range(heads)], dim=-1)
    x = x + gate_a * linear(weights, "attention.out", mixed)
    return x + gate_m * mlp(below(weights, "mlp"), layer_norm(x, 1e-6) * (1 + scale_m) + shift_m)


def window_tokens(grid: tuple[int, int, int], window: tuple[int, int, int]) -> list[list[int]]:
    """For every window, in row-major order, the row-major indices of its tokens; axes are (frames, height, width)."""
    T, H, W = grid
    t, h, w = window
    return [
        [(f * H + r) * W + c for f in range(f0, f0 + t) for r in range(r0, r0 + h) for c in range(c0, c0 + w)]
        for f0 in range(0, T, t)
        for r0 in range(0, H, h)
        for c0 in range(0, W, w)
    ]
