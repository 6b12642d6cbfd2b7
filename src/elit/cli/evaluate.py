"""`elit evaluate`: the worth of images, or of a model's samples at several budgets, beside a reference."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from elit.cli.parsing import DTYPES, MOST, MOST_AT_ONCE, MOST_SEEDS, Parser, folder, parse_budgets, place, torch_dtype, whole
from elit.cli.sample import add_prompts, add_sampling, vocabulary_of, wishes_of
from elit.console import say, show
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.evaluation.extractors import Extractor
    from elit.evaluation.results import ResultRow
    from elit.evaluation.sources import Sampled, Source
    from elit.labels import LabelRule
    from elit.model_words import Words

WORTHWHILE = 50_000  # samples that published figures stand on


def add_evaluate(command: Parser) -> None:
    command.usage = "elit evaluate SAMPLES --reference REFERENCE [options]\n       elit evaluate stats DATA --out STATS.npz"
    command.describe(
        "Compares images, or a model's samples at several budgets, with a reference: Fréchet distance and, if asked,"
        " kernel distance, inception score, precision, recall and copies. Prints a table and writes it to a folder."
        " With the word stats it writes the statistics of images instead, to be a reference later. Under torchrun the"
        " processes share the work, and the figures are the same.",
        "elit evaluate bundled --reference emoji-styles --budgets 1/16,1 --count 200",
        "elit evaluate my-samples --reference my-pictures --size 32 --metrics fd,kid",
        "elit evaluate stats my-pictures --size 32 --out my-statistics.npz",
    )
    command.add_argument(
        "samples",
        nargs="+",
        type=place,
        metavar="SAMPLES",
        help="a folder of images, an .npz with arr_0, a model folder or hub id, or bundled; or the word stats and DATA",
    )
    command.add_argument(
        "--reference",
        type=place,
        help="a folder, an .npz of images or statistics (ours, ADM's, EDM's), EDM2's .pkl, emoji, or emoji-styles",
    )
    command.add_argument(
        "--features",
        type=place,
        action="append",
        help="efficientnet-lite0 if not given, or squeezenet, inception, dinov2, or a transformers model; several in one"
        " pass, with commas between them or the option repeated",
    )
    command.add_argument("--weights", type=folder, help="file of the Inception weights; torch hub's cache if none is given")
    command.add_argument("--features-dtype", choices=DTYPES, default="fp32", help="of their products")
    command.add_argument("--metrics", default="fd", help="comma-separated: fd,kid,is,pr,dc,memorisation")
    command.add_argument(
        "--bootstrap",
        type=whole(0, 100_000),
        default=0,
        metavar="ROUNDS",
        help="resample so often, such as 200, for a 95 %% interval of each figure",
    )
    command.add_argument("--out", type=folder, help="folder for the results (evaluations); of stats, the file to write")
    command.add_argument(
        "--count", type=whole(1, MOST), help="images; all there are, or of a model as many as of the reference"
    )
    command.add_argument(
        "--size", type=whole(1, 8192), help="resize the central squares of image files to it; the emoji too"
    )
    command.add_argument(
        "--batch", type=whole(1, MOST_AT_ONCE), default=16, help="images in one call of the network; changes last bits"
    )
    command.add_argument("--device", default="auto", help="such as cpu or cuda; auto is a GPU where there is one")
    model = command.add_argument_group("of a model, which is sampled on the fly")
    model.add_argument("--budgets", default="1", help="comma-separated, such as 1/16,1/4,1")
    model.add_argument("--seeds", type=whole(1, MOST_SEEDS), default=1, help="how many seeds, from --seed on")
    add_sampling(model)
    add_prompts(model)
    command.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> None:
    from elit.distributed import is_main, process_group, together
    from elit.evaluation.evaluate import evaluate, open_references, write_results

    makes_statistics = options.samples[0] == "stats" and len(options.samples) == 2
    if not makes_statistics and len(options.samples) > 1:
        raise UserError(f"one set of samples is evaluated at a time, not {len(options.samples)}; give {options.samples[0]}")
    if not makes_statistics and options.reference is None:
        raise UserError("elit evaluate compares with something: give --reference, such as --reference emoji")
    measures = [name.strip() for name in options.metrics.split(",") if name.strip()]
    with process_group():
        extractors = together(lambda: load_extractors(options))
        if makes_statistics:
            make_statistics(options, extractors)
            return
        sources = together(lambda: open_sources(options))
        references = together(lambda: open_references(options.reference, extractors, sources[0].size, options.size))
        sources = counted(sources, options.count, references[0].count)
        out = options.out or Path("evaluations")
        rows = evaluate(sources, references, measures, out, options.batch, options.bootstrap)
    if is_main():
        for extractor in extractors:  # shown before they are written: a full disk loses no figure
            show_rows([row for row in rows if row.fingerprint == extractor.fingerprint])
        file = write_results(rows, out)
        say(f"the figures are in {file} and {file.with_suffix('.csv').name}, and appended to {out / 'results.jsonl'}")


def show_rows(rows: "list[ResultRow]") -> None:
    """Prints the table of some rows."""
    from elit.reports.report import print_table
    from elit.reports.results import results_table

    print_table(results_table(rows))


def load_extractors(options: argparse.Namespace) -> "list[Extractor]":
    """The networks that --features names, each once. Raises UserError for --weights without inception among them."""
    from elit.distributed import local_device
    from elit.evaluation.extractors import load_extractor

    device, dtype = local_device(options.device), torch_dtype(options.features_dtype)
    listed = [name.strip() for text in options.features or ["efficientnet-lite0"] for name in text.split(",")]
    names = list(dict.fromkeys(name for name in listed if name))
    if not names:
        raise UserError("no features are named; give --features inception or another")
    with_weights = "inception" if "inception" in names else names[0]
    return [load_extractor(name, device, dtype, options.weights if name == with_weights else None) for name in names]


def make_statistics(options: argparse.Namespace, extractors: "list[Extractor]") -> None:
    """Writes reference statistics of images. Raises UserError where no file, or one that is there, is named for them."""
    from elit.distributed import from_main, is_main, together
    from elit.evaluation.measure import measure_features
    from elit.evaluation.sources import open_images
    from elit.evaluation.statistics import save_statistics
    from elit.files import check_writable

    data, (extractor, *others) = options.samples[1], extractors
    if others:
        raise UserError(f"a file of statistics is of one network, not of {len(extractors)}; give one of --features")
    if options.out is None or options.out.suffix != ".npz":
        raise UserError("statistics are written to an .npz: give --out STATS.npz")
    out = options.out
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or give another --out")
    source = together(lambda: open_images(data, options.size, options.count))
    from_main(lambda: check_writable(out.parent))
    statistics = measure_features(source, extractor, options.batch, out, text=f"{extractor.name} of {data}").statistics
    notes = source.notes()
    from_main(lambda: save_statistics(statistics, out))
    if is_main():
        for note in notes:
            say(f"{data}: {note}")
        show(f"{out}: {statistics.provenance}")


def open_sources(options: argparse.Namespace) -> "list[Source]":
    """The set that was named; of a model, one for each budget and seed (their counts are settled later)."""
    from elit.evaluation.sources import open_images
    from elit.hub import names_model

    name = options.samples[0]
    if name != "emoji" and names_model(name):
        return list(model_samples(options))
    if name != "emoji" and not Path(name).expanduser().exists():
        raise UserError(f"there are no images at {name}, and no model; give a folder, an .npz with arr_0, bundled or emoji")
    return [open_images(name, options.size, options.count)]


def model_samples(options: argparse.Namespace) -> "list[Sampled]":
    """What a model makes at each budget from each seed."""
    from elit.cache_fit import cached
    from elit.distributed import local_device
    from elit.evaluation.sources import Sampled
    from elit.opened import open_model
    from elit.weights import fingerprint

    one = open_model(options.samples[0], local_device(options.device), vocabulary_of(options))
    recipe = wishes_of(options).over(one.card.recipe)
    if options.cache is not None:
        one.check_cache()
        recipe = cached(recipe, options.cache, one.folder, fingerprint(one.model))
    model, labels = one.model.to(torch_dtype(options.dtype)), labels_of(options, one.words)
    codec = one.codec(options.codec)
    return [
        Sampled(options.samples[0], model, replace(recipe, budget=budget, seed=seed), labels, codec, 2)
        for budget in dict.fromkeys(parse_budgets(options.budgets))
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def labels_of(options: argparse.Namespace, words: "Words") -> "LabelRule":
    """What --labels or --prompt asks for. Without them labels are drawn; beside emoji-styles a model of these labels gets
    those of the reference's pictures, one for one."""
    from elit.data.emoji_styles_test import NAME, label_names, split_labels
    from elit.labels import LabelRule

    asked = options.labels is not None or options.texts
    if not asked and options.reference == NAME and words.names == label_names():
        return LabelRule("list", len(words.names), split_labels())
    return words.rule(options.labels, options.texts or ())


def counted(sources: "list[Source]", count: int | None, reference: int | None) -> "list[Source]":
    """The sets, those of models with their counts settled: as many as asked for, or as there are in the reference."""
    from elit.evaluation.sources import Sampled

    wanted = min(reference or WORTHWHILE, WORTHWHILE) if count is None else count
    if wanted < 2 and any(isinstance(source, Sampled) for source in sources):
        raise UserError(f"{wanted} samples are too few; give --count 2 or more")
    return [replace(source, count=wanted) if isinstance(source, Sampled) else source for source in sources]
