"""The configuration of `elit finetune`: a transformer of diffusers, trained on pictures with prompts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from elit.elastic.grid import Window
from elit.elastic.levels import Levels
from elit.errors import UserError
from elit.lora import Lora
from elit.records import NotNegative, Positive, Share, Shift, Whole, read_json, record
from elit.training.config import RunConfig, Text, check_mixed
from elit.training.reading import keys_of, merged, parse_options, read_values

DISTILL = 20.0  # the paper's weight of distillation, where a conversion has an original to learn from
Side = Annotated[int, Ge(1), Le(2**12)]
Layers = Annotated[int, Ge(1), Le(64)]
Fit = Annotated[float, Ge(0), Lt(1)]


@record
class HostStart:
    """What is trained.

    transformer: a folder or hub id of a transformer of diffusers, or of a pipeline, whose transformer is taken.
    fresh: whether its weights are drawn from the seed, so that its config.json is all that is read.
    """

    transformer: Text = ""
    fresh: bool = False


@record
class ElasticStart:
    """How the transformer is made elastic, as elit.elasticize has it; without head and tail, or start, it stays dense.

    head: blocks before the core.
    tail: blocks after the core.
    window: the side of a square of tokens that is read together, or [rows, columns].
    anchor: what latents start from: sharp, cells, pyramid, or none, the paper's.
    read_depth: layers of Read.
    write_depth: layers of Write.
    mlp_ratio: hidden width of their MLPs, in widths of the transformer.
    start: instead of all that, a folder that elit.save_elastic wrote, to go on with its interface.
    """

    head: Whole | None = None
    tail: Whole | None = None
    window: Side | tuple[Side, Side] = 8
    anchor: Literal["none", "sharp", "pyramid", "cells"] = "sharp"
    read_depth: Layers = 1
    write_depth: Layers = 1
    mlp_ratio: Positive = 1.0
    start: Text | None = None

    @property
    def asked(self) -> bool:
        """Whether the transformer is made elastic."""
        return self.start is not None or self.head is not None

    def levels(self) -> Levels:
        """The levels that it will have: one where it stays dense."""
        if self.start is not None:
            from elit.host_folders import CONFIG_FILE, Kept

            if not (Path(self.start) / CONFIG_FILE).is_file():
                raise UserError(f"{self.start} holds no {CONFIG_FILE}; give a folder that elit.save_elastic wrote")
            frames, rows, columns = read_json(Path(self.start) / CONFIG_FILE, Kept).config.window
            return Levels(frames * rows * columns)
        if self.head is None:
            return Levels(1)
        rows, columns = (self.window, self.window) if isinstance(self.window, int) else self.window
        return Levels(Window(rows, columns).size)


@record
class PromptConfig:
    """What the transformer is told of the pictures.

    source: a folder that `elit prepare prompts` wrote, with a prompt for each picture or for each label; or emoji, the
    names of the embedded pictures.
    dropout: chance of a picture to be trained without its prompt, which guidance needs.
    held_out: share of the pictures, spread evenly over them, that is not trained on.
    """

    source: Text = "emoji"
    dropout: Share = 0.1
    held_out: Fit = 0.0


@record
class HostFlow:
    """The flow that is learned, from pictures to noise along straight lines.

    time_law: the law of training times, uniform or logit-normal.
    shift: moves every time t to shift t / (1 + (shift - 1) t), towards the noise where it is above 1.
    """

    time_law: Literal["uniform", "logit-normal"] = "logit-normal"
    shift: Shift = 1.0


@record
class HostFinetune:
    """How a conversion learns.

    distill: weight, in the loss, of the mean squared difference between the velocity and that of the frozen original; null
    is 20 where weights that were read are made elastic, and 0 elsewhere.
    interface_first: steps at the start in which Read and Write alone learn.
    """

    distill: NotNegative | None = None
    interface_first: Whole = 0


@record
class HostTrainConfig(RunConfig):
    """A run of `elit finetune`."""

    host: HostStart = field(default_factory=HostStart)
    elastic: ElasticStart = field(default_factory=ElasticStart)
    lora: Lora = field(default_factory=Lora)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    flow: HostFlow = field(default_factory=HostFlow)
    finetune: HostFinetune = field(default_factory=HostFinetune)

    def __post_init__(self) -> None:
        self._check_start()
        shape = self.shape(1)
        if shape.window is not None:
            shape.levels.draw(0, 0, self.budget.lowest, self.budget.highest)
        check_mixed(self.budget, shape)
        if self.budget.dropping == "random":
            raise UserError("budget.dropping random is for this library's own models; set it to tail for a host")
        if self.budget.schedule is not None:
            from elit.target import parse_budget

            parse_budget(self.budget.schedule)
        if self.finetune.interface_first and not self.elastic.asked:
            raise UserError("finetune.interface_first needs an elastic transformer; give elastic.head and elastic.tail")
        if self.finetune.distill and (self.host.fresh or not (self.elastic.asked or self.lora.rank)):
            raise UserError("finetune.distill needs an original to learn from, and a conversion or LoRAs; set it to 0")

    def _check_start(self) -> None:
        if not self.host.transformer:
            raise UserError("no transformer was given; give its folder with --host.transformer")
        if (self.elastic.head is None) != (self.elastic.tail is None):
            raise UserError("elastic.head and elastic.tail go together; give both, or neither")
        if self.elastic.start is not None and self.elastic.head is not None:
            raise UserError("elastic.start has a head and a tail of its own; leave elastic.head and elastic.tail out")
        if self.host.fresh and (self.lora.rank or self.elastic.start):
            what = "lora.rank" if self.lora.rank else "elastic.start"
            raise UserError(f"{what} is for weights that are there, and host.fresh draws them; leave one of them out")

    @property
    def starts_from(self) -> str | None:
        return self.host.transformer

    @property
    def distill(self) -> float:
        """The weight of distillation."""
        if self.finetune.distill is not None:
            return self.finetune.distill
        return DISTILL if self.elastic.asked and not self.host.fresh else 0.0

    def shape(self, prompts: int) -> "HostShape":
        """What training asks of the model, which is told so many prompts."""
        return HostShape(self.elastic.levels(), prompts, self.elastic.asked)


@dataclass(frozen=True)
class HostShape:
    """A host as `Trained` has it: its labels are the numbers of the prompts."""

    levels: Levels
    prompts: int
    elastic: bool

    @property
    def window(self) -> object | None:
        return self.levels if self.elastic else None

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return (self.prompts,)


def load_host_config(file: str | Path | None, options: list[str]) -> HostTrainConfig:
    """The configuration of a YAML file and of options such as --elastic.head 2, which override it.

    Raises UserError for a file that cannot be read, an unknown key (naming the nearest known one) or a value out of range.
    """
    given = parse_options(options, [key.name for key in keys_of(HostTrainConfig) if key.is_text])
    values = {} if file is None else read_values(Path(file))
    return merged(HostTrainConfig, {}, values, given, file, "finetune")
