"""The configuration of a training run: nested dataclasses, read from a YAML file and the command line."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from elit.backbones.config import DiTConfig
from elit.backbones.table import preset_config
from elit.errors import UserError
from elit.target import parse_budget
from elit.training.foreign import DEFAULTS, is_foreign, read_foreign
from elit.words import suggest


@dataclass(frozen=True)
class DataConfig:
    """source: "emoji", the embedded images; a folder that `elit prepare` wrote, streamed if it is a URL; the published
    layout; or a folder of class folders. size: pixels of a side, for the first and the last. workers: 1 reads batches ahead
    in a thread, more in as many processes, 0 not at all. codec: of latents, for previews and distances: an AutoencoderKL by
    folder or hub id, or ema or mse.
    """

    source: str = "emoji"
    size: int = 32
    workers: int = 1
    codec: str | None = None


@dataclass(frozen=True)
class BudgetConfig:
    """The training draw: a level uniform between those of `lowest` and `highest`, once per step.

    schedule: instead of the draw, a budget for every sample by its time, such as "1/2@t>0.5,1": half of the latents in
    the noisier half of the times, all otherwise.
    """

    lowest: float = 0.0625
    highest: float = 1.0
    schedule: str | None = None


@dataclass(frozen=True)
class AlignmentConfig:
    """Representation alignment (REPA, Yu et al., 2025) of the tokens after block `depth` with a vision encoder's.

    enabled: whether to align. encoder: a folder or hub id of a backbone that transformers' AutoModel loads. depth: counted
    from 1; 8, or the head's depth where that is less, if none is given. weight: of minus the mean cosine in the loss.
    width: of the projector's hidden layers.
    """

    enabled: bool = False
    encoder: str = "facebook/dinov2-base"
    depth: int | None = None
    weight: float = 0.5
    width: int = 2048


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the model in `init_from`.

    distill: weight of the mean squared difference between the model's velocity and that of the frozen original at its
    full budget. interface_first: steps at the start in which Read and Write alone learn.
    """

    distill: float = 0.0
    interface_first: int = 0


