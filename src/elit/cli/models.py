"""`elit import`, `elit export` and `elit info`: model folders made and looked up."""

import argparse
from pathlib import Path

from rich.table import Table

from elit.cli.parsing import Commands, torch_dtype
from elit.console import console, output
from elit.errors import UserError


def add_import(commands: Commands) -> None:
    command = commands.add_parser("import", help="make a model folder of one of the authors' checkpoints")
    command.add_argument("checkpoint", help="a file, or hf://mali6/elit/FILE")
    command.add_argument("--out", required=True, help="folder for config.json, model.safetensors and card.json")
    command.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged or raw")
    command.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    told = command.add_argument_group("what the file's own args may leave out")
    told.add_argument("--model", metavar="NAME", help="such as ELIT-SiT-XL/2")
    for name in ("resolution", "num-classes", "head-depth", "tail-depth", "group-size"):
        told.add_argument(f"--{name}", type=int, metavar="N")
    told.add_argument("--qk-norm", action=argparse.BooleanOptionalAction)
    told.add_argument("--path", help="of the flow: linear or cosine")
    command.set_defaults(run=run_import)


def run_import(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.published import SETTINGS, check_target, import_published, read_published

    out = Path(options.out)
    check_target(out, options.overwrite)
    given = {name: getattr(options, name) for name in SETTINGS}
    published = read_published(options.checkpoint, options.weights, **given)
    import_published(published, out)
    table = Table("setting", "value", "told by")
    for name, setting in published.settings.items():
        table.add_row(name, str(setting.value), setting.teller)
    output.print(table)
    for note in published.notes:
        console.print(note, markup=False, soft_wrap=True)
    output.print(f"{out}: the {options.weights} weights of {options.checkpoint}", markup=False, soft_wrap=True)


def add_export(commands: Commands) -> None:
    command = commands.add_parser("export", help="make a model folder for inference from a checkpoint of a run")
    command.add_argument("checkpoint", help="a model folder, such as runs/NAME/checkpoints/step_00001000")
    command.add_argument("--out", required=True, help="folder for config.json and model.safetensors")
    command.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16", help="of the stored weights")
    command.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    command.set_defaults(run=run_export)


def run_export(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.card import load_card, save_card
    from elit.weights import WEIGHTS_FILE, load_model, save_weights

    model, out = load_model(options.checkpoint), Path(options.out)
    if (out / WEIGHTS_FILE).exists() and not options.overwrite:
        raise UserError(f"{out} holds a model already; give another folder, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    save_weights(model, out, dtype=torch_dtype(options.dtype))
    save_card(load_card(Path(options.checkpoint)), out)
    size = (out / WEIGHTS_FILE).stat().st_size
    output.print(f"{out / WEIGHTS_FILE}: {size / 1e6:.2f} MB")


def add_info(commands: Commands) -> None:
    command = commands.add_parser("info", help="parameters and GFLOPs per budget of a preset or of a model folder")
    command.add_argument(
        "name", nargs="?", help="a preset, such as ELIT-SiT-XL/2, or a model folder; none lists the presets"
    )
    command.add_argument("--input-size", type=int, default=32, help="side of the preset's input, in latent pixels")
    command.add_argument("--group-size", type=int, default=None, help="side of the preset's window, in tokens")
    command.set_defaults(run=run_info)


def run_info(options: argparse.Namespace, rest: list[str]) -> None:
    import torch

    from elit import create_model, load_model, preset_names
    from elit.cost import flops_by_level

    if options.name is None:
        output.print("\n".join(preset_names()))
        return
    if (Path(options.name) / "config.json").is_file():
        model = load_model(options.name)
    else:
        window = {} if options.group_size is None else {"group_size": options.group_size}
        with torch.device("meta"):
            model = create_model(options.name, input_size=options.input_size, **window)
    count = sum(p.numel() for p in model.parameters())
    output.print(f"{options.name}: {count / 1e6:.2f} M parameters, {model.config.grid} tokens, {model.latents} budget(s)")
    table = Table("budget", "latents per group", "GFLOPs", "of the full budget")
    costs = flops_by_level(model)
    for level, flops in costs.items():
        table.add_row(model.levels.name(level), str(level), f"{flops / 1e9:.2f}", f"{flops / costs[model.latents]:.0%}")
    output.print(table)
