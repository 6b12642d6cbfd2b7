"""The authors' checkpoints (SiT, ELIT-SiT and DFM-SiT) as models of this library: names, settings, licence.

A published file is a `torch.save` of {"model": ..., "ema": ..., "args": Namespace, ...}: two state dicts, and the arguments
of the training run. Others keep the arguments in a dict, or have a state dict alone, saved by torch or as safetensors; it
tells neither the split of the blocks nor the path of the flow.
"""

import logging
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elit.autoencoders import STABLE_DIFFUSION_SCALE
from elit.backbones.config import DiTConfig
from elit.backbones.layers import sincos_table
from elit.backbones.table import PATCHES, SIZES, preset_config
from elit.card import Card, SamplingDefaults, save_card
from elit.codec import Latents
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.flow import FlowPath
from elit.hub import from_hub
from elit.pickles import read_pickle
from elit.pyramid import check_thresholds, steps_by_stage
from elit.weights import FLOATS, check_fit, filled, new_model_folder, outline, plain_names, read_tensors, save_weights
from elit.words import suggest

REPOSITORY = "mali6/elit"
FILES = [
    "sit_imagenet_256px_1k_0400000.pt",
    "elit_sit_imagenet_256px_1k_0400000.pt",
    "elit_sit_mb_imagenet_256px_1k_0400000.pt",
    "elit_sit_mb_imagenet_256px_1k_2000000.pt",
    "sit_imagenet_512px_1k_0400000.pt",
    "dfm_sit_imagenet_512px_1k_0400000.pt",
    "elit_sit_imagenet_512px_1k_0400000.pt",
    "elit_sit_mb_imagenet_512px_1k_0400000.pt",
    "elit_sit_mb_imagenet_512px_1k_1000000.pt",
]
LICENCE = (
    "non-commercial: weights published by the authors of ELIT are under their own licence, which allows no commercial use;"
    f" read it at https://huggingface.co/{REPOSITORY} before using or passing them on"
)
SAMPLING = SamplingDefaults(steps=50, guidance_scale=1.0)  # what the published FIDs were measured with

