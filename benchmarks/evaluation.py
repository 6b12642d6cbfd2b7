"""What measuring quality costs, beside the libraries that people use for it (Linux only, for its peaks of memory).

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --width 128 --rows 400 --streamed 500 --images 64 --repeats 1     # a small check

1. The Fréchet distance of two covariances, well-posed and singular, beside scipy.linalg.sqrtm of their product and
   torchmetrics' eigenvalues of it. Figures of another library may differ by the rounding of its general roots.
2. Precision and recall beside scikit-learn's brute-force neighbours, which find no more than the radii of both sets: ours
   also asks which ball holds which row.
3. Mean and covariance of streamed features.
4. EfficientNet-Lite0 and Inception features of images in memory and in PNG files, decoding and resize included, and the same
   with their moments, beside the bare network on batches that are ready.

Parts 1 to 3 run each time in a process of its own, whose peak of memory is told, all imports and inputs included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from elit.console import console as progress
from timing import Variant, interleave, machine, open_report, peak_mib, spread

if TYPE_CHECKING:
    from elit.evaluation.extractors import Extractor

COUNTS = {"well-posed": 2, "singular": 0.5}  # rows of the features, in widths
BATCH = 16


def covariances(width: int, kind: str) -> tuple[Tensor, Tensor]:
    """Of features whose deviations fall to a thousandth."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.logspace(0, -3, width, dtype=torch.float64)

    def one() -> Tensor:
        turn = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        rows = torch.randn(int(COUNTS[kind] * width), width, generator=generator, dtype=torch.float64)
        return torch.cov((rows * deviations @ turn).T)

    return one(), one()


def features(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Two sets that overlap, float32."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator), 0.9 * torch.randn(rows, width, generator=generator)


def by_ours(a: Tensor, b: Tensor) -> float:
    from elit.evaluation.metrics import frechet_distance

    zero = torch.zeros(len(a))
    return frechet_distance(zero, a, zero, b)


def by_scipy(a: Tensor, b: Tensor) -> float:
    import scipy.linalg

    return float((a + b).trace()) - 2 * scipy.linalg.sqrtm((a @ b).numpy()).trace().real


def by_torchmetrics(a: Tensor, b: Tensor) -> float:
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(torch.zeros(len(a)), a, torch.zeros(len(b)), b))


def balls_by_ours(a: Tensor, b: Tensor) -> list[float]:
    from elit.evaluation.metrics import precision_recall

    return list(precision_recall(a, b, 3))


def balls_by_sklearn(a: Tensor, b: Tensor) -> list[float]:
    """The mean radius of each set."""
    from sklearn.neighbors import NearestNeighbors

    found = []
    for x in (a.numpy(), b.numpy()):
        neighbours = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(x)
        found.append(float(neighbours.kneighbors(x)[0][:, -1].mean()))
    return found


def stream(rows: int, width: int) -> float:
    """The trace of the covariance of rows that come batch by batch."""
    from elit.evaluation.moments import MomentSums

    sums, generator = MomentSums(width), torch.Generator().manual_seed(0)
    for first in range(0, rows, BATCH):
        sums.add(torch.randn(min(BATCH, rows - first), width, generator=generator))
    return float(sums.moments().covariance.trace())


def job(name: str, args: argparse.Namespace) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What a child runs, and on what."""
    part, _, rest = name.partition(" ")
    kind, _, by = rest.partition(" by ")
    if part == "frechet":
        return {"ours": by_ours, "scipy": by_scipy, "torchmetrics": by_torchmetrics}[by], covariances(args.width, kind)
    if part == "balls":
        return {"ours": balls_by_ours, "scikit-learn": balls_by_sklearn}[by], features(args.rows, args.width)
    assert part == "stream", name
    return stream, (args.streamed, args.width)


def run_job(name: str, args: argparse.Namespace) -> None:
    """What a child does: one warm-up on a tiny input, for imports and threads, then the job, timed."""
    tiny = argparse.Namespace(**{**vars(args), "width": 16, "rows": 32, "streamed": 32})
    run, given = job(name, tiny)
    run(*given)
    run, given = job(name, args)
    start = time.perf_counter()
    value = run(*given)
    seconds = time.perf_counter() - start
    peak = peak_mib()
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_mib": peak, "value": value}) + "\n")


def in_children(names: list[str], args: argparse.Namespace, title: str) -> dict[str, list[dict[str, Any]]]:
    """Every job `repeats` times, by turns, each in a fresh process with as many threads for all libraries."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    sizes = [f"--{name}={getattr(args, name)}" for name in ("width", "rows", "streamed", "threads")]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    turns = [names[turn % len(names) :] + names[: turn % len(names)] for turn in range(args.repeats)]
    for name in track([name for turn in turns for name in turn], title, console=progress):
        command = [sys.executable, __file__, "--job", name, *sizes]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **threads})
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def table_of(title: str, found: dict[str, list[dict[str, Any]]], unit: str) -> Table:
    """A line for each job: seconds, how many times those of the first, peak of memory, and what came out."""
    table = Table(title=title)
    for column in ("", "seconds (quartiles)", "times ours", "peak, MiB", unit):
        table.add_column(column, justify="left" if not column else "right")
    first = next(iter(found.values()))
    for name, runs in found.items():
        ratios = [run["seconds"] / ours["seconds"] for run, ours in zip(runs, first, strict=True)]
        value = runs[0]["value"]
        shown = ", ".join(f"{v:.4g}" for v in value) if isinstance(value, list) else f"{value:.10g}"
        seconds = spread([run["seconds"] for run in runs]).show()
        peak = max(run["peak_mib"] for run in runs)
        table.add_row(name.partition(" by ")[2] or name, seconds, f"{spread(ratios).median:.2f}", f"{peak:,.0f}", shown)
    return table


