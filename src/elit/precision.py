"""In which precision a device multiplies fast. On a processor without bfloat16 instructions float32 is faster, and exacter.

`benchmarks/attention.py` shows it: on one with AVX2 alone a bfloat16 product takes ten times as long as a float32 one.
"""

from functools import cache
from pathlib import Path

import torch

INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and of ARM, as Linux names them


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products; the same answer in every process of a machine."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or bool(processor_flags() & INSTRUCTIONS)


@cache
def processor_flags() -> frozenset[str]:
    """The processor's features as Linux lists them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, "").split())
