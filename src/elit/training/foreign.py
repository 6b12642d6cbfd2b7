"""The flat YAML files of the authors' train.py, as keys of `elit train`.

A file is taken for one of theirs when it holds `exp_name`, or a `model` that is a name. Their defaults hold for what it
leaves out. Every key of theirs is translated, or ignored with the reason, or refused with a sentence.
"""

from dataclasses import dataclass, field
from typing import Any

from elit.backbones.table import SIZES
from elit.console import say
from elit.distributed import is_main
from elit.errors import UserError
from elit.words import suggest

PIXELS = 8  # pixels of a side for one latent

# their keys and defaults; a None where they have none or leave it open
DEFAULTS: dict[str, Any] = {
    "output_dir": "exps",
    "exp_name": None,
    "logging_dir": "logs",
    "report_to": "wandb",
    "sampling_steps": 10000,
    "resume_step": 0,
    "model": None,
    "num_classes": 1000,
    "encoder_depth": 8,
    "fused_attn": True,
    "qk_norm": False,
    "data_dir": None,
    "s3_cache_dir": None,
    "resolution": 256,
    "batch_size": 256,
    "allow_tf32": False,
    "mixed_precision": "fp16",
    "epochs": 1400,
    "max_train_steps": 400_000,
    "checkpointing_steps": 10000,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 0.0,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "constant_with_linear_warmup",
    "warmup_steps": 0,
    "seed": 0,
    "num_workers": 4,
    "path_type": "linear",
    "prediction": "v",
    "cfg_prob": 0.1,
    "enc_type": "none",
    "proj_coeff": 0.0,
    "weighting": "uniform",
    "legacy": False,
    "stages_count": 2,
    "stage_weights": [0.9, 0.1],
    "stage_sampling_thresholds": [0.1],
    "num_steps_per_scale": [40, 10],
    "elit_max_mask_prob": 0.0,
    "elit_min_mask_prob": None,
    "elit_group_size": 4,
    "elit_read_depth": 1,
    "elit_write_depth": 1,
}

# theirs -> ours, the value as it is
RENAMED = {
    "sampling_steps": "log.preview_every",
    "model": "preset",
    "num_classes": "model.num_classes",
    "qk_norm": "model.qk_norm",
    "data_dir": "data.source",
    "max_train_steps": "steps",
    "checkpointing_steps": "log.checkpoint_every",
    "learning_rate": "optimizer.lr",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.clip",
    "seed": "seed",
    "path_type": "flow.path",
    "cfg_prob": "flow.label_dropout",
    "num_workers": "data.workers",
}
RENAMED_IF_ELASTIC = {
    "encoder_depth": "model.head_depth",
    "elit_group_size": "model.group_size",
    "elit_read_depth": "model.read_depth",
    "elit_write_depth": "model.write_depth",
}
OF_ELASTIC = (*RENAMED_IF_ELASTIC, "elit_max_mask_prob", "elit_min_mask_prob")
OF_DFM = {
    "stages_count": "model.stages",
    "stage_weights": "flow.stage_weights",
    "stage_sampling_thresholds": "flow.stage_thresholds",
    "num_steps_per_scale": "flow.stage_steps",
}
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
TIME_LAWS = {"uniform": "uniform", "lognormal": "logit-normal"}
ENCODERS = {f"dinov2-vit-{size[0]}": f"facebook/dinov2-{size}" for size in ("small", "base", "large", "giant")}

IGNORED = {
    "logging_dir": "the logs are in the run's own folder",
    "report_to": "scalars go to tensorboard, in the run's own folder",
    "fused_attn": "attention always takes the fastest exact way",
    "s3_cache_dir": "data are read where data.source says",
    "allow_tf32": "float32 products stay in float32; dtype bf16 is quicker still",
    "epochs": "max_train_steps says when training ends",
}
# what has one value here, and why another is refused
ONLY: dict[str, tuple[Any, str]] = {
    "prediction": ("v", "only velocity is predicted here"),
    "adam_epsilon": (1e-8, "AdamW's epsilon is fixed at 1e-8 here"),
    "legacy": (False, "their legacy behaviour is not built"),
}
SCHEDULES = ("constant_with_linear_warmup", "constant")