def networks(place: Path) -> dict[str, tuple["Extractor", Callable[[Tensor], object], int]]:
    """By name: the extractor, the bare network, and the side of its input. Inception's weights are drawn: speed alone."""
    from elit.evaluation.extractors import load_extractor
    from elit.evaluation.features import INPUT_SIZE
    from elit.evaluation.inception import SIDE, Inception

    torch.manual_seed(0)
    torch.save(Inception().state_dict(), place / "inception.pth")
    lite = load_extractor("efficientnet-lite0")
    inception = load_extractor("inception", weights=place / "inception.pth")
    return {
        "EfficientNet-Lite0": (lite, lambda x: lite.network.extract_features(x).mean((2, 3)), INPUT_SIZE),  # type: ignore[operator]
        "Inception": (inception, inception.network.of_ready, SIDE),  # type: ignore[dict-item]
    }


def time_features(
    name: str, network: tuple["Extractor", Callable[[Tensor], object], int], count: int, repeats: int
) -> tuple[Table, dict[str, list[float]]]:
    """Part 4, in this process."""
    from elit.evaluation.measure import measure_features
    from elit.evaluation.sources import Images, Source, open_images, prefetched
    from elit.pictures import save_png, to_image
    from elit.pixels import to_float

    extractor, run, side = network
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    ready = torch.randn(BATCH, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as place:
        for i, image in enumerate(images):
            save_png(to_image(to_float(image)), Path(place) / f"{i:05d}.png")

        @torch.inference_mode()
        def bare(_: None) -> None:
            for _ in range(count // BATCH):
                run(ready)

        def features(source: Source) -> None:
            runs = [(first, first + BATCH) for first in range(0, count, BATCH)]
            for _, pixels in prefetched(source.read, runs, source.in_memory):
                extractor(pixels)

        def moments(source: Source) -> object:
            return measure_features(source, extractor, BATCH, Path(place) / "work")

        memory, files = Images("memory", images), open_images(place)
        variants = {
            "the bare network": Variant(bare),
            "images in memory": Variant(lambda _: features(memory)),
            "PNG files": Variant(lambda _: features(files)),
            "images in memory, and moments": Variant(lambda _: moments(memory)),
            "PNG files, and moments": Variant(lambda _: moments(files)),
        }
        seconds = interleave(variants, repeats, name)
    table = Table(title=f"{name} features of {count} images of 32 x 32, batches of {BATCH}, float32")
    for column in ("", "images/s (quartiles)", "of the bare network"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, times in seconds.items():
        shares = [bare / own for own, bare in zip(times, seconds["the bare network"], strict=True)]
        table.add_row(kind, spread([count / s for s in times]).show(digits=1), f"{spread(shares).median:.1%}")
    return table, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=2048, help="features")
    parser.add_argument("--rows", type=int, default=10_000, help="of each set of part 2")
    parser.add_argument("--streamed", type=int, default=50_000, help="rows of part 3")
    parser.add_argument(
        "--images", type=int, default=2400, help=f"of part 4, a multiple of {BATCH}; a tenth of it for Inception"
    )
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.job:
        run_job(args.job, args)
        return
    if args.images % BATCH:
        parser.error(f"--images {args.images} is no multiple of {BATCH}")
    out = open_report()
    figures: dict[str, Any] = {"machine": machine()}
    size = f"{args.rows:,} x {args.rows:,} x {args.width:,} float32"
    jobs = {
        **{
            f"Fréchet distance, {kind} covariances of {args.width} features, float64": (
                1,
                [f"frechet {kind} by {by}" for by in ("ours", "scipy", "torchmetrics")],
                "distance",
            )
            for kind in COUNTS
        },
        f"Precision and recall, {size}, beside two searches for the radii": (
            2,
            [f"balls {args.rows} by {by}" for by in ("ours", "scikit-learn")],
            "precision, recall / mean radii",
        ),
        f"Mean and covariance of {args.streamed:,} x {args.width:,} streamed": (3, ["stream"], "trace"),
    }
    for title, (part, names, unit) in jobs.items():
        if part in args.parts:
            figures[title] = in_children(names, args, f"part {part}")
            out.print(table_of(title, figures[title], unit))
    if 4 in args.parts:
        with tempfile.TemporaryDirectory() as place:
            known = networks(Path(place))
        for (name, network), count in zip(
            known.items(), (args.images, args.images // 10 // BATCH * BATCH or BATCH), strict=True
        ):
            table, figures[name] = time_features(name, network, count, args.repeats)
            out.print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
