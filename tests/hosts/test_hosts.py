"""Hosts: what a core computes, stated a second time; budgets of threads and of passes; what is refused."""

import copy
import threading

import diffusers
import pytest
import torch
from torch import Tensor

import elit
from elit import Schedule, UserError
from elit.backbones.hosts.budgets import core_of
from elit.elastic.anchors import anchor_order
from elit.elastic.grid import Grid, Window
from tiny_hosts import SIZES, TEXT, TINY, Arguments, inputs, out

FLUX, WAN, SD3 = TINY["FluxTransformer2DModel"], TINY["WanTransformer3DModel"], TINY["SD3Transformer2DModel"]
DIT, QWEN = TINY["DiTTransformer2DModel"], TINY["QwenImageTransformer2DModel"]
HUNYUAN = TINY["HunyuanVideoTransformer3DModel"]


def by_hand(x_BNC: Tensor, grid: tuple[int, int, int], window: Window, keep: int) -> tuple[list[int], Tensor]:
    """Of a fresh sharp core: the tokens that latents stand on, and what each token hears of each latent's change (N, K).

    One token at a time. A token hears the latents of its own group, the nearer the more: e^(-12 d^2), summing to one.
    """
    order = [(n // (window.height * window.width), n // window.width % window.height, n % window.width)
             for n in anchor_order(window)]  # fmt: skip
    frames, rows, columns = grid
    stands, places = [], []
    for t in range(0, frames, window.frames):
        for y in range(0, rows, window.height):
            for x in range(0, columns, window.width):
                for dt, dy, dx in order[:keep]:
                    if t + dt < frames and y + dy < rows and x + dx < columns:
                        places.append((t + dt, y + dy, x + dx, (t, y, x)))
                        stands.append(((t + dt) * rows + y + dy) * columns + x + dx)
    hears = torch.zeros(frames * rows * columns, len(places), dtype=torch.float64)
    for n in range(len(hears)):
        t, y, x = n // (rows * columns), n // columns % rows, n % columns
        home = (t - t % window.frames, y - y % window.height, x - x % window.width)
        for k, (lt, ly, lx, group) in enumerate(places):
            if group == home:
                hears[n, k] = torch.exp(torch.tensor(-12.0 * ((lt - t) ** 2 + (ly - y) ** 2 + (lx - x) ** 2)).double())
    return stands, hears / hears.sum(1, keepdim=True)


@pytest.mark.parametrize("keep", [1, 3, 4])
def test_flux_stated_by_hand_across_both_lists(keep):
    """A core from the second double-stream block to the third single-stream one, in float64 on a ragged grid."""
    flux, arguments = FLUX.made().double(), double(inputs(FLUX, ragged=True))
    grid = FLUX.grid(ragged=True)
    with torch.no_grad():
        x, e = flux.x_embedder(arguments["hidden_states"]), flux.context_embedder(arguments["encoder_hidden_states"])
        temb = flux.time_text_embed(arguments["timestep"] * 1000, arguments["pooled_projections"])
        cos, sin = flux.pos_embed(torch.cat([arguments["txt_ids"], arguments["img_ids"]]))
        stands, hears = by_hand(x, grid, Window(2, 2), keep)
        some = torch.tensor([*range(TEXT), *(TEXT + n for n in stands)])
        blocks = [*flux.transformer_blocks, *flux.single_transformer_blocks]
        e, x = blocks[0](x, e, temb, (cos, sin))
        latents = before = x[:, stands]
        for block in blocks[1:6]:
            e, latents = block(latents, e, temb, (cos[some], sin[some]))
        x = x + torch.einsum("nk,bkc->bnc", hears, latents - before)
        e, x = blocks[6](x, e, temb, (cos, sin))
        want = flux.proj_out(flux.norm_out(x, temb))
        elastic = elit.elasticize(flux, head=1, tail=1, window=2)
        with elit.budget(elastic, keep / 4):
            torch.testing.assert_close(out(elastic, arguments), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keep", [1, 5])
def test_wan_stated_by_hand(keep):
    """A video whose windows of 2 x 2 x 2 are cut short along every axis."""
    wan, arguments = WAN.made().double(), double(inputs(WAN, ragged=True))
    grid = WAN.grid(ragged=True)
    with torch.no_grad():
        cos, sin = wan.rope(arguments["hidden_states"])
        x = wan.patch_embedding(arguments["hidden_states"]).flatten(2).transpose(1, 2)
        _, temb, e, _ = wan.condition_embedder(arguments["timestep"], arguments["encoder_hidden_states"], None)
        temb = temb.unflatten(1, (6, -1))
        blocks = list(wan.blocks)
        for block in blocks[:2]:
            x = block(x, e, temb, (cos, sin))
        stands, hears = by_hand(x, grid, Window(2, 2, 2), keep)
        latents = before = x[:, stands]
        for block in blocks[2:5]:
            latents = block(latents, e, temb, (cos[:, stands], sin[:, stands]))
        want = blocks[5](x + torch.einsum("nk,bkc->bnc", hears, latents - before), e, temb, (cos, sin))
        elastic = elit.elasticize(wan, head=2, tail=1, window=(2, 2, 2))
        seen = []
        wan.norm_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with elit.budget(elastic, keep / 8):
            out(elastic, arguments)
        torch.testing.assert_close(seen[0].double(), want, rtol=1e-3, atol=1e-4)


def double(arguments: Arguments) -> Arguments:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize(("head", "tail"), [(0, 5), (1, 4), (3, 0), (4, 1), (0, 0), (2, 2)])
def test_a_core_may_lie_anywhere_in_two_lists(head, tail):
    """Within the double-stream blocks, within the single-stream ones, or across; all blocks may be of it."""
    for tiny in (FLUX, HUNYUAN):
        arguments = inputs(tiny)
        with torch.no_grad():
            dense = out(tiny.made(), arguments)
            elastic = tiny.elastic(head=head, tail=tail)
            torch.testing.assert_close(out(elastic, arguments), dense, rtol=1e-3, atol=1e-4)
            with elit.budget(elastic, 0.25):
                assert (out(elastic, arguments) - dense).abs().max() > 1e-3


@pytest.mark.parametrize("anchor", ["pyramid", "none"])
def test_other_anchors_run(anchor):
    """A pyramid is nearer the dense model than the paper's interface, which at first changes nothing."""
    arguments = inputs(WAN, ragged=True)
    with torch.no_grad():
        dense, elastic = out(WAN.made(), arguments), WAN.elastic(window=(2, 2, 2), anchor=anchor)
        full = out(elastic, arguments)
        with elit.budget(elastic, 1 / 8):
            low = out(elastic, arguments)
    assert torch.isfinite(full).all() and (full - dense).abs().max() > 1e-3
    assert torch.equal(low, full) == (anchor == "none")


@pytest.mark.parametrize("anchor", ["sharp", "pyramid", "cells"])
def test_latents_of_windows_cut_short_stand_within_them(anchor):
    """On 5 x 5 tokens windows of 4 x 4 are cut to one column, one row and one token: the middles of cells may lie beyond."""
    core = core_of(SD3.elastic(window=4, anchor=anchor))
    width, grid = core.read.queries.shape[1], Grid(5, 5)
    parts = core.read_in(torch.zeros(1, 25, width), torch.zeros(1, width), grid, 16)
    stands = core.tokens_under(parts, grid).split([part.latents_BGJC.shape[1] * part.seats.kept for part in parts])
    assert len(parts) == 4 and all(len(part.latents_BGJC[0]) == 1 for part in parts)
    for part, numbers in zip(parts, stands, strict=True):
        (top, left), window = part.region.corner[1:], part.region.window
        rows, columns = numbers // 5 - top, numbers % 5 - left
        assert rows.min() >= 0 and rows.max() < window.height and columns.min() >= 0 and columns.max() < window.width
        middles = core.places[part.seats.latents]
        seen = middles[:, 1] < window.height
        assert torch.equal(rows[seen], middles[seen, 1])


@pytest.mark.parametrize("tiny", [WAN, FLUX, SD3], ids=["Wan", "Flux", "SD3"])
def test_cells_lose_nothing_at_full_budget_and_are_nearer_than_sharp_at_low_ones(tiny):
    arguments, low = inputs(tiny, ragged=True), {}
    window = (2, 2, 2) if tiny.video else 4
    with torch.no_grad():
        dense = out(tiny.made(), arguments)
        for anchor in ("sharp", "cells"):
            elastic = tiny.elastic(window=window, anchor=anchor)
            torch.testing.assert_close(out(elastic, arguments), dense, rtol=1e-3, atol=1e-4)
            with elit.budget(elastic, 1 / 8):
                low[anchor] = (out(elastic, arguments) - dense).square().mean()
    assert low["cells"] < low["sharp"]


def test_the_same_seed_makes_the_same_interface_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    transformers = [SD3.made() for _ in range(3)]
    torch.manual_seed(3)
    cores = [elit.elasticize(t, 2, 1, 2, seed=seed).elit for t, seed in zip(transformers, (0, 0, 1), strict=True)]
    assert torch.equal(torch.rand(2), expected)
    first, same, other = (core.read.layers[0].attention.q.weight for core in cores)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_two_threads_have_two_budgets_and_none_leaks():
    elastic, arguments = SD3.elastic(), inputs(SD3)
    alone, together = {}, {}
    for budget in (0.25, 0.75):
        with torch.no_grad(), elit.budget(elastic, budget):
            alone[budget] = out(elastic, arguments)
    ready = threading.Barrier(3)

    def run(budget: float | None) -> None:
        with torch.no_grad():
            if budget is None:  # a thread that asks for nothing, while others do
                ready.wait()
                together[budget] = out(elastic, arguments)
                return
            with elit.budget(elastic, budget):
                ready.wait()
                together[budget] = [out(elastic, arguments) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(budget,)) for budget in (0.25, 0.75, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        assert torch.equal(together[None], out(elastic, arguments))
    for budget, made in alone.items():
        assert all(torch.equal(one, made) for one in together[budget])


def test_budgets_nest_and_end_with_an_error():
    elastic, arguments = SD3.elastic(), inputs(SD3)

    def level() -> int:
        """As a whole number: the keys of the core's self-attention, per window."""
        seen = []
        handle = elastic.transformer_blocks[3].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["hidden_states"].shape[1] // 6), with_kwargs=True
        )
        with torch.no_grad():
            out(elastic, arguments)
        handle.remove()
        return seen[0]

    with pytest.raises(ZeroDivisionError), elit.budget(elastic, 0.25):
        with elit.budget(elastic, 0.75):
            assert level() == 3
        assert level() == 1
        _ = 1 / 0
    assert level() == 4
    with elit.budget(elastic, Schedule(((0.5, 0.25),), 0.75)):
        assert level() == 1
        arguments["timestep"] = torch.full((2,), 400.0)
        assert level() == 3


def test_a_batch_of_pairs_has_a_budget_for_each_half():
    """DiT's pipeline puts the conditional samples first, the others last."""
    for tiny, conditional in ((SD3, slice(2, 4)), (DIT, slice(0, 2))):
        elastic, arguments = tiny.elastic(), inputs(tiny, batch=4)
        rest = slice(0, 2) if conditional.start else slice(2, 4)
        with torch.no_grad():
            with elit.budget(elastic, 0.75, unconditional=0.25):
                pairs = out(elastic, arguments)
            for budget, rows in ((0.75, conditional), (0.25, rest)):
                with elit.budget(elastic, budget):
                    torch.testing.assert_close(pairs[rows], out(elastic, arguments)[rows], rtol=1e-4, atol=1e-5)
        with pytest.raises(UserError, match=r"batch of pairs, and 3 samples"), elit.budget(elastic, 1.0, unconditional=0.25):
            out(elastic, inputs(tiny, batch=3))


def test_what_is_no_host_is_refused():
    with pytest.raises(UserError, match=r"SanaTransformer2DModel cannot .*convolution.*docs/hosts.md"):
        elit.elasticize(diffusers.SanaTransformer2DModel(**SIZES, num_layers=1, num_cross_attention_heads=2,
                        cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=8), 0, 0, 2)  # fmt: skip
    with pytest.raises(UserError, match=r"Linear is no host.*SD3Transformer2DModel.*docs/hosts.md"):
        elit.elasticize(torch.nn.Linear(2, 2), 0, 0, 2)
    with pytest.raises(UserError, match=r"zero_cond_t"):
        elit.elasticize(diffusers.QwenImageTransformer2DModel(**SIZES, num_layers=3, in_channels=8, joint_attention_dim=8,
                        axes_dims_rope=(4, 6, 6), zero_cond_t=True), 1, 1, 2)  # fmt: skip
    with pytest.raises(UserError, match=r"token_replace"):
        elit.elasticize(diffusers.HunyuanVideoTransformer3DModel(**SIZES, num_layers=3, num_single_layers=1, in_channels=4,
                        num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
                        image_condition_type="token_replace"), 1, 1, 2)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": 4, "tail": 2}, r"head 4 \+ tail 2 leave no core in the 6 blocks"),
        ({"head": -1}, "head counts blocks"),
        ({"tail": 1.5}, "tail counts blocks"),
        ({"window": 0}, "positive sides"),
        ({"window": (1, 2, 3, 4)}, "window is a side"),
        ({"window": 100}, "4096 tokens is the most"),
        ({"anchor": "blunt"}, "sharp, pyramid, cells, not blunt"),
    ],
)
def test_a_split_or_window_that_cannot_be_is_refused(options, sentence):
    transformer = SD3.made()
    with pytest.raises(UserError, match=sentence):
        elit.elasticize(transformer, **({"head": 2, "tail": 1, "window": 2} | options))
    elit.elasticize(transformer, 2, 1, 2)  # it was left as it is
    with pytest.raises(UserError, match="elastic already"):
        elit.elasticize(transformer, 2, 1, 2)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("SD3Transformer2DModel", {"block_controlnet_hidden_states": [torch.zeros(1)]}, "takes no block_controlnet"),
        ("SD3Transformer2DModel", {"skip_layers": [4]}, "takes no skip_layers: it counts blocks"),
        ("FluxTransformer2DModel", {"controlnet_single_block_samples": [torch.zeros(1)]}, "ControlNet"),
        ("FluxTransformer2DModel", {"img_ids": torch.zeros(24, 3)}, "not one grid"),
        ("QwenImageTransformer2DModel", {"img_shapes": [[(1, 4, 3), (1, 4, 3)]] * 2}, "several pictures"),
        ("WanTransformer3DModel", {"timestep": torch.ones(2, 72)}, r"one timestep per sample, not \(2, 72\)"),
        ("LTXVideoTransformer3DModel", {"timestep": torch.ones(2, 72)}, "one timestep per sample"),
        ("LTXVideoTransformer3DModel", {"video_coords": torch.ones(2, 3, 72)}, "video_coords"),
        ("Flux2Transformer2DModel", {"kv_cache_mode": "extract"}, "kv_cache_mode"),
        ("PixArtTransformer2DModel", {"attention_mask": torch.ones(2, 24)}, "attention_mask"),
    ],
)
def test_a_call_that_a_core_cannot_serve_is_refused(name, changes, sentence):
    """With a sentence, before anything runs; and the next call runs as ever."""
    elastic, arguments = TINY[name].elastic(), inputs(TINY[name])
    with pytest.raises(UserError, match=sentence):
        out(elastic, arguments | changes)
    assert torch.isfinite(out(elastic, arguments)).all()


