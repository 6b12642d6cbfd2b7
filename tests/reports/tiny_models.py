"""Tiny models for the reports, with weights that make every path count."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from elit import DiTConfig
from elit.backbones.config import DFMConfig
from elit.backbones.table import build_model
from elit.card import Card, SamplingDefaults, save_card
from elit.data.emoji import load_emoji
from elit.evaluation.quality import Quality, kept_name
from elit.recipe import Recipe
from elit.reports.subject import Subject, load_subject
from elit.weights import fingerprint, save_weights
from randomised import randomised

EMOJI = DiTConfig(
    input_size=32,
    patch_size=8,
    in_channels=3,
    num_classes=99,
    width=32,
    depth=3,
    heads=2,
    group_size=2,
    head_depth=1,
    tail_depth=1,
)
STAGED = DFMConfig(**asdict(EMOJI), stages=2)
LATENT = DiTConfig(input_size=(8, 12), num_classes=5, width=32, depth=3, heads=2, group_size=2, head_depth=1, tail_depth=1)
DENSE = DiTConfig(input_size=8, in_channels=1, num_classes=5, width=32, depth=3, heads=2)


def model_folder(folder: Path, config: DiTConfig, steps: int = 2) -> Path:
    """A model folder whose card asks for few steps, and names the emoji's classes where there are as many."""
    folder.mkdir()
    save_weights(randomised(build_model(config)), folder)
    names = load_emoji().label_names if config.num_classes == 99 else ()
    save_card(Card(SamplingDefaults(steps, 2.0), label_names=names), folder)
    return folder


def subject_of(folder: Path, config: DiTConfig, labels: str | None = None) -> Subject:
    return load_subject(model_folder(folder / "model", config), labels)


def keep(work: Path, subject: Subject, recipe: Recipe, count: int, seed: int, frechet: float) -> None:
    """Writes a figure into a work folder as if it had been measured: measuring takes a second each."""
    work.mkdir(exist_ok=True)
    name = kept_name(fingerprint(subject.model), replace(recipe, seed=seed), count)
    (work / name).write_text(json.dumps(asdict(Quality(frechet, 9000.0, 1.0, 0.8, 0.6, 0.5))))
