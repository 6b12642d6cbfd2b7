"""Transformers of diffusers to train: read or drawn, made elastic, with LoRAs, and read again from a checkpoint of a run.

CHECKPOINT/config.json          what the transformer is made of: a `HostCheckpoint`
CHECKPOINT/transformer.json     its configuration, as diffusers has it
CHECKPOINT/model.safetensors    the averaged weights that learned: all, or with LoRAs these and the interface
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le

from elit.backbones.hosts.elasticize import HostConfig, elasticize_as
from elit.backbones.hosts.model import HostModel, form_of
from elit.codec import DataEncoding
from elit.errors import UserError
from elit.files import found, read_bytes, write_whole
from elit.host_folders import load_elastic
from elit.hub import fetched, is_hub_id
from elit.lora import LORA_FILE, Lora, add_lora, load_lora
from elit.records import JSON_BYTES, Shift, Whole, read_json, record
from elit.weights import (
    CONFIG_FILE,
    EXPORTED_FILE,
    INDEX_FILE,
    TRANSFORMER_FILE,
    WEIGHTS_FILE,
    check_finite,
    check_fit,
    model_in,
    read_tensors,
)

ENDS = 2**20  # bytes of either end of a file of weights that it is known by

Side = Annotated[int, Ge(1), Le(2**14)]


@record
class HostCheckpoint:
    """What a checkpoint's config.json holds.

    transformer: the folder or hub id that the run started from. weights: a digest of what was there. height, width: of the
    pictures, in values. shift: of the times. prompts: what it was told of them: a folder that `elit prepare prompts` wrote,
    or "emoji". encoding: of the pictures. guidance_scale: to sample it with, 1 where it was always told a prompt.
    """

    transformer: str
    weights: str | None
    elastic: HostConfig | None
    lora: Lora
    height: Side
    width: Side
    shift: Shift = 1.0
    steps: Whole = 0
    kind: str = "transformer of diffusers"
    prompts: str | None = None
    encoding: DataEncoding | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Source:
    """Where a transformer is: a folder with its config.json, and the weights beside it, if any."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """As diffusers writes it. Raises UserError for what is none, or of a class that cannot be trained."""
        return read_settings(self.folder / CONFIG_FILE)

    @property
    def weights(self) -> list[Path]:
        """The files of its weights."""
        return sorted(self.folder.glob("diffusion_pytorch_model*.safetensors"))

    def digest(self) -> str:
        """Of its configuration and both ends of its files of weights."""
        told = hashlib.sha256(read_bytes(self.folder / CONFIG_FILE, JSON_BYTES))
        for file in self.weights:
            with file.open("rb") as stream:
                told.update(stream.read(ENDS) + str(size := file.stat().st_size).encode())
                stream.seek(max(0, size - ENDS))
                told.update(stream.read())
        return told.hexdigest()

    @property
    def pipeline(self) -> Path | None:
        """The folder of the pipeline that it is the transformer of, if it is one's."""
        return self.folder.parent if (self.folder.parent / INDEX_FILE).is_file() else None


def find_host(place: str) -> Source:
    """The transformer of a folder, of a pipeline's folder, or of a hub's pipeline.

    Raises UserError where there is none.
    """
    folder = found(Path(place))
    if not folder.exists() and is_hub_id(place):
        patterns = ["transformer/*", "config.json", "*.safetensors"]
        folder = fetched(place, patterns, "the transformer", "give a folder")
    for one in (folder, folder / "transformer"):
        if (one / CONFIG_FILE).is_file():
            return Source(one)
    raise UserError(f"{place} holds no transformer of diffusers: give a folder with its config.json, or a pipeline's")


def read_settings(file: Path) -> dict[str, Any]:
    """The configuration of a transformer. Raises UserError for what is none, or of a class that cannot be trained."""
    values = read_json(file, dict[str, Any])
    name = values.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{file} names no class of diffusers; give the folder of a transformer")
    form_of(name)
    return values


def class_of(config: dict[str, Any]) -> Any:
    """The class of diffusers that a configuration, as `read_settings` gives it, is of."""
    import diffusers

    return getattr(diffusers, config["_class_name"])


