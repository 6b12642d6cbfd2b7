"""What the published models compute, stated a second time: float64, from the published tensors by their published names.

Nothing here calls the library. One sample at a time; N tokens, C width.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
HEAD_WIDTH = 64


def linear(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].double().T
    return y + state[f"{name}.bias"].double() if f"{name}.bias" in state else y


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def standardised(x: Tensor, eps: float = 1e-6) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + eps) ** -0.5


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, C), (m, C), (m, C): softmax(q k / 8) v in every head of 64 channels."""
    out = []
    for first in range(0, q.shape[-1], HEAD_WIDTH):
        span = slice(first, first + HEAD_WIDTH)
        out.append((q[:, span] @ k[:, span].T / HEAD_WIDTH**0.5).softmax(-1) @ v[:, span])
    return torch.cat(out, -1)


def block(state: State, name: str, x: Tensor, c: Tensor) -> Tensor:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(state, f"{name}.adaLN_modulation.1", silu(c)).chunk(6)
    q, k, v = linear(state, f"{name}.attn.qkv", standardised(x) * (1 + scale_a) + shift_a).chunk(3, -1)
    if f"{name}.attn.q_norm.weight" in state:
        q, k = (
            (
                standardised(part.unflatten(-1, (-1, HEAD_WIDTH)), 1e-5) * state[f"{name}.attn.{norm}.weight"].double()
                + state[f"{name}.attn.{norm}.bias"].double()
            ).flatten(-2)
            for part, norm in ((q, "q_norm"), (k, "k_norm"))
        )
    x = x + gate_a * linear(state, f"{name}.attn.proj", attend(q, k, v))
    hidden = linear(state, f"{name}.mlp.fc1", standardised(x) * (1 + scale_m) + shift_m)
    return x + gate_m * linear(state, f"{name}.mlp.fc2", gelu(hidden))


def cross_attention(state: State, name: str, x: Tensor, source: Tensor) -> Tensor:
    def norm(y: Tensor, which: str) -> Tensor:
        rms = y.square().mean(-1, keepdim=True).sqrt()
        return y / (rms + 1e-5) * state[f"{name}.{which}.scale"].double()

    k, v = linear(state, f"{name}.kv_proj", source).chunk(2, -1)
    q = norm(linear(state, f"{name}.q_proj", x), "q_norm")
    return linear(state, f"{name}.proj", attend(q, norm(k, "k_norm"), v))


def conditioning(state: State, t: float, y: int) -> Tensor:
    return time_embedding(state, "t_embedder", t) + state["y_embedder.embedding_table.weight"][y].double()


