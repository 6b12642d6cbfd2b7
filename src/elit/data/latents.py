"""Latents of prepared pictures and clips: what `elit prepare latents` writes, and whose codec decodes them.

The codec and the encoders always run on the same tiles of pictures, since sums differ in the last bit with the batch's size.
So the bytes are the same for any number of processes, and after any interruption, on the same kind of device.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from elit.autoencoders import KLCodec
from elit.codec import check_sort, moments_to_latents
from elit.console import progress_bar, say
from elit.data.dataset import SETTINGS_FILE, DataInfo, PreparedData
from elit.data.shards import Preparation
from elit.distributed import barrier, from_main, is_main, rank, together, world_size
from elit.encoder import VisionEncoder
from elit.errors import UserError
from elit.pixels import to_float
from elit.records import Count, checked, read_json
from elit.weights import digest_of
from elit.words import spread

PART_IMAGES = 256  # about so many are written, and lost by a kill, at once
LARGEST_TILE = 256
CHECKED, POOR = 16, 20.0  # pictures that are decoded again, and the PSNR in dB below which the codec looks wrong
READERS = 4
FLOAT16_MAX = 65504

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Encoding:
    """What is made of a picture: the codec's moments, on request of the mirrored picture too, and features by encoders.

    Of a clip it is the moments alone.
    """

    codec: KLCodec
    encoders: tuple[VisionEncoder, ...] = ()
    mirror: bool = False

    def columns(self, images_BCHW: Tensor) -> Columns:
        """The stored columns of uint8 images (B, 3, H, W), or clips (B, 3, T, H, W), float32 (B, ...), on the CPU."""
        out = {}
        for name, feature, images in (
            ("latent", "feature", images_BCHW),
            ("mirrored", "mirrored.feature", images_BCHW.flip(-1)),
        )[: 1 + self.mirror]:
            out[name] = self.codec.encode_moments(to_float(images)).cpu()
            out |= {f"{feature}.{encoder.column}": encoder.encoder_tokens(images).cpu() for encoder in self.encoders}
        return out

    def info(self, source: DataInfo, psnr: float | None = None) -> DataInfo:
        """What the prepared folder holds. Raises UserError for what the codec or the encoders cannot take."""
        if source.kind == "latents":
            raise UserError(
                "the source holds latents, and pictures become latents, or clips; give a folder that elit prepare images or"
                " elit prepare clips wrote"
            )
        clips = source.kind == "clips"
        check_sort(self.codec, clips, "the source holds")
        if clips and self.encoders:
            raise UserError("features are of pictures, and the source holds clips; leave --features out")
        if wrong := [
            size for size in source.buckets or (source.size or (1, 1),) if any(side % self.codec.side for side in size)
        ]:
            what = "clips" if clips else "pictures"
            raise UserError(
                f"the {what} are {wrong[0][0]} x {wrong[0][1]}, and the codec needs sides that are multiples of"
                f" {self.codec.side}; prepare them in such a size"
            )
        if self.encoders and source.size is None:
            raise UserError("features need pictures of one size, and these have buckets; leave --features out")
        features = {e.column: (*e.grid(*source.size), e.width) for e in self.encoders if source.size is not None}
        if len(features) < len(self.encoders):
            raise UserError("two encoders of --features have the same name; rename one's folder")
        return dataclasses.replace(
            source,
            kind="latents",
            size=source.size and (source.size[0] // self.codec.side, source.size[1] // self.codec.side),
            channels=self.codec.channels,
            frames=self.codec.latent_frames(source.frames) if clips else 1,
            buckets=tuple((height // self.codec.side, width // self.codec.side) for height, width in source.buckets),
            values="moments",
            scale=self.codec.scale,
            shift=self.codec.shift,
            codec=self.codec.name,
            psnr=psnr,
            mirror=self.mirror,
            features=features,
        )

    def settings(self, source: PreparedData, tile: int) -> dict[str, object]:
        """All that decides the bytes."""
        parameter = next(self.codec.autoencoder.parameters())
        return {
            "prepare": "latents",
            "source": read_json(source.folder / SETTINGS_FILE, dict[str, object]),
            "count": len(source),
            "codec": self.codec.name,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
            "mirror": self.mirror,
            "features": {encoder.column: digest_of(encoder.model) for encoder in self.encoders},
            "tile": tile,
        }

    def psnr(self, image_CHW: Tensor, moments_MHW: Tensor) -> float:
        """Of decode(encode(x)) and x, in dB: 10 log10(4 / mean squared error) for images in [-1, 1]; at most 100."""
        mean = moments_MHW[None].chunk(2, dim=1)[0]
        x = moments_to_latents(moments_MHW[None], torch.zeros_like(mean), "moments", self.codec.scale, self.codec.shift)
        error = (self.codec.decode(x).cpu()[0].clamp(-1, 1) - to_float(image_CHW)).square().mean().item()
        return 10 * math.log10(4 / max(error, 4e-10))


def prepare_latents(source: PreparedData, encoding: Encoding, out: Path, tile: int | Literal["auto"] = "auto") -> DataInfo:
    """Writes the latents of all pictures into `out`, or what is missing there; every process of a torchrun calls it.

    tile: pictures or clips in one call of the codec. "auto": the one that was recorded there, or else it is probed and
    recorded. Raises UserError for a folder of other settings or of what the codec cannot take, and where float16 cannot
    hold what the codec makes; what is finished is kept.
    """
    if tile != "auto" and tile < 1:
        raise UserError(f"a tile holds at least 1 picture, not {tile}")
    info = encoding.info(source.info)
    with ExitStack() as stack:

        def enter(turn: bool) -> Preparation | None:
            if not turn:
                return None
            settings = encoding.settings(source, settled_tile(source, encoding, out) if tile == "auto" else tile)
            return stack.enter_context(Preparation(out, settings, exclusive=is_main()))

        entered = [together(lambda: enter(is_main()))]  # settles the tile, and the others read it
        entered.append(together(lambda: enter(not is_main())))
        (folder,) = (one for one in entered if one is not None)
        parts = parts_of(len(source), folder.settings["tile"])
        if not folder.is_finished:
            together(lambda: write_parts(source, encoding, info.schema, folder, parts))
            from_main(lambda: finish(folder, info, len(parts)))
        barrier()
    return PreparedData(out).info


def finish(folder: Preparation, info: DataInfo, parts: int) -> None:
    """Joins the parts, all of which are there, and describes them, with the mean PSNR of those rows that have one."""
    measured = [value for note in folder.notes(parts) for value in note.psnr]
    folder.finish(dataclasses.replace(info, psnr=round(sum(measured) / len(measured), 2)), parts)


def settled_tile(source: PreparedData, encoding: Encoding, out: Path) -> int:
    """The tile that a folder was begun with, or a probed one."""
    try:
        return checked(read_json(out / SETTINGS_FILE, dict[str, object]).get("tile"), Count, SETTINGS_FILE)
    except UserError:  # not begun, or another's: Preparation says so
        tile = probe_tile(encoding.columns, largest_image(source))
        text = f"a tile of {tile} is the fastest that fits; --tile {tile} repeats these bytes elsewhere"
        say(text)
        return tile


def largest_image(source: PreparedData) -> Tensor:
    """(3, H, W): a picture of the size that takes the most memory; (3, T, H, W) of clips."""
    if source.info.size is not None:
        return source.info.in_frames(source.image(0))
    areas = torch.tensor([height * width for height, width in source.info.buckets])
    return source.image(int(areas[source.buckets].argmax()))


def probe_tile(encode: Callable[[Tensor], Any], image_CHW: Tensor, clock: Callable[[], float] = time.perf_counter) -> int:
    """Doubles the tile from 1 until memory ends or pictures per second grow by less than a tenth; the best one.

    Raises UserError where one picture alone does not fit.
    """
    best, best_rate, tile = 0, 0.0, 1
    while tile <= LARGEST_TILE:
        images = image_CHW.expand(tile, *image_CHW.shape)
        try:
            encode(images)  # the first call of a size also chooses kernels
            start = clock()
            encode(images)
            rate = tile / (clock() - start)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "memory" not in str(error):
                raise
            break
        if rate < 1.1 * best_rate:
            break
        best, best_rate, tile = tile, rate, 2 * tile
    if not best:
        raise UserError("not even one picture fits in memory; prepare smaller ones, or encode on another device")
    return best


def parts_of(count: int, tile: int) -> list[range]:
    """The rows of every part: whole tiles of them."""
    step = tile * max(1, PART_IMAGES // tile)
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


def write_parts(
    source: PreparedData, encoding: Encoding, schema: pa.Schema, folder: Preparation, parts: Sequence[range]
) -> None:
    """Writes this process's share of the missing parts."""
    mine = [part for part in range(rank(), len(parts), world_size()) if not folder.has(part)]
    checked = set(spread(CHECKED, len(source)))
    with progress_bar() as bar, ThreadPoolExecutor(READERS) as pool:
        total = sum(len(parts[part]) for part in mine)
        task = bar.add_task("encoding", total=total, unit=source.info.kind, visible=is_main())
        for part in mine:
            made, psnr = [], []
            for rows, images in tiles_of(source, parts[part], folder.settings["tile"], pool):
                columns = encoding.columns(images)
                psnr += [encoding.psnr(images[i], columns["latent"][i]) for i, row in enumerate(rows) if row in checked]
                made.append((rows, to_float16(columns, rows, source)))
                bar.advance(task, len(rows))
            folder.write(part, schema, arrow_columns(source, schema, parts[part], made), psnr=psnr)
            if part == 0 and len(parts) > 1 and (warning := poor(sum(psnr) / len(psnr))):
                say(warning, "yellow")  # long before the end, which says it of all


