"""Ranks: the only file that knows of them. Without torchrun there is rank 0 of 1, and no process group is needed.

torchrun and `accelerate launch` both tell a process its place in RANK, LOCAL_RANK and WORLD_SIZE.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from elit.errors import UserError

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another process died or does not answer: this one cannot go on."""


class OneRankError(UserError):
    """A mistake that only this process may have met, such as a file that it cannot read: it tells of it itself."""


@contextmanager
def named_rank() -> Iterator[None]:
    """Names this process, where there are several, in a mistake that the others may not meet."""
    try:
        yield
    except (UserError, OSError) as error:
        if world_size() == 1 or isinstance(error, OneRankError):
            raise
        raise OneRankError(f"rank {rank()}: {error}") from error


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

    Raises UserError for a device that is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from error


@contextmanager
def process_group(timeout: timedelta = timedelta(hours=24), device: torch.device | None = None) -> Iterator[None]:
    """A group of all processes while inside; nothing where there is one process.

    Gloo joins them, and for tensors of a GPU NCCL. What waits longer than `timeout` for another process, or finds it
    dead, raises LostRankError.
    """
    if world_size() == 1:
        yield
        return
    gpu = device is not None and device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    with _lost_ranks_told():
        store = fresh_store(timeout)
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank(), world_size=world_size())
        try:
            yield
        except LostRankError:
            raise
        except RuntimeError as error:
            if tells_of_lost_rank(error):  # leaving the group in order would wait for the dead
                raise
            dist.destroy_process_group()
            raise
        except BaseException:
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()


def fresh_store(timeout: timedelta) -> Store:
    """Where processes leave each other word. torchrun's own outlives its restarts, with the addresses of the dead in it.

    So a part of it is used whose name the first process draws anew, and tells to those that greet it now: each leaves a
    greeting of its own, in place of that of a dead one, and confirms the answer. Greetings of the dead are answered too,
    and nobody reads those answers.
    """
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    own = uuid.uuid4().hex
    if not is_main():
        store.set(f"greeting/{rank()}", own)
        store.wait([f"answer/{own}"], timeout)
        name = store.get(f"answer/{own}").decode()
        store.set(f"confirmed/{name}/{rank()}", "")
        return PrefixStore(name, store)
    others, end = set(range(1, world_size())), time.monotonic() + timeout.total_seconds()
    while others:
        if time.monotonic() > end:
            raise LostRankError(f"{len(others)} of {world_size()} processes did not come in time: {sorted(others)[:8]}")
        for other in list(others):
            if store.check([f"greeting/{other}"]):
                store.set(f"answer/{store.get(f'greeting/{other}').decode()}", own)
            if store.check([f"confirmed/{own}/{other}"]):
                others.remove(other)
        time.sleep(0.005)
    return PrefixStore(own, store)


@contextmanager
def _lost_ranks_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LostRankError) or not tells_of_lost_rank(error):
            raise
        raise lost_rank(error) from error


def lost_rank(error: BaseException) -> LostRankError:
    """The error that says so, of a collective's own."""
    told = " ".join(str(error).split())
    return LostRankError(f"rank {rank()} lost another process, which died or did not answer ({told[:200]})")


def tells_of_lost_rank(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other side is gone: torch has no type of its own for gloo's."""
    words = ("connection closed", "connection reset", "connection refused", "timed out", "timeout", "broken pipe", "nccl")
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def barrier() -> None:
    """Waits for every process of the group."""
    if _grouped():
        dist.barrier()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def together(call: Callable[[], T]) -> T:
    """What `call` returns here; where it raises ValueError or OSError in any process, all raise that of the lowest rank.

    So that a mistake that one process finds ends all of them alike, and none waits for another.
    """
    result: T | None = None
    failure: ValueError | OSError | None = None
    try:
        result = call()
    except (ValueError, OSError) as error:
        failure = error
    if _grouped():
        failures: list[ValueError | OSError | None] = [None] * world_size()
        kind = OSError if isinstance(failure, OSError) else UserError  # others of theirs may need more than a text
        told = None if failure is None else kind(str(failure))
        dist.all_gather_object(failures, told)
        failure = failure or next((found for found in failures if found is not None), None)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def from_main(call: Callable[[], T]) -> T:
    """What `call` returns in the main process, in every one; what it raises there is raised in all."""
    found = [together(lambda: call() if is_main() else None)]
    if _grouped():
        dist.broadcast_object_list(found, 0)
    return found[0]  # type: ignore[return-value]


def anywhere(flags: Sequence[bool]) -> list[bool]:
    """Every flag, raised where it is raised in any process."""
    if not _grouped():
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every process's tensor, in each of them; the tensor itself where there is one process."""
    if not _grouped():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def gather_from_ranks(value: T) -> list[T]:
    """What every process gives, in their order; of one process, what it gives."""
    if not _grouped():
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def own_share(count: int) -> range:
    """This process's part of `count` things in a row, split as evenly as can be."""
    return range(rank() * count // world_size(), (rank() + 1) * count // world_size())


def mesh_size(replicate: int, shard: int | None) -> tuple[int, int]:
    """(replicate, shard) for all processes; `shard` None is all that `replicate` leaves.

    Raises UserError where their product is not the number of processes.
    """
    world = world_size()
    if replicate < 1 or (shard is not None and shard < 1):
        raise UserError(f"parallel.replicate {replicate} and parallel.shard {shard} are at least 1")
    fitting = world % replicate == 0 if shard is None else replicate * shard == world
    if not fitting:
        asked = f"parallel.replicate {replicate}" + ("" if shard is None else f" x parallel.shard {shard}")
        raise UserError(f"{asked} does not fit {world} processes; give factors whose product is {world}")
    return replicate, world // replicate if shard is None else shard


def shard_model(
    model: nn.Module, units: Iterable[nn.Module], replicate: int, shard: int, device: torch.device, dtype: torch.dtype
) -> None:
    """FSDP2: every rank keeps 1/shard of each weight, gradient and moment, and gathers one unit's weights at a time.

    Groups of `shard` ranks, next to one another, are repeated `replicate` times. The units' weights are gathered in `dtype`
    and gradients summed in float32; what belongs to no unit stays in float32. One process is left as it is.
    """
    if replicate * shard == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (replicate, shard), mesh_dim_names=("replicate", "shard"))
    mesh = mesh["shard"] if replicate == 1 else mesh
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # Resharding the root too, nothing gathered outlives a forward, whatever is written into the shards after it.
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), reshard_after_forward=True)


def hold_gradients(model: nn.Module | None, hold: bool) -> None:
    """Whether the next backward pass adds up gradients within this process only, and sends nothing; None is no model."""
    if model is not None and _grouped():
        model.set_requires_gradient_sync(not hold)  # type: ignore[operator]  # shard_model made it an FSDPModule


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one shard of a larger one."""
    if not _grouped():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """The shard that this process holds, sharing its memory; a tensor that is not sharded is its own."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process of its mesh."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, cut as another one is; nothing is sent."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def background_group() -> dist.ProcessGroup | None:
    """A group for work beside the training, whose messages must not mix with those of the steps; None without ranks."""
    return dist.new_group(backend="gloo") if _grouped() else None
