"""Model folders: config.json and model.safetensors, written whole or not at all."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from elit.backbones.config import DiTConfig
from elit.backbones.table import backbone_named, backbone_of, build_model
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.files import check_makeable, found, whole_folder, write_whole, written_whole
from elit.outlines import without_memory
from elit.records import checked, read_json
from elit.words import one_line, shown

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, README_FILE = "config.json", "model.safetensors", "card.json", "README.md"
CACHE_FILE = "cache.json"
TRANSFORMER_FILE = "transformer.json"  # beside the weights of a transformer of diffusers
EXPORTED_FILE, INDEX_FILE = "elit.json", "model_index.json"  # of a pipeline of diffusers: where we wrote it, and always
OURS = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, README_FILE, CACHE_FILE)  # all that a model folder may hold
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOATS_TEXT = "float32, float16, bfloat16 or float64"


# Fields younger than the first models, left out at these values: so a model's file and its fingerprint stay what they were.
LATER: dict[str, object] = {"anchor": "none", "label_factors": ()}


def config_to_dict(config: DiTConfig) -> dict[str, object]:
    """What config.json holds."""
    values = {"architecture": backbone_of(config).architecture, **dataclasses.asdict(config)}
    return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


def config_from_dict(values: object, origin: str) -> DiTConfig:
    """The inverse of `config_to_dict`, of plain values; `origin` names their file in the UserError of foreign ones."""
    foreign = f"{origin} does not describe a model of this library"
    if not isinstance(values, dict):
        raise UserError(foreign)
    backbone = backbone_named(values.get("architecture"))
    if backbone is None:
        raise UserError(f"{foreign} (its architecture is {shown(values.get('architecture'))})")
    return checked({key: value for key, value in values.items() if key != "architecture"}, backbone.config, origin)


def is_host(folder: Path) -> bool:
    """Whether a model folder is a transformer of diffusers: a checkpoint of `elit finetune`, or a pipeline made of one."""
    return (folder / TRANSFORMER_FILE).is_file() or (folder / EXPORTED_FILE).is_file()


def load_config(folder: Path) -> DiTConfig:
    """The configuration in a model folder's config.json. Raises UserError, naming the file and the field, for any other."""
    if is_host(folder):
        raise UserError(
            f"{folder} is of a transformer of diffusers, a run of elit finetune: elit sample, elit evaluate, elit report and"
            " elit serve take it, and in Python elit.load_host_model"
        )
    return config_from_dict(read_json(folder / CONFIG_FILE, object), str(folder / CONFIG_FILE))