# published module or tensor -> ours, outside the blocks
OUTER = {
    "x_embedder.proj": "patch_embedding",
    "t_embedder.mlp.0": "time_embedding.fc1",
    "t_embedder.mlp.2": "time_embedding.fc2",
    "y_embedder.embedding_table": "label_embedding",
    "final_layer.adaLN_modulation.1": "final.modulation",
    "final_layer.linear": "final.linear",
}
# the same of a DFM, whose every stage has its own
OF_STAGES = {
    "x_embedder.embedders.{}.proj": "patch_embedding.{}",
    "t_embedder.embedders.{}.mlp.0": "time_embedding.{}.fc1",
    "t_embedder.embedders.{}.mlp.2": "time_embedding.{}.fc2",
    "final_layer.projections.{}.adaLN_modulation.1": "final.{}.modulation",
    "final_layer.projections.{}.linear": "final.{}.linear",
}
# within blocks.N
BLOCK = {
    "adaLN_modulation.1": "modulation",
    "attn.qkv": "attention.qkv",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
READ, READ_LAYER = "input_token_editor.adapters.0", "input_token_editor.adapters.0.fit_layer"
WRITE = "output_token_editor.adapters.0"
# ours within the latent core
INTERFACE = {
    f"{READ}.learned_query_embed": "read.queries",
    f"{READ}.pos_embed": "read.token_positions",
    f"{READ}.latent_pos_embed": "read.latent_positions",
    f"{READ_LAYER}.adaLN_modulation.1": "read.layers.0.modulation",
    f"{READ_LAYER}.latents_attend_to_patches.0.q_proj": "read.layers.0.attention.q",
    f"{READ_LAYER}.latents_attend_to_patches.0.kv_proj": "read.layers.0.attention.kv",
    f"{READ_LAYER}.latents_attend_to_patches.0.q_norm": "read.layers.0.attention.q_norm",
    f"{READ_LAYER}.latents_attend_to_patches.0.k_norm": "read.layers.0.attention.k_norm",
    f"{READ_LAYER}.latents_attend_to_patches.0.proj": "read.layers.0.attention.out",
    f"{READ_LAYER}.read_ff.0.fc1": "read.layers.0.mlp.fc1",
    f"{READ_LAYER}.read_ff.0.fc2": "read.layers.0.mlp.fc2",
    f"{WRITE}.pos_embed": "write.token_positions",
    f"{WRITE}.patches_attend_to_latents.0.q_proj": "write.layers.0.attention.q",
    f"{WRITE}.patches_attend_to_latents.0.kv_proj": "write.layers.0.attention.kv",
    f"{WRITE}.patches_attend_to_latents.0.q_norm": "write.layers.0.attention.q_norm",
    f"{WRITE}.patches_attend_to_latents.0.k_norm": "write.layers.0.attention.k_norm",
    f"{WRITE}.patches_attend_to_latents.0.proj": "write.layers.0.attention.out",
    f"{WRITE}.write_ff.0.fc1": "write.layers.0.mlp.fc1",
    f"{WRITE}.write_ff.0.fc2": "write.layers.0.mlp.fc2",
}
PATCH, POSITIONS, LABELS = "x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight"
STAGE_PATCH = "x_embedder.embedders.{}.proj.weight"
QUERIES, TABLE = f"{READ}.learned_query_embed", f"{READ}.latent_pos_embed"
ONLY_WEIGHTS = "only"  # of a file that holds one state dict
PROJECTORS = "projectors."  # of REPA, used in training alone

# our setting -> the key in the file's args that tells it (None: no key does), and its type
SETTINGS: dict[str, tuple[str | None, type]] = {
    "model": ("model", str),
    "resolution": ("resolution", int),
    "num_classes": ("num_classes", int),
    "head_depth": ("encoder_depth", int),
    "tail_depth": (None, int),
    "group_size": ("elit_group_size", int),
    "qk_norm": ("qk_norm", bool),
    "stages": ("stages_count", int),
    "path": ("path_type", str),
}
OF_THE_CORE = ("head_depth", "tail_depth", "group_size")
STAGED_STEPS, STAGED_THRESHOLDS = (40, 10), (0.1,)  # theirs, of two stages
AUTHORS: dict[str, str | int] = {
    "resolution": 256,
    "num_classes": 1000,
    "head_depth": 8,
    "group_size": 4,
    "path": "linear",
}  # their defaults
ONLY = {"prediction": "v", "elit_read_depth": 1, "elit_write_depth": 1}  # what all published models have
PIXELS = 8  # pixels of a side for one latent

State = dict[str, Tensor]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """A value and who told it."""

    value: str | int | bool
    teller: str


@dataclass(frozen=True)
class Published:
    """A checkpoint as a model, with what else was learned of it. dropped: tensors that only training needs."""

    model: ElasticModel
    source: str
    weights: str
    settings: dict[str, Setting]
    dropped: int
    sampling: SamplingDefaults = SAMPLING

    @property
    def path(self) -> FlowPath:
        return FlowPath(str(self.settings["path"].value))

    @property
    def notes(self) -> list[str]:
        """What a user should be told."""
        assumed = [f"{name} {setting.value}" for name, setting in self.settings.items() if setting.teller == "assumed"]
        notes = [f"licence: {LICENCE}"]
        if self.dropped:
            notes.append(f"left out {self.dropped} tensors of REPA projectors, which only training uses")
        if assumed:
            notes.append(f"assumed, as neither the file nor a flag says: {', '.join(assumed)}")
        return notes


def load_published(checkpoint: str | Path, /, weights: str = "ema", **given: str | int | bool | None) -> ElasticModel:
    """The model of one of the authors' checkpoints, in float32 and eval mode; its licence and what was assumed are logged.

    Args:
        checkpoint: a file, or "hf://mali6/elit/FILE" for one on the Hugging Face hub.
        weights: "ema", or "model" for the raw ones; a file with one state dict has those alone.
        given: what the file's own `args` leave out: model, resolution, num_classes, head_depth, tail_depth, group_size,
            qk_norm, stages, path. What nobody says is as in the authors' defaults.

    Raises UserError for a file that is damaged, asks to run code, is of another architecture, or contradicts `given`.
    """
    published = read_published(checkpoint, weights, **given)
    for note in published.notes:
        logger.warning("%s: %s", checkpoint, note)
    return published.model


def import_published(published: Published, out: Path, overwrite: bool = False) -> None:
    """Writes a model folder, which appears whole or not at all: weights, config.json, and card.json with the licence.

    Raises UserError, or WriteError, where it cannot be written without losing something (see `weights.check_target`).
    """
    card = Card(
        published.sampling,
        licence=LICENCE,
        source=f"{published.source} ({published.weights})",
        path=published.path,
        encoding=Latents(STABLE_DIFFUSION_SCALE),
    )
    with new_model_folder(out, overwrite) as part:
        save_weights(published.model, part)
        save_card(card, part)


def read_published(checkpoint: str | Path, /, weights: str = "ema", **given: str | int | bool | None) -> Published:
    """A published checkpoint and all that is known of it; arguments and errors as of `load_published`."""
    for name in given:
        if name not in SETTINGS:
            raise UserError(f"unknown setting {name!r}; {suggest(name, list(SETTINGS))}")
    source = str(checkpoint)
    file = fetch(source) if source.startswith("hf://") else Path(checkpoint)
    if weights not in ("ema", "model"):
        raise UserError(f"weights are 'ema' or 'model', not {weights!r}")
    contents = read_tensors(file) if file.suffix == ".safetensors" else read_pickle(file)
    state, args = split_checkpoint(contents, weights, source)
    weights = ONLY_WEIGHTS if is_flat(contents) else weights
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(PROJECTORS)}
    settings = settle(kept, args, given, source)
    model = outline(config_of(settings, kept, source))
    check_fit(kept, wanted_tensors(model), f"{source} is not a {settings['model'].value} of the authors")
    check_values(kept, model, source)
    sampling = SAMPLING if model.stages == 1 else staged_sampling(args, model.stages, source)
    return Published(filled(model, our_state(kept, model)), source, weights, settings, len(state) - len(kept), sampling)


