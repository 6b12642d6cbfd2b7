"""The embedded clips: emoji that move, turn, grow and shrink on white, drawn when they are asked for.

A row is an emoji and one of eight motions, which is its label. Where the emoji begins, how large it is and how fast it
moves is drawn from the row's generator, so that a clip is a function of (seed, step, place in the batch) as all batches are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from elit.codec import DataEncoding, Pixels
from elit.data.emoji import load_emoji
from elit.data.loader import NewGenerators
from elit.errors import UserError
from elit.labels import label_index
from elit.pixels import as_tensor, to_float

NAME = "moving-emoji"
MOTIONS = ("grows", "moves-down", "moves-left", "moves-right", "moves-up", "shrinks", "turns-left", "turns-right")
STORED = 72  # pixels of a side of Twemoji's pictures
DRAWN = 128  # pixels of a side that frames are drawn at, or a little more, before they are averaged down


def is_moving_emoji(source: str) -> bool:
    """Whether data.source names these clips: "moving-emoji", or "moving-emoji/heart,time" for those of some kinds."""
    return source.partition("/")[0] == NAME


@dataclass(frozen=True)
class Pose:
    """Where an emoji is: its middle (x, y) and its side, in sides of the frame, and its turn to the left in degrees."""

    x: float
    y: float
    side: float
    turn: float = 0.0


def poses(motion: str, frames: int, u: Sequence[float]) -> list[Pose]:
    """The poses of a clip's frames, evenly along a motion that four numbers u in [0, 1) decide; the emoji stays inside.

    Moving ones are 0.4 to 0.6 of the frame and cross at least half of the room there is. Turning ones are 0.45 to 0.65
    and turn by 90 to 270 degrees. Growing ones go from 0.25 to 0.4 up to 0.75 to 0.95.
    """
    steps = [k / (frames - 1) for k in range(frames)]
    if motion.startswith("moves"):
        side = 0.4 + 0.2 * u[0]
        room = 1 - side
        way = room * (0.5 + 0.5 * u[1])
        begin, across = side / 2 + (room - way) * u[2], side / 2 + room * u[3]
        along = [begin + way * k for k in steps]
        if motion.endswith(("left", "up")):
            along.reverse()
        upright = motion.endswith(("up", "down"))
        return [Pose(*((across, place) if upright else (place, across)), side) for place in along]
    if motion.startswith("turns"):
        side = 0.45 + 0.2 * u[0]
        room = 1 - side
        angle = (90 + 180 * u[1]) * (1 if motion.endswith("left") else -1)
        return [Pose(side / 2 + room * u[2], side / 2 + room * u[3], side, angle * k) for k in steps]
    small, large = 0.25 + 0.15 * u[0], 0.75 + 0.2 * u[1]
    x, y = (large / 2 + (1 - large) * place for place in u[2:4])
    sides = [small + (large - small) * k for k in (steps if motion == "grows" else reversed(steps))]
    return [Pose(x, y, side) for side in sides]


def draw(picture: Image.Image, pose: Pose, size: int) -> Image.Image:
    """A frame of `size` pixels with a square picture on white at a pose, drawn finer and then averaged."""
    finer = max(1, round(DRAWN / size))
    canvas = size * finer
    scale = picture.width / (pose.side * canvas)
    cos, sin = (scale * f(math.radians(pose.turn)) for f in (math.cos, math.sin))
    x, y, middle = pose.x * canvas, pose.y * canvas, picture.width / 2
    # where in the picture a place of the canvas comes from; y goes down, so that a turn to the left is this way round
    back = (cos, -sin, middle - cos * x + sin * y, sin, cos, middle - sin * x - cos * y)
    drawn = picture.transform((canvas, canvas), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor="white")
    return drawn.reduce(finer) if finer > 1 else drawn


@dataclass(frozen=True)
class MovingEmoji:
    """Clips of these frames, of `size` pixels a side. kinds: the subcategories of their emoji, all where there are none.

    Raises UserError for a kind that there is not.
    """

    size: int
    frames: int
    kinds: tuple[str, ...] = ()

    exact = True  # rows are read by number, so that a resumed run sees the same data
    members: ClassVar[tuple[Tensor, ...]] = ()  # all of one size

    def __post_init__(self) -> None:
        names = load_emoji(STORED).label_names
        for kind in self.kinds:
            label_index(kind, len(names), names)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """The emoji, in Unicode's order."""
        data = load_emoji(STORED)
        chosen = {label_index(kind, len(data.label_names), data.label_names) for kind in self.kinds or data.label_names}
        rows = [row for row, label in enumerate(data.labels.tolist()) if label in chosen]
        return [Image.fromarray(data.images[row].permute(1, 2, 0).numpy()) for row in rows]

    def __len__(self) -> int:
        return len(self.pictures) * len(MOTIONS)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of a model: channels, frames, height and width."""
        return 3, self.frames, self.size, self.size

    @property
    def encoding(self) -> DataEncoding:
        return Pixels()

    @property
    def label_names(self) -> tuple[str, ...]:
        return MOTIONS

    @property
    def label_counts(self) -> tuple[int, ...]:
        """The clips of each motion."""
        return (len(self.pictures),) * len(MOTIONS)

    def read(self, rows: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, T, H, W) float32 in [-1, 1] and labels (B,); row i draws four numbers from generator i."""
        clips = [self.clip(int(row), generator) for row, generator in zip(rows, generators, strict=True)]
        return to_float(torch.stack(clips)), rows % len(MOTIONS)

    def clip(self, row: int, generator: torch.Generator) -> Tensor:
        """(3, T, H, W) uint8."""
        picture, motion = self.pictures[row // len(MOTIONS)], MOTIONS[row % len(MOTIONS)]
        u = torch.rand(4, generator=generator).tolist()
        return torch.stack([as_tensor(draw(picture, pose, self.size)) for pose in poses(motion, self.frames, u)], dim=1)

    def stored_features(self, encoder: str) -> None:
        """Raises UserError: a vision encoder looks at pictures."""
        raise UserError("alignment looks at pictures, and the data are clips; set alignment.enabled false")

    def target(self, encoder: str, rows: Tensor, x_BCHW: Tensor, generators: NewGenerators) -> Tensor:
        self.stored_features(encoder)
        raise AssertionError


def open_moving_emoji(source: str, size: int, frames: int | None) -> MovingEmoji:
    """The clips that data.source names. Raises UserError for a kind that there is not, and for a model of pictures."""
    if frames is None:
        raise UserError(f"data.source {source} is clips, and the model takes pictures; give a preset such as SiT-S/1x2x2")
    kinds = source.partition("/")[2]
    return MovingEmoji(size, frames, tuple(kinds.split(",")) if kinds else ())
