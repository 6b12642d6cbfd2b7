"""Whether torch.compile can do its work here: for a processor it writes C++, which somebody must translate."""

import os
import shlex
import shutil
import sys

import torch

from elit.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Raises UserError where the code of a processor is to be compiled, and the C++ compiler that torch calls is missing."""
    if device.type != "cpu":
        return
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(shlex.split(name)[0]) is None:
        raise UserError(f"compile true needs a C++ compiler, and {name} is not here; install it, or give --compile false")
