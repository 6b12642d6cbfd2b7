"""A run of `elit finetune`: the training loop, around a transformer of diffusers."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict

from elit.backbones.hosts.elasticize import elasticize_as
from elit.backbones.hosts.model import HostModel, check_embeddings, form_of
from elit.card import SamplingDefaults
from elit.codec import Codec
from elit.data.opening import open_data
from elit.data.prompts import PromptedData, with_prompts
from elit.distributed import is_main, own_part
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.flow import FlowPath
from elit.guidance import Guidance
from elit.host_folders import load_elastic
from elit.host_models import (
    HostCheckpoint,
    Source,
    class_of,
    describe_checkpoint,
    drawn_transformer,
    find_host,
    read_transformer,
)
from elit.lora import add_lora
from elit.pictures import save_png, sheet
from elit.prompt_tables import open_prompts
from elit.sampling import sample
from elit.training.batch import Draws
from elit.training.budgets import schedule_levels
from elit.training.checkpoint import Saver
from elit.training.config import AlignmentConfig, FlowConfig
from elit.training.host_config import HostTrainConfig
from elit.training.log import Log
from elit.training.loop import Found, Run, carry_out, found_for
from elit.training.objective import Aims
from elit.training.parts import Parts, course_of
from elit.training.run_folder import Reads, data_digest, weights_digest, whole_path
from elit.training.step import Rules, Start, TrainState, learning, products_of
from elit.words import spread

SHOWN = 8  # prompts, in a sheet of samples
STEPS, SCALE = 20, 3.0  # of their sampler, and of its guidance


def finetune(config: HostTrainConfig) -> Path:
    """Trains a transformer of diffusers, or goes on with its run; returns the last checkpoint. Errors as `carry_out`'s."""
    return carry_out(HostJob(config))


@dataclass(frozen=True)
class HostOrigin:
    """A transformer of diffusers, read or drawn, made elastic, with LoRAs.

    size: height and width of the pictures, in values.
    """

    config: HostTrainConfig
    source: Source
    size: tuple[int, int]

    def make(self, path: FlowPath, fresh: bool, distilled: bool) -> tuple[ElasticModel, ElasticModel | None]:
        """The model, and where it is distilled the original. Raises UserError for what cannot be read, or does not fit."""
        config, elastic = self.config, self.config.elastic
        transformer = drawn_transformer(self.source.config) if config.host.fresh else read_transformer(self.source)
        if elastic.start is not None:
            load_elastic(transformer, elastic.start)
        elif elastic.asked:
            elasticize_as(transformer, elastic, config.seed % 2**63)
        if config.lora.rank:
            add_lora(transformer, config.lora)
        teacher = HostModel(read_transformer(self.source), self.size) if distilled else None
        return HostModel(transformer, self.size), teacher


@dataclass(frozen=True)
class HostJob:
    """A run of a transformer of diffusers."""

    config: HostTrainConfig

    def look_around(self, device: torch.device) -> Found:
        config, source = self.config, find_host(self.config.host.transformer)
        pictures = open_data(config.data.source, config.data.size)
        data = with_prompts(pictures, open_prompts(config.prompts.source), config.prompts.held_out)
        check_widths(source, data)
        return found_for(config, data, host_reads(config, source, data), device)

    def take_apart(self, device: torch.device, found: Found) -> Parts:
        config, data = self.config, found.data
        assert isinstance(data, PromptedData)
        flow = FlowConfig("linear", config.flow.time_law, config.prompts.dropout, shift=config.flow.shift)
        shape, products = config.shape(len(data.prompts)), products_of(config.dtype, device)
        aims = Aims(FlowPath.LINEAR, config.distill, AlignmentConfig(), schedule_levels(config.budget, shape))
        origin = HostOrigin(config, find_host(config.host.transformer), (data.shape[1], data.shape[2]))
        start = Start(origin, config.seed, config.checkpointing, aims, config.optimizer, config.parallel, products)
        draws = Draws(config.seed, config.batch_size, shape, flow, config.budget, AlignmentConfig())
        first = config.finetune.interface_first
        rules = Rules(config.batch_size, config.accumulate, config.steps, first, config.optimizer, products)
        return Parts(start, draws, rules, course_of(config, FlowPath.LINEAR, SamplingDefaults()))

    def looks(self, run: Run, folder: Path, log: Log) -> Callable[[bool], None]:
        every, codec, data = self.config.log.preview_every, run.found.codec, run.found.data
        assert isinstance(data, PromptedData)

        def look(last: bool) -> None:
            if every and codec is not None and (last or run.state.step % every == 0):
                file = folder / "previews" / f"step_{run.state.step:08d}.png"
                log.attempt(lambda: save_host_preview(self.config, run, data, codec, file))

        return look

    def saver(self, run: Run, folder: Path) -> Saver:
        model, config, data = run.state.model, self.config, run.found.data
        assert isinstance(model, HostModel)
        core = model.core
        kept = HostCheckpoint(
            transformer=run.found.reads.init_from or config.host.transformer,
            weights=find_host(config.host.transformer).digest(),
            elastic=None if core is None else core.config,
            lora=config.lora,
            height=data.shape[1],
            width=data.shape[2],
            shift=config.flow.shift,
            prompts=whole_path(config.prompts.source),
            encoding=data.encoding,
            guidance_scale=SCALE if config.prompts.dropout else 1.0,
        )
        plain = {"_class_name": model.name} | {key: value for key, value in model.config.items() if key[0] != "_"}
        describe = partial(describe_checkpoint, kept=kept, transformer=plain)
        return Saver(folder, config.log.keep, timeout=run.parts.course.timeout, describe=describe)


