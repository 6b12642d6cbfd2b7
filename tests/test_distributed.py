"""Devices and ranks without a process group; `test_generation.py` runs two processes."""

import pytest
import torch

from elit.distributed import barrier, is_main, local_device, process_group, rank, world_size


def test_one_process_is_rank_0_of_1_and_needs_no_group() -> None:
    with process_group():
        assert (rank(), world_size(), is_main()) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        barrier()


def test_devices() -> None:
    assert local_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="try --device cpu"):
        local_device("abacus")
