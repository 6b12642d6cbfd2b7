"""Read, Write and what they are made of, against the float64 statement of the same formulas in `reference.py`."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reference
from elit.elastic.attention import attention
from elit.elastic.grid import Grid
from elit.elastic.interface import CrossAttention, Read, RMSNorm, Write, init_interface
from elit.elastic.rope import apply_rope, rope_table, token_rope
from randomised import randomised
from reference import weights_of

B, G, S, C, H = 2, 3, 4, 12, 3


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_matches(actual: Tensor, expected: Tensor) -> None:
    """float32 against float64, for values of order one."""
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-6, 1e4])
def test_rms_norm_is_its_formula(size):
    """x / (rms + 1e-5) * scale at every size of x: the small ones tell where epsilon is added."""
    norm = randomised(RMSNorm(C))
    x = size * draw(5, C)
    assert_matches(norm(x), reference.rms_norm(x.double(), weights_of(norm)["scale"]))


def test_rms_norm_computes_in_float32():
    """A bfloat16 input comes back as bfloat16, off by that one rounding and no more."""
    norm = randomised(RMSNorm(512))
    x = draw(64, 512, dtype=torch.bfloat16)
    exact = reference.rms_norm(x.double(), weights_of(norm)["scale"])
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).double(), exact, rtol=2**-8, atol=0)


def test_rms_norm_of_zeros_has_a_finite_gradient():
    """Zeros, such as the keys of tokens that are all alike before training, must not make training NaN."""
    x = torch.zeros(2, C, requires_grad=True)
    RMSNorm(C)(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_cross_attention_is_its_formula():
    """Grouped attention, group by group and head by head; 5 queries over 4 tokens."""
    layer = randomised(CrossAttention(C, H))
    x, source = draw(B, G, 5, C), draw(B, G, S, C, seed=1)
    weights = weights_of(layer)
    expected = torch.stack(
        [
            torch.stack([reference.cross_attention(weights, H, x[b, g].double(), source[b, g].double()) for g in range(G)])
            for b in range(B)
        ]
    )
    assert_matches(layer(x, source), expected)


def test_groups_and_samples_do_not_see_each_other():
    """A change to the tokens of one group of one sample reaches that group's output alone."""
    layer = randomised(CrossAttention(C, H))
    x, source = draw(B, G, S, C), draw(B, G, S, C, seed=1)
    changed = source.clone()
    changed[1, 2] += 1
    differs = (layer(x, changed) - layer(x, source)).abs().amax(dim=(2, 3)) > 1e-6
    assert differs.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(("depth", "ratio"), [(1, 1.0), (2, 1.0), (1, 4.0), (2, 0.5)])
@pytest.mark.parametrize("keep", [1, 3, S])
def test_read_is_its_formula(depth, ratio, keep):
    """Gated attention to the modulated tokens, then a gated MLP: every depth, MLP width and number of latents kept."""
    read = randomised(Read(C, H, S, depth, ratio, table=16))
    tokens, c = draw(B, G, S, C), draw(B, C, seed=1)
    expected = reference.read(weights_of(read), H, depth, tokens.double(), c.double(), keep)
    assert_matches(read(tokens, c, slice(keep)), expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_read_of_k_latents_is_the_first_k_of_all(depth):
    """Each latent reads on its own, so a budget is a slice."""
    read = randomised(Read(C, H, S, depth))
    tokens, c = draw(B, G, S, C), draw(B, C, seed=1)
    full = read(tokens, c, slice(S))
    for keep in range(1, S + 1):
        torch.testing.assert_close(read(tokens, c, slice(keep)), full[:, :, :keep], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("depth", "ratio"), [(1, 1.0), (2, 1.0), (1, 4.0), (2, 0.5)])
@pytest.mark.parametrize("keep", [1, 3, S])
def test_write_is_its_formula(depth, ratio, keep):
    """Tokens plus Write's table, then attention and MLP without norm or gate, from any number of latents."""
    write = randomised(Write(C, H, S, depth, ratio))
    tokens, latents = draw(B, G, S, C), draw(B, G, keep, C, seed=1)
    assert_matches(write(tokens, latents), reference.write(weights_of(write), H, depth, tokens.double(), latents.double()))


def fresh_interface(depth: int = 2) -> tuple[Read, Write]:
    """Initialised from values that are all wrong, so that whatever is left out shows."""
    torch.manual_seed(0)
    read, write = Read(256, 4, 16, depth, table=64), Write(256, 4, 16, depth)
    with torch.no_grad():
        for parameter in (*read.parameters(), *write.parameters()):
            if parameter.ndim == 2 or parameter.shape[0] != 256:
                parameter.fill_(7.0)
    init_interface(read, write)
    return read, write


def test_at_init_read_gives_its_queries_and_write_adds_its_table():
    """Both layers start out as the identity of their residual streams, exactly."""
    read, write = fresh_interface()
    tokens, c = draw(B, G, 16, 256), draw(B, 256, seed=1)
    latents = read(tokens, c, slice(5))
    assert torch.equal(latents, read.queries[:5].expand(B, G, 5, 256))
    assert torch.equal(write(tokens, latents), tokens + write.token_positions)


def test_initial_weights_follow_their_laws():
    """N(0, 0.02) queries and tables, Xavier-uniform linears, zero modulation, biases and Write branches."""
    read, write = fresh_interface()
    for name, w in [*read.named_parameters(), *write.named_parameters()]:
        zeroed = "modulation" in name or name.endswith("bias")
        if name.startswith(("queries", "token_positions", "latent_positions")):
            assert w.std().item() == pytest.approx(0.02, rel=0.06), name
            assert w.mean().abs().item() < 0.002, name
        elif name.endswith("norm.scale"):
            assert (w == 1).all(), name
        elif zeroed:
            assert (w == 0).all(), name
        elif not any(w is end for layer in write.layers for end in (layer.attention.out.weight, layer.mlp.fc2.weight)):
            bound = math.sqrt(6 / sum(w.shape))
            assert 0.98 * bound < w.abs().max().item() <= bound, name
            assert w.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    for layer in write.layers:
        assert (layer.attention.out.weight == 0).all() and (layer.mlp.fc2.weight == 0).all()


def attend_and_differentiate(function, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v, in float32."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = function(q, k, v)
    assert out.dtype == q.dtype
    out.backward(upstream.to(out.dtype))
    return [x.float().detach() for x in (out, q.grad, k.grad, v.grad)]


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.stack(
        [torch.stack([reference.one_head(q[b, h], k[b, h], v[b, h]) for h in range(q.shape[1])]) for b in range(len(q))]
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2)])
@pytest.mark.parametrize("width", [8, 64])
def test_attention_and_its_gradients_are_the_formula(dtype, tolerance, width):
    """Written out (bfloat16 with gradients) or fused, values and gradients are those of the softmax in float64."""
    q, k, v, upstream = (draw(2, 3, n, width, seed=n, dtype=dtype) for n in (9, 17, 17, 9))
    v = v + 0.5
    actual = attend_and_differentiate(attention, q, k, v, upstream)
    expected = attend_and_differentiate(attention_by_hand, q.double(), k.double(), v.double(), upstream)
    for name, a, e in zip(("value", "dq", "dk", "dv"), actual, expected, strict=True):
        assert ((a - e).norm() / e.norm()).item() < tolerance, name


