"""The bundled model and the recipes of configs/, alike in everything but their size: commands run on them in seconds."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import elit.bundled
import elit.hub
from elit import DiT, DiTConfig
from elit.card import Card, SamplingDefaults, load_card, save_card
from elit.codec import Pixels
from elit.data.emoji import load_emoji
from elit.evaluation.quality import Features, Judge
from elit.weights import load_model, save_weights
from randomised import randomised

ROOT = Path(__file__).parents[1]
NARROW = {"width": 16, "depth": 3, "heads": 2, "head_depth": 1, "tail_depth": 1}
EMOJI = DiTConfig(
    input_size=32,
    patch_size=2,
    in_channels=3,
    num_classes=99,
    width=16,
    depth=3,
    heads=2,
    group_size=4,
    head_depth=1,
    tail_depth=1,
)
BATCH = 4


def small_recipes(folder: Path) -> None:
    """Every recipe of configs/ under its name, with a narrow model and small batches."""
    for file in (ROOT / "configs").rglob("*.yaml"):
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf8")
        for key, value in NARROW.items():
            text = re.sub(rf"^  {key}: \d+$", f"  {key}: {value}", text, flags=re.M)
        text = text.replace("SiT-XL/", "SiT-S/")  # 12 blocks in place of 28
        place.write_text(re.sub(r"^batch_size: \d+$", f"batch_size: {BATCH}", text, flags=re.M), encoding="utf8")


def small_emoji(folder: Path) -> Path:
    """A model folder of the 99 kinds of embedded emoji at 32 pixels, with sixteen budgets, few steps and drawn weights."""
    folder.mkdir(parents=True)
    save_weights(randomised(DiT(EMOJI)), folder)
    save_card(Card(SamplingDefaults(3, 2.0), label_names=load_emoji().label_names, encoding=Pixels()), folder)
    return folder


def small_bundled(folder: Path) -> Path:
    """A model folder with the bundled model's classes, budgets and card, but few steps, and drawn weights."""
    folder.mkdir(parents=True)
    config: DiTConfig = load_model(elit.bundled.FOLDER).config
    save_weights(randomised(DiT(replace(config, **NARROW))), folder)
    card = load_card(elit.bundled.FOLDER)
    save_card(replace(card, sampling=replace(card.sampling, steps=3)), folder)
    return folder


def use_as_bundled(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes a model folder the one that commands take where none is given."""
    patch.setattr(elit.bundled, "FOLDER", folder)
    patch.setattr(elit.hub, "FOLDER", folder)


def narrow_features(patch: pytest.MonkeyPatch, width: int = 64) -> None:
    """Judges see the first of a network's features: a Fréchet distance of 1,280 takes a second of eigenvalues."""
    for name in ("extract", "real"):
        patch.setattr(Judge, name, narrowed(getattr(Judge, name), width))


def narrowed(whole: Callable[..., Features], width: int) -> Callable[..., Features]:
    return lambda *given: {name: rows[:, :width].contiguous() for name, rows in whole(*given).items()}
