"""Clips as files: GIF and, where the extra `video` is installed, MP4; written whole, and read frame by frame.

A file of ours shows FRAMES_PER_SECOND frames. In a GIF all frames share one palette of 256 colours, white among them, so
that what stands still does not flicker; equal frames that follow each other are one of a longer time in it.
"""

import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from elit.errors import UserError
from elit.files import read_bytes, written_whole
from elit.pixels import as_tensor
from elit.words import one_line

FRAMES_PER_SECOND = 10
Format = Literal["png", "gif", "mp4"]  # the first of pictures, the others of clips
FORMATS: tuple[Format, ...] = ("png", "gif", "mp4")
ANIMATED = (".gif", ".webp", ".png", ".apng")  # whose frames PIL reads
VIDEOS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska", ".avi": "avi"}
CLIP_BYTES = 2**30  # that a file may have
MOST_PIXELS = 2**26  # of a frame


def chosen_format(wanted: Format | None, of_clips: bool) -> Format:
    """The format that a model's samples are written in: the wanted one, or PNG of pictures and GIF of clips.

    Raises UserError for a format of the other kind, and as `check_format` does.
    """
    form = wanted or ("gif" if of_clips else "png")
    if of_clips and form == "png":
        raise UserError("the model makes clips, which a PNG does not hold; give --format gif or mp4")
    if not of_clips and form != "png":
        raise UserError(f"the model makes pictures, and {form} is for clips; leave --format {form} out")
    check_format(form)
    return form


def check_format(name: Format) -> None:
    """Raises UserError, before the work, where files of a format can be neither read nor written here."""
    if name == "mp4" and importlib.util.find_spec("av") is None:
        raise UserError("video files need PyAV, which is not installed; pip install 'elit-diffusion[video]', or use GIFs")


def save_clip(frames: Sequence[Image.Image], file: Path, made_by: str | None = None) -> None:
    """Writes RGB frames of one size as a GIF or an MP4, as the file's suffix says, whole or not at all.

    made_by: the name of the program, for a GIF's own notes.
    """
    if file.suffix == ".mp4":
        _save_mp4(frames, file)
    else:
        with written_whole(file) as part:
            _write_gif(frames, part, made_by)


def gif(frames: Sequence[Image.Image], made_by: str | None = None) -> bytes:
    """The bytes of a GIF."""
    stream = io.BytesIO()
    _write_gif(frames, stream, made_by)
    return stream.getvalue()


def _write_gif(frames: Sequence[Image.Image], to: Path | io.BytesIO, made_by: str | None) -> None:
    together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    palette = together.quantize(255, Image.Quantize.MEDIANCUT)
    colours = (palette.getpalette() or [])[: 3 * 255]
    palette.putpalette([*colours, *[0] * (3 * 255 - len(colours)), 255, 255, 255])
    first, *others = (_in_colours(frame, palette) for frame in frames)
    notes: dict[str, Any] = {} if made_by is None else {"comment": made_by.encode()}
    first.save(
        *(to, "GIF"),
        save_all=True,
        append_images=others,
        duration=1000 // FRAMES_PER_SECOND,
        loop=0,
        optimize=False,
        **notes,
    )


def _in_colours(frame: Image.Image, palette: Image.Image) -> Image.Image:
    """A frame in the colours of a palette, whose last is white: what is white stays so, which PIL's own search may miss."""
    numbers = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    numbers[(np.asarray(frame) == 255).all(axis=-1)] = 255
    made = Image.fromarray(numbers)
    made.putpalette(palette.getpalette() or [])
    return made


def _save_mp4(frames: Sequence[Image.Image], file: Path) -> None:
    """H.264 in one thread, so that equal frames make equal bytes; odd sides are made even by their last row or column."""
    check_format("mp4")
    import av

    with written_whole(file) as part, av.open(str(part), "w", format="mp4") as container:
        width, height = frames[0].size
        stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "12", "preset": "medium"}
        for frame in frames:
            pixels = np.pad(np.asarray(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def read_frames(content: bytes, suffix: str) -> Iterator[Image.Image]:
    """The frames of a file, first to last, as they are stored: RGB, or with transparency.

    A file is read as its suffix says, and never as a list that leads to other files. Raises UserError, saying why, for
    what cannot be read, once the frames before are given.
    """
    try:
        yield from _read_video(content, VIDEOS[suffix]) if suffix in VIDEOS else _read_animation(content)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # a broken file makes readers raise nearly anything
        why = re.sub(r" <\S+ object at 0x[0-9a-f]+>", "", one_line(str(error)))[:200]  # an address tells nobody anything
        raise UserError(f"its frames cannot be read ({why or type(error).__name__})") from error


def _read_animation(content: bytes) -> Iterator[Image.Image]:
    with Image.open(io.BytesIO(content), formats=("GIF", "WEBP", "PNG")) as image:
        _check_size(image.width, image.height)
        for frame in ImageSequence.Iterator(image):
            yield frame.convert("RGBA" if frame.has_transparency_data else "RGB")


def _read_video(content: bytes, form: str) -> Iterator[Image.Image]:
    check_format("mp4")
    import av

    with av.open(io.BytesIO(content), "r", format=form) as container:
        if not container.streams.video:
            raise UserError("it holds no moving pictures")
        stream = container.streams.video[0]
        _check_size(stream.width, stream.height)
        for frame in container.decode(stream):
            yield frame.to_image()


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        raise UserError(f"its frames are {width} x {height}, more than can be read")


def read_clip(file: Path) -> Tensor:
    """(3, T, H, W) uint8 of a file that `save_clip` wrote. Raises UserError, naming the file, for what cannot be read."""
    try:
        content = read_bytes(file, CLIP_BYTES)
        frames = [
            as_tensor(frame.convert("RGB"))
            for frame in read_frames(content, file.suffix.lower())
            for _ in range(max(1, round(frame.info.get("duration", 0) * FRAMES_PER_SECOND / 1000)))
        ]
    except (OSError, UserError) as error:
        raise UserError(f"{file} cannot be read as a clip ({error}); remove it, and give the same command again") from error
    return torch.stack(frames, dim=1)