def check_widths(source: Source, data: PromptedData) -> None:
    """Raises UserError where a transformer takes other embeddings, or pictures of other channels."""
    config = source.config
    name = config["_class_name"]
    settings = FrozenDict(_defaults(class_of(config)) | config)
    form, info = form_of(name), data.prompts.info
    check_embeddings(name, form.widths(settings), info.width, info.pooled, str(data.prompts.folder))
    if form.channels(settings) != data.shape[0]:
        raise UserError(
            f"the data have {data.shape[0]} channels and this {name} takes {form.channels(settings)}; give latents of its"
            " own codec (elit prepare latents), or another transformer"
        )


def _defaults(kind: Any) -> dict[str, Any]:
    """The settings of a class of diffusers that a configuration may leave out."""
    return {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items() if name != "self"}


def host_reads(config: HostTrainConfig, source: Source, data: PromptedData) -> Reads:
    """What a run reads now."""
    weights = source.digest()
    if config.elastic.start is not None:
        weights += weights_digest(config.elastic.start, "interface.safetensors") or ""
    return Reads(whole_path(config.data.source), data_digest(data), whole_path(config.host.transformer), weights)


@contextmanager
def averaged(state: TrainState) -> Iterator[None]:
    """Within it, the model has its averaged weights, and is in eval mode. All ranks enter it."""
    own = {name: own_part(p.detach()).clone() for name, p in learning(state.model)}
    state.model.eval()
    try:
        with torch.no_grad():
            for name, p in learning(state.model):
                own_part(p.detach()).copy_(own_part(state.ema[name]))
        yield
    finally:
        with torch.no_grad():
            for name, p in learning(state.model):
                own_part(p.detach()).copy_(own[name])
        state.model.train()


@torch.no_grad()
def save_host_preview(config: HostTrainConfig, run: Run, data: PromptedData, codec: Codec, file: Path) -> None:
    """A sheet of samples: a row per budget, the same noise and prompt down a column. All ranks call this."""
    model = run.state.model
    rows = torch.tensor(spread(SHOWN, len(data)))
    _, numbers = data.read(rows, [torch.Generator() for _ in rows])
    prompts = data.told(numbers)
    budgets = config.log.preview_budgets if model.core is not None else (1.0,)
    guidance = Guidance(scale=SCALE) if config.prompts.dropout else Guidance()
    with averaged(run.state), run.parts.start.products.autocast():
        made = [sample(model, prompts, "euler", STEPS, budget, guidance) for budget in budgets]
    if not is_main():
        return
    images = torch.cat([codec.decode(one).cpu() for one in made])
    names = [data.prompts.texts[n] if 0 <= n < len(data.prompts) else "" for n in numbers.tolist()]
    file.parent.mkdir(exist_ok=True)
    save_png(sheet(images, names, [f"budget {budget:g}" for budget in budgets]), file)
