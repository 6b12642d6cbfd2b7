"""The queue of a folder: trains what claims need, each thing once, measures it, and goes on where it was stopped.

FOLDER/settings.json   what all of it was made with
FOLDER/runs/           trainings, as `elit train` keeps them
FOLDER/models/         their averaged weights at the steps that claims look at
FOLDER/measured/       one file for each thing that was measured of one seed
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MaxLen, MinLen
from torch import Tensor

from elit.claims.claim import Arm, Claim, Drawn, HeldOut, Run, Scale, Seen, Trained
from elit.claims.table import CLAIMS, RUNS
from elit.codec import Latents
from elit.console import duration, say
from elit.cost import count_flops, cpu_name
from elit.data.emoji import SPLITS
from elit.data.loader import Data
from elit.data.opening import open_data
from elit.elastic.grouping import ungroup
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.evaluation.heldout import TIMES, heldout_loss
from elit.evaluation.kept import keep, kept
from elit.evaluation.metrics import frechet_distance, kernel_distance_rows, mean_and_covariance
from elit.evaluation.squeezenet import load_squeezenet, squeezenet_features
from elit.files import check_writable, digest, whole_folder, write_whole
from elit.flow import FlowPath
from elit.guidance import Guidance
from elit.labels import factor_names
from elit.pixels import to_uint8
from elit.read_attention import captured_reads
from elit.recipe import Recipe
from elit.records import Count, NotNegative, Whole, read_json, record
from elit.sampling import image_noise
from elit.seeding import generator_for
from elit.target import parse_budget
from elit.training.config import TrainConfig
from elit.training.dry_run import step_flops
from elit.training.loop import train
from elit.training.reading import load_config
from elit.weights import load_model, read_tensors, save_tensors, save_weights

FORMAT = 1  # of a folder
SIDE = 32  # pixels of the embedded pictures
MOST_REFERENCE = 500  # pictures that samples are held against
BATCH = 16
SEEN_TIMES = (0.3, 0.5, 0.7)  # at which Read is looked at
OPTIMISER = (
    *("--optimizer.name=muon", "--optimizer.muon_lr=0.02", "--optimizer.lr=3e-3", "--optimizer.beta2=0.99"),
    *("--optimizer.warmup_steps=20", "--optimizer.ema_decay=0.99"),
)


@record
class Settings:
    """What a folder was made with. data: "emoji", or a folder with train and test as `elit prepare` writes them."""

    format: Whole
    scale: Scale
    data: Annotated[str, MinLen(1), MaxLen(4096)]


@record
class Measured:
    """One thing, measured of one seed.

    what, machine: in words. values: picture by picture. steps, training_tflops: of the model. gflops: of a forward of one
    picture, or of a whole sampled one; sampler_steps and frechet are of samples. maps: Read's attention by time, over the
    tokens row by row, the mean over pictures.
    """

    what: str
    machine: str
    values: tuple[float, ...]
    steps: Count
    training_tflops: NotNegative
    gflops: NotNegative
    sampler_steps: Whole = 0
    frechet: float | None = None
    maps: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Job:
    """A piece of work: what it is, about how many GFLOPs it takes, and what does it."""

    says: str
    gflops: float
    do: Callable[[], None]


def open_queue(out: Path, scale: Scale, data: str) -> "Queue":
    """The queue of a folder, which is made where it is missing. Raises UserError where it holds work of other settings."""
    check_writable(out)
    file, asked = out / "settings.json", Settings(FORMAT, scale, data)
    if file.is_file():
        check_same(read_settings(out), asked, out)
    write_whole(file, json.dumps(asdict(asked), indent=2) + "\n")
    return Queue(out, scale, data)


def read_settings(out: Path) -> Settings:
    """What a folder was made with. Raises UserError where it holds no claims, or those of another version."""
    file = out / "settings.json"
    if not file.is_file():
        raise UserError(f"{out} holds no claims; make some with elit claims run --out {out}")
    settings = read_json(file, Settings)
    if settings.format != FORMAT:
        raise UserError(f"{out} holds claims of another version ({settings.format}, and not {FORMAT}); give another --out")
    return settings


def check_same(there: Settings, asked: Settings, out: Path) -> None:
    """Raises UserError, naming what differs, where a folder's work is of other settings; the number of seeds may differ."""
    for name, old, new in (
        ("data", there.data, asked.data),
        *((name, getattr(there.scale, name), value) for name, value in asdict(asked.scale).items()),
    ):
        if old != new and name != "seeds":
            raise UserError(f"{out} holds claims of {name} {old}, not {new}; give another --out, or the settings it has")


