"""Folders of clips: animated GIF and WebP, APNG and, where the extra `video` is installed, videos; and frames of a file."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from PIL import Image

from elit.data.crops import on_white
from elit.data.pictures_on_disk import PassedOver
from elit.data.sources import FolderSource
from elit.errors import UserError
from elit.media import VIDEOS, check_format, read_frames

CLIP_SUFFIXES = (".gif", ".webp", ".apng", *VIDEOS)


class ClipFolder(FolderSource):
    """A folder of clips, or a URL of one, labelled as a folder of pictures is: see `FolderSource`.

    Raises UserError for videos where they cannot be read.
    """

    suffixes = CLIP_SUFFIXES
    what = "clips"

    def walk(self, passed: PassedOver) -> Iterator[str]:
        for path in super().walk(passed):
            if PurePosixPath(path).suffix.lower() in VIDEOS:
                check_format("mp4")
            yield path


def decode_clip(content: bytes, suffix: str, count: int, every: int = 1) -> list[Image.Image]:
    """The first `count` of every `every`-th frame of a clip's file as RGB, transparent parts on white.

    Nothing behind them is read. Raises UserError for what cannot be read so far, and for a clip that is too short.
    """
    frames: list[Image.Image] = []
    number = -1
    for number, frame in enumerate(read_frames(content, suffix.lower())):
        if number % every == 0:
            frames.append(on_white(frame))
        if len(frames) == count:
            return frames
    needed = (count - 1) * every + 1
    raise UserError(f"it has {number + 1} frames, and {needed} are needed for {count} of every {every}")
