"""On torch's meta device tensors have no values, and none but those of that device can be computed with.

So what runs there reads nothing back, for which a GPU would be waited for, and leaves nothing behind on the CPU.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

import elit
from elit import Guidance, UserError
from elit.backbones.hosts import table
from elit.data.emoji import SPLITS
from elit.target import parse_budget
from elit.training.batch import draw_batch
from elit.training.loop import load_data
from elit.training.parts import take_apart
from elit.training.reading import load_config
from elit.training.step import Products, make_state, train_step
from models import CONFIGS, inputs_of, made
from tiny_hosts import TINY, Tiny, inputs, out

META = torch.device("meta")
MODELS = ("dense", "sees dropped", "ragged, sharp, rope", "cells, rope", "UViT", "HDiT", "VideoDiT", "Padded", "DFM")
TRAINED = {
    "mixed, muon, two factors": [
        *("--budget.mixed=0.5", "--optimizer.name=muon", "--model.num_classes=107", "--model.label_factors=[11,8]"),
    ],
    "by time, in parts": ["--budget.lowest=1", "--budget.schedule=1/2@t>0.5,1", "--accumulate=2"],
    "any latents": ["--budget.dropping=random"],
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    """Forward and backward, at a budget per sample."""
    model = made(CONFIGS[name]).to(META)
    x, t, y = (one.to(META) for one in inputs_of(CONFIGS[name]))
    v = model(x, t, y, None if model.core is None else [0.5, 1.0, 0.5, 1.0])
    v.square().mean().backward()
    assert v.device == META and v.shape == x.shape


@pytest.mark.parametrize("keys", TRAINED.values(), ids=TRAINED.keys())
def test_training_steps(keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on batches of the CPU: their data, label, budget and time alone are told to the device."""
    monkeypatch.setattr(Products, "autocast", lambda self: nullcontext())  # which knows no such device
    model = {"input_size": 32, "patch_size": 8, "in_channels": 3, "num_classes": 99, "width": 32, "depth": 3, "heads": 2}
    model |= {"group_size": 2, "head_depth": 1, "tail_depth": 1, "rope": "true"}
    own = [f"--model.{key}={value}" for key, value in model.items()]
    config = load_config(None, [*own, f"--data.source={SPLITS[2]}", "--batch_size=8", *keys])
    parts, data = take_apart(config, META), load_data(config.data, config.model)
    state = make_state(parts.start)
    for step in range(2):
        taken = train_step(parts.rules, state, draw_batch(parts.draws, data, step), [False])
        assert taken.loss.device == taken.norm.device == taken.raised.device == META
    assert state.counts.device == META and state.step == 2


WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "cheap CFG": ("euler", {"guidance": Guidance(2.0, weak_budget=0.25)}),
    "autoguidance": ("heun", {"guidance": Guidance(2.0, weak_budget=0.25, weak_label="same"), "budget": 0.5}),
    "a budget per sample": ("euler_maruyama", {"budget": [0.25, 1.0, 0.25], "guidance": Guidance(2.0)}),
    "by time": ("euler", {"budget": parse_budget("1/2@t>0.5,1")}),
}


@pytest.mark.parametrize("sampler, options", WAYS.values(), ids=WAYS.keys())
def test_sampling(sampler: str, options: dict[str, object]) -> None:
    """Noise is drawn on the CPU, and told to the device with the labels."""
    drawn = elit.sample(made(CONFIGS["cells, rope"]).to(META), [0, 1, 2], sampler, 2, **options)  # type: ignore[arg-type]
    assert drawn.device == META and len(drawn) == 3


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY.keys())
def test_hosts(tiny: Tiny) -> None:
    """Windows cut short, at a budget per sample, with the grid told where it would be read from the tokens' places."""
    elastic = tiny.elastic(anchor="cells").to(META)
    arguments = {
        name: one.to(META) if isinstance(one, torch.Tensor) else one for name, one in inputs(tiny, ragged=True).items()
    }
    grid = tiny.grid(ragged=True)[-2:] if "img_ids" in arguments else None
    with elit.budget(elastic, [0.25, 1.0], grid=grid):
        assert out(elastic, arguments).device == META


def test_a_host_reads_the_places_of_its_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same tensor at every step; anew of another one, and after it was changed in place."""
    tiny, read = TINY["FluxTransformer2DModel"], []
    elastic, arguments = tiny.elastic(), inputs(tiny)
    reads: Callable[[torch.Tensor], object] = table._read_ids
    monkeypatch.setattr(table, "_read_ids", lambda ids: read.append(ids) or reads(ids))
    with torch.no_grad():
        first = out(elastic, arguments)
        assert torch.equal(out(elastic, arguments), first) and len(read) == 1
        assert torch.equal(out(elastic, arguments | {"img_ids": arguments["img_ids"].clone()}), first) and len(read) == 2
        arguments["img_ids"][:, 1] = 0
        with pytest.raises(UserError, match="not one grid"):
            out(elastic, arguments)
    with torch.inference_mode():
        places = inputs(tiny)["img_ids"]
        for _ in range(2):
            out(elastic, arguments | {"img_ids": places})
    assert len(read) == 5