@dataclass(frozen=True)
class FlowConfig:
    """path: linear or cosine. time_law: uniform or logit-normal. label_dropout: chance of the null class."""

    path: Literal["linear", "cosine"] = "linear"
    time_law: Literal["uniform", "logit-normal"] = "logit-normal"
    label_dropout: float = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """name: adamw; or muon, Muon (Jordan et al., 2024) for the linears inside the blocks and AdamW for all else.

    lr: AdamW's peak, after a linear warm-up of `warmup_steps`; muon_lr: Muon's. beta1, beta2: AdamW's; muon_momentum:
    Muon's. weight_decay: of both. clip: norm of the whole gradient, at most. ema_decay: of the averaged weights.
    schedule: constant; cosine, half a period down to zero at the last step; or trapezoid, constant and then linear to
    zero over the last `decay_steps`.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "trapezoid"] = "constant"
    decay_steps: int = 0
    ema_decay: float = 0.9999


@dataclass(frozen=True)
class LogConfig:
    """Steps between scalars, checkpoints and previews (0: none); keep: how many checkpoints stay."""

    every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    preview_every: int = 1000
    preview_budgets: tuple[float, ...] = (0.0625, 0.25, 1.0)


@dataclass(frozen=True)
class ParallelConfig:
    """How processes share the work: weights are cut over `shard` ranks (null: all that are left), `replicate` times.

    timeout: seconds after which a process that does not answer counts as lost.
    """

    replicate: int = 1
    shard: int | None = None
    timeout: float = 600.0


@dataclass(frozen=True)
class EvaluateConfig:
    """every: steps between Fréchet distances of the averaged weights' samples (0: none), at each of `budgets`.

    count: samples; with a few hundred the figures are biased and say how a run goes, not how good it is. reference: "data",
    the run's own; or as `elit evaluate --reference` has it. features: as `elit evaluate --features`.
    """

    every: int = 0
    count: int = 256
    budgets: tuple[float, ...] = (0.0625, 1.0)
    reference: str = "data"
    features: str = "efficientnet-lite0"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. out: its folder. seed: of weights, batches, noise, times and budgets.

    batch_size: samples of one step, over all processes. accumulate: parts that each process computes its share in, one
    after another, to save memory; the gradient is that of the whole. skip_limit: steps in a row that are skipped, their
    loss or gradient not being finite, before the run stops. preset: a name of `create_model` whose values `model`
    overrides. init_from: a model folder that the weights start from; an elastic model may start from a dense one. dtype:
    of the matrix products, fp16 with a scaled loss; weights, optimiser and EMA stay in float32. compile: torch.compile
    every block. checkpointing: recompute activations to save memory.
    """

    out: str = "runs/default"
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 64
    accumulate: int = 1
    skip_limit: int = 10
    device: str = "auto"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    checkpointing: bool = False
    preset: str | None = None
    init_from: str | None = None
    model: DiTConfig = field(default_factory=DiTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "skip_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.data.workers < 0:
            raise UserError(f"data.workers is {self.data.workers}; give 0, 1 (a thread) or more (processes)")
        if not self.parallel.timeout > 0:
            raise UserError(f"parallel.timeout is {self.parallel.timeout} seconds; it must be above 0")
        if not 0 <= self.flow.label_dropout <= 1:
            raise UserError(f"flow.label_dropout is {self.flow.label_dropout}; it is a chance, 0 to 1")
        if self.evaluate.every and (self.evaluate.count < 2 or self.evaluate.every < 0):
            raise UserError(f"evaluate.count is {self.evaluate.count}; a Fréchet distance needs at least 2 samples")
        for name in ("lr", "muon_lr", "clip"):
            if not getattr(self.optimizer, name) > 0:
                raise UserError(f"optimizer.{name} is {getattr(self.optimizer, name)}; it must be above 0")
        if self.model.window is not None:
            self.model.levels.draw(0, 0, self.budget.lowest, self.budget.highest)
        if self.budget.schedule is not None:
            parse_budget(self.budget.schedule)
        check_finetune(self.finetune, self.model, self.init_from)
        if self.alignment.enabled:
            alignment_depth(self.alignment, self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON keeps them."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def check_finetune(finetune: FinetuneConfig, model: DiTConfig, init_from: str | None) -> None:
    """Raises UserError for settings of fine-tuning that have nothing to work on."""
    if not finetune.distill >= 0 or finetune.interface_first < 0:
        raise UserError(
            f"finetune.distill {finetune.distill} and .interface_first {finetune.interface_first} are at least 0"
        )
    if init_from is None and (finetune.distill or finetune.interface_first):
        raise UserError("finetune needs a model to start from; give its folder with --init-from")
    if finetune.interface_first and model.window is None:
        raise UserError("finetune.interface_first needs an elastic model, for a dense one has no interface; set it to 0")


def alignment_depth(alignment: AlignmentConfig, model: DiTConfig) -> int:
    """The block, counted from 1, whose tokens are aligned. Raises UserError where the model has no such tokens."""
    deepest = model.depth if model.window is None else model.head_depth
    depth = min(8, deepest) if alignment.depth is None else alignment.depth
    if not 1 <= depth <= deepest:
        what = "its blocks" if model.window is None else "its head, since the core holds latents"
        raise UserError(f"alignment.depth is {depth}; it is 1 to {deepest} in this model, the depth of {what}")
    for name, least in (("weight", 0), ("width", 1)):
        if not getattr(alignment, name) >= least:
            raise UserError(f"alignment.{name} is {getattr(alignment, name)}; it is at least {least}")
    return depth


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def load_config(file: str | Path | None, overrides: list[str]) -> TrainConfig:
    """A run's configuration: defaults, then the preset, then the YAML file, then `--any.key value` overrides.

    The file, and then options too, may have the authors' keys (see `foreign`); what became of them is told on the console.
    Raises UserError for a file that cannot be read, an unknown key (naming the nearest known one) or a mistyped value.
    """
    known = flat(TrainConfig().to_dict())
    values, given = flat(read_yaml(Path(file)) if file is not None else {}), parse_overrides(overrides)
    if is_foreign(values):
        theirs = {key: given.pop(key) for key in list(given) if key in DEFAULTS}
        values = read_foreign(values | theirs, list(known), list(given), str(file))
    values |= given
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key {key!r}{f' in {file}' if file else ''}; {suggest(key, list(known))}")
        if value is None and known[key] is not None:
            raise UserError(f"{key} has no value; leave it out for the default, {known[key]}")
    if values.get("preset") is not None:
        base = dataclasses.asdict(preset_config(str(values["preset"])))
        values = {f"model.{key}": value for key, value in base.items()} | values
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
    try:
        parsed = parser.parse_object(nested(values))
        config = parser.instantiate(parsed)
    except (ArgumentError, TypeError) as error:
        raise UserError(one_line(str(error))) from error
    return TrainConfig(**vars(config))


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = out
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return out


def read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"there is no config file {file}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {one_line(str(error))}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no settings; write lines such as steps: 1000")
    return values


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """["--a.b", "1", "--c=2"] to {"a.b": 1, "c": 2}; values are read as YAML."""
    out: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} is not an option; overrides look like --optimizer.lr 1e-3")
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise UserError(f"--{key} has no value; overrides look like --optimizer.lr 1e-3")
            value = rest.pop(0)
        try:
            out[key.replace("-", "_")] = yaml_value(value)
        except yaml.YAMLError as error:
            raise UserError(f"the value {value!r} of --{key} is not YAML; quote it") from error
    return out


def yaml_value(text: str) -> Any:
    """A value as YAML reads it, but 1e-3 is a number as everybody else reads it."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def one_line(text: str) -> str:
    return " ".join(text.split())