def staged_sampling(args: dict[str, Any], stages: int, source: str) -> SamplingDefaults:
    """How the file's args sample a model of several stages; where they say nothing, as the authors do, or as we do."""
    told = {}
    for key, ours in (("num_steps_per_scale", STAGED_STEPS), ("stage_sampling_thresholds", STAGED_THRESHOLDS)):
        value = args.get(key, ours if stages == 2 else None)
        if value is not None and not isinstance(value, list | tuple):
            raise UserError(f"{source}: args.{key} is {value!r}, and should be a list")
        told[key] = value
    steps, thresholds = told["num_steps_per_scale"], told["stage_sampling_thresholds"]
    try:
        counts = steps_by_stage(50 if steps is None else steps, stages)
        if thresholds is not None:
            check_thresholds(thresholds, stages)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its args do not fit its {stages} stages: {error}") from error
    return SamplingDefaults(tuple(counts), 1.0, None if thresholds is None else tuple(map(float, thresholds)))


def fetch(source: str) -> Path:
    """The local copy of "hf://OWNER/REPOSITORY/FILE". Raises UserError, with the way by hand, where it cannot be had."""
    owner, _, rest = source.removeprefix("hf://").partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise UserError(f"{source} names no file on the hub; write hf://{REPOSITORY}/{FILES[2]}")
    name = f"{owner}/{repository}"
    near = f"{suggest(file, FILES)}; " if name == REPOSITORY and file not in FILES else ""
    by_hand = f"{near}without a network, download https://huggingface.co/{name}/resolve/main/{file} elsewhere"
    return from_hub(name, [file], f"{by_hand}, and give the file's path instead") / file


def split_checkpoint(checkpoint: Any, weights: str, source: str) -> tuple[State, dict[str, Any]]:
    """The asked state dict and the run's arguments. Raises UserError where the file is not laid out so."""
    if is_flat(checkpoint):
        checkpoint = {weights: checkpoint}
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(weights), dict):
        raise UserError(f"{source} is not a checkpoint of the authors: it holds no state dict {weights!r}")
    state = dict(checkpoint[weights])
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{source} is not a checkpoint of the authors: {name!r} among its {weights!r} is no tensor")
        check_storage(name, tensor, source)
    args = checkpoint.get("args")
    if args is not None and type(args) not in (Namespace, dict):
        raise UserError(f"{source} is not a checkpoint of the authors: its args are a {type(args).__name__}")
    return plain_names(state, source), vars(args) if isinstance(args, Namespace) else args or {}


