"""What a run says of itself: on the terminal, in RUN/log.jsonl, and to tensorboard. None of it can end the run.

Rows of log.jsonl, one per line: {"step": 100, "loss": 0.5, ...}; Fréchet distances have rows of their own.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from elit import console
from elit.console import duration
from elit.distributed import is_main
from elit.files import write_whole
from elit.training.config import LogConfig
from elit.training.step import Taken, TrainState

LOG_FILE = "log.jsonl"


def say(text: str) -> None:
    """A notice, by one process."""
    if is_main():
        console.say(text)


class Log:
    """The log of the first process; the others keep none. `step`: that the run goes on from."""

    def __init__(self, config: LogConfig, run: Path, steps: int, batch_size: int, step: int) -> None:
        self.every, self.run, self.steps, self.batch_size = config.every, run, steps, batch_size
        self.since, self.started = step, time.perf_counter()
        self.first, self.failed = step, False
        self.events: Events | None = None

    def __enter__(self) -> "Log":
        self.bar = console.progress_bar(lines=False)
        self.bar.disable = self.bar.disable or not is_main()
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=self.steps, completed=self.first, unit="images", per_step=self.batch_size
        )
        if is_main():
            self.attempt(self.begin)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def attempt(self, write: Callable[[], None]) -> None:
        """Does some writing; where it fails, says so once."""
        try:
            write()
        except OSError as error:
            if not self.failed:
                say(f"the log in {self.run} cannot be written ({error.strerror or error}); the training goes on without")
            self.failed = True

    def begin(self) -> None:
        """Forgets what was logged of steps that are now taken again."""
        file = self.run / LOG_FILE
        if file.is_file():
            write_whole(file, "".join(line for line in file.open(encoding="utf8", errors="replace") if self.stays(line)))
        self.events = Events(self.run / "tensorboard", self.first)

    def stays(self, line: str) -> bool:
        try:
            return bool(json.loads(line)["step"] <= self.first) and line.endswith("\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            return False  # cut short by a kill

    def step(self, state: TrainState, taken: Taken) -> None:
        """To be told of every step; what it took is read when it is shown."""
        if is_main() and self.every and state.step % self.every == 0:
            loss, passed = taken.loss.item(), time.perf_counter() - self.started
            rate = (state.step - self.since) * self.batch_size / passed
            scalars = {
                "loss": loss,
                "gradient_norm": taken.norm.item(),
                "images_per_second": rate,
                "learning_rate": state.optimizers[-1].param_groups[0]["lr"],
                "skipped_steps": state.skipped,
                **{f"loss_{name}": part.item() for name, part in taken.summands.items()},
            }
            self.write(state.step, scalars)
            self.bar.update(self.task, description=f"training, loss {loss:.4f}")
            if not console.console.is_terminal:
                left = duration((self.steps - state.step) * passed / (state.step - self.since))
                say(f"step {state.step} of {self.steps}  loss {loss:.4f}  {rate:.1f} images/s  {left} left")
            self.since, self.started = state.step, time.perf_counter()
        self.bar.update(self.task, completed=state.step)

    def distances(self, state: TrainState, distances: dict[str, float]) -> None:
        """Logs Fréchet distances, by name."""
        if is_main():
            self.write(state.step, distances)
            say(f"step {state.step}: {', '.join(f'{name} {value:.2f}' for name, value in distances.items())}")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """A row of log.jsonl, and events for tensorboard."""

        def append() -> None:
            with (self.run / LOG_FILE).open("a", encoding="utf8") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
            if self.events is not None:
                self.events.add(step, scalars)

        self.attempt(append)


class Events:
    """A file of scalars for tensorboard, written at once: tensorboard's own writer has a thread, which may fail unheard."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"events.out.tfevents.{int(time.time())}.{os.uname().nodename}.{os.getpid()}.{time.time_ns()}"
        self.append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:  # what was logged of later steps is of ones that are taken again
            self.append(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self.append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def append(self, event: object) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.file.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())  # type: ignore[attr-defined]
