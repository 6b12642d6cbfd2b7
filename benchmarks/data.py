"""How fast data are read for training and pictures are prepared, and what memory preparation takes.

    python benchmarks/data.py            # builds about 2 GB of its own data in a temporary folder
    python benchmarks/data.py --quick

1. Rows/s of `read_ahead` on 4 x 32 x 32 latents stored as float16 moments (8 x 32 x 32), noise drawn per row: with no
   worker, 1 (a thread) and 2 (processes). Cold: the files are first dropped from the page cache, and the workers start.
   Warm: the epochs right after, of the same workers. Between batches the main thread does nothing.
2. Pictures/s of `elit prepare images`, 500 x 375 JPEG to 256 x 256 by the ADM crop, start of the processes included, by
   the number of processes; beside a plain loop over PIL on one core that reads, crops, encodes and writes the same.
3. Peak memory of preparing N, 4 N and 8 N pictures, in a process of its own (Linux only).
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from rich.table import Table

from elit.console import console as progress
from elit.data.dataset import DataInfo, PreparedData
from elit.data.loader import read_ahead, read_part
from elit.data.prepare import ImageSettings, prepare_images
from elit.data.shards import Preparation
from timing import machine, memory_table, open_report, peak_mib

BATCH, PART = 256, 1000


def write_latents(folder: Path, rows: int) -> None:
    """Moments of normal numbers, with log-variances around -4."""
    info = DataInfo("latents", 0, (32, 32), ("all",), channels=4, values="moments", scale=0.18215)
    parts = -(-rows // PART)
    rng = np.random.default_rng(0)
    with Preparation(folder, {"rows": rows}) as work:
        for part in range(parts):
            count = min(PART, rows - part * PART)
            values = rng.standard_normal((count, 8, 32, 32), dtype=np.float32)
            values[:, 4:] -= 4
            latents = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16).reshape(-1)), 8192)
            work.write(part, info.schema, {"label": [0] * count, "key": [str(i) for i in range(count)], "latent": latents})
        work.finish(info, parts)


def drop_from_cache(folder: Path) -> None:
    """Makes the next read of a folder's files come from the disk."""
    for file in folder.glob("*.arrow"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_loading(args: argparse.Namespace, place: Path) -> tuple[Table, list[dict[str, Any]]]:
    """Part 1: an epoch cold, then the next ones warm; the median of the warm ones."""
    folder, steps = place / "latents", args.rows // BATCH
    write_latents(folder, args.rows)
    table = Table("workers", "cold, rows/s", "warm, rows/s", title=f"Reading {args.rows:,} latents, batches of {BATCH}")
    out = []
    for workers in (0, 1, 2):
        rates = []
        drop_from_cache(folder)
        start = time.perf_counter()
        load = partial(read_part, PreparedData(folder), 0, BATCH, part=range(BATCH))
        for step, _ in enumerate(read_ahead(load, range((1 + args.repeats) * steps), workers), start=1):
            if step % steps == 0:
                rates.append(steps * BATCH / (time.perf_counter() - start))
                progress.print(f"{workers} workers, epoch {step // steps}: {rates[-1]:,.0f} rows/s")
                start = time.perf_counter()
        cold, warm = rates[0], statistics.median(rates[1:])
        out.append({"workers": workers, "cold": cold, "warm": warm})
        table.add_row(str(workers), f"{cold:,.0f}", f"{warm:,.0f}")
    return table, out


def write_pictures(folder: Path, count: int) -> None:
    """500 x 375 JPEGs, smooth with some noise as photographs are, 1,000 a folder; 32 different ones, linked again."""
    rng = np.random.default_rng(0)
    for i in range(count):
        file = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i >= 32:
            file.hardlink_to(folder / "000" / f"{i % 32:06d}.jpg")
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.array(coarse) + rng.normal(0, 6, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def plain_loop(source: Path, out: Path) -> float:
    """Seconds of the loop that anybody writes, ADM's recipe in it."""
    out.mkdir()
    start = time.perf_counter()
    for file in sorted(source.rglob("*.jpg")):
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        while min(image.size) >= 512:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        buffer = io.BytesIO()
        image.crop((left, top, left + 256, top + 256)).save(buffer, "PNG", compress_level=1)
        (out / f"{file.stem}.png").write_bytes(buffer.getvalue())
    return time.perf_counter() - start


def time_preparing(args: argparse.Namespace, place: Path) -> tuple[Table, list[dict[str, Any]]]:
    """Part 2, interleaved with the loop: every round times both."""
    source = place / "pictures"
    write_pictures(source, args.pictures)
    table = Table("processes", "pictures/s", "a plain loop's, one core", "of loop x processes", title="Preparing, median")
    out = []
    for workers in args.processes:
        rates, loops = [], []
        for turn in range(args.repeats):
            name = f"{workers}-{turn}"
            loops.append(args.pictures / plain_loop(source, place / f"loop-{name}"))
            start = time.perf_counter()
            prepare_images(ImageSettings(str(source)), place / f"prepared-{name}", workers)
            rates.append(args.pictures / (time.perf_counter() - start))
            progress.print(f"{workers} processes: {rates[-1]:.1f} pictures/s, the loop {loops[-1]:.1f}")
        rate, loop = statistics.median(rates), statistics.median(loops)
        share = statistics.median(r / (lo * workers) for r, lo in zip(rates, loops, strict=True))
        out.append({"processes": workers, "rate": rate, "loop": loop, "share": share})
        table.add_row(str(workers), f"{rate:.1f}", f"{loop:.1f}", f"{share:.2f}")
    return table, out


def memory(count: int) -> float:
    """Peak resident MiB of a process that prepares `count` pictures."""
    with tempfile.TemporaryDirectory() as place:
        write_pictures(Path(place) / "pictures", count)
        command = [sys.executable, __file__, "--memory-of", place]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little data, once: a check that all of it runs")
    parser.add_argument("--rows", type=int, help="latents of part 1 (100,000)")
    parser.add_argument("--pictures", type=int, help="of part 2 (6,000)")
    parser.add_argument("--memory-count", type=int, help="N of part 3 (2,000)")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, help="rounds, of which the median is told (3)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, nargs="*", default=sorted({1, 2, cores}), help="of part 2")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        place = Path(args.memory_of)
        prepare_images(ImageSettings(str(place / "pictures")), place / "out", 1)
        sys.stdout.write(f"{peak_mib()}\n")
        return
    for name, full, quick in (
        ("rows", 100_000, 2_560),
        ("pictures", 6_000, 96),
        ("memory_count", 2_000, 16),
        ("repeats", 3, 1),
    ):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    out = open_report()
    figures: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as place:
        for part, (name, time_part) in {1: ("loading", time_loading), 2: ("preparing", time_preparing)}.items():
            if part in args.parts:
                table, figures[name] = time_part(args, Path(place))
                out.print(table)
    if 3 in args.parts:
        figures["memory_mib"] = {times * args.memory_count: memory(times * args.memory_count) for times in (1, 4, 8)}
        out.print(memory_table("Memory of preparing, one process", "pictures", figures["memory_mib"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
