"""`elit sample`: images in any number."""

import argparse
import re
from typing import TYPE_CHECKING, Literal

from elit.cli.parsing import (
    DTYPES,
    FORMATS,
    MOST,
    MOST_AT_ONCE,
    MOST_SEED,
    Parser,
    folder,
    number,
    option,
    parse_numbers,
    place,
    torch_dtype,
    whole,
)
from elit.console import show
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.opened import Vocabulary
    from elit.request import Wishes


@option
def weak_label(text: str) -> "Literal['null', 'same'] | int":
    """null, same, or a factor of the labels, counted from 1."""
    known: dict[str, Literal["null", "same"]] = {"null": "null", "same": "same"}
    if text in known:
        return known[text]
    if not re.fullmatch("[1-9]", text):
        raise UserError(f"{text} is neither null nor same, nor a factor of the labels such as 1")
    return int(text)


@option
def interval(text: str) -> tuple[float, float]:
    """ "0.1,0.8" to two times. Raises UserError for what is not two numbers."""
    times = parse_numbers(text) if text.count(",") == 1 else []
    if len(times) != 2:
        raise UserError(f"{text!r} is not two times; write it as 0.1,0.8")
    return times[0], times[1]


@option
def steps(text: str) -> int | tuple[int, ...]:
    """ "50", or "40,10" for each stage. Raises UserError for what is no whole number in range."""
    counts = tuple(map(whole(1, 10_000), text.split(",")))
    return counts[0] if len(counts) == 1 else counts


@option
def thresholds(text: str) -> tuple[float, ...]:
    """ "0.2,0.1" to times. Raises UserError for what is no number."""
    return tuple(parse_numbers(text))


@option
def fraction(text: str) -> float:
    """A budget such as 1/16."""
    from elit.target import parse_fraction

    return parse_fraction(text)


def add_sample(command: Parser) -> None:
    command.describe(
        "Makes images in any number, at any budget. Image i depends on the model, the settings, the seed and i alone, so"
        " the same command goes on where it was stopped, and makes the same images under torchrun.",
        "elit sample --labels heart/noto,time/twemoji --count 24 --budget 1/4",
        'elit sample --model my-model --guidance.scale 2 --budget "1/4@t>0.5,1"',
        'elit sample --model my-run --prompt "green heart" --prompt star --budget 1/4',
        "torchrun --nproc-per-node 8 -m elit sample --model my-model --count 50000",
    )
    command.add_argument(
        "--model",
        type=place,
        help="a model or run folder, of elit finetune too, or a hub id; the bundled model if none is given",
    )
    command.add_argument(
        "--out", type=folder, default="samples", help="folder; the images go to a folder there named by their settings"
    )
    command.add_argument("--count", type=whole(1, MOST), help="images; as many as there are labels listed, or 16")
    command.add_argument(
        "--budget",
        default="1",
        help="a fraction (1/4), a schedule (1/4@t>0.5,1), one for each stage (1/4,1), or a cost (80gflops, 150ms): of one"
        " forward, or of a whole image where the model's card has a front and no --steps, --cache or guidance is given",
    )
    command.add_argument(
        "--from",
        dest="picture",
        type=folder,
        metavar="PICTURE",
        help="a PNG file of elit app or elit serve, which is drawn again as it says, and goes to the folder itself",
    )
    command.add_argument("--npz", action="store_true", help="also write all images as one array, for ADM's evaluator")
    command.add_argument("--format", choices=FORMATS, help="of the files; png of pictures, gif of clips if not given")
    command.add_argument(
        "--batch",
        type=whole(1, MOST_AT_ONCE),
        default=1,
        help="calls of the model between two hand-overs to those that write the files",
    )
    command.add_argument("--device", default="auto", help="such as cpu or cuda; auto is a GPU where there is one")
    add_sampling(command)
    add_prompts(command)
    command.set_defaults(run=run_sample)


