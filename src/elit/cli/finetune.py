"""`elit finetune`: a transformer of diffusers, dense or made elastic, trained from a configuration."""

import argparse

from elit.cli.parsing import Parser, folder
from elit.cli.train import keys_text
from elit.errors import UserError


def add_finetune(command: Parser) -> None:
    command.describe(
        "Trains a transformer of diffusers on pictures with prompts, or goes on with the run that is in --out: as it is,"
        " made elastic, or with LoRAs. Every key of the configuration is an option, such as --elastic.head 2, and overrides"
        " the file.",
        "elit finetune --config configs/hosts/emoji-sd3.yaml",
        "elit finetune --config configs/hosts/emoji-sd3-elastic.yaml \\\n    --host.transformer my-pipeline --out runs/mine",
    )

    def help_text() -> str:
        from elit.training.host_config import HostTrainConfig

        return argparse.ArgumentParser.format_help(command) + "\n" + keys_text(HostTrainConfig) + "\n"

    command.format_help = help_text  # type: ignore[method-assign]
    command.add_argument("--config", type=folder, help="YAML file; options override it")
    command.set_defaults(run=run_finetune)


def run_finetune(options: argparse.Namespace) -> None:
    if options.config is None and not options.rest:
        raise UserError("elit finetune needs a configuration: give --config FILE, or --host.transformer FOLDER")
    from elit.training.host_config import load_host_config

    config = load_host_config(options.config, options.rest)
    from elit.training.host_run import finetune

    finetune(config)
