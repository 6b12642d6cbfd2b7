"""Ranks: the only file that knows of them. Without torchrun there is rank 0 of 1, and no process group is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, as torchrun sets it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes, as torchrun sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that reports and writes what there is one of."""
    return rank() == 0


def local_device(name: str) -> torch.device:
    """ "auto" is this process's own GPU where there are any, and the CPU otherwise.

    Raises ValueError for a device that is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from error


@contextmanager
def process_group(timeout: timedelta = timedelta(hours=24)) -> Iterator[None]:
    """A gloo group of all processes while inside; nothing where there is one process."""
    if world_size() == 1:
        yield
        return
    dist.init_process_group("gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for every process of the group."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in each of them; the tensor itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    total = tensor.cpu().clone()
    dist.all_reduce(total)
    return total.to(tensor.device)
