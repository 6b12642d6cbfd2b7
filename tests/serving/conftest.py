"""Small models to be served, whatever model comes with the package."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from elit import DiT, DiTConfig
from elit.card import Card, save_card
from elit.labels import joined_names
from elit.weights import save_weights
from randomised import randomised

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CONFIG = DiTConfig(
    input_size=32, in_channels=3, num_classes=60, width=16, depth=3, heads=2, group_size=4, head_depth=1, tail_depth=1
)
NAMES = (*(f"name-{i}" for i in range(51)), "heart", "time", *(f"name-{i}" for i in range(53, 60)))
FACTORS = (("animal-mammal", "food-fruit", "heart"), ("noto", "fluent", "openmoji", "plain"))


def saved(folder: Path, config: DiTConfig, names: tuple[str, ...]) -> Path:
    """A model folder with drawn weights and names of labels."""
    folder.mkdir()
    save_weights(randomised(DiT(config)), folder)
    save_card(replace(Card(), sampling=replace(Card().sampling, steps=3, guidance_scale=2.0), label_names=names), folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's own, which `.ci/run` installs; playwright's where there is none."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 x 32 pixels, 60 named labels, sixteen budgets."""
    return saved(tmp_path_factory.mktemp("served") / "model", CONFIG, NAMES)


@pytest.fixture(scope="session")
def factored_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 x 16 pixels, labels of a kind and a style, four budgets."""
    names = joined_names(*FACTORS)
    sizes = tuple(map(len, FACTORS))
    config = replace(CONFIG, input_size=16, num_classes=len(names), label_factors=sizes, group_size=2)
    return saved(tmp_path_factory.mktemp("factored") / "model", config, names)
