"""Run by a test in one process and in two: measures pictures and a model, and writes what the main process found.

A folder and a name are given: FOLDER/ours and FOLDER/theirs are compared, results go to FOLDER/NAME.
"""

import json
import os
import sys
from pathlib import Path

root = Path(sys.argv[1])
os.chdir(root)
sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from extractors_for_tests import tiny_extractor  # noqa: E402

from conftest import TINY  # noqa: E402
from elit import DiT  # noqa: E402
from elit.codec import PixelCodec  # noqa: E402
from elit.distributed import is_main, process_group  # noqa: E402
from elit.evaluation.evaluate import evaluate, open_references  # noqa: E402
from elit.evaluation.measure import measure_features  # noqa: E402
from elit.evaluation.sources import Sampled, open_images  # noqa: E402
from elit.evaluation.statistics import save_statistics  # noqa: E402
from elit.labels import LabelRule  # noqa: E402
from elit.recipe import Recipe  # noqa: E402
from randomised import randomised  # noqa: E402

extractor, model = tiny_extractor(logits=True), randomised(DiT(TINY)).eval()
with process_group():
    out = root / sys.argv[2]
    recipe, labels = Recipe(steps=2, tile=4), LabelRule("uniform", 7)
    many, few = (Sampled("model", model, recipe, labels, PixelCodec(), n) for n in (21, 3))
    references = open_references("theirs", [extractor, tiny_extractor("other", "other FD")], (8, 8))
    rows = evaluate([open_images("ours"), many], references, ["fd", "kid", "pr", "dc"], out, batch=5)
    rows += evaluate([few], references[:1], ["fd"], out, batch=5)  # fewer runs than processes
    statistics = measure_features(open_images("ours"), extractor, 5, out).statistics
    if is_main():
        save_statistics(statistics, out / "s.npz")
        (out / "rows.json").write_text(json.dumps([row.told() for row in rows]))
