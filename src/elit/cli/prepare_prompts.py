"""`elit prepare prompts`: what a text encoder makes of prompts, for transformers of diffusers to be trained on."""

import argparse

from elit.cli.parsing import Commands, folder, place, whole
from elit.console import progress_bar, show

MOST_TOKENS = 4096


def add_prepare_prompts(kinds: Commands) -> None:
    kind = kinds.add_parser("prompts", help="embeddings of prompts by a text encoder; resumable")
    kind.describe(
        "Embeds prompts by a text encoder that transformers loads, and the empty prompt beside them, for elit finetune.",
        "elit prepare prompts captions.txt --encoder ./minilm --out my-prompts",
        "elit prepare prompts my-data --encoder OWNER/NAME --tokens 64 --out my-prompts",
        takes="PROMPTS --encoder ENCODER --out FOLDER",
    )
    kind.add_argument(
        "prompts",
        type=place,
        metavar="PROMPTS",
        help="a text file, one prompt a line, in the order of the pictures or of their labels; a folder that elit prepare"
        " images wrote, whose labels are taken; or emoji, the names of the embedded pictures",
    )
    kind.add_argument("--encoder", type=place, required=True, help="a text encoder, by folder or hub id")
    kind.add_argument("--out", type=folder, required=True, help="folder for the embeddings")
    kind.add_argument(
        "--tokens",
        type=whole(0, MOST_TOKENS),
        default=0,
        help="tokens to keep of each prompt; 0 keeps one, the mean of all, as sentence encoders are made for",
    )
    kind.add_argument("--device", default="auto", help="such as cpu or cuda; auto is a GPU where there is one")
    kind.set_defaults(run=run_prepare_prompts)


def run_prepare_prompts(options: argparse.Namespace) -> None:
    from elit.data.prompts import prepare_prompts, read_texts
    from elit.distributed import local_device
    from elit.text_encoder import load_text_encoder

    texts = read_texts(options.prompts)
    encoder = load_text_encoder(options.encoder, local_device(options.device))
    with progress_bar() as bar:
        task = bar.add_task("prompts", total=len(texts), unit="prompts")
        info = prepare_prompts(
            texts, encoder, options.out, options.tokens, done=lambda count: bar.update(task, advance=count)
        )
    length = "one vector each" if info.tokens == 0 else f"{info.tokens} tokens each"
    show(f"{info.count} prompts, {length} of {info.width} numbers, are in {options.out}")
