"""`elit serve` and `elit app`: a model over HTTP, and a page to look at it."""

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from elit.cli.parsing import DTYPES, Parser, folder, option, parse_numbers, place, whole
from elit.cli.sample import add_prompts, fraction
from elit.errors import UserError

if TYPE_CHECKING:
    from elit.serving.messages import Settings

KEY_BYTES, MOST_KEYS, SHORTEST_KEY = 2**16, 1000, 16


def add_serve(command: Parser) -> None:
    command.describe(
        "Serves a model over HTTP: OpenAI's images interface, with budgets and deadlines on top. Under load, budgets are"
        " lowered at every step of the sampler so that requests are done in time; what cannot be is refused at once."
        " SIGTERM ends it when what is under way is done.",
        "elit serve",
        "elit serve --model my-model --port 9000 --min-budget 1/4 --deadline-ms 2000",
        "elit serve --host 0.0.0.0 --api-key-file keys.txt",
        "elit serve --ray --replicas 1:8 --devices cuda:0",
    )
    add_model(command)
    command.add_argument("--min-budget", type=fraction, default="1/16", metavar="BUDGET", help="the lowest that is granted")
    command.add_argument(
        "--deadline-ms", type=milliseconds, help="of requests that name none; 3 times what they take alone if not given"
    )
    command.add_argument("--policy", choices=("deadline", "fifo"), default="deadline", help="fifo: full budgets, in order")
    command.add_argument("--max-n", type=whole(1, 1000), default=16, help="images of a request, at most")
    command.add_argument("--max-steps", type=whole(1, 10_000), default=250, help="steps of a request, at most")
    command.add_argument("--queue", type=whole(1, 100_000), default=64, help="requests that wait on a device, at most")
    command.add_argument("--rows", type=whole(1, 65_536), default=16, help="rows of one call of the model, at most")
    command.add_argument("--api-key-file", type=folder, help="a file of keys, one a line, of which requests must give one")
    command.add_argument("--trace", type=folder, help="a file that every decision of the controller is appended to")
    command.add_argument("--drain", type=whole(1, 3600), default=30, metavar="SECONDS", help="given to requests at the end")
    command.add_argument("--ray", action="store_true", help="on a cluster of Ray, as replicas of one device each")
    command.add_argument("--replicas", type=replicas, default="1:4", metavar="LEAST:MOST", help="with --ray; how many")
    command.add_argument(
        "--ongoing", type=whole(1, 10_000), default=2, help="with --ray; requests a replica, above which there are more"
    )
    command.set_defaults(run=run_serve)


def add_app(command: Parser) -> None:
    command.describe(
        "Shows a page on this machine: a slider for the budget, which draws the same noise anew as it moves; the full budget"
        " beside it; and what both cost. Nothing is asked of any other machine.",
        "elit app",
        "elit app --model my-model --port 9000",
    )
    add_model(command)
    command.set_defaults(run=run_app)


def add_model(command: Parser) -> None:
    """What both take."""
    command.add_argument(
        "--model",
        type=place,
        help="a model or run folder, of elit finetune too, or a hub id; the bundled model if none is given",
    )
    command.add_argument(
        "--codec", type=place, help="for latent models: an AutoencoderKL by folder or hub id, or ema or mse"
    )
    add_prompts(command, of_images=False)
    command.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights and the work")
    command.add_argument("--devices", default="auto", help="such as cpu or cuda:0,cuda:1; auto is every GPU, or the CPU")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at; others than this machine need another")
    command.add_argument("--port", type=whole(0, 65_535), default=8000, help="0 is any free one")


@option
def milliseconds(text: str) -> float:
    """A time above 0."""
    value = float(parse_numbers(text)[0])
    if not 0 < value <= 1e9:
        raise UserError(f"{text} is not a time; give milliseconds such as 2000")
    return value


@option
def replicas(text: str) -> tuple[int, int]:
    """The least and the most replicas, such as 1:4, or a number that is both."""
    least, colon, most = text.partition(":")
    if not (least.isdigit() and (most if colon else least).isdigit()):
        raise UserError(f"{text} is no range of replicas; give one such as 1:4, or 2")
    found = int(least[:9]), int((most if colon else least)[:9])
    if not 1 <= found[0] <= found[1]:
        raise UserError(f"{text} is no range of replicas; give one such as 1:4, or 2")
    return found


def run_serve(options: argparse.Namespace) -> None:
    settings = settings_of(
        options,
        min_budget=options.min_budget,
        deadline_ms=options.deadline_ms,
        policy=options.policy,
        max_n=options.max_n,
        max_steps=options.max_steps,
        queue=options.queue,
        rows=options.rows,
        keys=() if options.api_key_file is None else read_keys(options.api_key_file),
        trace=options.trace,
        drain_s=float(options.drain),
    )
    if not options.ray:
        serve(options, settings)
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError("ray is not installed; pip install 'elit-diffusion[ray]'")
    if len(settings.devices) > 1:
        raise UserError(f"with --ray each replica has one device, not {', '.join(settings.devices)}; give --devices cuda:0")
    if options.trace is not None or options.port == 0:
        raise UserError("with --ray there is no --trace and no --port 0; leave the one out, and give a port")
    from elit.serving.cluster import serve_on_cluster

    serve_on_cluster(settings, options.host, options.port, options.replicas, float(options.ongoing))


def run_app(options: argparse.Namespace) -> None:
    serve(options, settings_of(options, page=True, repeats=1, deadline_ms=3_600_000.0))


def serve(options: argparse.Namespace, settings: "Settings") -> None:
    from elit.serving.running import serve

    serve(settings, options.host, options.port)


def settings_of(options: argparse.Namespace, **others: object) -> "Settings":
    """The settings of a server. Raises UserError where what it needs is not installed."""
    missing = [
        name for name in ("starlette", "uvicorn", "httptools", "prometheus_client") if importlib.util.find_spec(name) is None
    ]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {are} not installed; pip install 'elit-diffusion[serve]'")
    from elit.serving.messages import Settings

    devices = devices_of(options.devices)
    words = {"prompts": options.prompts, "encoder": options.encoder}
    return Settings(model=options.model, codec=options.codec, dtype=options.dtype, devices=devices, **words, **others)  # type: ignore[arg-type]


def devices_of(text: str) -> tuple[str, ...]:
    """The devices that a text names. Raises UserError for none."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise UserError(f"--devices {text!r} names none; give cpu, or cuda:0,cuda:1")
    if names != ("auto",):
        return names
    if not (any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()):  # torch takes seconds to load
        return ("cpu",)
    import torch

    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys in a file, one a line. Raises UserError for none, for many, and for short ones, without repeating them."""
    from elit.files import read_bytes

    try:
        lines = read_bytes(file, KEY_BYTES).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} holds other letters than ASCII's; write one key per line") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(keys) <= MOST_KEYS or min(map(len, keys)) < SHORTEST_KEY:
        wanted = f"1 to {MOST_KEYS} keys, one a line, of {SHORTEST_KEY} letters or more"
        raise UserError(f"{file} is to hold {wanted}; write such")
    return keys
