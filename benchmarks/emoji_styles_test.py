"""Writes what comes with the package of the test split of emoji in seven styles, and the contact sheet of docs/data.md.

elit prepare emoji-styles --out data/emoji-styles
python benchmarks/emoji_styles_test.py --data data/emoji-styles/test --packages data/emoji-styles/packages
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from elit.console import progress_bar, say
from elit.data.dataset import PreparedData
from elit.data.emoji_styles import STYLES, EmojiStyles
from elit.data.emoji_styles_test import FEATURES_FILE, LIST_FILE, SHEET_FILE, SIDE, TestSplit, load_styles_test
from elit.errors import UserError
from elit.evaluation.extractors import Extractor, load_extractor
from elit.files import write_whole, written_whole
from elit.pictures import save_png, sheet
from elit.pixels import to_float
from elit.weights import save_tensors
from elit.words import spread

NETWORKS = ("efficientnet-lite0", "squeezenet")
CONCEPTS = 84  # of the sheet, in all seven styles; of those that all styles have
COLUMNS = (  # of the contact sheet
    *("fox face", "unicorn face", "weary cat face", "loudly crying face", "sushi", "doughnut", "fencer", "volcano"),
    *("cherry blossom", "drum with drumsticks", "umbrella", "fire engine"),
)
CONTACT_SHEET = Path(__file__).parents[1] / "docs/emoji-styles.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the prepared test split, at 64 pixels a side")
    parser.add_argument("--packages", type=Path, required=True, help="the packages that it was made of")
    options = parser.parse_args()
    data, listing = PreparedData(options.data), list(EmojiStyles(options.packages, "test").listing())
    keys, labels = (list(column) for column in zip(*listing, strict=True))
    images = torch.stack([data.image(row) for row in range(len(data))])
    if images.shape != (len(keys), 3, SIDE, SIDE) or data.label_counts != counts(labels, len(data.label_names)):
        raise UserError(f"{options.data} is not the test split at {SIDE} x {SIDE}; make it with elit prepare emoji-styles")
    extractors = [load_extractor(name) for name in NETWORKS]
    split = TestSplit(tuple(keys), shown(keys), {one.name: one.fingerprint for one in extractors})
    LIST_FILE.parent.mkdir(exist_ok=True)
    write_whole(LIST_FILE, json.dumps(asdict(split), indent=0) + "\n")
    write_sheet(split, dict(zip(keys, images, strict=True)))
    save_tensors({one.name: features(images, one) for one in extractors}, FEATURES_FILE)
    write_contact_sheet()
    for file in (LIST_FILE, SHEET_FILE, FEATURES_FILE, CONTACT_SHEET):
        say(f"{file}: {file.stat().st_size:,} bytes")


def counts(labels: list[int | None], classes: int) -> tuple[int, ...]:
    """How many pictures every label has."""
    found = Counter(labels)
    return tuple(found[label] for label in range(classes))


def shown(keys: list[str]) -> tuple[str, ...]:
    """The concepts of the sheet: spread over those in all styles, in the order of subgroups and Unicode."""
    codes = [key.split("/")[2] for key in keys]
    whole = [code for code, count in Counter(codes).items() if count == len(STYLES)]
    return tuple(whole[i] for i in spread(CONCEPTS, len(whole)))


def write_sheet(split: TestSplit, images: dict[str, Tensor]) -> None:
    """A row for each concept and a column for each style, without loss."""
    named = {tuple(key.split("/")[1:]): image for key, image in images.items()}
    rows = [torch.cat([named[style.name, code] for style in STYLES], 2) for code in split.concepts]
    picture = Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).contiguous().numpy())
    with written_whole(SHEET_FILE) as part:
        picture.save(part, "WEBP", lossless=True, quality=100, method=4)


def features(images: Tensor, extractor: Extractor, batch: int = 16) -> Tensor:
    """(N, D) float16."""
    rows = []
    with progress_bar() as bar:
        task = bar.add_task(extractor.name, total=len(images), unit="images")
        for some in images.split(batch):
            rows.append(extractor(some).pooled)
            bar.advance(task, len(some))
    return torch.cat(rows).half()


def write_contact_sheet() -> None:
    """Of some concepts, with their names below: a row for each style."""
    test = load_styles_test()
    cells = [test.names.index(name) + i for i in range(len(STYLES)) for name in COLUMNS]
    names = [name.replace(" face", "") for name in COLUMNS]
    picture = sheet(to_float(test.images[cells]), names, [style.name for style in STYLES], cell=SIDE)
    save_png(picture, CONTACT_SHEET)


if __name__ == "__main__":
    main()
