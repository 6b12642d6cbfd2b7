"""`elit prepare latents`: the latents of prepared pictures and clips, and features to align with."""

import argparse
from typing import Literal

from elit.cli.parsing import DTYPES, Commands, folder, place, torch_dtype
from elit.console import say, show
from elit.errors import UserError


def add_prepare_latents(kinds: Commands) -> None:
    kind = kinds.add_parser("latents", help="encode pictures or clips; resumable, and the same under torchrun")
    kind.describe(
        "Encodes prepared pictures or clips by an autoencoder of diffusers, for a latent model to train on, and stores a"
        " vision encoder's features beside pictures if asked. Resumable, and the same under torchrun with any number of"
        " processes.",
        "elit prepare latents my-data --codec ema --out my-latents",
        "elit prepare latents my-data --codec OWNER/NAME/vae --mirror --out my-latents",
        "elit prepare latents my-clips --codec OWNER/NAME/vae --out my-latents",
        takes="DATA --codec CODEC --out FOLDER",
    )
    kind.add_argument("data", type=place, metavar="DATA", help="a folder that elit prepare images or clips wrote")
    kind.add_argument(
        "--codec", type=place, required=True, help="an autoencoder by folder or hub id (a/b or a/b/vae), or ema or mse"
    )
    kind.add_argument("--out", type=folder, required=True, help="folder for the latents")
    kind.add_argument("--mirror", action="store_true", help="also of the mirrored pictures; training takes either")
    kind.add_argument(
        "--features",
        action="append",
        type=place,
        default=[],
        metavar="ENCODER",
        help="also the tokens of a vision encoder, by folder or hub id, such as facebook/dinov2-base; may be repeated",
    )
    kind.add_argument(
        "--tile", default="auto", help="pictures or clips in one call of the codec (auto: probed); changes last bits"
    )
    kind.add_argument("--device", default="auto", help="such as cpu or cuda; auto is a GPU where there is one")
    kind.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the codec")
    kind.set_defaults(run=run_prepare_latents)


def run_prepare_latents(options: argparse.Namespace) -> None:
    from elit.autoencoders import load_autoencoder
    from elit.data.dataset import PreparedData
    from elit.data.latents import Encoding, poor, prepare_latents
    from elit.distributed import is_main, local_device, process_group
    from elit.encoder import load_encoder

    tile, out = parse_tile(options.tile), options.out
    source, device = PreparedData(options.data), local_device(options.device)
    codec = load_autoencoder(options.codec, device)
    if options.dtype == "fp16" and codec.needs_float32:
        raise UserError(f"the codec {options.codec} overflows float16 (its force_upcast says so); give --dtype fp32 or bf16")
    if options.dtype != "fp32":
        codec.to(dtype=torch_dtype(options.dtype))
    encoders = tuple(load_encoder(name, device) for name in options.features)
    with process_group():
        info = prepare_latents(source, Encoding(codec, encoders, options.mirror), out, tile)
    if not is_main():
        return
    sizes = " x ".join(map(str, info.shape())) if info.size else f"{info.channels} x {len(info.buckets)} sizes"
    show(f"{info.count} latents of {sizes} are in {out}")
    if info.psnr is not None:
        warning = poor(info.psnr)
        if warning:
            say(warning, "yellow")
        else:
            show(f"decoded again, {'pictures' if info.frames == 1 else 'clips'} are {info.psnr:.1f} dB from themselves")


def parse_tile(text: str) -> int | Literal["auto"]:
    """A number of pictures, or "auto". Raises UserError for anything else."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--tile {text} is not a number of pictures; give one, such as 16, or auto")
    return int(text)
