"""`elit evaluate`: the worth of images, or of a model's samples at several budgets, beside a reference."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elit.cli.parsing import DTYPES, MOST, MOST_AT_ONCE, MOST_SEEDS, Parser, folder, parse_budgets, place, torch_dtype, whole
from elit.cli.sample import add_sampling, make_recipe
from elit.console import say, show
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.evaluation.evaluate import Candidate
    from elit.evaluation.extractors import Extractor

WORTHWHILE = 50_000  # samples that published figures stand on


def add_evaluate(command: Parser) -> None:
    command.usage = "elit evaluate SAMPLES --reference REFERENCE [options]\n       elit evaluate stats DATA --out STATS.npz"
    command.describe(
        "Compares images, or a model's samples at several budgets, with a reference: Fréchet distance and, if asked,"
        " kernel distance, inception score, precision, recall and copies. Prints a table and writes it to a folder."
        " With the word stats it writes the statistics of images instead, to be a reference later. Under torchrun the"
        " processes share the work, and the figures are the same.",
        "elit evaluate bundled --reference emoji --budgets 1/16,1 --count 200",
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
        help="a folder, an .npz of images or statistics (ours, ADM's, EDM's), EDM2's .pkl, or emoji",
    )
    command.add_argument(
        "--features", type=place, default="efficientnet-lite0", help="or inception, dinov2, or a transformers model"
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
    command.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> None:
    from elit.distributed import is_main, local_device, process_group
    from elit.evaluation.evaluate import evaluate, open_reference, write_results
    from elit.evaluation.extractors import load_extractor

    makes_statistics = options.samples[0] == "stats" and len(options.samples) == 2
    if not makes_statistics and len(options.samples) > 1:
        raise UserError(f"one set of samples is evaluated at a time, not {len(options.samples)}; give {options.samples[0]}")
    if not makes_statistics and options.reference is None:
        raise UserError("elit evaluate compares with something: give --reference, such as --reference emoji")
    device = local_device(options.device)
    extractor = load_extractor(options.features, device, torch_dtype(options.features_dtype), options.weights)
    with process_group():
        if makes_statistics:
            make_statistics(options, extractor)
            return
        candidates = open_candidates(options)
        reference = open_reference(options.reference, extractor, candidates[0].source.size, options.size)
        candidates = counted(candidates, options.count, reference.count)
        out = options.out or Path("evaluations")
        measures = [name.strip() for name in options.metrics.split(",") if name.strip()]
        rows = evaluate(candidates, reference, extractor, measures, out, options.batch, options.bootstrap)
    if is_main():
        from elit.evaluation.results import result_row
        from elit.reports.report import print_table
        from elit.reports.results import results_table

        file = write_results(rows, out)
        print_table(results_table([result_row(row, row["samples"]) for row in rows]))
        say(f"the figures are in {file} and {file.with_suffix('.csv').name}, and appended to {out / 'results.jsonl'}")


def make_statistics(options: argparse.Namespace, extractor: "Extractor") -> None:
    """Writes reference statistics of images. Raises UserError where no file, or one that is there, is named for them."""
    from elit.distributed import is_main
    from elit.evaluation.measure import measure_features
    from elit.evaluation.sources import open_images
    from elit.evaluation.statistics import save_statistics

    data = options.samples[1]
    if options.out is None or options.out.suffix != ".npz":
        raise UserError("statistics are written to an .npz: give --out STATS.npz")
    out = options.out
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or give another --out")
    source = open_images(data, options.size, options.count)
    statistics = measure_features(source, extractor, options.batch, out, text=f"{extractor.name} of {data}").statistics
    notes = source.notes()
    if is_main():
        save_statistics(statistics, out)
        for note in notes:
            say(f"{data}: {note}")
        show(f"{out}: {statistics.provenance}")


def open_candidates(options: argparse.Namespace) -> "list[Candidate]":
    """The set that was named; of a model, one for each budget and seed (their counts are settled later)."""
    from elit.bundled import FOLDER
    from elit.evaluation.evaluate import Candidate
    from elit.evaluation.sources import open_images
    from elit.hub import model_folder
    from elit.weights import CONFIG_FILE

    name = options.samples[0]
    folder = FOLDER if name == "bundled" else Path(name)
    if not folder.exists() and name != "emoji":
        folder = model_folder(name)
    if folder.is_dir() and (folder / CONFIG_FILE).is_file():
        return model_candidates(options, folder)
    return [Candidate(open_images(name, options.size, options.count))]


def model_candidates(options: argparse.Namespace, folder: Path) -> "list[Candidate]":
    from elit.card import load_card
    from elit.codec import load_codec
    from elit.cost import count_flops
    from elit.distributed import local_device
    from elit.evaluation.evaluate import Candidate
    from elit.evaluation.sources import Sampled
    from elit.labels import parse_labels
    from elit.weights import fingerprint, load_model

    device = local_device(options.device)
    model = load_model(folder, str(device)).to(torch_dtype(options.dtype))
    card = load_card(folder)
    codec = load_codec(options.codec, model.input.channels, device, card.encoding)
    recipe, labels = make_recipe(options, card), parse_labels(options.labels, model.null_class, card.label_names)
    weights = fingerprint(model)
    candidates = []
    for budget in dict.fromkeys(parse_budgets(options.budgets)):
        told = {"model": weights, "budget": budget, "gflops": count_flops(model, budget) / 1e9}
        told |= {"sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance.scale, "codec": codec.name}
        told |= {name: value for name, value in asdict(recipe.guidance).items() if name != "scale"}
        told |= {"labels": options.labels, "precision": options.dtype}
        for seed in range(options.seed, options.seed + options.seeds):
            source = Sampled(options.samples[0], model, replace(recipe, budget=budget, seed=seed), labels, codec, 1)
            candidates.append(Candidate(source, {**told, "seed": seed}))
    return candidates


def counted(candidates: "list[Candidate]", count: int | None, reference: int | None) -> "list[Candidate]":
    """The candidates with the count of samples of models settled."""
    from elit.evaluation.sources import Sampled

    wanted = min(reference or WORTHWHILE, WORTHWHILE) if count is None else count
    out = []
    for candidate in candidates:
        if isinstance(candidate.source, Sampled):
            if wanted < 2:
                raise UserError(f"{wanted} samples are too few; give --count 2 or more")
            candidate = replace(candidate, source=replace(candidate.source, count=wanted))
        out.append(candidate)
    return out
