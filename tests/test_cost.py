"""FLOPs against the paper's table and the release's published figures; activation bytes against what autograd keeps."""

import dataclasses
from fractions import Fraction
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elit import DiT, DiTConfig, count_flops, create_model
from elit.cost import activation_bytes, meta_call
from randomised import randomised

IMAGE_SIZES = {256: {"input_size": 32, "group_size": 4}, 512: {"input_size": 64, "group_size": 8}}
RELEASED = {"head_depth": 8, "write_sees_dropped": True}


@cache
def made(name: str, pixels: int, **overrides: object) -> DiT:
    """A preset that is never given memory."""
    fields = dict(IMAGE_SIZES[pixels])
    if not name.startswith("ELIT"):
        del fields["group_size"]
    with torch.device("meta"):
        return create_model(name, **fields, **overrides)


def flops(name: str, budget: float = 1.0, pixels: int = 256, **overrides: object) -> int:
    """FLOPs of one forward."""
    return count_flops(made(name, pixels, **overrides), budget)


def teraflops_of_an_iteration(forward: Fraction | int) -> float:
    """Forward and backward, three times the forward, of a batch of 256."""
    return float(forward * 3 * 256 / 10**12)


def mean_over_levels(pixels: int, **overrides: object) -> Fraction:
    """The mean over k = 1 .. J. Attention makes a cost quadratic in k: three levels give it, and a fourth confirms."""
    latents = IMAGE_SIZES[pixels]["group_size"] ** 2
    known = {k: flops("ELIT-SiT-XL/2", k / latents, pixels, **overrides) for k in (1, latents // 2, latents)}

    def cost(k: int) -> Fraction:
        terms = []
        for i, value in known.items():
            others = [j for j in known if j != i]
            terms.append(value * Fraction((k - others[0]) * (k - others[1]), (i - others[0]) * (i - others[1])))
        return sum(terms, Fraction(0))

    assert cost(3) == flops("ELIT-SiT-XL/2", 3 / latents, pixels, **overrides)
    return sum(cost(k) for k in range(1, latents + 1)) / latents


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [("SiT-XL/2", 256, 182), ("SiT-XL/2", 512, 806), ("ELIT-SiT-XL/2", 256, 188), ("ELIT-SiT-XL/2", 512, 831)],
)
def test_full_budgets_cost_what_the_paper_says(name, pixels, expected):
    assert teraflops_of_an_iteration(flops(name, pixels=pixels)) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("pixels", "sees_dropped", "expected"),
    [(256, True, 127), (512, True, 536), (256, False, 125.4), (512, False, 529.3)],
)
def test_multi_budget_training_costs_what_the_paper_says(pixels, sees_dropped, expected):
    """The mean over all levels, with either behaviour of the dropped latents."""
    mean = mean_over_levels(pixels, write_sees_dropped=sees_dropped)
    assert teraflops_of_an_iteration(mean) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("budget", "published"), [(1.0, 490_886_922_240), (0.5, 353_179_533_312), (0.125, 253_069_885_440)])
def test_the_release_costs_what_it_published_to_the_digit(budget, published):
    """XL/2 with blocks split 8 - 16 - 4, for a batch of two."""
    assert 2 * flops("ELIT-SiT-XL/2", budget, **RELEASED) == published


def saving_of_cheap_guidance(weak: float, **overrides: object) -> float:
    """The share of guidance's cost that its weak path saves at a budget of its own."""
    full = flops("ELIT-SiT-XL/2", **overrides)
    return 1 - (full + flops("ELIT-SiT-XL/2", weak, **overrides)) / (2 * full)


def test_cheap_guidance_saves_a_third():
    """33.2 % with the paper's split and a weak budget of 1/16; the release's longer head leaves 26 %, 24.2 % at 1/8."""
    assert saving_of_cheap_guidance(1 / 16) == pytest.approx(0.332, abs=0.0005)
    assert saving_of_cheap_guidance(1 / 16, **RELEASED) == pytest.approx(0.26, abs=0.005)
    assert saving_of_cheap_guidance(1 / 8, **RELEASED) == pytest.approx(0.242, abs=0.0005)


def flops_by_hand(config: DiTConfig) -> int:
    """Every matrix product of a dense model on one image, written out; a multiply-add is two."""
    n, c, patch = config.grid.size, config.width, config.patch_size**2 * config.in_channels
    embeddings = 256 * c + c * c + n * patch * c
    block = n * c * 3 * c + 2 * n * n * c + n * c * c + 2 * n * c * int(config.mlp_ratio * c) + c * 6 * c
    final = c * 2 * c + n * c * patch
    return 2 * (embeddings + config.depth * block + final)


