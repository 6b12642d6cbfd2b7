"""What `elit.elasticize` added to a transformer, kept in a folder: the interface, adapters, and how it was made.

The transformer itself stays where it came from.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from elit.backbones.hosts.budgets import CORE, core_of
from elit.backbones.hosts.elasticize import HostConfig, elasticize_as, make_core, sizes
from elit.backbones.hosts.table import host_named
from elit.errors import UserError
from elit.files import check_makeable, found, whole_folder, write_whole
from elit.lora import check_lora, load_lora
from elit.outlines import without_memory
from elit.records import read_json, record
from elit.weights import check_finite, check_fit, read_tensors, save_tensors
from elit.words import shown

CONFIG_FILE, WEIGHTS_FILE = "elastic.json", "interface.safetensors"


@record
class Kept:
    """What elastic.json holds. adapters: the names of LoRAs; the i-th is kept in `lora-i.safetensors`."""

    config: HostConfig
    adapters: tuple[str, ...] = ()


def save_elastic(transformer: Any, folder: str | Path, overwrite: bool = False) -> None:
    """Keeps what made a transformer elastic in a folder, and the LoRAs on it; `load_elastic` puts them onto another.

    Raises UserError for a transformer that is not elastic, and for a folder that holds something else, or such a thing
    already and not `overwrite`; WriteError where it cannot be written.
    """
    core, place = core_of(transformer), Path(folder)
    transformer = getattr(transformer, "_orig_mod", transformer)
    _check_target(place, overwrite)
    tensors = {
        name.replace(".base_layer", ""): tensor.detach().cpu().contiguous()
        for name, tensor in core.state_dict().items()
        if ".lora_" not in name
    }
    check_finite(tensors, "the interface cannot be saved")
    adapters = tuple(getattr(transformer, "peft_config", {}))
    with whole_folder(place) as part:
        save_tensors(tensors, part / WEIGHTS_FILE)
        for i, name in enumerate(adapters):
            transformer.save_lora_adapter(part, adapter_name=name, weight_name=_lora_file(i))
        write_whole(part / CONFIG_FILE, json.dumps(dataclasses.asdict(Kept(core.config, adapters)), indent=2) + "\n")


def load_elastic(transformer: Any, folder: str | Path) -> Any:
    """Makes a transformer elastic as the one that a folder was saved from, with its interface and LoRAs; returns it.

    Raises UserError, and leaves the transformer as it is, where the folder is of another host or shape, or not whole, and
    for a transformer that is elastic already or has a LoRA of the same name.
    """
    place = found(Path(folder))
    if not (place / CONFIG_FILE).is_file():
        raise UserError(f"{place} holds no {CONFIG_FILE}; give a folder that elit.save_elastic wrote")
    kept = read_json(place / CONFIG_FILE, Kept)
    _check_host(kept.config, transformer, place)
    _check_adapters(kept.adapters, transformer, place)
    tensors = read_tensors(place / WEIGHTS_FILE)
    with without_memory():
        outline = make_core(kept.config, type(_first_core_block(kept.config, transformer)))
    check_fit(tensors, outline.state_dict(), f"{place / WEIGHTS_FILE} does not fit its {CONFIG_FILE}")
    check_finite(tensors, f"{place / WEIGHTS_FILE} holds no weights")
    elasticize_as(transformer, kept.config)
    getattr(transformer, CORE).load_state_dict(tensors)
    for i, name in enumerate(kept.adapters):
        load_lora(transformer, place / _lora_file(i), name)
    return transformer


def _lora_file(number: int) -> str:
    return f"lora-{number}.safetensors"


def _first_core_block(config: HostConfig, transformer: Any) -> torch.nn.Module:
    lists = [getattr(transformer, name) for name in host_named(config.transformer).lists]
    return [block for blocks in lists for block in blocks][config.head]


def _check_target(place: Path, overwrite: bool) -> None:
    """Raises UserError where writing a folder of ours would lose something."""
    held = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file; give a folder")
    if held and CONFIG_FILE not in held:
        raise UserError(f"{place} holds other files, such as {held[0]}; give another folder")
    if held and not overwrite:
        raise UserError(f"{place} holds an interface already; give another folder, or overwrite=True")
    check_makeable(place)


def _check_host(config: HostConfig, transformer: Any, place: Path) -> None:
    """Raises UserError for a transformer of another class or shape than a folder's."""
    wanted = (config.transformer, config.depth, config.width, config.heads)
    name = type(transformer).__name__
    if name != config.transformer:
        raise UserError(f"{place} is of a {config.transformer}, not of a {name}; load it onto that")
    given = sizes(transformer)
    if given != wanted:
        raise UserError(
            f"{place} is of a {name} with {wanted[1]} blocks of width {wanted[2]} and {wanted[3]} heads; this one has"
            f" {given.depth}, {given.width} and {given.heads}"
        )


def _check_adapters(adapters: tuple[str, ...], transformer: Any, place: Path) -> None:
    """Raises UserError for LoRAs that cannot be loaded onto a transformer."""
    taken = [name for name in adapters if name in getattr(transformer, "peft_config", {})]
    if taken:
        raise UserError(f"the transformer has a LoRA called {shown(taken[0])} already; delete_adapters() takes it away")
    for i in range(len(adapters)):
        if not (place / _lora_file(i)).is_file():
            raise UserError(f"{place} has no {_lora_file(i)}; fetch or write it again")
        check_lora(place / _lora_file(i))
