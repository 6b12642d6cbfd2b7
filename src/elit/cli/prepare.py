"""`elit prepare`: data to train on."""

import argparse
import re

from elit.cli.parsing import MOST, MOST_SEED, Commands, Parser, folder, place, whole
from elit.cli.prepare_latents import add_prepare_latents
from elit.cli.prepare_prompts import add_prepare_prompts
from elit.console import say
from elit.errors import UserError

SKIPPED_BYTES = 2**30
SOURCE = (
    "a folder of class folders, a zip file, s3:// or gs://, a folder of `datasets` or an id on its hub, or emoji;"
    " a folder without class folders is one class"
)


def add_prepare(command: Parser) -> None:
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    command.describe(
        "Makes data for training, of pictures of any kind and of clips. A command that was stopped goes on where it was.",
        "elit prepare images my-pictures --size 32 --out my-data",
        "elit prepare latents my-data --codec ema --out my-latents",
        "elit prepare folder emoji --labels heart,time --out my-pictures",
        takes="KIND",
    )
    add_images(kinds)
    add_clips(kinds)
    add_prepare_latents(kinds)
    add_prepare_prompts(kinds)
    add_folder(kinds)
    add_emoji_styles(kinds)


def add_images(kinds: Commands) -> None:
    images = kinds.add_parser("images", help="pictures of any kind, to one size or to buckets of sizes")
    images.describe(
        "Makes pictures of any kind into a folder of pictures of one size, or of several for --crop buckets, as elit"
        " train reads it. What cannot be read is left out, counted and listed in skipped.json. Uses all cores; the same"
        " command goes on where it was stopped.",
        "elit prepare images my-pictures --size 32 --out my-data",
        "elit prepare images photos.zip --size 64 --crop random-crop --out my-crops",
        takes="SOURCE --out FOLDER",
    )
    images.add_argument("source", type=place, metavar="SOURCE", help=SOURCE)
    images.add_argument("--out", type=folder, required=True, help="the folder to write, or to go on with")
    images.add_argument("--size", type=whole(1, 65_536), default=256, help="pixels of a side")
    images.add_argument(
        "--crop",
        default="center-crop-adm",
        help="how a picture gets its size: center-crop-adm, center-crop, random-crop, wide or buckets",
    )
    images.add_argument("--seed", type=whole(0, MOST_SEED), help="of random-crop; 0 if not given")
    images.add_argument("--buckets", default="", help="heights x widths for --crop buckets, such as 256x256,192x336")
    images.add_argument(
        "--bucket-step",
        metavar="N",
        type=whole(1, 8192),
        help="else: buckets of about size x size, multiples of this, 16 if not given",
    )
    images.add_argument("--count", type=whole(1, MOST), help="only the first pictures")
    images.add_argument("--workers", type=whole(1, 1024), help="processes; all cores if not given")
    images.add_argument("--publish", type=folder, metavar="DIR", help="also write Parquet files with a dataset card")
    images.add_argument("--split", help="of a data set; train if not given")
    images.add_argument(
        "--image-column", metavar="NAME", default="", help="of a data set; the first of pictures if not given"
    )
    images.add_argument("--label-column", metavar="NAME", default="", help="of a data set; label if not given")
    images.set_defaults(run=run_images)


def run_images(options: argparse.Namespace) -> None:
    from elit.data.dataset import SKIPPED_FILE
    from elit.data.prepare import ImageSettings, prepare_images
    from elit.data.publish import publish
    from elit.data.sources import SourceOptions
    from elit.files import check_writable
    from elit.records import read_json

    check_used(options)
    settings = ImageSettings(
        options.source,
        options.size,
        options.crop,
        options.seed or 0,
        parse_buckets(options.buckets),
        options.bucket_step or 16,
        options.count,
        SourceOptions(options.split or "train", options.image_column, options.label_column),
    )
    out = options.out
    if options.publish is not None and options.publish.exists():
        raise UserError(f"{options.publish} exists; give another folder with --publish")
    if options.publish is not None:
        check_writable(options.publish.parent)
    info = prepare_images(settings, out, options.workers)
    skipped = read_json(out / SKIPPED_FILE, list[tuple[str, str]], SKIPPED_BYTES)
    say(f"{info.count} pictures of {len(info.label_names)} classes are in {out}")
    if skipped:
        say(f"{len(skipped)} could not be read and are left out: see {out / SKIPPED_FILE}")
    if options.publish is not None:
        publish(out, options.publish)
        say(f"Parquet files and a card are in {options.publish}")