def test_attention_with_gradients_agrees_with_the_fused_kernel_without():
    """In bfloat16 training and sampling take two ways to one function: values and gradients agree."""
    q, k, v, upstream = (draw(2, 3, n, 16, seed=n, dtype=torch.bfloat16) for n in (33, 40, 40, 33))
    written_out = attend_and_differentiate(attention, q, k, v, upstream)
    fused = attend_and_differentiate(F.scaled_dot_product_attention, q, k, v, upstream)
    for a, e in zip(written_out, fused, strict=True):
        assert ((a - e).norm() / e.norm()).item() < 1.5e-2
    with torch.no_grad():
        torch.testing.assert_close(attention(q, k, v).float(), written_out[0], rtol=2e-2, atol=2e-2)


def table_of(places: list[tuple[int, ...]], width: int) -> Tensor:
    """(2, N, D/2) cosines and sines of the reference's angles."""
    angle = torch.stack([reference.angles(place, width // 2) for place in places])
    return torch.stack([angle.cos(), angle.sin()])


@pytest.mark.parametrize("width", [2, 8, 10, 64])
@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_rope_turns_an_equal_share_of_channels_per_axis(width, axes):
    """Frequencies 10000^(-i/n) on each axis; the pairs that are left over, or all if there are too few, stand still."""
    places = [tuple((3 * n + 5 * a) % 11 for a in range(axes)) for n in range(7)]
    assert_matches(rope_table(torch.tensor(places), width), table_of(places, width))


def test_apply_rope_multiplies_complex_numbers():
    """Channels i and i + D/2 are the parts of one number, turned by e^(i angle); a bfloat16 tensor stays one."""
    places = [(n, n * n % 5) for n in range(6)]
    rope = rope_table(torch.tensor(places), 12)
    x = draw(2, 3, 6, 12)
    expected = torch.stack([reference.turn(x[:, :, n].double(), reference.angles(p, 6)) for n, p in enumerate(places)], 2)
    assert_matches(apply_rope(x, rope), expected)
    low = apply_rope(x.bfloat16(), rope)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=2e-2, atol=2e-2)


def test_dot_products_depend_on_differences_of_places_alone():
    """Moving every place by one offset changes no score; moving the queries alone does; norms never change."""
    q, k = draw(1, 1, 9, 16), draw(1, 1, 9, 16, seed=1)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def scores(query_offset: tuple[int, int], key_offset: tuple[int, int]) -> Tensor:
        turned_q = apply_rope(q, rope_table(places + torch.tensor(query_offset), 16))
        turned_k = apply_rope(k, rope_table(places + torch.tensor(key_offset), 16))
        torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
        return turned_q @ turned_k.transpose(-1, -2)

    torch.testing.assert_close(scores((5, 2), (5, 2)), scores((0, 0), (0, 0)), rtol=1e-4, atol=1e-4)
    for offset in ((1, 0), (0, 1)):
        assert (scores(offset, (0, 0)) - scores((0, 0), (0, 0))).abs().max() > 0.1


def test_token_rope_knows_row_and_column_and_a_videos_frame(device: torch.device):
    """Tokens in row-major order; an image has two axes, a video three, the frame first."""
    image = [(r, c) for r in range(2) for c in range(5)]
    video = [(f, r, c) for f in range(3) for r in range(2) for c in range(5)]
    assert_matches(token_rope(Grid(2, 5), 24, device), table_of(image, 24))
    assert_matches(token_rope(Grid(2, 5, frames=3), 24, device), table_of(video, 24))
