"""What people see of long work: one console and one kind of progress bar, with a rate and the time left."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)  # progress, notices, errors
output = Console(highlight=False)  # what was asked for


class RateColumn(ProgressColumn):
    """Units per second; `per_step` of them go into one step of the bar."""

    def render(self, task: Task) -> Text:
        speed = (task.finished_speed or task.speed or 0.0) * task.fields.get("per_step", 1)
        return Text(f"{speed:.1f} {task.fields.get('unit', 'steps')}/s")


def progress_bar() -> Progress:
    """Add tasks with `add_task(text, total=..., unit="images", per_step=64)`; the time left is shown beside the rate."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
