"""Models without memory: of the same names and shapes as others, and made without torch's compiler."""

import subprocess
import sys
from pathlib import Path

import torch

from elit import create_model
from elit.outlines import without_memory
from elit.weights import load_model, save_weights

SIZES = {"input_size": 8, "num_classes": 3, "depth": 4, "head_depth": 1, "tail_depth": 1}
LOADS = "import sys; from elit.bundled import load_bundled; load_bundled(); print('sympy' in sys.modules)"


def test_an_outline_has_the_names_and_shapes_of_a_model() -> None:
    model = create_model("ELIT-SiT-S/2", **SIZES)
    with without_memory():
        other = create_model("ELIT-SiT-S/2", **SIZES)
    assert {n: t.shape for n, t in other.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert all(t.is_meta for t in [*other.parameters(), *other.buffers()])


def test_a_loaded_model_owns_its_weights_and_positions(tmp_path: Path) -> None:
    """They are its own: what is done to one loaded model touches neither the file nor another one."""
    model = create_model("ELIT-SiT-S/2", **SIZES).eval()
    save_weights(model, tmp_path)
    first, second = load_model(tmp_path), load_model(tmp_path)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(parameter.requires_grad for parameter in second.parameters())
    for one, other in zip([*model.parameters(), *model.buffers()], [*second.parameters(), *second.buffers()], strict=True):
        assert torch.equal(one, other)


def test_loading_a_model_loads_no_compiler() -> None:
    """Which would take over a second of every command's start."""
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
