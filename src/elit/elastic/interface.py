"""Read and Write: the two grouped cross-attention layers between tokens and latents (section 3.1 of the paper).

Shapes: B batch, G groups, S tokens in a group, J latents in a group, K latents kept, C width, H heads, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit.elastic.anchors import Anchors
from elit.elastic.attention import attention


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part: x (1 + scale) + shift."""
    return x * (1 + scale) + shift


class RMSNorm(nn.Module):
    """x / (rms(x) + 1e-5) * scale over the last dimension, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        rms = torch.linalg.vector_norm(y, dim=-1, keepdim=True) / y.shape[-1] ** 0.5  # whose gradient at 0 is 0
        return (y / (rms + 1e-5) * self.scale).to(x.dtype)


class MLP(nn.Module):
    """Two linears with a tanh-GELU between, `ratio` times the width inside."""

    def __init__(self, width: int, ratio: float, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(ratio * width), bias=bias)
        self.fc2 = nn.Linear(int(ratio * width), width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CrossAttention(nn.Module):
    """Queries of a group attend to the keys of the same group; RMSNorm over the full width on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = RMSNorm(width)
        self.k_norm = RMSNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BGKC: Tensor, source_BGSC: Tensor) -> Tensor:
        k, v = self.kv(source_BGSC).chunk(2, dim=-1)
        q, k = self.q_norm(self.q(x_BGKC)), self.k_norm(k)

        def split(y: Tensor) -> Tensor:  # (B, G, *, C) -> (B G, H, *, D)
            return y.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        y = attention(split(q), split(k), split(v.to(k.dtype)))
        return self.out(y.transpose(1, 2).reshape(x_BGKC.shape))


class ReadLayer(nn.Module):
    """l <- l + gate CA(l, mod(LN(s))); l <- l + gate MLP(mod(LN(l))). Queries are neither normed nor modulated."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = CrossAttention(width, heads)
        self.mlp = MLP(width, mlp_ratio, bias=False)
        # 7 chunks, the last unused: the weight layout of the published models.
        self.modulation = nn.Linear(width, 7 * width)

    def forward(self, latents_BGKC: Tensor, tokens_BGSC: Tensor, c_BC: Tensor) -> Tensor:
        chunks = self.modulation(F.silu(c_BC))[:, None, None].chunk(7, dim=-1)
        shift_kv, scale_kv, gate_attention, shift_mlp, scale_mlp, gate_mlp, _ = chunks
        source = modulate(self.norm(tokens_BGSC), shift_kv, scale_kv)
        latents = latents_BGKC + gate_attention * self.attention(latents_BGKC, source)
        return latents + gate_mlp * self.mlp(modulate(self.norm(latents), shift_mlp, scale_mlp))


class Read(nn.Module):
    """J learned queries, the same for every group, read the tokens of their group.

    Args:
        width: C. heads: H.
        tokens: S, tokens in a group; there are J = S latents.
        depth: layers. mlp_ratio: of each layer's MLP.
        table: rows of the learned position table of the latents, indexed by their place in the token grid; 0 for none.
    """

    def __init__(self, width: int, heads: int, tokens: int, depth: int = 1, mlp_ratio: float = 1.0, table: int = 0) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(tokens, width))
        self.token_positions = nn.Parameter(torch.empty(tokens, width))
        self.latent_positions = nn.Parameter(torch.empty(table, width)) if table else None
        self.layers = nn.ModuleList(ReadLayer(width, heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens_BGSC: Tensor, c_BC: Tensor, which: slice | Tensor, start_BGKC: Tensor | None = None) -> Tensor:
        """The latents of these numbers (B, G, K, C) of every group. Each reads on its own: K read alone equal K of J.

        start: what they start from beside their queries (see `elit.elastic.anchors`).
        """
        batch, groups = tokens_BGSC.shape[:2]
        latents = self.queries[which].expand(batch, groups, -1, -1)
        if start_BGKC is not None:
            latents = latents + start_BGKC
        for layer in self.layers:
            latents = layer(latents, tokens_BGSC, c_BC)
        return latents


class WriteLayer(nn.Module):
    """s <- s + CA(s, l); s <- s + MLP(s). No norm and no modulation; both branches start at zero."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, heads)
        self.mlp = MLP(width, mlp_ratio, bias=False)

    def forward(self, tokens_BGSC: Tensor, latents_BGKC: Tensor) -> Tensor:
        tokens = tokens_BGSC + self.attention(tokens_BGSC, latents_BGKC)
        return tokens + self.mlp(tokens)


class Write(nn.Module):
    """Tokens read back from the latents of their group; Write's own position table stays in the residual stream."""

    def __init__(self, width: int, heads: int, tokens: int, depth: int = 1, mlp_ratio: float = 1.0) -> None:
        super().__init__()
        self.token_positions = nn.Parameter(torch.empty(tokens, width))
        self.layers = nn.ModuleList(WriteLayer(width, heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens_BGSC: Tensor, latents_BGKC: Tensor, which: slice | Tensor = slice(None)) -> Tensor:
        """Tokens (B, G, S, C) of these numbers of the window, with what their group's latents (B, G, K, C) tell them."""
        tokens = tokens_BGSC + self.token_positions[which]
        for layer in self.layers:
            tokens = layer(tokens, latents_BGKC)
        return tokens


def init_interface(read: Read, write: Write, anchors: Anchors | None = None) -> None:
    """Initial weights: Xavier-uniform linears, N(0, 0.02) queries and tables, zero modulation and zero Write branches.

    Anchored, queries and tables of positions are zero too, so that latents are at first what they stand for.
    """
    for module in (*read.modules(), *write.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for table in (read.queries, read.token_positions, read.latent_positions, write.token_positions):
        if table is not None:
            nn.init.normal_(table, std=0.02) if anchors is None else nn.init.zeros_(table)
    if anchors is not None:
        anchors.reset()
    for layer in read.layers:
        assert isinstance(layer, ReadLayer)
        nn.init.zeros_(layer.modulation.weight)
    for layer in write.layers:
        assert isinstance(layer, WriteLayer)
        nn.init.zeros_(layer.attention.out.weight)
        nn.init.zeros_(layer.mlp.fc2.weight)
