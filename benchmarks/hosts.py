"""What budgets cost in backbones and hosts at 1,024 image tokens: time beside FLOPs, raggedness, and the wrapper.

    python benchmarks/hosts.py
    python benchmarks/hosts.py --only Flux,Wan --rounds 5

1. Time of a forward (no_grad, float32, batch 1), dense and elastic at 1, 1/4 and 1/16, in interleaved rounds. `efficiency`
   is (time / dense time) / (FLOPs / dense FLOPs), the median of what each round gives; at most 1.10 is the aim. FLOPs are
   counted by `elit.count_flops`.
2. At the full budget a stack of 28 blocks with a core of 20 beside the dense one: the interface's share, under 5 %.
3. 83 x 83 tokens under a window of 4 x 4 beside 84 x 84, time per token: under 3 %.
4. What a host's hook and list take of a forward without Read and Write: under 1 %.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from rich.table import Table

import elit
from timing import Spread, Variant, interleave, open_report, spread

BUDGETS = (1.0, 0.25, 1 / 16)
SIDE, TEXT, BLOCKS, HEADS, WIDTH = 32, 64, 8, 6, 192
SIZES = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS}
AXES = (8, 12, 12)  # of rotations
Arguments = dict[str, Any]


def text() -> torch.Tensor:
    return torch.randn(1, TEXT, 256)


def tokens() -> torch.Tensor:
    return torch.randn(1, SIDE * SIDE, 16)


def ids(columns: int) -> torch.Tensor:
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
    return torch.nn.functional.pad(places, (1, columns - 3))


@dataclass(frozen=True)
class Case:
    """A host: how it is made, and what it is given."""

    make: Callable[[], Any]
    inputs: Callable[[], Arguments]
    window: tuple[int, int, int] = (1, 4, 4)


HOSTS = {
    "SD3": Case(
        lambda: diffusers.SD3Transformer2DModel(
            **SIZES, sample_size=64, in_channels=4, num_layers=BLOCKS, joint_attention_dim=256,
            caption_projection_dim=WIDTH, pooled_projection_dim=64, pos_embed_max_size=64,
        ),
        lambda: {"hidden_states": torch.randn(1, 4, 64, 64), "encoder_hidden_states": text(),
                 "pooled_projections": torch.randn(1, 64), "timestep": torch.tensor([500.0])},
    ),
    "Flux": Case(
        lambda: diffusers.FluxTransformer2DModel(
            **SIZES, in_channels=16, num_layers=BLOCKS // 2, num_single_layers=BLOCKS // 2, joint_attention_dim=256,
            pooled_projection_dim=64, axes_dims_rope=AXES,
        ),
        lambda: {"hidden_states": tokens(), "encoder_hidden_states": text(), "pooled_projections": torch.randn(1, 64),
                 "timestep": torch.tensor([0.5]), "img_ids": ids(3), "txt_ids": torch.zeros(TEXT, 3)},
    ),
    "Flux2": Case(
        lambda: diffusers.Flux2Transformer2DModel(
            **SIZES, in_channels=16, num_layers=2, num_single_layers=BLOCKS, joint_attention_dim=256,
            timestep_guidance_channels=64, axes_dims_rope=(8, 8, 8, 8), guidance_embeds=False,
        ),
        lambda: {"hidden_states": tokens(), "encoder_hidden_states": text(), "timestep": torch.tensor([0.5]),
                 "img_ids": ids(4), "txt_ids": torch.zeros(TEXT, 4)},
    ),
    "Qwen-Image": Case(
        lambda: diffusers.QwenImageTransformer2DModel(
            **SIZES, in_channels=16, out_channels=4, num_layers=BLOCKS, joint_attention_dim=256, axes_dims_rope=AXES
        ),
        lambda: {"hidden_states": tokens(), "encoder_hidden_states": text(), "timestep": torch.tensor([0.5]),
                 "img_shapes": [[(1, SIDE, SIDE)]]},
    ),
    "Wan": Case(
        lambda: diffusers.WanTransformer3DModel(
            **SIZES, in_channels=4, out_channels=4, text_dim=256, freq_dim=64, ffn_dim=4 * WIDTH, num_layers=BLOCKS
        ),
        lambda: {"hidden_states": torch.randn(1, 4, 4, 32, 32), "encoder_hidden_states": text(),
                 "timestep": torch.tensor([500.0])},
        (2, 4, 2),
    ),
    "DiT": Case(
        lambda: diffusers.DiTTransformer2DModel(
            **SIZES, in_channels=4, out_channels=4, num_layers=BLOCKS, sample_size=64, num_embeds_ada_norm=10
        ),
        lambda: {"hidden_states": torch.randn(1, 4, 64, 64), "timestep": torch.tensor([500]),
                 "class_labels": torch.tensor([3])},
    ),
    "PixArt": Case(
        lambda: diffusers.PixArtTransformer2DModel(
            **SIZES, in_channels=4, num_layers=BLOCKS, sample_size=64, cross_attention_dim=WIDTH, caption_channels=256
        ),
        lambda: {"hidden_states": torch.randn(1, 4, 64, 64), "encoder_hidden_states": text(),
                 "timestep": torch.tensor([500]), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "HunyuanVideo": Case(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            **SIZES, in_channels=4, out_channels=4, num_layers=BLOCKS // 2, num_single_layers=BLOCKS // 2,
            num_refiner_layers=1, text_embed_dim=256, pooled_projection_dim=64, rope_axes_dim=AXES, guidance_embeds=False,
        ),
        lambda: {"hidden_states": torch.randn(1, 4, 4, 32, 32), "encoder_hidden_states": text(),
                 "encoder_attention_mask": torch.ones(1, TEXT), "pooled_projections": torch.randn(1, 64),
                 "timestep": torch.tensor([500.0])},
        (2, 4, 2),
    ),
    "LTX": Case(
        lambda: diffusers.LTXVideoTransformer3DModel(
            **SIZES, in_channels=16, out_channels=16, num_layers=BLOCKS, cross_attention_dim=WIDTH, caption_channels=256
        ),
        lambda: {"hidden_states": tokens(), "encoder_hidden_states": text(), "encoder_attention_mask": torch.ones(1, TEXT),
                 "timestep": torch.tensor([500.0]), "num_frames": 4, "height": 16, "width": 16},
        (2, 4, 2),
    ),
}  # fmt: skip
BACKBONES = {"SiT": "SiT-S/2", "U-ViT": "UViT-S/2", "HDiT": "HDiT-S/2"}


def host_variants(case: Case) -> tuple[dict[str, Variant], dict[str, int]]:
    """Forwards to time, dense first, and their FLOPs."""
    torch.manual_seed(0)
    inputs = case.inputs()
    on_meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    models, counted = [], []
    for _ in range(2):
        models.append(case.make().eval())
        with torch.device("meta"):
            counted.append(case.make())
    for model in (models[1], counted[1]):
        elit.elasticize(model, 2, 2, case.window)
    grid = (SIDE, SIDE) if "img_ids" in inputs else None

    def run(budget: float) -> Callable[[Any], object]:
        def forward(_: Any) -> object:
            with torch.no_grad(), elit.budget(models[1], budget):
                return models[1](**inputs)

        return forward

    def dense(_: Any) -> object:
        with torch.no_grad():
            return models[0](**inputs)

    variants = {"dense": Variant(dense)} | {f"{budget:g}": Variant(run(budget)) for budget in BUDGETS}
    flops = {"dense": elit.count_flops(counted[0], inputs=on_meta)}
    return variants, flops | {f"{b:g}": elit.count_flops(counted[1], b, on_meta, grid) for b in BUDGETS}


def backbone_variants(name: str) -> tuple[dict[str, Variant], dict[str, int]]:
    """The same of a backbone of this library."""
    preset = BACKBONES[name]
    dense = elit.create_model(preset, input_size=64, rope=True).eval()
    elastic = elit.create_model(f"ELIT-{preset}", input_size=64, rope=True, group_size=4).eval()

    def run(model: Any, budget: float | None) -> Callable[[Any], object]:
        def forward(_: Any) -> object:
            with torch.no_grad():
                return model(*model.example(), budget)

        return forward

    variants = {"dense": Variant(run(dense, None))} | {f"{b:g}": Variant(run(elastic, b)) for b in BUDGETS}
    flops = {"dense": elit.count_flops(dense)} | {f"{b:g}": elit.count_flops(elastic, b) for b in BUDGETS}
    return variants, flops


def efficiencies(seconds: dict[str, list[float]], flops: dict[str, int]) -> dict[str, Spread]:
    """Of every budget, round by round."""
    return {
        label: spread([a / b / (flops[label] / flops["dense"]) for a, b in zip(times, seconds["dense"], strict=True)])
        for label, times in seconds.items()
        if label != "dense"
    }


def wrapper_share(case: Case, seconds: float) -> float:
    """What the hook and the list take, as a share of a dense forward."""
    transformer, inputs = elit.elasticize(case.make().eval(), 2, 2, case.window), case.inputs()
    hook, names = transformer.elit.hook, transformer.elit.host.lists
    start = time.perf_counter()
    for _ in range(100):
        transformer.elit.calls.now = hook.call(transformer, inputs)
        _ = [list(getattr(transformer, name)) for name in names]
        transformer.elit.calls.now = None
    return (time.perf_counter() - start) / 100 / seconds


def ratio_of(first: Callable[[], object], second: Callable[[], object], rounds: int, title: str) -> Spread:
    """The second's time as a share of the first's, round by round."""
    seconds = interleave({"a": Variant(lambda _: first()), "b": Variant(lambda _: second())}, rounds, title)
    return spread([b / a for a, b in zip(seconds["a"], seconds["b"], strict=True)])


def deep_and_ragged(rounds: int) -> dict[str, Spread]:
    """28 blocks with a core beside those without one, and 83 x 83 tokens beside 84 x 84, per token."""
    common = {"rope": True, "width": 192, "heads": 6, "depth": 28, "head_depth": 4, "tail_depth": 4}
    dense = elit.create_model("SiT-S/2", **common, input_size=64).eval()
    deep = elit.create_model("ELIT-SiT-S/2", **common, input_size=64, group_size=4).eval()
    shallow = common | {"depth": 4, "head_depth": 1, "tail_depth": 1}
    whole, ragged = (elit.create_model("ELIT-SiT-S/2", **shallow, input_size=2 * n, group_size=4).eval() for n in (84, 83))

    def forward(model: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return model(*model.example())

        return run

    per_token = ratio_of(forward(whole), forward(ragged), rounds, "83 x 83 beside 84 x 84")
    scale = (84 / 83) ** 2
    return {
        "28 blocks, elastic beside dense, full budget": ratio_of(forward(dense), forward(deep), rounds, "28 blocks"),
        "83 x 83 beside 84 x 84, per token": Spread(*(scale * v for v in (per_token.median, per_token.low, per_token.high))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="names, with commas between them, such as Flux,Wan")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*BACKBONES, *HOSTS]
    out = open_report()
    table = Table("model", "dense, ms", *(f"efficiency at {b:g}" for b in BUDGETS), "wrapper, %", title="1,024 image tokens")
    for name in names:
        variants, flops = backbone_variants(name) if name in BACKBONES else host_variants(HOSTS[name])
        seconds = interleave(variants, options.rounds, name)
        made, dense = efficiencies(seconds, flops), spread(seconds["dense"])
        wrapper = f"{100 * wrapper_share(HOSTS[name], dense.median):.2f}" if name in HOSTS else ""
        table.add_row(name, dense.show(1e3, 1), *(value.show() for value in made.values()), wrapper)
    out.print(table)
    if not options.only:
        for title, value in deep_and_ragged(options.rounds).items():
            out.print(f"{title}: {value.show(digits=3)}")


if __name__ == "__main__":
    main()
