"""The terminal: `say` for notices, `show` for what was asked for, and one kind of progress, with a rate and the time left.

What is printed is data: no bracket is markup, no line is cut or broken, and no reader that leaves can end the work.
"""

import time
from typing import IO, Any, cast

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table as Table  # for those who show one
from rich.text import Text

from elit.streams import Stream

COLUMNS = 80  # what tables are made for; narrower terminals break their lines
UNLIMITED = 100_000  # columns of a file or a pipe
FIRST_LINE, SHARE, LAST_LINE = 5.0, 0.1, 60.0  # a line of progress after so many seconds, such a share of the time, at most


class Terminal(Console):
    """Rich's console, without markup and as wide as what is printed where that goes to a file or a pipe."""

    def __init__(self, name: str, narrowest: int, forgiving: bool) -> None:
        stream = cast(IO[str], Stream(name, forgiving))
        super().__init__(file=stream, markup=False, emoji=False, highlight=False)
        self.narrowest = narrowest

    @property  # type: ignore[misc]  # what it is set to elsewhere counts for nothing here
    def size(self) -> ConsoleDimensions:
        found = super().size
        return ConsoleDimensions(max(found.width, self.narrowest) if self.is_terminal else UNLIMITED, found.height)


console = Terminal("stderr", 1, forgiving=True)  # progress, notices, errors
output = Terminal("stdout", COLUMNS, forgiving=False)  # what was asked for


def say(text: str, style: str | None = None) -> None:
    """A notice, on the error stream: a line of its own, whatever letters and however many it has."""
    console.print(text, style=style, soft_wrap=True)


def show(thing: RenderableType) -> None:
    """What was asked for, on the standard output: a text as it is, or a table."""
    output.print(thing, soft_wrap=isinstance(thing, str))


class RateColumn(ProgressColumn):
    """Units per second; `per_step` of them go into one step of the bar."""

    def render(self, task: Task) -> Text:
        speed = (task.finished_speed or task.speed or 0.0) * task.fields.get("per_step", 1)
        return Text(f"{speed:.1f} {task.fields.get('unit', 'steps')}/s")


def progress_bar(lines: bool = True) -> Progress:
    """Add tasks with `add_task(text, total=..., unit="images", per_step=64)`; the time left is shown beside the rate.

    Where there is no terminal, the same is said in lines, more and more seldom; not at all without `lines`.
    """
    if not console.is_terminal:
        return Lines() if lines else Progress(console=console, disable=True, auto_refresh=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class Lines(Progress):
    """Progress for a log: a line after five seconds, and then after a tenth of the time that the work has taken so far."""

    def __init__(self) -> None:
        super().__init__(console=console, disable=True, auto_refresh=False)
        self._since: dict[TaskID, tuple[float, float]] = {}  # the time, and the steps that were there then
        self._next = time.monotonic() + FIRST_LINE

    def add_task(self, *args: Any, **fields: Any) -> TaskID:
        task_id = super().add_task(*args, **fields)
        self._since[task_id] = (time.monotonic(), self._task(task_id).completed)
        return task_id

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._tell(task_id)

    def _task(self, task_id: TaskID) -> Task:
        return next(task for task in self.tasks if task.id == task_id)

    def _tell(self, task_id: TaskID) -> None:
        now, task, (began, before) = time.monotonic(), self._task(task_id), self._since[task_id]
        made, passed = task.completed - before, now - began
        if now < self._next or not task.visible or made <= 0 or passed <= 0:
            return
        self._next = now + min(max(FIRST_LINE, SHARE * passed), LAST_LINE)
        rate, unit = made / passed * task.fields.get("per_step", 1), task.fields.get("unit", "steps")
        total = "" if task.total is None else f" of {task.total:.0f}"
        left = "" if task.total is None else f", {duration((task.total - task.completed) * passed / made)} left"
        say(f"{task.description}: {task.completed:.0f}{total}, {rate:.1f} {unit}/s{left}")


def duration(seconds: float) -> str:
    """Seconds as people say them: 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