def time_embedding(state: State, name: str, t: float) -> Tensor:
    turns = torch.tensor([t * 10000.0 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    hidden = silu(linear(state, f"{name}.mlp.0", torch.cat([turns.cos(), turns.sin()])))
    return linear(state, f"{name}.mlp.2", hidden)


def positions(side: int, width: int) -> Tensor:
    """(side^2, C): the column in the first half of the channels, the row in the last; all sines before all cosines."""
    rows = []
    for row in range(side):
        for column in range(side):
            turns = [[place * 10000.0 ** (-i / (width / 4)) for i in range(width // 4)] for place in (column, row)]
            rows.append([f(turn) for axis in turns for f in (math.sin, math.cos) for turn in axis])
    return torch.tensor(rows, dtype=torch.float64)


def core(state: State, x: Tensor, c: Tensor, side: int, window: int, blocks: range, keep: int) -> Tensor:
    """Read, the core blocks on the first `keep` latents of every window, and Write, which sees all of them."""
    places = [
        [(top + i) * side + left + j for i in range(window) for j in range(window)]
        for top in range(0, side, window)
        for left in range(0, side, window)
    ]
    reader, writer = "input_token_editor.adapters.0", "output_token_editor.adapters.0"
    fit = f"{reader}.fit_layer"
    tokens = [x[place] + state[f"{reader}.pos_embed"].double() for place in places]
    shift_k, scale_k, gate_a, shift_m, scale_m, gate_m, _ = linear(state, f"{fit}.adaLN_modulation.1", silu(c)).chunk(7)
    latents = []
    for place, own in zip(places, tokens, strict=True):
        z = state[f"{reader}.learned_query_embed"].double()
        source = standardised(own) * (1 + scale_k) + shift_k
        z = z + gate_a * cross_attention(state, f"{fit}.latents_attend_to_patches.0", z, source)
        hidden = gelu(linear(state, f"{fit}.read_ff.0.fc1", standardised(z) * (1 + scale_m) + shift_m))
        z = z + gate_m * linear(state, f"{fit}.read_ff.0.fc2", hidden)
        latents.append(z + state[f"{reader}.latent_pos_embed"][place].double())
    kept = torch.cat([z[:keep] for z in latents])
    for i in blocks:
        kept = block(state, f"blocks.{i}", kept, c)
    out = torch.empty_like(x)
    for g, (place, own, z) in enumerate(zip(places, tokens, latents, strict=True)):
        seen = torch.cat([kept[g * keep : (g + 1) * keep], z[keep:]])
        s = own + state[f"{writer}.pos_embed"].double()
        s = s + cross_attention(state, f"{writer}.patches_attend_to_latents.0", s, seen)
        out[place] = s + linear(state, f"{writer}.write_ff.0.fc2", gelu(linear(state, f"{writer}.write_ff.0.fc1", s)))
    return out


def velocity(state: State, x: Tensor, t: float, y: int, head: int, tail: int, window: int, keep: int) -> Tensor:
    """(4, h, w) of one sample; a dense model has window 0."""
    channels, height, _ = x.shape
    patch, width = state["x_embedder.proj.weight"].shape[-1], state["x_embedder.proj.weight"].shape[0]
    side = height // patch
    patches = x.double().reshape(channels, side, patch, side, patch).permute(1, 3, 0, 2, 4).reshape(side * side, -1)
    h = patches @ state["x_embedder.proj.weight"].double().flatten(1).T + state["x_embedder.proj.bias"].double()
    c = conditioning(state, t, y)
    h = stack(state, h + positions(side, width), c, side, head, tail, window, keep)
    shift, scale = linear(state, "final_layer.adaLN_modulation.1", silu(c)).chunk(2)
    out = linear(state, "final_layer.linear", standardised(h) * (1 + scale) + shift)
    out = out.reshape(side, side, patch, patch, channels).permute(4, 0, 2, 1, 3)
    return out.reshape(channels, height, height)


def stack(state: State, h: Tensor, c: Tensor, side: int, head: int, tail: int, window: int, keep: int) -> Tensor:
    """All blocks, and between head and tail the core; a dense model has window 0."""
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth) if window == 0 else range(head):
        h = block(state, f"blocks.{i}", h, c)
    if window:
        h = core(state, h, c, side, window, range(head, depth - tail), keep)
        for i in range(depth - tail, depth):
            h = block(state, f"blocks.{i}", h, c)
    return h


def staged_velocity(
    state: State,
    stages: list[Tensor],
    times: list[float],
    y: int,
    head: int = 0,
    tail: int = 0,
    window: int = 0,
    keep: int = 0,
) -> list[Tensor]:
    """Of one sample's stages (C, h, w), the coarsest first, each with its own time: sums of embeddings, a head for each."""
    h, c = torch.zeros(()), state["y_embedder.embedding_table.weight"][y].double()
    for i, (x, t) in enumerate(zip(stages, times, strict=True)):
        kernel = state[f"x_embedder.embedders.{i}.proj.weight"].double()
        side = x.shape[1] // kernel.shape[-1]
        convolved = torch.nn.functional.conv2d(
            x[None].double(), kernel, state[f"x_embedder.embedders.{i}.proj.bias"].double(), stride=kernel.shape[-1]
        )
        h = h + convolved[0].flatten(1).T
        c = c + time_embedding(state, f"t_embedder.embedders.{i}", t)
    h = stack(state, h + positions(side, h.shape[1]), c, side, head, tail, window, keep)
    out = []
    for i, x in enumerate(stages):
        name, patch = f"final_layer.projections.{i}", x.shape[1] // side
        shift, scale = linear(state, f"{name}.adaLN_modulation.1", silu(c)).chunk(2)
        v = linear(state, f"{name}.linear", standardised(h) * (1 + scale) + shift)
        v = v.reshape(side, side, patch, patch, len(x)).permute(4, 0, 2, 1, 3)
        out.append(v.reshape(x.shape))
    return out


def euler(v: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
    for i in range(steps):
        x = x - v(x, 1 - i / steps) / steps
    return x


def heun(v: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
    for i in range(steps):
        first = v(x, 1 - i / steps)
        ahead = x - first / steps
        x = ahead if i == steps - 1 else x - (first + v(ahead, 1 - (i + 1) / steps)) / (2 * steps)
    return x


def linear_sde(v: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, noise: Tensor) -> Tensor:
    """Euler-Maruyama on the linear path with w = 2t: the score is -((1 - t) v + x) / t, so w s / 2 is -((1 - t) v + x)."""
    times = [1 + (0.04 - 1) * i / (steps - 1) for i in range(steps)] + [0.0]
    for i in range(steps):
        drift = v(x, times[i]) + (1 - times[i]) * v(x, times[i]) + x
        x = x - drift * (times[i] - times[i + 1])
        if i < steps - 1:
            x = x + (2 * times[i] * (times[i] - times[i + 1])) ** 0.5 * noise[i]
    return x
