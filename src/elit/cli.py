"""The command `elit`: demo | report | train | sample | import | export | info | results.

Only this file parses. A user's mistake is one sentence on the error stream and exit code 2, never a traceback.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.table import Table

from elit.console import console, output

if TYPE_CHECKING:
    import torch

    from elit.guidance import Guidance
    from elit.reports.report import Report
    from elit.reports.subject import Subject

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="elit", description="Elastic diffusion transformers: one model, many budgets.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (add_demo, add_report, add_train, add_sample, add_import, add_export, add_info, add_results):
        add(commands)
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command != "train":
        parser.error(f"unknown argument {rest[0]!r}; see elit {known.command} --help")
    try:
        run: Callable[[argparse.Namespace, list[str]], None] = known.run
        run(known, rest)
    except (ValueError, OSError, FloatingPointError) as error:
        console.print(f"elit: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("elit: stopped; what was finished is kept, and the same command goes on from there", markup=False)
        return INTERRUPTED
    return 0


def add_demo(commands: Commands) -> None:
    command = commands.add_parser("demo", help="sample the bundled model at every budget, and show cost and quality")
    command.add_argument("--out", default="demo", help="folder for budgets.png, tradeoff.png and results.json")
    command.add_argument("--model", help="another model folder, such as a checkpoint of `elit train` on the emoji")
    command.add_argument("--labels", help="comma-separated subcategories, by name or number, instead of the dozen shown")
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    command.add_argument(
        "--quality",
        metavar="BUDGETS",
        help="measure quality now at these comma-separated budgets, such as 1/16,1 (minutes each)",
    )
    command.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER
    from elit.reports.budgets import report_budgets
    from elit.reports.quality import measure
    from elit.reports.subject import load_subject, require_emoji

    budgets = None if options.quality is None else parse_budgets(options.quality)
    subject = load_subject(Path(options.model or FOLDER), split_labels(options.labels), options.seed)
    require_emoji(subject)
    quality = subject.card.quality
    if budgets is not None:
        quality = measure(subject.model, budgets, [options.seed], subject.card.sampling)
    finish(report_budgets(subject, quality), Path(options.out))


def finish(report: "Report", out: Path) -> None:
    """Writes a report, prints its tables, and says where it is."""
    from elit.reports.report import write_report, written_files

    write_report(report, out)
    console.print(f"pictures and figures are in {out}: {written_files(report)}")


def split_labels(text: str | None) -> list[str] | None:
    """Comma-separated labels; None where none are given."""
    return None if text is None else [label.strip() for label in text.split(",")]


def add_report(commands: Commands) -> None:
    command = commands.add_parser("report", help="pictures, figures and one page on what a model does: of four kinds")
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    budgets = add_kind(kinds, "budgets", "images, GFLOPs, latency and quality at every budget", run_report_budgets)
    budgets.add_argument(
        "--quality",
        metavar="BUDGETS",
        help="measure quality now at these budgets, such as 1/16,1, and not as the card has it",
    )
    guidance = add_kind(kinds, "guidance", "CFG, cheap CFG and autoguidance over scales", run_report_guidance)
    guidance.add_argument("--scales", default="1,1.5,2,3,4", help="comma-separated")
    guidance.add_argument("--weak-budget", default="1/16", help="of the weak path of cheap CFG and autoguidance")
    attention = add_kind(kinds, "attention", "what Read attends to, beside the loss of every patch", run_report_attention)
    attention.add_argument("--times", default="0.25,0.5,0.75", help="comma-separated; 1 is noise")
    schedule = add_kind(kinds, "schedule", "whether fewer latents at high noise are free", run_report_schedule)
    schedule.add_argument("--times", default="0.3,0.5,0.7", help="comma-separated; where a schedule changes, 1 is noise")
    schedule.add_argument("--budgets", default="1/4,1/16", help="comma-separated; the low budgets of the schedules")
    for kind in (budgets, guidance, schedule):
        kind.add_argument("--count", type=int, default=128, help="samples that quality is measured on; 0 to leave it out")
    for kind, seeds in ((guidance, 1), (schedule, 2)):
        kind.add_argument(
            "--seeds", type=int, default=seeds, help="how many seeds, from --seed on, quality is measured over"
        )


def add_kind(
    kinds: Commands, name: str, text: str, run: Callable[[argparse.Namespace, "Subject"], "Report"]
) -> argparse.ArgumentParser:
    """A kind of report, with the options that all have; `run` makes the report of a subject."""
    kind = kinds.add_parser(name, help=text)
    kind.add_argument("--model", help="a model folder, such as a checkpoint; the bundled model if none is given")
    kind.add_argument("--labels", help="comma-separated, by number or, for models of the emoji, by name")
    kind.add_argument("--seed", type=int, default=0, help="of the noise")
    kind.add_argument("--steps", type=int, help="of the sampler, instead of those in the model's card")
    kind.add_argument("--out", default=f"report-{name}", help="folder for the pictures, results.json and report.html")
    kind.set_defaults(run=run_report, make=run)
    return kind


def run_report(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER
    from elit.reports.subject import load_subject

    if getattr(options, "count", 0) == 1 or getattr(options, "count", 0) < 0:
        raise ValueError(f"quality is measured on 2 samples or more, not {options.count}; give --count 0 to leave it out")
    if getattr(options, "seeds", 1) < 1:
        raise ValueError(f"{options.seeds} seeds are too few; give at least 1")
    subject = load_subject(Path(options.model or FOLDER), split_labels(options.labels), options.seed, options.steps)
    finish(options.make(options, subject), Path(options.out))


def run_report_budgets(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.budgets import quality_of, report_budgets

    budgets = None if options.quality is None else parse_budgets(options.quality)
    return report_budgets(subject, quality_of(subject, budgets, options.count, work_of(options)))


def run_report_guidance(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.guidance import report_guidance

    scales, (weak, *_) = parse_numbers(options.scales), parse_budgets(options.weak_budget)
    return report_guidance(subject, scales, weak, options.count, seeds_of(options), work_of(options))


def run_report_attention(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.attention import report_attention

    return report_attention(subject, parse_numbers(options.times), subject.card.path)


def run_report_schedule(options: argparse.Namespace, subject: "Subject") -> "Report":
    from elit.reports.schedule import report_schedule

    times, budgets = parse_numbers(options.times), parse_budgets(options.budgets)
    return report_schedule(subject, times, budgets, options.count, seeds_of(options), work_of(options))


def work_of(options: argparse.Namespace) -> Path:
    """Where a report keeps the figures that are finished."""
    return Path(options.out) / "work"


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + options.seeds)


def parse_numbers(text: str) -> list[float]:
    """ "1, 1.5" to numbers. Raises ValueError for what is none."""
    out = []
    for part in text.split(","):
        try:
            out.append(float(part))
        except ValueError:
            raise ValueError(f"{part.strip()!r} is not a number; write numbers such as 0.5,1,1.5") from None
    return out


def parse_budgets(text: str) -> list[float]:
    """ "1/16, 0.5" to fractions. Raises ValueError for what is not a fraction in (0, 1]."""
    from elit.elastic.budget import parse_fraction

    return [parse_fraction(part) for part in text.split(",")]


def add_train(commands: Commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a model; any key of the configuration is an option, such as --optimizer.lr 1e-3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.format_help = lambda: argparse.ArgumentParser.format_help(command) + "\n" + train_keys() + "\n"  # type: ignore[method-assign]
    command.add_argument("--config", help="YAML file; options override it")
    command.add_argument("--dry-run", action="store_true", help="print parameters, FLOPs and memory, and stop")
    command.set_defaults(run=run_train)


def train_keys() -> str:
    """Every key and default of the configuration, a line each."""
    from elit.training.config import TrainConfig, flat

    lines = [f"  --{key} {value}" for key, value in flat(TrainConfig().to_dict()).items()]
    return "keys and their defaults:\n" + "\n".join(lines)


def run_train(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.training.config import load_config
    from elit.training.loop import dry_run, train

    if options.config is None and not rest:
        raise ValueError("elit train needs a configuration: give --config FILE, such as --config configs/emoji-tiny.yaml")
    config = load_config(options.config, rest)
    if not options.dry_run:
        train(config)
        return
    cost = dry_run(config)
    table = Table(title="What the run would cost", show_header=False)
    table.add_row("parameters", f"{cost['parameters'] / 1e6:.2f} M")
    table.add_row("forward of one image, lowest budget", f"{cost['forward_gflops_lowest']:.2f} GFLOPs")
    table.add_row("forward of one image, highest budget", f"{cost['forward_gflops_highest']:.2f} GFLOPs")
    table.add_row("step of a batch, highest budget", f"{cost['step_gflops_highest'] / 1e3:.2f} TFLOPs")
    table.add_row("step of a batch, on average", f"{cost['step_gflops_mean'] / 1e3:.2f} TFLOPs")
    table.add_row("weights, gradients, moments, EMA", f"{cost['state_bytes'] / 2**20:.0f} MiB")
    table.add_row("activations of a batch, highest budget", f"{cost['activation_bytes_highest'] / 2**20:.0f} MiB")
    output.print(table)


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
        "--labels", default="uniform", help="uniform, balanced, names or numbers (3,heart), a range (0-9), or a file of them"
    )
    command.add_argument(
        "--budget",
        default="1",
        help="a fraction (1/4), a schedule (1/4@t>0.5,1), or a cost of one forward (80gflops, 150ms)",
    )
    command.add_argument("--sampler", default="euler", help="euler, heun or euler_maruyama")
    command.add_argument("--steps", type=int, help="the model's own default if none is given")
    command.add_argument(
        "--guidance.scale", dest="scale", type=float, help="1 is none; the model's own default if not given"
    )
    command.add_argument("--guidance.interval", dest="interval", default="0,1", help="times at which guidance acts")
    command.add_argument("--guidance.weak_budget", dest="weak_budget", help="such as 1/16, for cheap CFG and autoguidance")
    command.add_argument("--guidance.weak_label", dest="weak_label", choices=("null", "same"), default="null")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--codec", help="for latent models: an AutoencoderKL by folder or hub id, or ema or mse")
    command.add_argument("--npz", action="store_true", help="also write all images as one array, for ADM's evaluator")
    command.add_argument("--tile", type=int, default=8, help="images in one call of the model; changes last bits")
    command.add_argument("--batch", type=int, default=1, help="tiles made between two hand-overs to the writers")
    command.add_argument("--device", default="auto")
    command.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    command.set_defaults(run=run_sample)


def run_sample(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER, load_card
    from elit.codec import load_codec
    from elit.distributed import is_main, local_device, process_group
    from elit.elastic.budget import level_of
    from elit.generation import Recipe, generate
    from elit.hub import model_folder
    from elit.labels import parse_labels
    from elit.target import Budget
    from elit.weights import load_model

    folder = FOLDER if options.model is None else model_folder(options.model)
    card, device = load_card(folder), local_device(options.device)
    model = load_model(folder, str(device)).to(torch_dtype(options.dtype))
    budget = Budget.parse(options.budget, model, options.tile)
    labels = parse_labels(options.labels, model.config.num_classes, card.label_names)
    recipe = Recipe(
        labels,
        options.sampler,
        card.sampling.steps if options.steps is None else options.steps,
        budget,
        parse_guidance(options, card.sampling.guidance_scale),
        options.seed,
        card.path,
        options.tile,
    )
    if is_main() and isinstance(budget, float) and not options.budget[-1:].isdigit():  # a cost was given
        console.print(f"budget {options.budget}: {level_of(budget, model.latents)}/{model.latents} of the latents")
    codec = load_codec(options.codec, model.config.in_channels, device)
    count = options.count or len(labels.values) or 16
    with process_group():
        out = generate(model, recipe, count, Path(options.out), codec, options.batch, options.npz)
    if is_main():
        output.print(f"{count} images are in {out}", soft_wrap=True)


def parse_guidance(options: argparse.Namespace, default_scale: float) -> "Guidance":
    """The guidance that the options ask for. Raises ValueError for an interval that is not two numbers."""
    from elit.elastic.budget import parse_fraction
    from elit.guidance import Guidance

    try:
        low, high = (float(part) for part in options.interval.split(","))
    except ValueError:
        raise ValueError(f"the guidance interval {options.interval!r} is not two times; write it as 0.1,0.8") from None
    weak = None if options.weak_budget is None else parse_fraction(options.weak_budget)
    return Guidance(default_scale if options.scale is None else options.scale, (low, high), weak, options.weak_label)


def torch_dtype(name: str) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


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
    from elit.bundled import load_card, save_card
    from elit.weights import WEIGHTS_FILE, load_model, save_weights

    model, out = load_model(options.checkpoint), Path(options.out)
    if (out / WEIGHTS_FILE).exists() and not options.overwrite:
        raise ValueError(f"{out} holds a model already; give another folder, or --overwrite")
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

    from elit import count_flops, create_model, load_model, preset_names
    from elit.elastic.budget import levels

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
    full = count_flops(model)
    for k, budget in enumerate(levels(model.latents), start=1):
        flops = count_flops(model, budget)
        table.add_row(f"{k}/{model.latents}", str(k), f"{flops / 1e9:.2f}", f"{flops / full:.0%}")
    output.print(table)


def add_results(commands: Commands) -> None:
    command = commands.add_parser(
        "results", help="measure a model's quality per budget and write it into its card; resumable"
    )
    command.add_argument("--model", help="a model folder; the bundled one if none is given")
    command.add_argument("--budgets", default="1/16,1/8,1/4,1/2,3/4,1", help="comma-separated fractions")
    command.add_argument("--seeds", type=int, default=3, help="how many sampling seeds")
    command.add_argument("--work", default="runs/results", help="folder that keeps what is finished")
    command.set_defaults(run=run_results)


def run_results(options: argparse.Namespace, rest: list[str]) -> None:
    from elit.bundled import FOLDER, load_card, save_card
    from elit.reports.budgets import budget_table, cost_rows, with_quality
    from elit.reports.quality import measure
    from elit.reports.report import terminal_table
    from elit.weights import load_model

    folder = Path(options.model) if options.model else FOLDER
    model, card = load_model(folder), load_card(folder)
    budgets = parse_budgets(options.budgets)
    quality = measure(model, budgets, range(options.seeds), card.sampling, Path(options.work))
    save_card(replace(card, quality=quality), folder)
    output.print(terminal_table(budget_table(with_quality(cost_rows(model, budgets), quality), quality)))
    console.print(f"written to {folder / 'card.json'}")


if __name__ == "__main__":
    sys.exit(main())