def test_a_small_models_products_are_all_counted():
    """Embeddings, modulation, attention, MLP and output, exactly; of a model that holds real weights too."""
    config = DiTConfig(input_size=(8, 12), in_channels=3, num_classes=5, width=32, depth=3, heads=2)
    assert count_flops(DiT(config)) == flops_by_hand(config)


@pytest.mark.parametrize("name", ["ELIT-SiT-S/8", "UViT-S/2", "ELIT-UViT-S/2", "ELIT-HDiT-S/2", "ELIT-DFM-SiT-S/8"])
def test_blocks_that_are_alike_count_as_often_as_there_are(name):
    """What is counted is what torch's counter tells of every block, also of a model whose blocks are compiled."""
    with torch.device("meta"):
        model = create_model(name, width=32, heads=2)
    budget = 1.0 if model.core is None else 0.5
    with FlopCounterMode(display=False) as counter:
        meta_call(model, 1, budget)()
    assert count_flops(model, budget) == counter.get_total_flops() > 0
    model.compile_blocks(backend="eager")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert 0 < count_flops(model, budget, blocks=False) < count_flops(model, budget)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_counting_leaves_the_model_alone():
    """The weights stay where and as they were, without gradients."""
    model = randomised(DiT(SMALL))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model, 0.5)
    activation_bytes(model, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


# 256 tokens: attention's N x N scores would be most of the memory, if a kernel kept them
SMALL = DiTConfig(input_size=32, num_classes=3, width=32, depth=4, heads=2, group_size=4, head_depth=1, tail_depth=1)
BATCH = 4


def bytes_kept(model: DiT, budget: float, dtype: torch.dtype) -> int:
    """Bytes of the distinct storages that a real forward on the CPU hands to autograd; weights and inputs left out."""
    left_out = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage
        return tensor

    x, t, y = torch.randn(BATCH, 4, 32, 32), torch.rand(BATCH), torch.zeros(BATCH, dtype=torch.long)
    left_out |= {tensor.untyped_storage().data_ptr() for tensor in (x, t, y)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = model(x, t, y, budget)
        del out
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("budget", [1.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_bytes_are_those_that_autograd_keeps(dtype, budget, checkpointing):
    """In either precision, within 5 %: autocast also keeps copies of weights, which are no activations."""
    model = randomised(DiT(SMALL))
    model.set_checkpointing(checkpointing)
    assert activation_bytes(model, BATCH, budget, dtype) == pytest.approx(bytes_kept(model, budget, dtype), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_bytes_fall_with_the_budget_and_with_checkpointing(dtype):
    """Fewer latents, fewer bytes at every level; with every block recomputed, less than half of them."""
    model = randomised(DiT(SMALL))
    plain = [activation_bytes(model, 2, k / 16, dtype) for k in (1, 6, 16)]
    assert plain == sorted(set(plain))
    model.set_checkpointing()
    recomputed = [activation_bytes(model, 2, k / 16, dtype) for k in (1, 6, 16)]
    assert recomputed == sorted(set(recomputed))
    assert all(2 * low < high for low, high in zip(recomputed, plain, strict=True))


def test_activation_bytes_fall_with_precision_and_grow_with_the_batch():
    """Of few tokens, bfloat16 keeps well under float32's; two samples more cost what the two before did."""
    model = randomised(DiT(dataclasses.replace(SMALL, input_size=8, group_size=2)))
    assert activation_bytes(model, 4, dtype=torch.bfloat16) < 0.75 * activation_bytes(model, 4)
    by_batch = [activation_bytes(model, batch) for batch in (2, 4, 6)]
    assert by_batch[2] - by_batch[1] == by_batch[1] - by_batch[0] > 0


@pytest.mark.parametrize("anchor", ["none", "cells"])
def test_what_is_counted_or_seen_before_changes_nothing(anchor: str) -> None:
    """Tables of windows cut short are kept; those of fake tensors, or of a mode without gradients, are of no use later."""
    fields = {"input_size": 10, "width": 16, "heads": 2, "depth": 3, "head_depth": 1, "tail_depth": 1, "num_classes": 3}
    model = randomised(create_model("ELIT-SiT-S/2", **fields, rope=True, group_size=3, anchor=anchor))
    for side in (4, 5):  # in tokens; windows of 3 x 3 are cut to other sizes in each
        x, t, y = torch.randn(2, 4, 2 * side, 2 * side), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])
        if side == 4:
            with torch.inference_mode():
                before = model(x, t, y, 0.5)
        counted = activation_bytes(model, 1, 0.5)
        out = model(x, t, y, 0.5)
        out.sum().backward()
        if side == 4:
            torch.testing.assert_close(out, before)  # products with gradients may be made in another way
        assert activation_bytes(model, 1, 0.5) == counted > 0
        assert all(p.grad is not None for p in model.core.read.parameters())