@dataclass
class Translation:
    """Our keys and values; `understood` and `ignored` say it in lines for people."""

    values: dict[str, Any] = field(default_factory=dict)
    understood: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def say(self, theirs: str, ours: dict[str, Any]) -> None:
        """Notes that what was told by `theirs` is told by our keys."""
        self.values |= ours
        self.understood.append(f"{theirs} -> {', '.join(f'{key} {value}' for key, value in ours.items())}")

    def describe(self) -> str:
        return "\n".join(
            ["a file of the authors' train.py, understood as:", *(f"  {line}" for line in self.understood)]
            + ["ignored:"] * bool(self.ignored)
            + [f"  {line}" for line in self.ignored]
        )


def is_foreign(values: dict[str, Any]) -> bool:
    """Whether the flat values of a file are keys of the authors' train.py."""
    return "exp_name" in values or isinstance(values.get("model"), str)


def read_foreign(values: dict[str, Any], ours: list[str], given: list[str], origin: str) -> dict[str, Any]:
    """The file's values under our keys, said on the console; `ours`: all our keys, `given`: those that options give.

    Raises UserError as `translate` does, and where nothing tells the run's folder or its data.
    """
    translation = translate(values, ours, origin)
    for key, theirs in (("out", "exp_name"), ("data.source", "data_dir"), ("preset", "model")):
        if key not in translation.values and key not in given:
            raise UserError(f"{origin} has no {theirs}; write it there, or give --{key}")
    if is_main():
        say(translation.describe())
    return translation.values


def translate(given: dict[str, Any], ours: list[str], origin: str) -> Translation:
    """The keys of `elit train` for a file of the authors'; `ours` are all keys that `elit train` knows.

    Raises UserError for a file that mixes both kinds of keys, for unknown keys, and for what is not built here.
    """
    for key in given:
        if key not in DEFAULTS and key in ours:
            raise UserError(
                f"{origin} mixes keys of the authors' train.py with {key}, which is of elit train; write all of one kind,"
                f" or give --{key} on the command line"
            )
        if key not in DEFAULTS:
            raise UserError(f"unknown key {key!r} in {origin}, a file of the authors'; {suggest(key, list(DEFAULTS))}")
    theirs = {key: default if given.get(key) is None else given[key] for key, default in DEFAULTS.items()}
    name = str(theirs["model"])
    refuse(theirs, name, origin)
    out = Translation()
    for key, our_key in RENAMED.items():
        if theirs[key] is not None:
            out.say(f"{key} {theirs[key]}", {our_key: theirs[key]})
    if theirs["exp_name"] is not None:
        told = f"output_dir {theirs['output_dir']}, exp_name {theirs['exp_name']}"
        out.say(told, {"out": f"{theirs['output_dir']}/{theirs['exp_name']}"})
    _shapes(theirs, name, out, origin)
    _training(theirs, out, origin)
    _alignment(theirs, name, out, origin)
    _ignored(theirs, given, name, out)
    return out


def refuse(theirs: dict[str, Any], name: str, origin: str) -> None:
    """Raises UserError for what is not built here."""
    for key in OF_DFM:
        if "DFM-" not in name and theirs[key] != DEFAULTS[key]:
            raise UserError(f"{origin}: {key} {theirs[key]} is for decomposable flow matching, not {name}; leave it out")
    for key, (value, why) in ONLY.items():
        if theirs[key] != value and as_number(theirs[key]) != value:
            raise UserError(f"{origin}: {key} is {theirs[key]!r}, but {why}; leave it out")
    if theirs["resume_step"] not in (0, -1):
        raise UserError(
            f"{origin}: resume_step is {theirs['resume_step']!r}, but a run goes on from its last checkpoint here;"
            " leave it out, and remove the run's later checkpoints to go back"
        )


