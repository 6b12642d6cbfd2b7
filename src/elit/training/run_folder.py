"""The folder of a run: whose it is, what may change when it goes on, and who holds it.

RUN/config.json     the run's configuration, as it was last started
RUN/reads.json      what it reads, known by its content
RUN/.lock           held by the run's first process
RUN/checkpoints/    see `checkpoint`
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from elit.data.loader import Data, sample_generators
from elit.data.prompts import PromptedData
from elit.distributed import is_main, together
from elit.errors import UserError
from elit.files import LOCK_FILE, check_writable, locked, write_whole
from elit.records import checked, read_json, record
from elit.training.checkpoint import checkpoints
from elit.training.config import RunConfig, TrainConfig
from elit.training.optimizer import lr_scale
from elit.training.reading import flat, kind_of
from elit.weights import WEIGHTS_FILE
from elit.words import spread

CONFIG_FILE, READS_FILE = "config.json", "reads.json"
# What cannot change the steps that were made: how they are computed, and what a run leaves behind. Places and presets are
# known by what they hold.
FREE = (
    *("out", "preset", "data.source", "init_from", "accumulate", "device", "compile", "checkpointing", "skip_limit"),
    "host.transformer",
    *("parallel.", "log.", "evaluate.", "data.workers", "data.codec"),
)
OF_THE_SCHEDULE = ("steps", "optimizer.schedule", "optimizer.decay_steps")
HEAD = 2**20  # bytes at either end of a file of weights that it is known by


@record
class Reads:
    """What a run reads: where that was, whole, and a digest of what was there."""

    source: str
    data: str
    init_from: str | None = None
    weights: str | None = None


def reads_of(source: str, data: Data, init_from: str | None) -> Reads:
    """What a run on these data, which `source` names, reads now."""
    weights = None if init_from is None else weights_digest(init_from)
    return Reads(whole_path(source), data_digest(data), init_from and whole_path(init_from), weights)


def whole_path(place: str) -> str:
    """The whole path of a folder or file that is there, links followed; a hub id, a URL or a name as it is."""
    return str(Path(place).resolve()) if Path(place).exists() else place


def data_digest(data: Data) -> str:
    """Of the number of samples, their shape, classes and labels, and the content of some of them, spread over all."""
    told = [len(data), list(data.shape), list(data.label_names), list(data.label_counts)]
    found = hashlib.sha256(json.dumps(told).encode())
    if data.exact:
        members = data.members[0] if len(data.members) else torch.arange(len(data))
        rows = members[torch.tensor(spread(16, len(members)))]
        x, labels = data.read(rows, sample_generators("digest", 0, 0, 0, len(rows)))
        found.update(labels.numpy().tobytes() + x.contiguous().numpy().tobytes())
    if isinstance(data, PromptedData):
        found.update(f"{data.prompts.info.weights} {data.prompts.info.tokens} {data.prompts.info.texts}".encode())
    return found.hexdigest()


def weights_digest(folder: str, name: str = WEIGHTS_FILE) -> str | None:
    """Of both ends of a file of weights; None where there are none any more."""
    file = Path(folder) / name
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        head, size = stream.read(HEAD), file.stat().st_size
        stream.seek(max(0, size - HEAD))
        return hashlib.sha256(head + stream.read() + str(size).encode()).hexdigest()


def check_run(run: Path, config: RunConfig, reads: Reads) -> str | None:
    """Whether a run of this configuration may begin, or go on, in a folder, which is left as it is.

    Returns what its user should know, if anything. Raises UserError where the folder holds something else, or a run whose
    steps so far were another configuration's.
    """
    file = run / CONFIG_FILE
    if run.is_file() or (run.is_dir() and not file.is_file() and any(not _of_a_start(p) for p in run.iterdir())):
        raise UserError(f"{run} exists and is not a training run; give another folder with --out")
    if not file.is_file():
        return None
    try:
        values = read_json(file, dict[str, object])
        if "steps" not in values:
            raise UserError(f"{file} has no steps")
        kind = kind_of(values.get("architecture", "DiT")) if isinstance(config, TrainConfig) else type(config)
        old = checked(values, kind, str(file))
    except UserError as error:
        raise UserError(f"{run} exists and is not a training run ({error}); give another folder with --out") from error
    kept = [*checkpoints(run), *(run / "checkpoints").glob(".step_*.old")]  # the latter is one that a kill left set aside
    if not kept:  # nothing that would be lost, or go on as something else
        return None
    return check_past(run, old, config, reads, step=max(int(place.name.split("_")[1].split(".")[0]) for place in kept))


def _of_a_start(place: Path) -> bool:
    """Whether a file is one that a start, killed early, leaves in a folder."""
    return place.suffix == ".part" or place.name in (LOCK_FILE, READS_FILE)


def check_past(run: Path, old: RunConfig, config: RunConfig, reads: Reads, step: int) -> str | None:
    """Raises UserError where a run's steps up to `step` would not have been this configuration's. Returns as `check_run`."""
    before, now = flat(old.to_dict()), flat(config.to_dict())
    known = read_json(run / READS_FILE, Reads) if (run / READS_FILE).is_file() else None
    same_rate = lr_scale(old.optimizer, step - 1, old.steps) == lr_scale(config.optimizer, step - 1, config.steps)
    free = FREE + OF_THE_SCHEDULE * (step == 0 or same_rate)
    if known is not None and known.data == reads.data:
        free += ("data.size", "prompts.source")
    wrong = [
        f"{key} is {before.get(key)} there and {now[key]} now"
        for key in now
        if before.get(key) != now[key] and not any(key == one or (one.endswith(".") and key.startswith(one)) for one in free)
    ]
    known = known or Reads(whole_path(old.data.source), "", old.starts_from and whole_path(old.starts_from))
    if known.source != reads.source and known.data != reads.data:
        wrong.append(f"data.source is {old.data.source} there and {config.data.source} now, which holds other data")
    if known.init_from != reads.init_from and (known.weights is None or known.weights != reads.weights):
        wrong.append(f"the start is {old.starts_from} there and {config.starts_from} now")
    if wrong:
        rate = (
            "; with them its learning rate would have been another"
            if any(w.startswith(OF_THE_SCHEDULE) for w in wrong)
            else ""
        )
        raise UserError(
            f"{run} holds a run of another config ({'; '.join(wrong[:3])}{rate}); give another folder with --out"
        )
    if known.data not in ("", reads.data):
        return f"{config.data.source} does not hold the data that the run began with; it goes on with what is there"
    return None


@contextmanager
def held_run(config: RunConfig, reads: Reads) -> Iterator[Path]:
    """The run's folder, made or found, and kept from other runs while inside. Every process calls this.

    Raises UserError as `check_run` does, where another process is training there, and where the processes do not see the
    same folder; OSError where nothing can be written.
    """
    run = Path(config.out)
    with ExitStack() as held:

        def hold() -> None:
            check_run(run, config, reads)
            check_writable(run)
            held.enter_context(locked(run, "training"))
            open_run(config, reads)

        together(lambda: hold() if is_main() else None)
        together(lambda: check_shared(run))
        yield run


def open_run(config: RunConfig, reads: Reads) -> Path:
    """Makes or finds the run's folder, and writes down what it runs. Raises UserError as `check_run` does."""
    run = Path(config.out)
    check_run(run, config, reads)
    run.mkdir(parents=True, exist_ok=True)
    file = run / READS_FILE
    if file.is_file() and checkpoints(run):  # the data are those that it began with, wherever they are now
        first = read_json(file, Reads)
        reads = replace(reads, data=first.data, weights=first.weights)
    write_whole(file, json.dumps(asdict(reads), indent=2) + "\n")
    write_whole(run / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
    return run


def check_shared(run: Path, seconds: float = 20.0) -> None:
    """Raises UserError where a run's folder, which the first process made, does not come in sight of this one."""
    end = time.monotonic() + seconds
    while not (run / CONFIG_FILE).is_file():
        if time.monotonic() > end:
            raise UserError(f"{run} of the first process is not seen by all; give an --out on storage that they share")
        time.sleep(0.2)
