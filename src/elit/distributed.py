"""Ranks: the only file that knows of them. Without torchrun there is rank 0 of 1, and no process group is needed.

torchrun and `accelerate launch` both tell a process its place in RANK, LOCAL_RANK and WORLD_SIZE. Once the processes have
met, their group says who is who; before, the launcher does, and nothing is shared out or gathered.
"""

import os
import pickle
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from elit.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

MEETING = timedelta(minutes=5)  # in which all processes must have come
# Where torch raises what gloo says of a group that has lost a process: plain RuntimeErrors, without a type of their own.
COLLECTIVES = {"distributed_c10d.py", "_functional_collectives.py", "_fsdp_collectives.py", "_fsdp_param_group.py"}
WRAPPERS = {"_ops.py", "c10d_logger.py", "contextlib.py"}


class LostRankError(RuntimeError):
    """Another process died, does not answer or failed: this one cannot go on."""


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
    """This process's number in the group; before there is one, as the launcher set it."""
    return dist.get_rank() if _met() else _of_launcher("RANK", 0)


def world_size() -> int:
    """The number of processes in the group; before there is one, as the launcher set it."""
    return dist.get_world_size() if _met() else _of_launcher("WORLD_SIZE", 1)


def _of_launcher(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise UserError(f"the environment's {name} is {text!r}, which is no number; unset it, or start with torchrun")
    return int(text)


def _met() -> bool:
    """Whether this process is in a group."""
    return dist.is_available() and dist.is_initialized()


def _grouped() -> bool:
    """Whether there are others to work with. All that is shared out or gathered asks here.

    Raises UserError where the launcher started others that this process has not met: each would do a part and call it all.
    """
    if not _met() and world_size() > 1:
        raise UserError(
            f"the environment's WORLD_SIZE is {world_size()}, but this process is in no group, so parts of the work would be"
            " taken for all of it; unset WORLD_SIZE, or do it within elit.distributed.process_group()"
        )
    return _met()


def is_main() -> bool:
    """Whether this is the process that reports and writes what there is one of."""
    return rank() == 0


def local_device(name: str) -> torch.device:
    """ "auto" is this process's own GPU where there are any, and the CPU otherwise.

    Raises UserError for a device that is not there, or that holds no values.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", _of_launcher("LOCAL_RANK", 0) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        torch.device(name)
    except RuntimeError as error:
        raise UserError(f"there is no device {name!r}; give cpu, cuda, or one of several such as cuda:1") from error
    try:
        found = torch.zeros(1, device=name)
        found.tolist()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from error
    return found.device


@contextmanager
def process_group(timeout: timedelta = timedelta(hours=24), device: torch.device | None = None) -> Iterator[None]:
    """A group of all processes while inside; nothing where there is one process, or a group already.

    Gloo joins them, and for tensors of a GPU NCCL. They must meet within five minutes. What then waits longer than
    `timeout` for another process, or finds it dead, raises LostRankError.
    """
    if world_size() == 1 or _met():
        yield
        return
    gpu = device is not None and device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    _meet("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout)
    try:
        yield
    except LostRankError:  # leaving the group in order would wait for the dead
        raise
    except BaseException as error:
        if tells_of_lost_rank(error):
            raise lost_rank(error) from error
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _meet(backend: str, timeout: timedelta) -> None:
    """Joins the group. Raises LostRankError where another process does not come in time."""
    in_time = min(timeout, MEETING)
    with _answered():
        store = fresh_store(in_time)
        dist.init_process_group(backend, timeout=in_time, store=store, rank=rank(), world_size=world_size())
        dist.barrier()
        assert dist.group.WORLD is not None
        dist.group.WORLD.set_timeout(timeout)


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
def _answered() -> Iterator[None]:
    """Around calls that wait for others: a RuntimeError of torch's there says that one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise (error if isinstance(error, LostRankError) else lost_rank(error)) from error


def lost_rank(error: BaseException) -> LostRankError:
    """The error that says so, of a collective's own."""
    told = " ".join(str(error).split())
    return LostRankError(f"rank {rank()} lost another process, which died or did not answer ({told[:200]})")


def tells_of_lost_rank(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other side is gone: by torch's own type, or by where it was raised."""
    if not _met() or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return False
    if isinstance(error, dist.DistError):
        return True
    files = [Path(frame.f_code.co_filename).name for frame, _ in traceback.walk_tb(error.__traceback__)]
    inner = [file for file in files if file not in WRAPPERS][-1:]
    return isinstance(error, RuntimeError) and bool(inner) and inner[0] in COLLECTIVES


def barrier() -> None:
    """Waits for every process of the group."""
    if _grouped():
        with _answered():
            dist.barrier()


def together(call: Callable[[], T]) -> T:
    """What `call` returns here; where it raises UserError or OSError in any process, all raise one of these.

    So that a mistake that one process finds ends all of them alike, and none waits for another. Of any other exception the
    others are told by a LostRankError.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = call()
    except LostRankError:  # there is nobody to tell
        raise
    except Exception as error:
        failure = error
    if _grouped():
        told: list[Exception | None] = [None] * world_size()
        with _answered():
            dist.all_gather_object(told, None if failure is None else _for_others(failure))
        failure = failure or next((found for found in told if found is not None), None)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def _for_others(error: Exception) -> Exception:
    """What the other processes raise for an error of this one."""
    if not isinstance(error, UserError | OSError):
        return LostRankError(f"rank {rank()} failed with {type(error).__name__} ({' '.join(str(error).split())[:200]})")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of a library that needs more than a text
        return OSError(str(error)) if isinstance(error, OSError) else UserError(str(error))
    return error


def from_main(call: Callable[[], T]) -> T:
    """What `call` returns in the main process, in every one; what it raises there is raised in all."""
    found = [together(lambda: call() if is_main() else None)]
    if _grouped():
        with _answered():
            dist.broadcast_object_list(found, 0)
    return found[0]  # type: ignore[return-value]


def anywhere(flags: Sequence[bool]) -> list[bool]:
    """Every flag, raised where it is raised in any process."""
    if not _grouped():
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    with _answered():
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every process's tensor, in each of them; the tensor itself where there is one process."""
    if not _grouped():
        return value
    total = value.clone()
    with _answered():
        dist.all_reduce(total)
    return total


def gather_from_ranks(value: T) -> list[T]:
    """What every process gives, in their order; of one process, what it gives."""
    if not _grouped():
        return [value]
    found: list[T | None] = [None] * world_size()
    with _answered():
        dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def own_share(count: int) -> range:
    """This process's part of `count` things in a row, split as evenly as can be."""
    _grouped()
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


def make_mesh(replicate: int, shard: int, device: torch.device, timeout: timedelta) -> "DeviceMesh | None":
    """Groups of `shard` ranks, next to one another, repeated `replicate` times; None where there is one process.

    What waits longer than `timeout` in any of the groups raises. Every process of the group calls this.
    """
    if replicate * shard == 1 or not _grouped():
        return None
    from torch.distributed.device_mesh import DeviceMesh

    assert dist.group.WORLD is not None
    if replicate == 1:
        return DeviceMesh.from_group(dist.group.WORLD, device.type, mesh_dim_names=("shard",))
    ranks = torch.arange(replicate * shard).view(replicate, shard)
    with _answered():
        own = [_own_group(rows.tolist(), timeout) for rows in (ranks.T, ranks)]
    return DeviceMesh.from_group(own, device.type, ranks, mesh_dim_names=("replicate", "shard"))


def _own_group(members: list[list[int]], timeout: timedelta) -> dist.ProcessGroup:
    """Of several groups, which every process helps to make, the one that this process is in."""
    made = [dist.new_group(ranks, timeout=timeout) for ranks in members]
    return next(group for group, ranks in zip(made, members, strict=True) if rank() in ranks)


def shard_model(model: nn.Module, units: Iterable[nn.Module], mesh: "DeviceMesh | None", dtype: torch.dtype) -> None:
    """FSDP2: every rank keeps its part of each weight, gradient and moment, and gathers one unit's weights at a time.

    The units' weights are gathered in `dtype` and gradients summed in float32; what belongs to no unit stays in float32.
    Without a mesh, for one process, the model is left as it is.
    """
    if mesh is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # Resharding the root too, nothing gathered outlives a forward, whatever is written into the shards after it.
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), reshard_after_forward=True)


def hold_gradients(model: nn.Module | None, hold: bool) -> None:
    """Whether the next backward pass adds up gradients within this process only, and sends nothing; None is no model."""
    if model is not None and _met():
        model.set_requires_gradient_sync(not hold)  # type: ignore[operator]  # shard_model made it an FSDPModule


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one shard of a larger one."""
    if not _met():
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


def background_group(timeout: timedelta) -> dist.ProcessGroup | None:
    """A group for work beside the training, whose messages must not mix with those of the steps; None without ranks."""
    return dist.new_group(backend="gloo", timeout=timeout) if _grouped() else None
