"""The configuration of a training run: what there is to set, with ranges and defaults. `reading` makes one of files.

Of every class, the docstring explains each field as `name: text`; `elit train --help` prints that.
"""

import dataclasses
import json
from dataclasses import field
from typing import Annotated, Literal, Protocol

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from elit.backbones.config import DFMConfig, DiTConfig
from elit.elastic.levels import Levels
from elit.errors import UserError
from elit.records import Count, Fraction, NotNegative, Positive, Share, Shift, Whole, record

Text = Annotated[str, MinLen(1), MaxLen(4096)]  # a name or a path
Batch = Annotated[int, Ge(1), Le(2**20)]
Decay = Annotated[float, Ge(0), Lt(1)]
OfStages = Annotated[tuple[Share, ...], MaxLen(8)]
Budgets = Annotated[tuple[Fraction, ...], MinLen(1), MaxLen(64)]


@record
class DataConfig:
    """What a run trains on.

    source: "emoji", the embedded images, or of them "emoji-train" or "emoji-test", which have none in common; a folder that
    `elit prepare` wrote, streamed if it is a URL; a folder in the published layout; a folder with one folder of pictures
    per class; or "moving-emoji", the embedded clips, of some kinds of emoji as in "moving-emoji/heart,time".
    size: pixels of a side, of emoji and of pictures in class folders; prepared data have their own size.
    workers: 1 reads batches ahead in a thread, more in as many processes, 0 reads none ahead.
    codec: what decodes latents for previews and distances: the folder or hub id of an autoencoder, or ema or mse.
    """

    source: Text = "emoji"
    size: Annotated[int, Ge(1), Le(2**14)] = 32
    workers: Annotated[int, Ge(0), Le(256)] = 1
    codec: Text | None = None


@record
class BudgetConfig:
    """Which budget a step trains: a level drawn once per step, one per sample by a schedule, or a mixture in every batch.

    lowest: lower end of the draw, a share of the latents; all levels from here to `highest` are equally likely.
    highest: upper end of the draw.
    schedule: instead of the draw, a budget for every sample by its time, such as "1/2@t>0.5,1": half of the latents where
    the noise is stronger, all otherwise.
    mixed: instead of the draw, the share of every batch that runs below `highest`, at two levels drawn once per step, one
    of the lower and one of the upper half of those from `lowest` on; all else runs at `highest`.
    dropping: which latents a drawn level leaves out: tail, the last ones; or random, any, drawn once per step, which is
    there to be compared with.
    """

    lowest: Share = 0.0625
    highest: Share = 1.0
    schedule: Text | None = None
    mixed: Share = 0.0
    dropping: Literal["tail", "random"] = "tail"

    def __post_init__(self) -> None:
        if self.dropping == "random" and (self.mixed or self.schedule is not None):
            raise UserError("budget.dropping random is for a level drawn once per step; leave budget.mixed and schedule out")
        if self.mixed and self.schedule is not None:
            raise UserError(f"budget.mixed {self.mixed} and budget.schedule {self.schedule} are two ways; leave one out")


@record
class AlignmentConfig:
    """Representation alignment (REPA, Yu et al., 2025): a block's tokens learn to point where a vision encoder's do.

    enabled: whether to align.
    encoder: folder or hub id of a vision backbone that transformers' AutoModel loads.
    depth: the block whose tokens are aligned, counted from 1; null is 8, or the head's depth where that is less.
    weight: of minus the mean cosine in the loss.
    width: of the projector's hidden layers.
    """

    enabled: bool = False
    encoder: Text = "facebook/dinov2-base"
    depth: Annotated[int, Ge(1), Le(1024)] | None = None
    weight: NotNegative = 0.5
    width: Annotated[int, Ge(1), Le(2**16)] = 2048


@record
class FinetuneConfig:
    """Fine-tuning of the model in `init_from`.

    distill: weight, in the loss, of the mean squared difference between the model's velocity and that of the frozen
    original at its full budget.
    interface_first: steps at the start in which Read and Write alone learn.
    """

    distill: NotNegative = 0.0
    interface_first: Whole = 0


