"""Runs in several processes of a gloo group, forked from this one.

What they need of torch is imported here, once, and not in every process, where it takes seconds each: they start at once.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from elit.cli import main
from elit.training.config import TrainConfig
from elit.training.loop import train

IMPORTED = ("_dynamo", "distributed.checkpoint.state_dict_saver", "distributed.fsdp", "utils.tensorboard")
for name in IMPORTED:
    import_module(f"torch.{name}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return int(sock.getsockname()[1])


def start_ranks(count: int, work: Callable[[], object], log: Path | None = None) -> list[int]:
    """Forks `count` processes, in which torchrun's variables are set, that call `work`; their process numbers.

    They end as the command line does: 0, 2 with one sentence for a user's mistake, 1 for anything else. `log` gets what
    they write to both streams.
    """
    port = str(free_port())
    return [fork(rank, count, port, work, log) for rank in range(count)]


def fork(rank: int, count: int, port: str, work: Callable[[], object], log: Path | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if log is not None:
            sys.stdout = sys.stderr = stream = log.open("a", buffering=1)
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()})
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except (ValueError, OSError) as error:
        os.write(2, f"rank {rank}: {type(error).__name__}: {error}\n".encode())
        code = 2
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(code)


def elit(*arguments: str) -> Callable[[], object]:
    """The command line, to be called by a process."""
    return lambda: sys.exit(main(arguments))


def wait_for(processes: list[int]) -> list[int]:
    """The exit codes, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def run_ranks(count: int, work: Callable[[], object], log: Path | None = None) -> list[int]:
    return wait_for(start_ranks(count, work, log))


def torchrun(count: int, work: Callable[[], object], max_restarts: int = 0) -> None:
    """What torchrun does, by its own agent: starts `count` processes that call `work`, all again where one dies."""
    place = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    elastic_launch(LaunchConfig(1, 1, count, max_restarts=max_restarts, start_method="fork", **place), work)()


def difference_of_two(alone: TrainConfig, two: TrainConfig, log: Path) -> float:
    """Trains in this process and in two; the largest difference of the averaged weights in the end."""
    last = train(alone)
    assert run_ranks(2, lambda: train(two), log) == [0, 0], log.read_text()
    one, other = (load_file(Path(c.out) / "checkpoints" / last.name / "model.safetensors") for c in (alone, two))
    return max((one[name] - other[name]).abs().max().item() for name in one)
