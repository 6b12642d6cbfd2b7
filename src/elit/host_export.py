"""A run of `elit finetune` as a pipeline of diffusers: a folder that `DiffusionPipeline.from_pretrained` opens.

Of a run that started from a pipeline it opens as that did. Of one that started from a transformer alone, what it has not,
such as a codec, is given as None; the README.md in the folder says how.

FOLDER/transformer/   the dense transformer: as it was, or as the run trained it
FOLDER/elastic/       what made it elastic, and LoRAs, for `elit.load_elastic(pipe.transformer, "FOLDER/elastic")`
FOLDER/lora/          LoRAs of a transformer that stayed dense, for `pipe.transformer.load_lora_adapter`
FOLDER/elit.json      what the run knew of it, with which elit sample and elit serve open the folder
the rest              of the pipeline that the run started from; where that was a transformer alone, a scheduler
"""

import inspect
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from elit.errors import UserError
from elit.files import check_makeable, found, whole_folder, write_whole
from elit.host_folders import save_elastic
from elit.host_models import HostCheckpoint, find_host, read_checkpoint
from elit.lora import ADAPTER, LORA_FILE
from elit.outlines import without_memory
from elit.weights import EXPORTED_FILE, INDEX_FILE

PIPELINES = {
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "FluxTransformer2DModel": "FluxPipeline",
    "QwenImageTransformer2DModel": "QwenImagePipeline",
}

README = """\
---
library_name: diffusers
---
Trained by `elit finetune`.{prompts}

```python
import diffusers
import elit

pipe = diffusers.DiffusionPipeline.from_pretrained("{name}"{missing})
{line}```
"""
BARE = " It has no text encoder: give `prompt_embeds`, as those that it was trained on."


def export_pipeline(place: str | Path, out: Path, dtype: torch.dtype, overwrite: bool = False) -> None:
    """Writes the averaged weights of a run's last checkpoint, or of one, as a pipeline in a folder.

    Raises UserError for what is no run of `elit finetune`, and for a folder that holds something else, or a pipeline
    already and not `overwrite`; WriteError where it cannot be written.
    """
    _check_target(out, overwrite)
    transformer, kept = read_checkpoint(place)
    transformer = transformer.to(dtype)
    with whole_folder(out) as part:
        if kept.elastic is not None:
            save_elastic(transformer, part / "elastic")
        elif kept.lora.rank:
            transformer.save_lora_adapter(part / "lora", adapter_name=ADAPTER, weight_name=LORA_FILE)
        _write_pipeline(dense_of(transformer), kept, part)
        write_whole(part / EXPORTED_FILE, json.dumps(asdict(kept), indent=2) + "\n")
        write_whole(part / "README.md", _readme(kept, type(transformer).__name__, out.name))


def dense_of(transformer: Any) -> Any:
    """The transformer without what was added to it, sharing its weights; to be saved, and not to be run."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in transformer.state_dict().items()
        if ".lora_" not in name and not name.startswith("elit.")
    }
    with without_memory():
        made = type(transformer).from_config(transformer.config)
    made.load_state_dict(state, assign=True)
    return made


def _write_pipeline(transformer: Any, kept: HostCheckpoint, part: Path) -> None:
    """The pipeline's own files, around a transformer."""
    import diffusers

    pipeline = _pipeline_of(kept)
    if pipeline is not None:
        for entry in sorted(pipeline.iterdir()):
            if entry.is_dir() and entry.name not in ("transformer", "elastic", "lora") and entry.name[0] != ".":
                shutil.copytree(entry, part / entry.name)
        shutil.copyfile(pipeline / INDEX_FILE, part / INDEX_FILE)
        transformer.save_pretrained(part / "transformer")
        return
    name = type(transformer).__name__
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=kept.shift)
    kind = getattr(diffusers, PIPELINES[name])
    kind(transformer=transformer, scheduler=scheduler, **dict.fromkeys(others_of(name))).save_pretrained(part)


def others_of(transformer: str) -> list[str]:
    """The components of the pipeline of a class of transformers, beside it and the scheduler, that there have to be."""
    import diffusers

    kind = getattr(diffusers, PIPELINES[transformer])
    names = inspect.signature(kind.__init__).parameters
    return [name for name in names if name not in ("self", "transformer", "scheduler", *kind._optional_components)]


def _pipeline_of(kept: HostCheckpoint) -> Path | None:
    """The folder of the pipeline that a run started from, where it was one and is still there."""
    try:
        return find_host(kept.transformer).pipeline
    except UserError:
        return None


def _readme(kept: HostCheckpoint, transformer: str, name: str) -> str:
    """How the folder is opened."""
    bare = _pipeline_of(kept) is None
    missing = "".join(f", {other}=None" for other in others_of(transformer)) if bare else ""
    line = ""
    if kept.elastic is not None:
        line = f'elit.load_elastic(pipe.transformer, "{name}/elastic")\n'
    elif kept.lora.rank:
        line = f'pipe.transformer.load_lora_adapter("{name}/lora", prefix=None, weight_name="{LORA_FILE}")\n'
    text = README.format(name=name, prompts=BARE if bare else "", missing=missing, line=line)
    return text if kept.elastic is not None else text.replace("import elit\n", "")


def _check_target(out: Path, overwrite: bool) -> None:
    """Raises UserError where writing a pipeline would lose something."""
    place = found(out)
    if place.exists() and not place.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    held = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    if held and INDEX_FILE not in held:
        raise UserError(f"{out} holds other files, such as {held[0]}; give another folder")
    if held and not overwrite:
        raise UserError(f"{out} holds a pipeline already; give another folder, or --overwrite")
    check_makeable(place)
