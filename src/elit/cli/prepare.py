"""`elit prepare`: data to train on."""

import argparse
import re
from pathlib import Path

from elit.cli.parsing import Commands
from elit.cli.prepare_latents import add_prepare_latents
from elit.console import console
from elit.errors import UserError

SOURCE = (
    "a folder of class folders, a zip file, s3:// or gs://, a folder of `datasets` or an id on its hub, or emoji;"
    " a folder without class folders is one class"
)


def add_prepare(commands: Commands) -> None:
    command = commands.add_parser("prepare", help="make data for training: pictures of one size, and their latents")
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    add_images(kinds)
    add_prepare_latents(kinds)
    add_folder(kinds)


def add_images(kinds: Commands) -> None:
    from elit.data.crops import CROPS

    images = kinds.add_parser("images", help="pictures of any kind, to one size or to buckets of sizes")
    images.add_argument("source", help=SOURCE)
    images.add_argument("--out", required=True, help="the folder to write, or to go on with")
    images.add_argument("--size", type=int, default=256, help="pixels of a side")
    images.add_argument("--crop", choices=CROPS, default="center-crop-adm", help="how a picture gets its size")
    images.add_argument("--seed", type=int, default=0, help="of random-crop")
    images.add_argument("--buckets", default="", help="heights x widths for --crop buckets, such as 256x256,192x336")
    images.add_argument("--bucket-step", type=int, default=16, help="else: buckets of about size x size, multiples of this")
    images.add_argument("--count", type=int, help="only the first pictures")
    images.add_argument("--workers", type=int, help="processes; all cores if not given")
    images.add_argument("--publish", metavar="DIR", help="also write Parquet files with a dataset card")
    images.add_argument("--split", default="train", help="of a data set")
    images.add_argument("--image-column", default="", help="of a data set; the first of pictures if not given")
    images.add_argument("--label-column", default="", help="of a data set; label if not given")
    images.set_defaults(run=run_images)


def run_images(options: argparse.Namespace, rest: list[str]) -> None:
    import json

    from elit.data.dataset import SKIPPED_FILE
    from elit.data.prepare import ImageSettings, prepare_images
    from elit.data.publish import publish
    from elit.data.sources import SourceOptions

    settings = ImageSettings(
        options.source,
        options.size,
        options.crop,
        options.seed,
        parse_buckets(options.buckets),
        options.bucket_step,
        options.count,
        SourceOptions(options.split, options.image_column, options.label_column),
    )
    out = Path(options.out)
    if options.publish is not None and Path(options.publish).exists():
        raise UserError(f"{options.publish} exists; give another folder with --publish")
    info = prepare_images(settings, out, options.workers)
    skipped = json.loads((out / SKIPPED_FILE).read_text(encoding="utf8"))
    console.print(f"{info.count} pictures of {len(info.label_names)} classes are in {out}", markup=False, soft_wrap=True)
    if skipped:
        console.print(
            f"{len(skipped)} could not be read and are left out: see {out / SKIPPED_FILE}", markup=False, soft_wrap=True
        )
    if options.publish is not None:
        publish(out, Path(options.publish))
        console.print(f"Parquet files and a card are in {options.publish}", markup=False, soft_wrap=True)


def parse_buckets(text: str) -> tuple[tuple[int, int], ...]:
    """ "256x256,192x336" to (height, width) pairs. Raises UserError for what is none."""
    out = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", part.strip())
        if match is None:
            raise UserError(f"{part.strip()!r} is not a size; write heights and widths such as 256x256,192x336")
        out.append((int(match[1]), int(match[2])))
    return tuple(out)


def add_folder(kinds: Commands) -> None:
    folder = kinds.add_parser("folder", help="the picture files of any source, as they are, in one folder per class")
    folder.add_argument("source", help=SOURCE)
    folder.add_argument("--out", required=True, help="the folder to write")
    folder.add_argument("--labels", default="", help="comma-separated classes; all if not given")
    folder.add_argument("--count", type=int, help="at most so many of each class")
    folder.add_argument("--split", default="train", help="of a data set")
    folder.set_defaults(run=run_folder)


def run_folder(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.data.prepare import write_folder
    from elit.data.sources import SourceOptions, open_source

    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    source = open_source(options.source, SourceOptions(options.split))
    count = write_folder(source, Path(options.out), labels, options.count)
    console.print(f"{count} pictures are in {options.out}", markup=False, soft_wrap=True)
