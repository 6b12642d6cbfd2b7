"""`elit sample`: images in any number."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from elit.cli.parsing import Commands, out_folder, torch_dtype
from elit.console import console, output
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.card import Card
    from elit.guidance import Guidance
    from elit.recipe import Recipe


def add_sample(commands: Commands) -> None:
    command = commands.add_parser(
        "sample",
        help="make images in any number, with any budget and guidance; resumable, and the same under torchrun",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--model", help="a model folder or hub id; the bundled model if none is given")
    command.add_argument("--out", default="samples", help="folder; the images go to a folder there named by their settings")
    command.add_argument("--count", type=int, help="images; as many as there are labels listed, or 16")
    command.add_argument(
        "--budget",
        default="1",
        help="a fraction (1/4), a schedule (1/4@t>0.5,1), or a cost of one forward (80gflops, 150ms)",
    )
    command.add_argument("--npz", action="store_true", help="also write all images as one array, for ADM's evaluator")
    command.add_argument("--batch", type=int, default=1, help="tiles made between two hand-overs to the writers")
    command.add_argument("--device", default="auto")
    add_sampling(command)
    command.set_defaults(run=run_sample)


def add_sampling(parser: "argparse._ActionsContainer") -> None:
    """What decides the pixels of a model's samples, beside budget and count."""
    parser.add_argument(
        "--labels", default="uniform", help="uniform, balanced, names or numbers (3,heart), a range (0-9), or a file of them"
    )
    parser.add_argument("--sampler", default="euler", help="euler, heun or euler_maruyama")
    parser.add_argument("--steps", type=int, help="the model's own default if none is given")
    parser.add_argument("--guidance.scale", dest="scale", type=float, help="1 is none; the model's own default if not given")
    parser.add_argument("--guidance.interval", dest="interval", default="0,1", help="times at which guidance acts")
    parser.add_argument("--guidance.weak_budget", dest="weak_budget", help="such as 1/16, for cheap CFG and autoguidance")
    parser.add_argument("--guidance.weak_label", dest="weak_label", choices=("null", "same"), default="null")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", help="for latent models: an AutoencoderKL by folder or hub id, or ema or mse")
    parser.add_argument("--tile", type=int, help="images in one call of the model; changes last bits (8, or all if fewer)")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")


def run_sample(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER
    from elit.card import load_card
    from elit.codec import load_codec
    from elit.distributed import from_main, is_main, local_device, process_group
    from elit.generation import check_count, fitting_tile, generate
    from elit.hub import model_folder
    from elit.labels import parse_labels
    from elit.target import Budget
    from elit.weights import load_model

    folder = FOLDER if options.model is None else model_folder(options.model)
    card, device = load_card(folder), local_device(options.device)
    model = load_model(folder, str(device)).to(torch_dtype(options.dtype))
    labels = parse_labels(options.labels, model.null_class, card.label_names)
    count = (len(labels.values) or 16) if options.count is None else options.count
    check_count(count)
    recipe, out = make_recipe(options, card), out_folder(options.out)
    recipe = recipe if options.tile is not None else replace(recipe, tile=min(recipe.tile, count))
    budget = Budget.parse(options.budget, model, recipe.tile)
    recipe = replace(recipe, budget=budget)
    if is_main() and isinstance(budget, float) and not options.budget[-1:].isdigit():  # a cost was given
        console.print(f"budget {options.budget}: {model.levels.of(budget)}/{model.latents} of the latents")
    codec = load_codec(options.codec, model.input.channels, device)
    with process_group():
        if options.tile is None:
            recipe = from_main(lambda: fitting_tile(model, recipe, labels, codec, out))
        folder = generate(model, recipe, labels, count, out, codec, options.batch, options.npz, card.label_names)
    if is_main():
        output.print(f"{count} images are in {folder}", markup=False, soft_wrap=True)


def make_recipe(options: argparse.Namespace, card: "Card") -> "Recipe":
    """The recipe that the options of `add_sampling` ask for, at the full budget: the card's where they are silent."""
    recipe = card.recipe
    return replace(
        recipe,
        sampler=options.sampler,
        steps=recipe.steps if options.steps is None else options.steps,
        guidance=parse_guidance(options, recipe.guidance.scale),
        seed=options.seed,
        tile=recipe.tile if options.tile is None else options.tile,
    )


def parse_guidance(options: argparse.Namespace, default_scale: float) -> "Guidance":
    """The guidance that the options ask for. Raises UserError for an interval that is not two numbers."""
    from elit.guidance import Guidance
    from elit.target import parse_fraction

    try:
        low, high = (float(part) for part in options.interval.split(","))
    except ValueError:
        raise UserError(f"the guidance interval {options.interval!r} is not two times; write it as 0.1,0.8") from None
    weak = None if options.weak_budget is None else parse_fraction(options.weak_budget)
    return Guidance(default_scale if options.scale is None else options.scale, (low, high), weak, options.weak_label)