def save_weights(
    model: nn.Module, folder: Path, state: dict[str, Tensor] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes config.json and model.safetensors into a folder that exists.

    model: an ElasticModel, compiled or not. state: other weights than the model's. dtype: to store them in. Raises
    UserError for weights that the dtype cannot hold, or that are not finite.
    """
    model = original(model)
    tensors = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in plain_names(model.state_dict() if state is None else state, "the model").items()
    }
    check_finite(tensors, f"the weights cannot be saved{f' as {dtype}' if dtype is not None else ''}")
    save_tensors(tensors, folder / WEIGHTS_FILE)
    write_whole(folder / CONFIG_FILE, json.dumps(config_to_dict(model.config), indent=2) + "\n")


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Writes a safetensors file, whole or not at all. Raises WriteError, as of a full disk."""
    with written_whole(file) as part:
        try:
            save_file(tensors, part)
        except SafetensorError as error:  # its texts of the system's errors end in "(os error 28)"
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        part.chmod(0o644)  # safetensors makes files that their owner alone can read


@contextmanager
def new_model_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write a model in, which takes the name `out` when all is written; errors as of `check_target`.

    A model that it replaces stays whole until then; of its files a README.md is kept where the new one brings none. A link
    is followed, and stays.
    """
    place = check_target(out, overwrite)
    with whole_folder(place) as part:
        yield part
        if (place / README_FILE).is_file() and not (part / README_FILE).exists():
            shutil.copy2(place / README_FILE, part)


def check_target(out: Path, overwrite: bool = False) -> Path:
    """Where a model folder can be written without losing something: the folder `out`, its links followed.

    It is empty, not there yet, or a model of this library that may be overwritten. Raises UserError for any other, and
    WriteError where it cannot be written.
    """
    try:
        place = found(out.resolve())
        held = sorted(place.iterdir()) if place.exists() else []
    except (NotADirectoryError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise UserError(f"{out} is no folder, or a link that leads nowhere; give another folder") from error
    if others := [entry.name for entry in held if entry.name not in OURS or entry.is_symlink() or not entry.is_file()]:
        raise UserError(f"{out} holds other files, such as {others[0]}; give another folder")
    if held:
        try:
            load_config(place)
        except UserError as error:
            raise UserError(f"{out} holds no model of this library, and is left as it is ({error}); give another") from error
        if not overwrite:
            raise UserError(f"{out} holds a model already; give another folder, or --overwrite")
    if place.exists() and (place.is_mount() or Path.cwd().is_relative_to(place)):
        raise UserError(f"{out} is where you are or where a disk is mounted, and cannot be replaced; give a folder in it")
    check_makeable(place)
    return place


def original(model: nn.Module) -> ElasticModel:
    """The model within what torch.compile or a data-parallel wrapper made of it. Raises UserError for another module."""
    while not isinstance(model, ElasticModel):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise UserError(f"the model is an elit model, such as create_model makes, and not {shown(type(model).__name__)}")
        model = inner
    return model


def plain_names(tensors: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The tensors by the names that they have without torch.compile ("_orig_mod.") and data parallelism ("module.").

    Raises UserError where two get the same name.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.replace("_orig_mod.", "").removeprefix("module.")
        if plain in out:
            raise UserError(f"{origin} holds {plain} twice, with and without a prefix; give one that holds it once")
        out[plain] = tensor
    return out


def load_model(folder: str | Path, device: str = "cpu") -> ElasticModel:
    """The model of a folder with config.json and model.safetensors, in float32 and eval mode.

    A training run's folder stands for its last checkpoint. Raises UserError where the folder is missing, truncated, or
    another program's, and for weights that are not finite floating-point numbers.
    """
    folder = model_in(Path(folder))
    model = outline(load_config(folder))
    return filled(model, fitting_tensors(model, folder / WEIGHTS_FILE)).to(device)


def model_in(folder: Path) -> Path:
    """The model folder that a path names: itself, a pipeline that `elit export` wrote, or the last checkpoint of a run.

    Raises UserError, saying what is there instead, for every other path.
    """
    folder = found(folder)
    if ((folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()) or (folder / EXPORTED_FILE).is_file():
        return folder
    for place in (folder / "checkpoints", folder):
        steps = [p for p in place.glob("step_*") if (p / CONFIG_FILE).is_file() and (p / WEIGHTS_FILE).is_file()]
        if steps:
            return max(steps, key=lambda p: (len(p.name), p.name))
    if (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} is a training run without a whole checkpoint yet; train on, or give a model folder")
    if folder.is_file() and folder.name in (CONFIG_FILE, WEIGHTS_FILE):
        raise UserError(f"{folder} is a file; give its folder, {folder.parent}")
    if folder.is_file():
        raise UserError(f"{folder} is a file and not a model folder; of the authors' checkpoints elit import makes one")
    if (folder / INDEX_FILE).is_file():
        raise UserError(
            f"{folder} is a pipeline of diffusers that this version's elit export --pipeline did not write; open it with"
            " diffusers, train its transformer with elit finetune, or export the run again"
        )
    why = f"it holds no {CONFIG_FILE} with {WEIGHTS_FILE}" if folder.exists() else "there is no such folder"
    raise UserError(f"{folder} is not a model folder: {why}")


def outline(config: DiTConfig) -> ElasticModel:
    """A model that takes no memory yet, for its names and shapes."""
    with without_memory():
        return build_model(config)


def filled(model: ElasticModel, tensors: dict[str, Tensor]) -> ElasticModel:
    """The model of an outline with copies of these weights, in float32, on the CPU and in eval mode."""
    model.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, assign=True)
    model.reset_positions()
    return model.eval()


def fingerprint(model: ElasticModel) -> str:
    """A hash of what a model is made of and of its weights, so that nothing made with it is taken for another's."""
    if (made_of := model.made_of()) is not None:  # a transformer of diffusers
        told = json.dumps([*made_of, digest_of(model)], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:12]
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
    """Copies a safetensors file into the model, once all of it fits; errors as of `fitting_tensors`."""
    model.load_state_dict(fitting_tensors(model, file))


def fitting_tensors(model: ElasticModel, file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by the model's names.

    Raises UserError that lists what is missing, unexpected or of another shape, or names a tensor that holds no finite
    floating-point numbers.
    """
    tensors = plain_names(read_tensors(file), str(file))
    check_fit(tensors, model.state_dict(), f"{file} does not fit its config")
    check_finite(tensors, f"{file} holds no weights")
    return tensors


def check_finite(tensors: dict[str, Tensor], verdict: str) -> None:
    """Raises UserError, naming the tensor, for one that does not hold finite floating-point numbers of 16 bits or more."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise UserError(f"{verdict}: {name} is of the type {tensor.dtype}, and not of {FLOATS_TEXT}")
        # a minimum and a maximum are quicker than a test of each value, and NaN if any value is
        if tensor.numel() and not bool(torch.stack(tensor.aminmax()).float().isfinite().all()):
            raise UserError(
                f"{verdict}: {name} holds NaN or infinite values; a training that diverged, a damaged file or a"
                " type too small for them makes such ones"
            )


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
    """The tensors of a safetensors file; UserError where it is truncated or of another kind."""
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        why = one_line(str(error))
        raise UserError(f"{file} is not a whole safetensors file ({why}); fetch or write it again") from error