def poor(psnr: float) -> str | None:
    """A warning where decode(encode(x)) is far from x."""
    if psnr >= POOR:
        return None
    return (
        f"decoded latents are far from their pictures ({psnr:.1f} dB; a fitting codec has more than {POOR:g});"
        " see whether this is the right codec for such pictures"
    )


def tiles_of(source: PreparedData, rows: range, tile: int, pool: ThreadPoolExecutor) -> Iterator[tuple[list[int], Tensor]]:
    """(rows, their images), tile by tile, each of pictures of one size; the next is read meanwhile."""
    sizes = [0] * len(rows) if source.info.size is not None else source.buckets[rows.start : rows.stop].tolist()
    groups = [[row for row, size in zip(rows, sizes, strict=True) if size == wanted] for wanted in sorted(set(sizes))]
    tiles = [group[first : first + tile] for group in groups for first in range(0, len(group), tile)]

    def read(chosen: list[int]) -> list[Future[Tensor]]:
        return [pool.submit(source.image, row) for row in chosen]

    ahead = read(tiles[0])
    for i, chosen in enumerate(tiles):
        waiting, ahead = ahead, read(tiles[i + 1]) if i + 1 < len(tiles) else []
        yield chosen, torch.stack([source.info.in_frames(future.result()) for future in waiting])