def add_sampling(parser: "argparse._ActionsContainer") -> None:
    """What decides the pixels of a model's samples, beside budget and count."""
    parser.add_argument(
        "--labels", help="uniform (if not given), balanced, names or numbers (3,heart/noto), a range (0-9), or @FILE"
    )
    parser.add_argument("--sampler", default="euler", help="euler, heun or euler_maruyama")
    parser.add_argument(
        "--steps",
        type=steps,
        metavar="N",
        help="of the sampler, or of each stage (40,10); the model's own default if not given",
    )
    parser.add_argument(
        "--thresholds", type=thresholds, metavar="T,...", help="of a model of stages: the times at which the next one begins"
    )
    parser.add_argument(
        "--shift", type=number, metavar="X", help="above 1, more of the steps near the noise; the model's own if not given"
    )
    parser.add_argument(
        "--stages", type=whole(1, 8), metavar="N", help="of such a model, sample only so many, coarsest first"
    )
    parser.add_argument(
        "--guidance.scale", dest="scale", type=number, metavar="X", help="1 is none; the model's own default if not given"
    )
    parser.add_argument(
        "--guidance.interval", dest="interval", type=interval, metavar="T,T", default="0,1", help="times at which it acts"
    )
    parser.add_argument(
        "--guidance.weak_budget",
        dest="weak_budget",
        type=fraction,
        metavar="BUDGET",
        help="such as 1/16, for cheap CFG and autoguidance",
    )
    parser.add_argument(
        "--guidance.weak_label",
        dest="weak_label",
        type=weak_label,
        default="null",
        help="null for CFG and cheap CFG, same for autoguidance; or the factor of the labels to leave open, 1 or 2",
    )
    parser.add_argument(
        "--cache",
        type=number,
        metavar="THRESHOLD",
        help="leave out the blocks while the velocity changes by less, such as 0.1; see elit calibrate-cache",
    )
    parser.add_argument("--seed", type=whole(0, MOST_SEED), default=0, help="of the noise, and of labels that are drawn")
    parser.add_argument("--codec", type=place, help="for latent models: an autoencoder by folder or hub id, or ema or mse")
    parser.add_argument(
        "--tile", type=whole(1, 4096), help="images in one call of the model; changes last bits (8, or all if fewer)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights and the work")


def add_prompts(parser: "argparse._ActionsContainer", of_images: bool = True) -> None:
    """What a run of elit finetune is to know of prompts. of_images: also what is drawn."""
    if of_images:
        parser.add_argument(
            "--prompt",
            dest="texts",
            action="append",
            metavar="TEXT",
            help="of a run of elit finetune: what is drawn, instead of --labels; the option may be repeated",
        )
    parser.add_argument(
        "--prompts", type=place, help="of a run of elit finetune: a folder of prompts instead of its own, or emoji"
    )
    parser.add_argument(
        "--encoder",
        type=place,
        help="of such a run: the text encoder of its prompts, by folder or hub id; then any text will do",
    )


def vocabulary_of(options: argparse.Namespace) -> "Vocabulary":
    """What the options of `add_prompts` say."""
    from elit.opened import Vocabulary

    return Vocabulary(options.prompts, options.encoder)


def run_sample(options: argparse.Namespace) -> None:
    from elit.distributed import is_main
    from elit.request import Request, repeat

    if options.picture is not None:
        check_drawn_again(options)
        where = (options.picture, options.out, options.model, options.codec, options.device)
        show(f"{repeat(*where, vocabulary_of(options))} is drawn again")
        return
    request = Request(
        out=options.out,
        wishes=wishes_of(options),
        model=options.model,
        labels=options.labels,
        prompts=tuple(options.texts or ()),
        vocabulary=vocabulary_of(options),
        budget=options.budget,
        count=options.count,
        codec=options.codec,
        dtype=torch_dtype(options.dtype),
        device=options.device,
        batch=options.batch,
        npz=options.npz,
        form=options.format,
    )
    what, made = request.make()
    if is_main():
        show(f"{made} holds {what}")


def check_drawn_again(options: argparse.Namespace) -> None:
    """Raises UserError for options beside --from that a picture says by itself."""
    from elit.cli import parse

    asked, plain = dict(vars(options)), vars(parse(["sample"]))
    for free in ("picture", "out", "model", "codec", "device", "prompts", "encoder", "typed"):
        del asked[free]
    if any(value != plain[name] for name, value in asked.items()):
        raise UserError(
            "--from says all of it; leave out every option but --out, --model, --codec, --device, --prompts and --encoder"
        )


def wishes_of(options: argparse.Namespace) -> "Wishes":
    """What the options of `add_sampling` ask for."""
    from elit.request import Wishes

    return Wishes(
        options.sampler,
        options.steps,
        options.scale,
        options.interval,
        options.weak_budget,
        options.weak_label,
        options.seed,
        options.tile,
        options.thresholds,
        options.stages,
        options.cache,
        options.shift,
    )
