"""`elit prepare`: data for training."""

from elit.cli.parsing import Commands
from elit.cli.prepare_latents import add_prepare_latents


def add_prepare(commands: Commands) -> None:
    command = commands.add_parser("prepare", help="make data for training: latents of pictures")
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True)
    add_prepare_latents(kinds)
