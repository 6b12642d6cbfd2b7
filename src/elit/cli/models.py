"""`elit import`, `elit export` and `elit info`: model folders made and looked up."""

import argparse
import difflib
import textwrap
from pathlib import Path

from elit.cli.parsing import DTYPES, WIDTH, Parser, folder, place, torch_dtype, whole
from elit.console import Table, say, show
from elit.errors import UserError


def add_import(command: Parser) -> None:
    command.describe(
        "Makes a model folder of a checkpoint that the authors' code wrote. Nothing in the file is run. Settings come"
        " from the file; what it leaves out may be given here, and is otherwise as in the authors' defaults.",
        "elit import exps/mine/checkpoints/0400000.pt --out mine",
        "elit import hf://mali6/elit/elit_sit_imagenet_256px_1k_0400000.pt \\\n    --out elit-sit",
        takes="CHECKPOINT --out FOLDER",
    )
    command.add_argument("checkpoint", type=place, metavar="CHECKPOINT", help="a file, or hf://mali6/elit/FILE")
    command.add_argument("--out", type=folder, required=True, help="folder for config.json, model.safetensors and card.json")
    command.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged or raw")
    command.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    told = command.add_argument_group("what the file's own args may leave out")
    told.add_argument("--model", metavar="NAME", help="such as ELIT-SiT-XL/2")
    for name, text in (
        ("resolution", "pixels of a side of the images"),
        ("num-classes", "classes, the null class not counted"),
        ("head-depth", "blocks before Read"),
        ("tail-depth", "blocks after Write"),
        ("group-size", "tokens of a side of a window"),
        ("stages", "of a DFM"),
    ):
        told.add_argument(f"--{name}", type=whole(0, 2**20), metavar="N", help=text)
    told.add_argument("--qk-norm", action=argparse.BooleanOptionalAction, help="whether queries and keys are normalised")
    told.add_argument("--path", help="of the flow: linear or cosine")
    command.set_defaults(run=run_import)


def run_import(options: argparse.Namespace) -> None:
    from elit.published import SETTINGS, import_published, read_published
    from elit.weights import check_target

    out = options.out
    check_target(out, options.overwrite)
    given = {name: getattr(options, name) for name in SETTINGS}
    published = read_published(options.checkpoint, options.weights, **given)
    import_published(published, out, options.overwrite)
    table = Table("setting", "value", "told by")
    for name, setting in published.settings.items():
        table.add_row(name, str(setting.value), setting.teller)
    show(table)
    for note in published.notes:
        say(note)
    show(f"{out}: the {published.weights} weights of {options.checkpoint}")