def drawn_transformer(config: dict[str, Any]) -> Any:
    """A transformer of a configuration, its weights drawn. Raises UserError for settings that it cannot have."""
    try:
        return class_of(config).from_config(config).float()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"no {config['_class_name']} can be made of these settings ({why}); mend its config.json") from error


def read_transformer(source: Source) -> Any:
    """A transformer with its weights, in float32. Raises UserError where they are missing, or no whole ones."""
    config = source.config
    if not source.weights:
        raise UserError(f"{source.folder} holds no weights; give one that does, or draw them with --host.fresh true")
    try:
        made, report = class_of(config).from_pretrained(
            str(source.folder),
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{source.folder} cannot be read ({why}); fetch or write it again") from error
    if report["missing_keys"]:
        raise UserError(f"{source.folder} lacks {sorted(report['missing_keys'])[0]}; fetch or write it again")
    return made


def learned(transformer: Any) -> dict[str, torch.Tensor]:
    """The parameters that learn, by name."""
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


def describe_checkpoint(part: Path, kept: HostCheckpoint, transformer: dict[str, Any]) -> None:
    """Writes what is known of a checkpoint's weights beside them."""
    write_whole(part / CONFIG_FILE, json.dumps(asdict(kept), indent=2) + "\n")
    write_whole(part / TRANSFORMER_FILE, json.dumps(transformer, indent=2) + "\n")


def read_known(folder: Path) -> HostCheckpoint:
    """What is known of the transformer in a checkpoint's folder, or an exported pipeline's."""
    exported = (folder / EXPORTED_FILE).is_file()
    return read_json(folder / (EXPORTED_FILE if exported else CONFIG_FILE), HostCheckpoint)


def read_checkpoint(place: str | Path) -> tuple[Any, HostCheckpoint]:
    """The transformer of a checkpoint, of a run's last one, or of an exported pipeline, with the averaged weights; and what
    is known of it.

    Raises UserError for a folder that neither `elit finetune` nor `elit export --pipeline` wrote, and where what a LoRA is
    of is gone or another.
    """
    folder = model_in(Path(place))
    if (folder / EXPORTED_FILE).is_file():
        return read_exported(folder)
    if not (folder / TRANSFORMER_FILE).is_file():
        raise UserError(f"{place} is no run of elit finetune; give the folder of one")
    kept = read_known(folder)
    transformer = _origin_of(kept, place)
    if transformer is None:
        transformer = drawn_transformer(read_settings(folder / TRANSFORMER_FILE))
    if kept.elastic is not None:
        elasticize_as(transformer, kept.elastic)
    if kept.lora.rank:
        add_lora(transformer, kept.lora)
    tensors = {name.removeprefix("transformer."): value for name, value in read_tensors(folder / WEIGHTS_FILE).items()}
    check_fit(tensors, learned(transformer), f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}")
    check_finite(tensors, f"{folder / WEIGHTS_FILE} holds no weights")
    transformer.load_state_dict(tensors, strict=False)
    return transformer.eval(), kept


def read_exported(folder: Path) -> tuple[Any, HostCheckpoint]:
    """The transformer of a pipeline that `elit export --pipeline` wrote; errors as of `read_checkpoint`."""
    kept = read_known(folder)
    transformer = read_transformer(Source(folder / "transformer"))
    if kept.elastic is not None:
        load_elastic(transformer, folder / "elastic")
    elif kept.lora.rank:
        load_lora(transformer, folder / "lora" / LORA_FILE)
    return transformer.eval(), kept


def _origin_of(kept: HostCheckpoint, place: str | Path) -> Any:
    """The transformer that a run started from, where it is still there; None where all of its weights are kept anyway."""
    try:
        source = find_host(kept.transformer)
        if source.digest() == kept.weights:
            return read_transformer(source) if source.weights else None
    except UserError:
        if kept.lora.rank:
            raise
    if kept.lora.rank:
        raise UserError(f"{kept.transformer} is not what the LoRAs of {place} were trained on; put that back there")
    return None


def load_host_model(place: str | Path) -> HostModel:
    """That transformer as a model of this library, which `elit.sample` takes with `Prompts` in place of labels."""
    transformer, kept = read_checkpoint(place)
    return HostModel(transformer, (kept.height, kept.width)).eval()
