"""What budgets cost in backbones and hosts at 1,024 image tokens: time beside FLOPs, raggedness, and the wrapper.

    python benchmarks/hosts.py
    python benchmarks/hosts.py --only Flux,Wan --rounds 5 --out runs/hosts.json

Time is the processor's, of one thread: medians and quartiles of interleaved rounds, float32, batch 1, no gradients.

1. A forward, dense and elastic at 1, 1/4 and 1/16. `efficiency` is (time / dense time) / (FLOPs / dense FLOPs), the median
   of what each round gives; at most 1.10 is the aim. FLOPs are counted by `elit.count_flops`.
2. `wrapper`: what a host's hook and list take beside its dense forward, without Read and Write: under 1 %.
3. `interface`: a stack of 28 blocks with a core of 20 at the full budget, beside the dense one: under 5 % longer.
4. `ragged`: 83 x 83 tokens under a window of 4 x 4 beside 84 x 84, time against FLOPs: under 3 % longer.

A line is printed as each is done, and kept in --out, from which the same command goes on.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.table import Table

import elit
from elit.backbones.hosts.table import host_named
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import write_whole
from elit.records import Count, read_json, record
from elit.words import suggest
from timing import Spread, Variant, interleave, machine, open_report, spread

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
SMALL = {"width": WIDTH, "heads": HEADS, "depth": BLOCKS, "rope": True}
BACKBONES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # preset, fields, and those of the elastic form
    "SiT": ("SiT-S/2", {"input_size": 64}, {}),
    "U-ViT": ("UViT-S/2", {"input_size": 64}, {}),
    "HDiT": ("HDiT-S/2", {"input_size": 64, "fold": (3, 5)}, {"group_size": 8}),
    "video": ("SiT-S/1x2x2", {"input_size": 32, "frames": 4}, {"group_frames": 2, "group_size": (4, 2)}),
}
MARKS = {"efficiency": 1.10, "wrapper": 1.01, "interface": 1.05, "ragged": 1.03}
Figure = tuple[float, float, float]  # median and quartiles


@dataclass(frozen=True)
class Forwards:
    """Forwards to time, by name, the dense one first; their FLOPs; and the dense and the elastic model."""

    variants: dict[str, Variant]
    flops: dict[str, int]
    models: tuple[Any, Any]


@record
class Results:
    """What is kept: on which machine, of how many rounds, and by name the figures of what was measured."""

    machine: dict[str, str | int]
    rounds: Count
    rows: dict[str, dict[str, Figure]]


def host_forwards(case: Case) -> Forwards:
    """Of a host, dense and at each budget."""
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
    flops |= {f"{b:g}": elit.count_flops(counted[1], b, on_meta, grid) for b in BUDGETS}
    return Forwards(variants, flops, (models[0], models[1]))


def own_forward(model: Any, budget: float | None) -> Variant:
    """Of a model of this library, on its example."""
    given = model.eval().example()

    def forward(_: Any) -> object:
        with torch.no_grad():
            return model(*given, budget)

    return Variant(forward)


def backbone_forwards(name: str) -> Forwards:
    """Of a backbone of this library, dense and at each budget."""
    preset, fields, elastic_fields = BACKBONES[name]
    dense = elit.create_model(preset, **SMALL, **fields)
    elastic = elit.create_model(f"ELIT-{preset}", **SMALL, **fields, **elastic_fields)
    variants = {"dense": own_forward(dense, None)} | {f"{b:g}": own_forward(elastic, b) for b in BUDGETS}
    flops = {"dense": elit.count_flops(dense)} | {f"{b:g}": elit.count_flops(elastic, b) for b in BUDGETS}
    return Forwards(variants, flops, (dense, elastic))


def forwards_of(name: str) -> Forwards:
    """Of a case."""
    return backbone_forwards(name) if name in BACKBONES else host_forwards(HOSTS[name])


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """The blocks of a host, or of a backbone, first to last."""
    if isinstance(model, ElasticModel):
        return [model.get_submodule(name) for name in model.host_blocks()]
    return [block for name in host_named(type(model).__name__).lists for block in getattr(model, name).children()]


def wrapper_seconds(case: Case) -> float:
    """What the hook and the list take, a forward."""
    transformer, inputs = elit.elasticize(case.make().eval(), 2, 2, case.window), case.inputs()
    hook, names = transformer.elit.hook, transformer.elit.host.lists
    start = time.process_time()
    for _ in range(100):
        transformer.elit.calls.now = hook.call(transformer, inputs)
        _ = [list(getattr(transformer, name)) for name in names]
        transformer.elit.calls.now = None
    return (time.process_time() - start) / 100


def figure(values: list[float]) -> Figure:
    """Their median and quartiles."""
    made = spread(values)
    return made.median, made.low, made.high


def efficiency(seconds: list[float], dense: list[float], share: float) -> Figure:
    """Of every round, its time as a share of the dense one's, over the same share of FLOPs."""
    return figure([a / b / share for a, b in zip(seconds, dense, strict=True)])


