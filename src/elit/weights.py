"""Model folders: config.json and model.safetensors, written whole or not at all."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from elit.backbones.config import DiTConfig
from elit.backbones.table import backbone_named, backbone_of, build_model
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import write_whole, written_whole
from elit.words import suggest

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def config_to_dict(config: DiTConfig) -> dict[str, Any]:
    """What config.json holds."""
    return {"architecture": backbone_of(config).architecture, **dataclasses.asdict(config)}


def config_from_dict(values: dict[str, Any], origin: str) -> DiTConfig:
    """The inverse of `config_to_dict`; `origin` names the file in the ValueError that a foreign one raises."""
    backbone = backbone_named(values.get("architecture"))
    if backbone is None:
        raise UserError(
            f"{origin} does not describe a model of this library (its architecture is {values.get('architecture')!r})"
        )
    known = [field.name for field in dataclasses.fields(backbone.config)]
    given = {key: value for key, value in values.items() if key != "architecture"}
    for key in given:
        if key not in known:
            raise UserError(f"{origin} has an unknown key {key!r}; {suggest(key, known)}")
    for field in dataclasses.fields(backbone.config):
        value = given.get(field.name, field.default)
        if not fits(value, field.default, field.name.endswith("_size") and field.name != "patch_size"):
            raise UserError(f"{origin} holds a value of the wrong type: {field.name} is {value!r}")
    try:
        return backbone.config(**given)
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from error


def fits(value: Any, default: Any, may_be_pair: bool) -> bool:
    """Whether a value read from JSON has its field's type; a size may be a pair, and the group's none."""
    if may_be_pair and isinstance(value, list | tuple):
        return len(value) == 2 and all(type(side) is int for side in value)
    if default is None:
        return value is None or type(value) is int
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def save_weights(
    model: ElasticModel, folder: Path, state: dict[str, Tensor] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes config.json and model.safetensors into a folder that exists. `state`: other weights than the model's."""
    state = model.state_dict() if state is None else state
    tensors = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    with written_whole(folder / WEIGHTS_FILE) as part:
        save_file(tensors, part)
        part.chmod(0o644)  # safetensors makes files that their owner alone can read
    write_whole(folder / CONFIG_FILE, json.dumps(config_to_dict(model.config), indent=2) + "\n")


def load_model(folder: str | Path, device: str = "cpu") -> ElasticModel:
    """The model of a folder with config.json and model.safetensors, in float32 and eval mode.

    Raises UserError where the folder is missing, truncated, or another program's.
    """
    folder = Path(folder)
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not config_file.is_file() or not weights_file.is_file():
        raise UserError(f"{folder} is not a model folder: it holds no {CONFIG_FILE} with {WEIGHTS_FILE}")
    try:
        values = json.loads(config_file.read_text(encoding="utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_file} is not JSON ({error}); fetch or write it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{config_file} does not describe a model of this library")
    model = empty_model(config_from_dict(values, str(config_file)))
    load_tensors(model, weights_file)
    return model.to(device).eval()


def empty_model(config: DiTConfig) -> ElasticModel:
    """A model whose weights are yet to be loaded."""
    with torch.device("meta"):
        model = build_model(config)
    model.to_empty(device="cpu")
    model.reset_positions()
    return model


def fingerprint(model: ElasticModel) -> str:
    """A hash of the config and the weights, so that nothing made with one model is taken for another's."""
    digest = hashlib.sha256(json.dumps(config_to_dict(model.config), sort_keys=True).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def digest_of(module: nn.Module) -> str:
    """A hash of any module's weights, which depends neither on their device nor on float16 or float32 holding them."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def load_tensors(model: ElasticModel, file: Path) -> None:
    """Copies a safetensors file into the model; ValueError lists what is missing, unexpected or of another shape."""
    tensors = read_tensors(file)
    check_fit(tensors, model.state_dict(), f"{file} does not fit its config")
    model.load_state_dict(tensors)


def check_fit(tensors: dict[str, Tensor], wanted: dict[str, Tensor], verdict: str) -> None:
    """Raises UserError, the verdict and a list of what is missing, unexpected or of another shape."""
    wrong = [f"missing {name}" for name in wanted if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in wanted]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{verdict}: {'; '.join(wrong[:5])}{more}")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is truncated or of another kind."""
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); fetch or write it again") from error
