"""ElasticBlock on a model of one's own, as docs/your-own-model.md has it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import elit
from elit import UserError

PAGE = Path(__file__).parents[2] / "docs/your-own-model.md"
CODE = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf8"), re.S | re.M)[1]  # type: ignore[index]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(CODE, str(PAGE), "exec"), names)
    return names


def plain() -> dict[str, Any]:
    """The page's model without the lines that make it elastic."""
    lines = [
        line.replace("block(x, c, grid, budget) if block is self.core else block(x, c)", "block(x, c)")
        if "for block" not in line and "block(x, c, grid" in line
        else line
        for line in CODE.split("model = Transformer()")[0].splitlines()
        if not re.search(r"import elit|self\.core = |\*self\.blocks\[:2\]", line)
    ]
    names: dict[str, Any] = {}
    exec(compile("\n".join(lines).replace(", budget=None", ""), "plain", "exec"), names)
    return names


def test_five_lines_make_it_elastic():
    model = CODE.split("model = Transformer()")[0]
    assert sum(line.endswith("# elastic") for line in model.splitlines()) == 5
    assert len([line for line in model.splitlines() if line.strip()]) <= 60
    assert "elit" not in str(sorted(plain()))


def test_the_full_budget_is_the_plain_model_and_a_low_one_is_cheaper(page):
    """With the plain model's weights, of which the core's have moved."""
    torch.manual_seed(0)
    dense = plain()["Transformer"]()
    elastic = page["Transformer"]()
    moved = {}
    for name, tensor in dense.state_dict().items():
        block = re.match(r"blocks\.(\d)\.(.*)", name)
        number = int(block[1]) if block else -1
        if 2 <= number < 6:
            name = f"core.core.blocks.{number - 2}.{block[2]}"  # type: ignore[index]
        elif number >= 6:
            name = f"blocks.{number - 3}.{block[2]}"  # type: ignore[index]
        moved[name] = tensor
    missing, unexpected = elastic.load_state_dict(moved, strict=False)
    assert not unexpected and all("core." in name for name in missing)
    x, t, y = page["x"], page["t"], page["y"]
    with torch.no_grad():
        torch.testing.assert_close(elastic(x, t, y), dense(x, t, y), rtol=1e-4, atol=1e-5)
        assert (elastic(x, t, y, 0.25) - dense(x, t, y)).abs().max() > 1e-3
        mixed = elastic(x, t, y, [1.0, 0.25])
        torch.testing.assert_close(mixed[:1], elastic(x, t, y)[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1:], elastic(x, t, y, 0.25)[1:], rtol=1e-4, atol=1e-5)


def test_a_grid_of_any_size_and_of_video_runs():
    """Windows are cut short at its edges."""
    for window, grid in ((4, (5, 7)), ((2, 2, 2), (3, 3, 2))):
        core = elit.ElasticBlock([Scaled()], width=8, heads=2, window=window)
        size = torch.tensor(grid).prod().item()
        x = torch.randn(2, size, 8)
        torch.testing.assert_close(core(x, torch.zeros(2, 8), grid), 3 * x, rtol=1e-3, atol=1e-3)


class Scaled(torch.nn.Module):
    """Three times the tokens."""

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return 3 * x


def test_what_does_not_fit_is_refused():
    core = elit.ElasticBlock([Scaled()], width=8, heads=2, window=2)
    with pytest.raises(UserError, match="12 tokens came, and the grid 4x4 has 16"):
        core(torch.zeros(1, 12, 8), torch.zeros(1, 8), (4, 4))
    with pytest.raises(UserError, match="1/4, 2/4, 3/4, 4/4"):
        core(torch.zeros(1, 16, 8), torch.zeros(1, 8), (4, 4), 2.0)
    with pytest.raises(UserError, match="window is a side"):
        elit.ElasticBlock([Scaled()], width=8, heads=2, window=(1, 2, 3, 4))
