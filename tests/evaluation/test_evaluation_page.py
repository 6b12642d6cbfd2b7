"""docs/evaluation.md names what is there."""

import re
from pathlib import Path

from elit.evaluation import intervals, metrics
from elit.evaluation.evaluate import MEASURES
from elit.evaluation.extractors import NAMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/evaluation.md").read_text(encoding="utf8")


def test_functions_features_and_files_are_there() -> None:
    for name in re.findall(r"`(kernel_\w+)`", PAGE):
        assert hasattr(metrics, name), name
    for name in re.findall(r"`intervals\.(\w+)`", PAGE):
        assert hasattr(intervals, name), name
    for path in re.findall(r"`((?:src|configs)/[\w./-]+)`", PAGE):
        assert (ROOT / path).is_file(), path
    assert all(f"`{name}`" in PAGE for name in NAMES)
    for option in re.findall(r"--metrics (\w+)", PAGE):
        assert option in MEASURES


def test_constants_are_those_of_the_code() -> None:
    assert "k = 3" in PAGE and metrics.precision_recall.__defaults__ == (3,)
    assert "for k = 5" in PAGE and metrics.density_coverage.__defaults__ == (5,)
    assert "100 subsets of 1,000" in PAGE and metrics.kernel_distance_subsets.__defaults__ == (100, 1000, 0)
    assert "10 splits" in PAGE and metrics.inception_score.__defaults__ == (10,)
