"""The walls of the house: docs/house.md lists every file on its floor, and no import climbs or runs in a circle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/house.md").read_text(encoding="utf8")
FILES = {
    str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf8")) for file in (ROOT / "src/elit").rglob("*.py")
}
MODULES = {name.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in FILES}


def floors() -> dict[str, int]:
    """The floor of every file that the page lists."""
    out: dict[str, int] = {}
    for floor, text in re.findall(r"^## (\d)\..*?^```text\n(.*?)^```", PAGE, re.S | re.M):
        folder = ""
        for line in text.splitlines():
            if line.endswith("/"):
                folder = line
            else:
                name = folder + line.split()[0]
                assert name not in out, f"{name} is listed twice"
                out[name] = int(floor)
    return out


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a file but what only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from nodes(child)


def imported(name: str) -> set[str]:
    """The modules that a file imports, at once or later."""
    out = set()
    for node in nodes(FILES[name]):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return out


def ours(name: str) -> set[str]:
    """The files of the house that a file imports; what the public face hands on is imported from no place."""
    return {MODULES[module] for module in imported(name) if module in MODULES} - {name, "src/elit/__init__.py"}


def test_every_file_is_listed_and_every_listed_file_is_there() -> None:
    assert set(floors()) == set(FILES)


def test_no_import_climbs() -> None:
    floor = floors()
    assert [(name, other) for name in FILES for other in ours(name) if floor[other] > floor[name]] == []


def test_no_imports_run_in_a_circle() -> None:
    left = {name: ours(name) for name in FILES}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


def test_the_rooms_with_rules_of_their_own() -> None:
    for name in FILES:
        others = {other.removeprefix("src/elit/").removesuffix(".py") for other in ours(name)}
        room = name.removeprefix("src/elit/").removesuffix(".py")
        rooms = {other.split("/")[0] for other in others}
        if room.startswith("elastic/"):
            assert rooms <= {"elastic", "condition", "errors", "precision"}, (name, rooms)
        if room == "samplers":
            assert others <= {"flow", "errors"}, others
        if not room.startswith("cli/"):
            assert not rooms & {"cli"} or room == "__main__", name
            for closed in ("training", "reports", "serving", "claims"):
                made_of = room.startswith("claims/") and closed in ("training", "reports")
                assert closed not in rooms or room.startswith(f"{closed}/") or made_of, (name, closed)


def test_one_file_knows_ranks_and_two_print() -> None:
    for name, tree in FILES.items():
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not words & {"WORLD_SIZE", "LOCAL_RANK"} or name == "src/elit/distributed.py", name
        assert not any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            for node in nodes(tree)
        ), name