def budgets_of(name: str, rounds: int) -> dict[str, Figure]:
    """The dense forward's milliseconds, the efficiency at each budget, and of a host the wrapper's ratio."""
    forwards = forwards_of(name)
    seconds, flops = interleave(forwards.variants, rounds, name, time.process_time), forwards.flops
    dense = seconds["dense"]
    figures = {"dense, ms": figure([1e3 * one for one in dense])}
    for b in BUDGETS:
        share = flops[f"{b:g}"] / flops["dense"]
        figures[f"efficiency at {b:g}"] = efficiency(seconds[f"{b:g}"], dense, share)
    if name in HOSTS:
        taken = wrapper_seconds(HOSTS[name])
        figures["wrapper"] = figure([1 + taken / one for one in dense])
    return figures


def beside(first: Variant, second: Variant, rounds: int, title: str, share: float = 1.0) -> Figure:
    """The second's efficiency, where its FLOPs are so large a share of the first's; without it, the ratio of their times."""
    seconds = interleave({"first": first, "second": second}, rounds, title, time.process_time)
    return efficiency(seconds["second"], seconds["first"], share)


def interface(rounds: int) -> dict[str, Figure]:
    """28 blocks with a core, at the full budget, beside those without one."""
    deep = SMALL | {"depth": 28, "input_size": 64}
    dense = elit.create_model("SiT-S/2", **deep)
    elastic = elit.create_model("ELIT-SiT-S/2", **deep, head_depth=4, tail_depth=4)
    return {"interface": beside(own_forward(dense, None), own_forward(elastic, 1.0), rounds, "interface")}


def ragged(rounds: int) -> dict[str, Figure]:
    """83 x 83 tokens beside 84 x 84, time over FLOPs, at the full budget."""
    split = SMALL | {"depth": 3, "head_depth": 1, "tail_depth": 1}
    whole, cut = (elit.create_model("ELIT-SiT-S/2", **split, input_size=2 * side) for side in (84, 83))
    share = elit.count_flops(cut) / elit.count_flops(whole)
    return {"ragged": beside(own_forward(whole, 1.0), own_forward(cut, 1.0), rounds, "ragged", share)}


ALONE = {"interface": interface, "ragged": ragged}


def shown(name: str, value: Figure) -> str:
    """A figure in words, beside the mark that it has."""
    made, mark = Spread(*value), MARKS.get(name.split(" at ")[0])
    if mark is None:
        return made.show(digits=1)
    return made.show(digits=3) + ("" if made.median <= mark else " *")


def kept(file: Path | None, rounds: int) -> Results:
    """What an earlier call measured. Raises UserError where that was another machine, or other rounds."""
    fresh = Results(machine(), rounds, {})
    if file is None or not file.is_file():
        return fresh
    found = read_json(file, Results)
    if (found.machine, found.rounds) != (fresh.machine, rounds):
        raise UserError(f"{file} is of another machine or of {found.rounds} rounds; give another --out")
    return found


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Figure]]:
    """Measures what is not kept yet, prints a line of each and a table of all, and returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="names, with commas between them, such as Flux,Wan,ragged")
    parser.add_argument("--out", type=Path, help="JSON file that keeps what is measured")
    options = parser.parse_args(arguments)
    every = [*BACKBONES, *HOSTS, *ALONE]
    names = options.only.split(",") if options.only else every
    if unknown := [name for name in names if name not in every]:
        raise UserError(f"there is no {unknown[0]!r} to measure; {suggest(unknown[0], every)}")
    torch.set_num_threads(1)
    out, results = open_report(), kept(options.out, options.rounds)
    for name in names:
        if name not in results.rows:
            results.rows[name] = ALONE[name](options.rounds) if name in ALONE else budgets_of(name, options.rounds)
        if options.out is not None:
            write_whole(options.out, json.dumps(vars(results), indent=2) + "\n")
        out.print(f"{name}: " + ", ".join(f"{what} {shown(what, value)}" for what, value in results.rows[name].items()))
    columns = ["dense, ms", *(f"efficiency at {b:g}" for b in BUDGETS), *list(MARKS)[1:]]
    table = Table("", *columns, title=f"1,024 image tokens, {options.rounds} rounds; * is above its mark")
    for name in names:
        row = results.rows[name]
        table.add_row(name, *(shown(column, row[column]) if column in row else "" for column in columns))
    out.print(table)
    return {name: results.rows[name] for name in names}


if __name__ == "__main__":
    main()