def _shapes(theirs: dict[str, Any], name: str, out: Translation, origin: str) -> None:
    """The input's size, and what elastic models have beside dense ones."""
    resolution = theirs["resolution"]
    if type(resolution) is not int or resolution < 1 or resolution % PIXELS:
        raise UserError(f"{origin}: resolution is {resolution!r}; it is a multiple of {PIXELS} pixels, such as 256")
    out.say(f"resolution {resolution}", {"model.input_size": resolution // PIXELS})
    if "DFM-" in name:
        for key, our_key in OF_DFM.items():
            out.say(f"{key} {theirs[key]}", {our_key: theirs[key]})
    if not name.startswith("ELIT-"):
        return
    for key, our_key in RENAMED_IF_ELASTIC.items():
        out.say(f"{key} {theirs[key]}", {our_key: theirs[key]})
    for key, our_key in (("elit_max_mask_prob", "budget.lowest"), ("elit_min_mask_prob", "budget.highest")):
        value = theirs["elit_max_mask_prob"] if theirs[key] is None else theirs[key]
        chance = as_number(value)
        if chance is None or not 0 <= chance < 1:
            raise UserError(f"{origin}: {key} is {value!r}; it is a chance, at least 0 and below 1")
        out.say(f"{key} {theirs[key]}", {our_key: 1 - chance})
    size = name.removeprefix("ELIT-").removeprefix("DFM-").removeprefix("SiT-").split("/")[0]
    if size in SIZES:
        out.say(f"their code's split of {size}", {"model.tail_depth": SIZES[size][3][2]})
    out.say("their code, in which Write sees the dropped latents", {"model.write_sees_dropped": True})


def _training(theirs: dict[str, Any], out: Translation, origin: str) -> None:
    """Batches, precision, times and the learning rate's schedule."""
    batch, parts = theirs["batch_size"], theirs["gradient_accumulation_steps"]
    if type(batch) is not int or type(parts) is not int:
        raise UserError(f"{origin}: batch_size {batch!r} and gradient_accumulation_steps {parts!r} are whole numbers")
    together = {"batch_size": batch * parts} | ({"accumulate": parts} if parts > 1 else {})
    out.say(f"batch_size {batch}, gradient_accumulation_steps {parts}", together)
    for key, our_key, table in (("mixed_precision", "dtype", PRECISIONS), ("weighting", "flow.time_law", TIME_LAWS)):
        value = str({False: "no"}.get(theirs[key], theirs[key]))  # YAML reads no as false
        if value not in table:
            raise UserError(f"{origin}: {key} is {value!r}; known: {', '.join(table)}")
        out.say(f"{key} {value}", {our_key: table[value]})
    kind, steps = theirs["lr_scheduler_type"], theirs["warmup_steps"]
    if kind not in SCHEDULES:
        raise UserError(f"{origin}: lr_scheduler_type is {kind!r}; known: {', '.join(SCHEDULES)}")
    warmup = steps if kind == SCHEDULES[0] else 0
    out.say(
        f"lr_scheduler_type {kind}, warmup_steps {steps}",
        {"optimizer.schedule": "constant", "optimizer.warmup_steps": warmup},
    )


def _alignment(theirs: dict[str, Any], name: str, out: Translation, origin: str) -> None:
    """REPA, which is on where both an encoder and a coefficient are given."""
    encoder, weight = theirs["enc_type"], theirs["proj_coeff"]
    if encoder in ("none", "None") or weight == 0:
        out.say(f"enc_type {encoder}, proj_coeff {weight}", {"alignment.enabled": False})
        return
    if encoder not in ENCODERS:
        raise UserError(
            f"{origin}: enc_type {encoder!r} is not translated, only {', '.join(ENCODERS)}; leave it out, and give"
            " --alignment.enabled true and --alignment.encoder a folder or hub id"
        )
    told = f"enc_type {encoder}, proj_coeff {weight}, encoder_depth {theirs['encoder_depth']}"
    ours = {"alignment.enabled": True, "alignment.encoder": ENCODERS[encoder]}
    out.say(told, ours | {"alignment.weight": weight, "alignment.depth": theirs["encoder_depth"]})


def _ignored(theirs: dict[str, Any], given: dict[str, Any], name: str, out: Translation) -> None:
    """The keys of the file that have no effect, and why."""
    reasons = dict(IGNORED)
    if "DFM-" not in name:
        reasons |= dict.fromkeys(OF_DFM, "only decomposable flow matching uses it")
    reasons["resume_step"] = "the same command goes on from the run's last checkpoint"
    if not name.startswith("ELIT-"):
        aligned = out.values.get("alignment.enabled")
        reasons |= {key: f"{name} is dense" for key in OF_ELASTIC if not (aligned and key == "encoder_depth")}
    reasons |= {key: f"{why}, as in the file" for key, (_, why) in ONLY.items()}
    out.ignored += [f"{key} {theirs[key]}: {reasons[key]}" for key in given if key in reasons]


def as_number(value: Any) -> float | None:
    """A number as YAML or people write it (YAML reads 1e-8 as a word), or None."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