def to_float16(columns: Columns, rows: Sequence[int], source: PreparedData) -> dict[str, np.ndarray[Any, Any]]:
    """The rows of a tile as they are stored, flat; ValueError, naming the picture, for what float16 cannot hold."""
    out = {}
    for name, values in columns.items():
        flat = values.flatten(1)
        wrong = ~(flat.abs() <= FLOAT16_MAX).all(1)  # a NaN compares as false
        if wrong.any():
            first = int(wrong.nonzero()[0])
            key, largest = source.table["key"][rows[first]].as_py(), flat[first].abs().max()
            raise UserError(
                f"{name} of {key} holds {largest:g}, which float16 cannot keep; encode with --dtype fp32, or see whether the"
                " codec is whole"
            )
        out[name] = flat.half().numpy()
    return out


def arrow_columns(
    source: PreparedData, schema: pa.Schema, rows: range, made: Sequence[tuple[list[int], dict[str, np.ndarray[Any, Any]]]]
) -> dict[str, object]:
    """The table's columns of a part, its rows in the source's order."""
    table = source.table.slice(rows.start, len(rows))
    columns: dict[str, object] = {
        name: table[name].combine_chunks() for name in ("label", "key", "bucket") if name in table.schema.names
    }
    by_row = {row: (arrays, i) for chosen, arrays in made for i, row in enumerate(chosen)}
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name in columns:
            continue
        values = [by_row[row][0][name][by_row[row][1]] for row in rows]
        flat = pa.array(np.concatenate(values))
        if pa.types.is_fixed_size_list(kind):
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
        else:
            offsets = np.cumsum([0, *(len(value) for value in values)], dtype=np.int32)
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return columns