@dataclass(frozen=True)
class Queue:
    """A folder's work. data: as `Settings` has it."""

    out: Path
    scale: Scale
    data: str

    def work(self, claims: Sequence[Claim]) -> None:
        """Does what is left to do for some claims, and says how far it is."""
        jobs, began, done = list(self.jobs(claims)), time.monotonic(), 0.0
        total = sum(job.gflops for job in jobs)
        for i, job in enumerate(jobs, 1):
            left = ""
            if done:
                left = f"; {duration((total - done) * (time.monotonic() - began) / done)} left"
            say(f"{i} of {len(jobs)}: {job.says}{left}")
            job.do()
            done += job.gflops

    def jobs(self, claims: Sequence[Claim]) -> Iterator[Job]:
        """What is left to do, in order: claim by claim, seed by seed, a training just before what is measured of it."""
        planned: set[Path] = set()
        for claim in claims:
            for seed in range(self.scale.seeds):
                for arm in claim.arms():
                    if (file := self.file_of(arm, seed)) in planned or kept(file, Measured) is not None:
                        continue
                    for mark in self.marks(arm.model.run):
                        folder = self.folder_of(arm.model.run, seed, mark)
                        if mark <= self.mark(arm.model) and folder not in planned and not folder.is_dir():
                            planned.add(folder)
                            yield self.training(arm.model.run, seed, mark)
                    planned.add(file)
                    yield self.measuring(arm, seed)

    def training(self, run: str, seed: int, mark: int) -> Job:
        """The training of a run from the mark before to this one."""
        before = max((other for other in self.marks(run) if other < mark), default=0)
        gflops = (mark - before) * self.step_gflops(run)
        return Job(
            f"training {run}, seed {seed}, to step {mark} of {self.steps(run)}",
            gflops,
            lambda: self.train_to(run, seed, mark),
        )

    def measuring(self, arm: Arm, seed: int) -> Job:
        """The measurement of an arm of one seed."""
        name, forwards = told(arm), self.scale.pictures * len(TIMES)
        if isinstance(arm, Drawn):
            forwards = self.scale.samples * self.scale.sampler_steps * (1 if arm.scale == 1 else 2)
        gflops = forwards * self.step_gflops(arm.model.run) / 3 / self.scale.batch
        return Job(f"measuring {name}, seed {seed}", gflops, lambda: self.measure(arm, seed))

    def results(self, arm: Arm) -> list[Measured]:
        """What was measured of an arm, of seed 0 and on, as far as it is there."""
        found: list[Measured] = []
        while (one := kept(self.file_of(arm, len(found)), Measured)) is not None:
            found.append(one)
        return found

    def file_of(self, arm: Arm, seed: int) -> Path:
        return self.out / "measured" / f"{digest(repr(arm).encode())}-seed{seed}.json"

    def folder_of(self, run: str, seed: int, mark: int) -> Path:
        return self.out / "models" / f"{run}-seed{seed}-step{mark}"

    def splits(self) -> tuple[str, str]:
        """The sources of the pictures to train on and of those held out."""
        if self.data == SPLITS[0]:
            return SPLITS[1], SPLITS[2]
        return str(Path(self.data) / "train"), str(Path(self.data) / "test")

    @cached_property
    def train_data(self) -> Data:
        """The pictures to train on. Raises UserError for latents."""
        data = open_data(self.splits()[0], SIDE)
        if isinstance(data.encoding, Latents):
            raise UserError(f"{self.data} holds latents, and the claims are tried on pictures; give a folder of those")
        return data

    @cached_property
    def test_data(self) -> Data:
        """The pictures that are held out. Raises UserError where there are fewer than asked for."""
        data = open_data(self.splits()[1], SIDE)
        if len(data) < self.scale.pictures:
            raise UserError(
                f"{self.splits()[1]} holds {len(data)} pictures, and losses are measured on {self.scale.pictures}; give a"
                " smaller --scale, or other --data"
            )
        return data

    def config(self, run: str, seed: int, steps: int) -> TrainConfig:
        """The configuration of a training to a step."""
        scale, data = self.scale, self.train_data
        side = data.shape[-1] // scale.patch
        factors = [len(names) for names in factor_names(data.label_names)]
        model = {
            **{"input_size": list(data.shape[1:]), "patch_size": scale.patch, "in_channels": data.shape[0]},
            **{"num_classes": len(data.label_names) or len(data.label_counts), "label_factors": factors},
            **{"width": scale.width, "depth": scale.depth, "heads": scale.heads, "qk_norm": True, "rope": True},
        }
        keys = [f"--model.{name}={json.dumps(value)}" for name, value in model.items()]
        keys += [f"--data.source={self.splits()[0]}", f"--data.size={SIDE}", "--data.workers=0", f"--seed={seed}"]
        keys += [f"--batch_size={scale.batch}", f"--steps={steps}", f"--out={self.out / 'runs' / f'{run}-seed{seed}'}"]
        keys += ["--log.every=0", "--log.preview_every=0", "--log.keep=1", "--log.checkpoint_every=100"]
        own = [key.format(half=side // 2, side=side) for key in RUNS[run].keys]
        return load_config(None, [*keys, *OPTIMISER, *own])

    def steps(self, run: str) -> int:
        """The steps of a whole training: those that its units pay for, or as many as of another."""
        kind: Run = RUNS[run]
        if kind.like is not None:
            other, share = kind.like
            return max(1, round(share * self.steps(other)))
        return max(1, round(kind.units * self.scale.steps * self.step_gflops("dense") / self.step_gflops(run)))

    def step_gflops(self, run: str) -> float:
        """GFLOPs of a training step, on average."""
        if run not in self._step_gflops:
            self._step_gflops[run] = step_flops(self.config(run, 0, 1)) / 1e9
        return self._step_gflops[run]

    @cached_property
    def _step_gflops(self) -> dict[str, float]:
        return {}

    def mark(self, model: Trained) -> int:
        """The step at which a model is looked at."""
        return max(1, round(model.share * self.steps(model.like or model.run)))

    def marks(self, run: str) -> list[int]:
        """Every step at which any claim looks at a run, so that one training serves all."""
        models = {model for claim in CLAIMS for model in claim.models() if model.run == run}
        return sorted({self.mark(model) for model in models})

    def train_to(self, run: str, seed: int, mark: int) -> None:
        """Trains on to a step and keeps the averaged weights. Raises KeyboardInterrupt where it was asked to stop before."""
        made = train(self.config(run, seed, mark))
        if made.name != f"step_{mark:08d}":
            raise KeyboardInterrupt(f"stopped within the training of {run}; the same command goes on from {made}")
        folder = self.folder_of(run, seed, mark)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as part:
            save_weights(load_model(made), part)

    def measure(self, arm: Arm, seed: int) -> None:
        """Measures an arm of one seed, and keeps it."""
        model, step = load_model(self.folder_of(arm.model.run, seed, self.mark(arm.model))), self.mark(arm.model)
        trained = step * self.step_gflops(arm.model.run) / 1000
        blank = Measured(told(arm), machine(), (), step, trained, 0.0)
        if isinstance(arm, HeldOut):
            found = self.held_out(arm, model, blank)
        elif isinstance(arm, Drawn):
            found = self.drawn(arm, model, seed, blank)
        else:
            found = self.seen(model, blank)
        keep(found, self.file_of(arm, seed))

    def held_out(self, arm: HeldOut, model: ElasticModel, blank: Measured) -> Measured:
        """The loss of each picture, and the GFLOPs of a forward."""
        budget = parse_budget(arm.budget)
        (loss,) = heldout_loss(model, self.test_data, self.scale.pictures, (budget,))
        at = [budget.at(time) if isinstance(budget, Schedule) else budget for time in TIMES]
        gflops = sum(count_flops(model, one) for one in at) / len(at) / 1e9
        return replace(blank, values=tuple(loss.of_each.tolist()), gflops=gflops)

    def drawn(self, arm: Drawn, model: ElasticModel, seed: int, blank: Measured) -> Measured:
        """The distance of each sample's features to those of training pictures, as the jackknife tells it."""
        recipe = self.recipe(arm, model)
        labels = read(self.test_data, self.scale.samples)[1]
        labels = torch.where(labels < 0, model.null_class, labels)
        noise = image_noise(0, (len(labels), *model.input.shape), "claims")
        with torch.no_grad():
            parts = [recipe.draw(model, y, noise=x) for y, x in zip(labels.split(BATCH), noise.split(BATCH), strict=True)]
        features = features_of(to_uint8(torch.cat(parts)))
        rows = kernel_distance_rows(features, self.reference)
        frechet = frechet_distance(*mean_and_covariance(features), *mean_and_covariance(self.reference))
        values = tuple(rows.tolist())
        return replace(blank, values=values, gflops=recipe.gflops(model), sampler_steps=recipe.total_steps, frechet=frechet)

    def recipe(self, arm: Drawn, model: ElasticModel) -> Recipe:
        """How an arm is sampled, in as many steps as it says, or as another pays for."""
        guidance = Guidance()
        if arm.scale != 1:
            guidance = Guidance(arm.scale, weak_budget=arm.weak_budget, weak_label=arm.weak_label)
        recipe = Recipe(steps=1, budget=parse_budget(arm.budget), guidance=guidance)
        steps = round(arm.steps * self.scale.sampler_steps)
        if arm.paid is not None:
            steps = round(self.recipe(arm.paid, model).gflops(model) / recipe.gflops(model))
        return replace(recipe, steps=max(1, steps))

    @cached_property
    def reference(self) -> Tensor:
        """Features (N, D) of training pictures, kept once they are computed."""
        file = self.out / "reference.safetensors"
        if not file.is_file():
            pictures = read(self.train_data, min(MOST_REFERENCE, len(self.train_data)))[0]
            save_tensors({"features": features_of(to_uint8(pictures))}, file)
        return read_tensors(file)["features"]

    def seen(self, model: ElasticModel, blank: Measured) -> Measured:
        """The share of Read's attention on the picture, and its map."""
        x, y = read(self.test_data, self.scale.pictures)
        noise, maps = image_noise(0, x.shape, "claims"), []
        for time_ in SEEN_TIMES:
            parts = [
                read_map(model, *inputs, time_)
                for inputs in zip(x.split(BATCH), y.split(BATCH), noise.split(BATCH), strict=True)
            ]
            maps.append(torch.cat(parts))
        maps_TBHW = torch.stack(maps)
        border, side = model.config.padding, maps_TBHW.shape[-1]
        inside = slice(border, side - border)
        shares_B = maps_TBHW[..., inside, inside].sum((-2, -1)).mean(0)
        kept_maps = tuple(tuple(one.flatten().tolist()) for one in maps_TBHW.mean(1))
        gflops = count_flops(model, 1.0) / 1e9
        return replace(blank, values=tuple(shares_B.tolist()), maps=kept_maps, gflops=gflops)


def read(data: Data, count: int) -> tuple[Tensor, Tensor]:
    """So many inputs and labels, spread evenly over the data, some of them again where there are fewer."""
    rows = torch.arange(count) * len(data) // count
    return data.read(rows, [generator_for("claims", i) for i in range(count)])


@torch.no_grad()
def features_of(pictures_NCHW: Tensor) -> Tensor:
    """(N, 512) SqueezeNet's, of pictures uint8."""
    network = load_squeezenet()
    return torch.cat([squeezenet_features(some, network) for some in pictures_NCHW.split(BATCH)])


@torch.no_grad()
def read_map(model: ElasticModel, x: Tensor, y: Tensor, noise: Tensor, t: float) -> Tensor:
    """(B, H, W) how Read's attention at the full budget is shared out over the tokens of a square grid; sums to 1."""
    core, grid = model.core, model.config.padded_grid
    assert core is not None
    sample = FlowPath.LINEAR.interpolate(x, noise, torch.full((len(x),), t))
    with captured_reads(core) as found:
        model(sample.x_t, sample.t, torch.where(y < 0, model.null_class, y))
    weights_BGS = torch.stack(found).mean(0).sum(2)
    map_BN = ungroup(weights_BGS[..., None], grid, core.window)[..., 0]
    return (map_BN / map_BN.sum(1, keepdim=True)).unflatten(1, (grid.height, grid.width))


def told(arm: Arm) -> str:
    """An arm in words."""
    model = arm.model
    after = f" after {model.share:g} of the steps" if model.share != 1 else ""
    after += f" of {model.like}" if model.like else ""
    if isinstance(arm, HeldOut):
        return f"the loss of {model.run}{after} at {arm.budget}"
    if isinstance(arm, Seen):
        return f"what Read of {model.run}{after} looks at"
    paid = f", as many steps as {way(arm.paid)} pays for" if arm.paid is not None else ""
    return f"samples of {model.run}{after}, {way(arm)}{paid}"


def way(arm: Drawn) -> str:
    """How an arm is sampled, in words."""
    if arm.scale == 1:
        return f"budget {arm.budget}"
    kind = "CFG" if arm.weak_budget is None else "autoguidance" if arm.weak_label == "same" else "cheap CFG"
    return f"{kind} at {arm.scale:g}"


def machine() -> str:
    """This one, in words."""
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}"