def add_clips(kinds: Commands) -> None:
    clips = kinds.add_parser("clips", help="clips of any kind, to one size and number of frames")
    clips.describe(
        "Makes a folder of clips into data that elit train reads: animated GIF and WebP, APNG and, with the extra video,"
        " MP4, WebM, MOV, MKV and AVI. A class is a folder. What cannot be read, or is too short, is left out, counted and"
        " listed in skipped.json. Uses all cores; the same command goes on where it was stopped.",
        "elit prepare clips my-clips --frames 8 --size 32 --out my-data",
        takes="SOURCE --out FOLDER",
    )
    clips.add_argument("source", type=place, metavar="SOURCE", help="a folder of class folders, s3:// or gs://")
    clips.add_argument("--out", type=folder, required=True, help="the folder to write, or to go on with")
    clips.add_argument("--size", type=whole(1, 8192), default=64, help="pixels of a side")
    clips.add_argument("--frames", type=whole(2, 4096), default=8, help="of every clip, its first ones")
    clips.add_argument("--every", type=whole(1, 4096), default=1, metavar="N", help="take only every N-th frame")
    clips.add_argument(
        "--crop",
        choices=("center-crop-adm", "center-crop", "random-crop", "wide"),
        default="center-crop-adm",
        help="how frames get their size, all of a clip alike",
    )
    clips.add_argument("--seed", type=whole(0, MOST_SEED), help="of random-crop; 0 if not given")
    clips.add_argument("--count", type=whole(1, MOST), help="only the first clips")
    clips.add_argument("--workers", type=whole(1, 1024), help="processes; all cores if not given")
    clips.set_defaults(run=run_clips)


def run_clips(options: argparse.Namespace) -> None:
    from elit.data.dataset import SKIPPED_FILE
    from elit.data.prepare import ClipSettings, prepare_images
    from elit.records import read_json

    check_seed(options)
    settings = ClipSettings(
        options.source,
        options.size,
        options.crop,
        options.seed or 0,
        count=options.count,
        frames=options.frames,
        every=options.every,
    )
    info = prepare_images(settings, options.out, options.workers)
    skipped = read_json(options.out / SKIPPED_FILE, list[tuple[str, str]], SKIPPED_BYTES)
    say(f"{info.count} clips of {len(info.label_names)} classes are in {options.out}")
    if skipped:
        say(f"{len(skipped)} could not be read or are too short, and are left out: see {options.out / SKIPPED_FILE}")


def check_seed(options: argparse.Namespace) -> None:
    """Raises UserError for a --seed of a crop that draws nothing."""
    if options.seed is not None and options.crop != "random-crop":
        raise UserError(f"--seed is of --crop random-crop, and the crop is {options.crop}; leave it out")


def check_used(options: argparse.Namespace) -> None:
    """Raises UserError for an option that would do nothing: --split of no data set, --seed of a crop that draws nothing."""
    from elit.data.sources import is_data_set

    if options.split is not None and not is_data_set(options.source):
        raise UserError(f"--split is of a data set, and {options.source} is none; leave it out")
    if options.kind == "images":
        check_seed(options)
    if options.kind == "images" and options.bucket_step is not None and (options.crop != "buckets" or options.buckets):
        raise UserError("--bucket-step makes the buckets of --crop buckets where no --buckets are given; leave it out")


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
    files = kinds.add_parser("folder", help="the picture files of any source, as they are, in one folder per class")
    files.describe(
        "Writes the picture files of any source, unchanged, into a folder with one folder per class.",
        "elit prepare folder emoji --labels heart,time --count 40 --out my-pictures",
        takes="SOURCE --out FOLDER",
    )
    files.add_argument("source", type=place, metavar="SOURCE", help=SOURCE)
    files.add_argument("--out", type=folder, required=True, help="the folder to write")
    files.add_argument("--labels", default="", help="comma-separated classes; all if not given")
    files.add_argument("--count", type=whole(1, MOST), help="at most so many of each class")
    files.add_argument("--split", help="of a data set; train if not given")
    files.set_defaults(run=run_folder)


def run_folder(options: argparse.Namespace) -> None:
    from elit.data.prepare import write_folder
    from elit.data.sources import SourceOptions, open_source

    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    check_used(options)
    source = open_source(options.source, SourceOptions(options.split or "train"))
    count = write_folder(source, options.out, labels, options.count)
    say(f"{count} pictures are in {options.out}")


def add_emoji_styles(kinds: Commands) -> None:
    styles = kinds.add_parser("emoji-styles", help="10,356 emoji of 96 subgroups in seven styles, to train and to test on")
    styles.describe(
        "Fetches seven sets of emoji with npm (about 39 MB) and makes two prepared folders of them, FOLDER/train and"
        " FOLDER/test, whose labels are pairs such as animal-mammal/noto. No style of a test picture is trained on. The same"
        " command goes on where it was stopped.",
        "elit prepare emoji-styles --out data/emoji-styles",
        takes="--out FOLDER",
    )
    styles.add_argument("--out", type=folder, required=True, help="the folder to write, or to go on with")
    styles.add_argument("--size", type=whole(1, 128), default=64, help="pixels of a side")
    styles.add_argument("--packages", type=folder, help="where the packages are or go; FOLDER/packages if not given")
    styles.add_argument("--workers", type=whole(1, 1024), help="processes; all cores if not given")
    styles.set_defaults(run=run_emoji_styles)


def run_emoji_styles(options: argparse.Namespace) -> None:
    from elit.data.emoji_styles import SPLITS, EmojiStyles, fetch_packages
    from elit.data.prepare import ImageSettings, prepare_images

    packages = options.packages or options.out / "packages"
    fetch_packages(packages)
    for split in SPLITS:
        settings = ImageSettings(f"emoji-styles/{split}", options.size, "center-crop")
        info = prepare_images(settings, options.out / split, options.workers, EmojiStyles(packages, split))
        say(f"{info.count} pictures of {sum(map(bool, info.label_counts))} pairs are in {options.out / split}")