def add_export(command: Parser) -> None:
    command.describe(
        "Makes a folder for inference of a checkpoint of a training run, by default in half precision: half the size.",
        "elit export runs/mine/checkpoints/step_00010000 --out mine",
        "elit export runs/my-flux --pipeline --out my-flux",
        takes="CHECKPOINT --out FOLDER",
    )
    command.add_argument(
        "checkpoint",
        type=place,
        metavar="CHECKPOINT",
        help="a run's folder, for its last checkpoint, a model folder or hub id",
    )
    command.add_argument("--out", type=folder, required=True, help="folder for config.json and model.safetensors")
    command.add_argument("--dtype", choices=DTYPES, default="fp16", help="of the stored weights")
    command.add_argument(
        "--pipeline", action="store_true", help="of a run of elit finetune: make a pipeline's folder, for diffusers"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    command.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> None:
    from elit.card import load_card, save_card
    from elit.hub import find_model
    from elit.weights import WEIGHTS_FILE, check_target, load_model, new_model_folder, save_weights

    out = options.out
    if options.pipeline:
        from elit.host_export import export_pipeline

        export_pipeline(options.checkpoint, out, torch_dtype(options.dtype), options.overwrite)
        show(f"the pipeline of {options.checkpoint} is in {out}")
        return
    check_target(out, options.overwrite)
    source = find_model(options.checkpoint)
    model, card = load_model(source), load_card(source)
    with new_model_folder(out, options.overwrite) as part:
        save_weights(model, part, dtype=torch_dtype(options.dtype))
        save_card(card, part)
    size = (out / WEIGHTS_FILE).stat().st_size
    show(f"{out / WEIGHTS_FILE}: {size / 1e6:.2f} MB of {source}")


def add_info(command: Parser) -> None:
    command.describe(
        "Shows the parameters of a model, and what each of its budgets costs. Without a name it lists the presets.",
        "elit info",
        "elit info ELIT-SiT-XL/2",
        "elit info bundled --labels",
        takes="[NAME]",
    )
    command.add_argument(
        "name",
        nargs="?",
        type=place,
        metavar="NAME",
        help="a preset (ELIT-SiT-XL/2), a model or run folder, a hub id, or bundled; none lists the presets",
    )
    command.add_argument("--labels", action="store_true", help="show the labels of a model instead")
    command.add_argument("--input-size", type=whole(1, 4096), help="side of the preset's input, in latent pixels (32)")
    command.add_argument("--group-size", type=whole(1, 4096), help="side of the preset's window, in tokens (4)")
    command.set_defaults(run=run_info)


def run_info(options: argparse.Namespace) -> None:

    from elit import create_model, load_model, preset_names
    from elit.cost import flops_by_level
    from elit.hub import find_model
    from elit.outlines import without_memory

    if options.name is None:
        show("\n".join(preset_names()))
        return
    asked = {name: getattr(options, name) for name in ("input_size", "group_size") if getattr(options, name) is not None}
    preset = names_preset(options.name, preset_names())
    if options.labels:
        if preset:
            raise UserError(f"{options.name} is a preset, which has no labels; give a model")
        show(labels_text(find_model(options.name)))
        return
    if preset:
        with without_memory():
            model = create_model(options.name, **asked)
    else:
        if asked:
            raise UserError(f"{options.name} is no preset, and has its own sizes; leave --input-size and --group-size out")
        model = load_model(find_model(options.name))
    count = sum(p.numel() for p in model.parameters())
    show(f"{options.name}: {count / 1e6:.2f} M parameters, {model.config.grid} tokens, {model.latents} budget(s)")
    table = Table("budget", "latents per group", "GFLOPs", "of the full budget")
    costs = flops_by_level(model)
    for level, flops in costs.items():
        table.add_row(model.levels.name(level), str(level), f"{flops / 1e9:.2f}", f"{flops / costs[model.latents]:.0%}")
    show(table)


def labels_text(folder: Path) -> str:
    """The labels that a model is told, by name or by number; where they have several factors, the names of each."""
    from elit.card import load_card
    from elit.labels import ANY, JOINT, factor_names
    from elit.weights import load_config

    names = load_card(folder).label_names
    if factors := factor_names(names):
        parts = [f"{i}: {', '.join(factor)}" for i, factor in enumerate(factors, start=1)]
        first = f"labels are made of {len(factors)} parts with {JOINT} between them; {ANY} leaves one open"
        return "\n".join(textwrap.fill(part, WIDTH - 2, break_on_hyphens=False) for part in (first, *parts))
    if not names:
        return f"labels are the numbers 0 to {load_config(folder).num_classes - 1}"
    return textwrap.fill(", ".join(names), WIDTH - 2, break_on_hyphens=False)


def names_preset(name: str, presets: list[str]) -> bool:
    """Whether a name is a preset's, or begins as one's does, as ELIT-SiT-XL/3 mistyped: presets and hub ids look alike."""
    begin = name.partition("/")[0]
    owners = list({preset.partition("/")[0] for preset in presets})
    near = bool(difflib.get_close_matches(begin, owners, n=1, cutoff=0.8))
    return name in presets or (not Path(name).exists() and (near or ("/" not in name and name != "bundled")))