def test_flat_shapes_of_controlnet_pipelines_are_one_grid():
    elastic, arguments = QWEN.elastic(), inputs(QWEN)
    core, grids = elastic.elit, []
    original = core.at
    core.at = lambda told, by_place, call, keep: grids.append(call.grid) or original(told, by_place, call, keep)
    with torch.no_grad():
        out(elastic, arguments)
        arguments["img_shapes"] = [QWEN.grid()]  # pos_embed takes what was meant, so this much alone runs
        out(elastic, arguments)
    assert grids[0] == grids[1] and grids[0].axes == QWEN.grid()


@pytest.mark.parametrize("budget", [0, 1.5, True, "1/4", float("nan"), [0.5, 2.0]])
def test_a_budget_that_is_none_is_refused_with_the_levels(budget):
    elastic = SD3.elastic()
    with pytest.raises(UserError, match=r"1/4, 2/4, 3/4, 4/4"), elit.budget(elastic, budget):
        pass
    with pytest.raises(UserError, match=r"1/4, 2/4"), elit.budget(elastic, 0.5, unconditional=0.0):
        pass


def test_budgets_that_cannot_be_together_are_refused():
    elastic = SD3.elastic()
    with pytest.raises(UserError, match="one budget for all samples"), elit.budget(elastic, [1.0, 0.5], unconditional=0.25):
        pass
    with pytest.raises(UserError, match="3 budgets were given for a batch of 2"), elit.budget(elastic, [1.0, 0.5, 0.5]):
        out(elastic, inputs(SD3))
    with pytest.raises(UserError, match=r"grid is \(rows, columns\)"), elit.budget(elastic, 0.5, grid=(4,)):
        pass
    with pytest.raises(UserError, match=r"24 image tokens came, and 5x5 of the grid"), elit.budget(elastic, grid=(5, 5)):
        out(elastic, inputs(SD3))


def test_a_model_without_a_core_has_no_budget():
    for model in (SD3.made(), torch.nn.Linear(2, 2)):
        with pytest.raises(UserError, match=r"no latent core.*elit.elasticize.*docs/hosts.md"), elit.budget(model, 0.5):
            pass


def test_an_elastic_host_is_not_copied_nor_its_core_called_alone():
    """A copy would run the first one's weights, for hooks of diffusers are bound to what they were put on."""
    elastic = SD3.elastic()
    with pytest.raises(UserError, match="cannot be copied"):
        copy.deepcopy(elastic)
    with pytest.raises(UserError, match="call the transformer"):
        elastic.elit(hidden_states=torch.zeros(1, 24, 32))
