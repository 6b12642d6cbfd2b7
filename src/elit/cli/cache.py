"""`elit calibrate-cache`: when steps of a model may reuse earlier ones."""

import argparse

from elit.cli.parsing import MOST_SEED, Parser, number, parse_numbers, place, whole
from elit.cli.sample import steps
from elit.cli.sample import thresholds as stage_thresholds
from elit.console import Table, progress_bar, say, show


def add_cache(command: Parser) -> None:
    command.describe(
        "Fits, on the model at hand, how much its velocity changes when its timestep embedding does, and keeps that beside"
        " the model as cache.json. Then elit sample --cache THRESHOLD leaves out the blocks of steps that change little."
        " Each threshold is tried, and what it saves and costs is told.",
        "elit calibrate-cache --steps 25",
        "elit calibrate-cache --model my-model --steps 50 --thresholds 0.05,0.1",
    )
    command.add_argument(
        "--model", type=place, help="a model or run folder, or a hub id; the bundled model if none is given"
    )
    command.add_argument("--steps", type=steps, metavar="N", help="of the sampling; the model's own default if not given")
    command.add_argument("--sampler", choices=("euler", "heun"), default="euler", help="euler or heun")
    command.add_argument("--shift", type=number, metavar="X", help="of the times; the model's own if not given")
    command.add_argument(
        "--stage-thresholds", type=stage_thresholds, metavar="T,...", help="of a model of stages; its own if not given"
    )
    command.add_argument("--count", type=whole(1, 4096), default=8, help="images, of classes spread over all")
    command.add_argument("--thresholds", default="0.05,0.1,0.2", help="those that are tried")
    command.add_argument(
        "--guidance.scale",
        dest="scale",
        type=number,
        metavar="X",
        help="of the samples that they are tried on; the model's own if not given",
    )
    command.add_argument("--seed", type=whole(0, MOST_SEED), default=0, help="of the noise")
    command.add_argument("--device", default="auto", help="such as cpu or cuda; auto is a GPU where there is one")
    command.set_defaults(run=run_cache)


def run_cache(options: argparse.Namespace) -> None:
    from elit.cache_fit import calibrate, save_fit
    from elit.card import load_card
    from elit.distributed import local_device
    from elit.files import check_writable
    from elit.hub import find_model
    from elit.request import Wishes
    from elit.step_cache import check_threshold
    from elit.weights import load_model
    from elit.words import spread

    folder = find_model(options.model)
    check_writable(folder)
    thresholds = parse_numbers(options.thresholds)
    for threshold in thresholds:
        check_threshold(threshold)
    model = load_model(folder, str(local_device(options.device)))
    wishes = Wishes(
        options.sampler,
        options.steps,
        options.scale,
        seed=options.seed,
        thresholds=options.stage_thresholds,
        shift=options.shift,
    )
    recipe, labels = wishes.over(load_card(folder).recipe), spread(options.count, model.null_class)
    with progress_bar() as bar:
        task = bar.add_task("calibrating", total=1 + len(thresholds), unit="samplings")
        fit = calibrate(model, recipe, labels, thresholds, lambda: bar.advance(task))
    table = Table("threshold", "steps reused", "times as quick", "images away by")
    for trial in fit.trials:
        table.add_row(f"{trial.threshold:g}", f"{trial.reused:.0%}", f"{trial.speedup:.2f}", f"{trial.difference:.1%}")
    show(table)
    say("images away by: root mean square of the difference from those without a cache, relative to theirs")
    show(f"{save_fit(folder, fit)}: the fit misses the velocities' relative changes by {fit.error:.3f}")