def is_flat(checkpoint: object) -> bool:
    """Whether a file holds a state dict alone: names and tensors, and nothing else."""
    if not isinstance(checkpoint, dict) or not checkpoint or {"ema", "model"} & checkpoint.keys():
        return False
    return all(isinstance(value, Tensor) for value in checkpoint.values())


def check_storage(name: str, tensor: Tensor, source: str) -> None:
    """Raises UserError for a tensor that is not plain numbers in memory: a shape alone may claim any size."""
    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.dtype in FLOATS
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{source}: {name} is not a plain tensor of floating-point numbers")


def settle(state: State, args: dict[str, Any], given: dict[str, Any], source: str) -> dict[str, Setting]:
    """Each setting from the file's args, the flags and the tensors, which must agree, or else from the authors' defaults."""
    for only, value in ONLY.items():
        if typed(args.get(only), type(value), f"{source}: args.{only}") not in (value, None):
            raise UserError(f"{source}: args.{only} is {args[only]!r}; only models with {value!r} can be imported")
    seen = seen_in(state, source)
    # Their code fixes the tail by the size, and writes it nowhere.
    tail = Setting(seen.pop("tail_depth"), "assumed" if args.get("encoder_depth") is None else "the authors' code")
    elastic, staged = str(seen["model"]).startswith("ELIT-"), str(seen["model"]).startswith("DFM-")
    settings: dict[str, Setting] = {}
    for name, (key, kind) in SETTINGS.items():
        flag = given.get(name)
        if name == "stages" and not staged:
            if flag is not None:
                raise UserError(f"{source} is a {seen['model']}, which has no stages; leave {flag_of(name)} out")
            continue
        if name in OF_THE_CORE and not elastic:
            if flag is not None:
                raise UserError(f"{source} is a dense model, which has no {name}; leave {flag_of(name)} out")
            continue
        tellers = {
            f"args.{key}": typed(args.get(key) if key else None, kind, f"{source}: args.{key}"),
            flag_of(name): typed(flag, kind, flag_of(name)),
            "tensors": seen.get(name),
        }
        default = tail if name == "tail_depth" else Setting(AUTHORS.get(name, ""), "assumed")
        settings[name] = agreed(name, tellers, source) or default
    return settings


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def typed(value: Any, kind: type, where: str) -> Any:
    """The value, or None where nothing is said. Raises UserError for one of another type."""
    if value is not None and type(value) is not kind:
        raise UserError(f"{where} is of the type {type(value).__name__}, and not {kind.__name__}")
    return value


def agreed(name: str, tellers: dict[str, Any], source: str) -> Setting | None:
    """What the tellers say, by the first who speaks; None where none does. Raises UserError where two differ."""
    said = [Setting(value, teller) for teller, value in tellers.items() if value is not None]
    for other in said[1:]:
        if other.value != said[0].value:
            raise UserError(
                f"{source}: {name} is {said[0].value} by {said[0].teller}, but {other.value} by {other.teller};"
                " they must agree"
            )
    return said[0] if said else None


def seen_in(state: State, source: str) -> dict[str, str | int | bool]:
    """The settings that names and shapes of tensors tell. Raises UserError for those of another architecture."""
    patches = patch_names(state)
    for name, ndim in {**dict.fromkeys(patches, 4), POSITIONS: 3, LABELS: 2, QUERIES: 2, TABLE: 2}.items():
        if name in state and state[name].ndim != ndim:
            raise UserError(f"{source}: {name} is {tuple(state[name].shape)}, and should have {ndim} dimensions")
    numbers = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    depth = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    width, _, patch, _ = state[patches[-1]].shape if patches[-1] in state else (0, 0, 0, 0)
    size = next((size for size, shape in SIZES.items() if shape[:2] == (depth, width)), None)
    if size is None or patch not in PATCHES.values():
        raise UserError(
            f"{source} is of another architecture than the authors' SiT, ELIT-SiT and DFM-SiT:"
            f" {depth} blocks of width {width}, patches of {patch}"
        )
    elastic, staged = any(name.startswith((READ, WRITE)) for name in state), patches != [PATCH]
    if elastic and staged:
        raise UserError(f"{source} has both stages and a latent core, which no model of the authors has")
    seen: dict[str, str | int | bool] = {
        "model": f"{'ELIT-' if elastic else 'DFM-' if staged else ''}SiT-{size}/{patch}",
        "qk_norm": any(".attn.q_norm." in name for name in state),
        "tail_depth": SIZES[size][3][2],
    }
    if staged:
        seen["stages"] = len(patches)
    if POSITIONS in state:
        seen["resolution"] = math.isqrt(state[POSITIONS].shape[1]) * patch * PIXELS
    if LABELS in state:
        seen["num_classes"] = len(state[LABELS]) - 1
    if QUERIES in state:
        seen["group_size"] = math.isqrt(len(state[QUERIES]))
    return seen