@record
class FlowConfig:
    """The flow that is learned.

    path: from data to noise, linear or cosine.
    time_law: the law of training times, uniform or logit-normal.
    label_dropout: chance of a sample to be trained without its label, which guidance needs.
    stage_weights: of a model of stages, the chance of a step to train the coarsest alone, the first two, and so on; null is
    0.1 for all together and the rest for the others.
    stage_thresholds: the time at which each of its stages but the last makes room for the next in sampling, falling; null
    is 0.1 before the last and 0.1 more before each earlier one.
    stage_steps: the sampler's steps in each of its stages; null is those of the card, a fifth for each stage but the first.
    shift: moves every time t to shift t / (1 + (shift - 1) t), towards the noise where it is above 1.
    """

    path: Literal["linear", "cosine"] = "linear"
    time_law: Literal["uniform", "logit-normal"] = "logit-normal"
    label_dropout: Share = 0.1
    stage_weights: OfStages | None = None
    stage_thresholds: OfStages | None = None
    stage_steps: Annotated[tuple[Count, ...], MaxLen(8)] | None = None
    shift: Shift = 1.0


@record
class OptimizerConfig:
    """How the weights follow their gradients.

    name: adamw; or muon, which is Muon (Jordan et al., 2024) for the linears inside the blocks and AdamW for all else.
    lr: AdamW's peak learning rate.
    muon_lr: Muon's peak learning rate.
    muon_momentum: Muon's momentum.
    beta1: AdamW's decay of the mean gradient.
    beta2: AdamW's decay of the mean squared gradient.
    weight_decay: decoupled weight decay, of both.
    clip: largest norm of the whole gradient.
    warmup_steps: steps in which the learning rate rises to its peak, linearly.
    schedule: of the learning rate after the warm-up: constant; cosine, half a period down to zero at the last step; or
    trapezoid, constant and then linear to zero over the last `decay_steps`.
    decay_steps: steps of the trapezoid's end.
    ema_decay: decay of the averaged weights, which are those that are kept for sampling.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-4
    muon_lr: Positive = 0.02
    muon_momentum: Decay = 0.95
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0
    clip: Positive = 1.0
    warmup_steps: Whole = 0
    schedule: Literal["constant", "cosine", "trapezoid"] = "constant"
    decay_steps: Whole = 0
    ema_decay: Share = 0.9999


@record
class LogConfig:
    """What a run leaves behind on its way.

    every: steps between lines of the log (0: none).
    checkpoint_every: steps between checkpoints (0: only at the end).
    keep: how many checkpoints stay.
    preview_every: steps between sheets of samples (0: none).
    preview_budgets: the budgets of a sheet's rows, as shares of the latents.
    """

    every: Whole = 50
    checkpoint_every: Whole = 1000
    keep: Count = 2
    preview_every: Whole = 1000
    preview_budgets: Budgets = (0.0625, 0.25, 1.0)


@record
class ParallelConfig:
    """How the processes of a torchrun share the work.

    replicate: how many times the sharded weights are repeated.
    shard: processes that the weights are cut over; null is all that `replicate` leaves.
    timeout: seconds after which a process that does not answer counts as lost.
    """

    replicate: Annotated[int, Ge(1), Le(2**20)] = 1
    shard: Annotated[int, Ge(1), Le(2**20)] | None = None
    timeout: Annotated[float, Gt(0), Le(1e7)] = 600.0


@record
class EvaluateConfig:
    """Fréchet distances of the averaged weights' samples during the run.

    every: steps between them (0: none).
    count: samples; with a few hundred the figures are biased and say how a run goes, not how good it is.
    budgets: the budgets measured, as shares of the latents.
    reference: "data", the run's own; or as `elit evaluate --reference` has it.
    features: as `elit evaluate --features` has them.
    """

    every: Whole = 0
    count: Annotated[int, Ge(2), Le(2**24)] = 256
    budgets: Budgets = (0.0625, 1.0)
    reference: Text = "data"
    features: Text = "efficientnet-lite0"


@record
class RunConfig:
    """What every training run has.

    out: the run's folder.
    seed: of weights, batches, noise, times and budgets.
    steps: steps to train in all; a run that has made them may be given more.
    batch_size: samples of one step, over all processes.
    accumulate: parts that each process computes its share in, one after another, to save memory; the gradient is that of
    the whole.
    skip_limit: steps in a row that may be skipped, their loss or gradient not being finite, before the run stops.
    device: cpu, cuda, or auto, which is a GPU where there is one.
    dtype: of the matrix products, fp16 with a scaled loss; weights, optimiser and averaged weights stay in float32.
    compile: whether torch.compile compiles the blocks.
    checkpointing: whether activations are computed twice, to save memory.
    """

    out: Text = "runs/default"
    seed: Annotated[int, Ge(-(2**63)), Le(2**63 - 1)] = 0
    steps: Count = 100_000
    batch_size: Batch = 64
    accumulate: Batch = 1
    skip_limit: Count = 10
    device: Text = "auto"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    checkpointing: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def starts_from(self) -> str | None:
        """The folder or hub id whose weights the run starts from, if any."""
        return None

    def to_dict(self) -> dict[str, object]:
        """Plain values, as JSON keeps them."""
        plain: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


@record
class TrainConfig(RunConfig):
    """One training run of a model of this library.

    preset: a name that `elit info` knows, such as ELIT-SiT-B/2, whose values the keys of `model` override.
    architecture: of the model, where no preset says it: DiT, of which SiT is one; DFM, which has a key model.stages; UViT;
    HDiT, which has a key model.fold; VideoDiT, which has model.frames and model.group_frames; or Padded, which has
    model.padding.
    init_from: a model folder that the weights start from; an elastic model may start from a dense one.
    """

    preset: Text | None = None
    architecture: Text = "DiT"
    init_from: Text | None = None
    model: DiTConfig = field(default_factory=DiTConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.model.window is not None:
            self.model.levels.draw(0, 0, self.budget.lowest, self.budget.highest)
        check_mixed(self.budget, self.model)
        if self.budget.dropping == "random" and (self.model.window is None or self.model.levels.step > 1):
            raise UserError("budget.dropping random needs an elastic model whose levels go one by one; set it to tail")
        if self.budget.schedule is not None:
            from elit.target import parse_budget  # imports torch

            parse_budget(self.budget.schedule)
        check_stages(self.flow, self.model)
        check_finetune(self.finetune, self.model, self.init_from)
        if self.alignment.enabled:
            alignment_depth(self.alignment, self.model)

    @property
    def starts_from(self) -> str | None:
        return self.init_from


def check_stages(flow: FlowConfig, model: DiTConfig) -> None:
    """Raises UserError for settings of stages that do not fit the model's, or that it has none for."""
    stages = model.stages if isinstance(model, DFMConfig) else 1
    given = {"stage_weights": flow.stage_weights, "stage_thresholds": flow.stage_thresholds, "stage_steps": flow.stage_steps}
    told = {name: value for name, value in given.items() if value is not None}
    if stages == 1:
        if told:
            raise UserError(f"flow.{next(iter(told))} is for a model of several stages, such as --architecture DFM makes")
        return
    if flow.shift != 1:
        raise UserError(f"flow.shift {flow.shift:g} is for a model of one stage, and this has {stages}; leave it out")
    from elit.pyramid import check_thresholds, check_weights, steps_by_stage  # imports torch

    try:
        if flow.stage_weights is not None:
            check_weights(flow.stage_weights, stages)
        if flow.stage_thresholds is not None:
            check_thresholds(flow.stage_thresholds, stages)
        if flow.stage_steps is not None:
            steps_by_stage(flow.stage_steps, stages)
    except UserError as error:
        raise UserError(f"flow: {error}") from error


class Trained(Protocol):
    """What training asks of a model before there is one: DiTConfig tells it, and hosts too.

    window: None of a dense model. label_sizes: the values of each factor of a label.
    """

    @property
    def window(self) -> object | None: ...
    @property
    def levels(self) -> Levels: ...
    @property
    def label_sizes(self) -> tuple[int, ...]: ...


def check_mixed(budget: BudgetConfig, model: Trained) -> None:
    """Raises UserError for mixed budgets of a model that has one."""
    if budget.mixed and model.levels.of(budget.lowest or 1.0) >= model.levels.of(budget.highest or 1.0):
        what = "a dense model has one budget" if model.window is None else "lowest and highest are one level"
        raise UserError(f"budget.mixed {budget.mixed} has nothing to mix, for {what}; set it to 0")


def check_finetune(finetune: FinetuneConfig, model: DiTConfig, init_from: str | None) -> None:
    """Raises UserError for settings of fine-tuning that have nothing to work on."""
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
    return depth
