"""A report's colophon: who made it, how, when and on what machine."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

import elit
from elit.cost import cpu_name

MARK = "elit report"  # in every file that a report writes, near its beginning: such files a later report may replace


@dataclass(frozen=True)
class Colophon:
    """What a reader needs to make the report again, and to know what its milliseconds are worth.

    by: the program. command: the command line as it was typed. elit, torch, python: versions. hardware: the device that
    the model ran on, with the threads of a processor. date: when it was made, in UTC.
    """

    by: str
    command: str
    elit: str
    torch: str
    python: str
    hardware: str
    date: str


def write_colophon(command: str, device: torch.device | None = None) -> Colophon:
    """The colophon of a report that is made now; `device`: of its model, the processor if None."""
    return Colophon(
        by=MARK,
        command=command,
        elit=elit.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        hardware=hardware_name(device),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def hardware_name(device: torch.device | None = None) -> str:
    """A device as people know it, such as "AMD EPYC 7763 (2 threads)" or "NVIDIA H100"."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device is not None and device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"{cpu_name()} ({threads} thread{'s' if threads > 1 else ''})"