def patch_names(state: State) -> list[str]:
    """The patch convolutions, of a DFM one for each stage, the coarsest first."""
    staged = [name for i in range(len(state)) if (name := STAGE_PATCH.format(i)) in state]
    return staged or [PATCH]


def config_of(settings: dict[str, Setting], state: State, source: str) -> DiTConfig:
    """Our configuration of the model that the settings describe."""
    values = {name: setting.value for name, setting in settings.items() if name not in ("model", "resolution", "path")}
    values |= {
        "input_size": int(settings["resolution"].value) // PIXELS,
        "in_channels": state[patch_names(state)[-1]].shape[1],
    }
    if "group_size" in values:
        values |= {"write_sees_dropped": True, "latent_table": len(state[TABLE]) if TABLE in state else 4096}
    path = settings["path"].value
    if path not in list(FlowPath):
        raise UserError(f"{source}: path {path!r} is unknown; known: {', '.join(FlowPath)}")
    try:
        return preset_config(str(settings["model"].value), **values)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def published_names(model: ElasticModel) -> dict[str, str]:
    """Our name of every learned tensor of a model -> the published one."""
    modules = {ours: theirs for theirs, ours in (OUTER | INTERFACE).items()}
    modules |= {ours.format(i): theirs.format(i) for i in range(model.stages) for theirs, ours in OF_STAGES.items()}
    for i in range(len(model.host_blocks())):
        modules |= {f"host.{i}.{ours}": f"blocks.{i}.{theirs}" for theirs, ours in BLOCK.items()}
    names = {}
    for canonical, own in model.canonical_names().items():
        module, _, leaf = canonical.rpartition(".")
        names[own] = modules[canonical] if canonical in modules else f"{modules[module]}.{leaf}"
    return names


def wanted_tensors(model: ElasticModel) -> State:
    """The published state dict's names and shapes, as tensors without memory."""
    config, ours = model.config, model.state_dict()
    shapes = {theirs: tuple(ours[name].shape) for name, theirs in published_names(model).items()}
    for name, linear in patch_linears(model).items():
        side = math.isqrt(ours[linear].shape[1] // config.in_channels)
        shapes[name] = (config.width, config.in_channels, side, side)
    shapes[POSITIONS] = (1, config.grid.size, config.width)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def patch_linears(model: ElasticModel) -> dict[str, str]:
    """The published name of every patch convolution -> that of our linear."""
    if model.stages == 1:
        return {PATCH: "patch_embedding.weight"}
    return {STAGE_PATCH.format(i): f"patch_embedding.{i}.weight" for i in range(model.stages)}


def check_values(state: State, model: ElasticModel, source: str) -> None:
    """Raises UserError for weights that are not finite, and for other fixed positions than our models compute."""
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{source}: {name} holds NaN or infinite values; its training diverged or the file is damaged")
    table = sincos_table(model.config.grid, model.config.width)
    # Averaging a constant in float32 for 400,000 steps moves it by up to 6e-4, and half precision rounds it; another table
    # is off by 1.
    near = 1e-3 + torch.finfo(state[POSITIONS].dtype).eps / 2
    if float((state[POSITIONS][0].float() - table).abs().max()) > near:
        raise UserError(f"{source}: {POSITIONS} is not the fixed sin-cos table of {model.config.grid} tokens")


def our_state(published: State, model: ElasticModel) -> State:
    """A published state dict under our names, the patch convolution as a linear over (row, column, channel)."""
    state = {ours: published[theirs] for ours, theirs in published_names(model).items()}
    return state | {linear: published[name].permute(0, 2, 3, 1).flatten(1) for name, linear in patch_linears(model).items()}
