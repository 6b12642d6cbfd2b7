"""The embedded clips: what moves where, by measuring the drawn frames, and that a clip is a function of its generator."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from elit import UserError
from elit.data.moving_emoji import MOTIONS, MovingEmoji, Pose, draw, open_moving_emoji, poses
from elit.data.opening import open_data


@pytest.fixture(scope="module")
def hearts() -> MovingEmoji:
    data = open_data("moving-emoji/heart", 32, 8)
    assert isinstance(data, MovingEmoji)
    return data


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def ink(clip_CTHW: Tensor) -> Tensor:
    """(T, H, W) how far each pixel is from white."""
    return (1 - clip_CTHW).mean(0) / 2


def measured(clip_CTHW: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Of each frame: the middle of its ink, across and down in pixels, and how much ink there is."""
    mass = ink(clip_CTHW)
    total = mass.sum((1, 2))
    place = torch.arange(32) + 0.5
    return (
        ((mass.sum(1) * place).sum(1) / total).tolist(),
        ((mass.sum(2) * place).sum(1) / total).tolist(),
        total.tolist(),
    )


def test_a_row_is_an_emoji_and_a_motion(hearts: MovingEmoji) -> None:
    assert hearts.shape == (3, 8, 32, 32)
    assert len(hearts) == 25 * 8 and hearts.label_counts == (25,) * 8
    x, labels = hearts.read(torch.tensor([0, 7, 9, 199]), generators(1, 2, 3, 4))
    assert x.shape == (4, 3, 8, 32, 32) and -1 <= float(x.min()) < 0.5 and float(x.max()) == 1
    assert labels.tolist() == [0, 7, 1, 7]


def test_a_clip_is_a_function_of_its_row_and_generator(hearts: MovingEmoji) -> None:
    """Whatever the batch, in another process too; and another generator gives another clip."""
    rows = torch.tensor([3, 40, 90])
    together, _ = hearts.read(rows, generators(1, 2, 3))
    alone, _ = pickle.loads(pickle.dumps(hearts)).read(rows[1:2], generators(2))
    assert torch.equal(together[1], alone[0])
    other, _ = hearts.read(rows[1:2], generators(5))
    assert not torch.equal(other, alone)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("motion", [name for name in MOTIONS if name.startswith("moves")])
def test_what_moves_goes_its_way_at_one_speed_and_keeps_its_size(hearts: MovingEmoji, motion: str, seed: int) -> None:
    x, _ = hearts.read(torch.tensor([MOTIONS.index(motion)]), generators(seed))
    across, down, total = measured(x[0])
    along, still = (down, across) if motion.endswith(("up", "down")) else (across, down)
    sign = -1 if motion.endswith(("left", "up")) else 1
    steps = [sign * (b - a) for a, b in pairwise(along)]
    assert min(steps) > 0.5
    assert max(steps) - min(steps) < 0.15
    assert max(still) - min(still) < 0.15
    assert max(total) / min(total) < 1.03


@pytest.mark.parametrize("motion", ["grows", "shrinks"])
def test_what_grows_stays_in_place_and_its_ink_is_as_the_square_of_its_side(hearts: MovingEmoji, motion: str) -> None:
    x, _ = hearts.read(torch.tensor([MOTIONS.index(motion)]), generators(3))
    across, _, total = measured(x[0])
    at = poses(motion, 8, torch.rand(4, generator=generators(3)[0]).tolist())
    assert (total[-1] > total[0]) == (motion == "grows")
    for first, mass in zip(at, total, strict=True):
        assert mass / total[0] == pytest.approx((first.side / at[0].side) ** 2, rel=0.04)
    assert max(across) - min(across) < 0.5


@pytest.mark.parametrize(("motion", "turns"), [("turns-left", 1), ("turns-right", -1)])
def test_what_turns_does_so_to_its_side(motion: str, turns: int) -> None:
    """By 90 to 270 degrees in all; drawn at 90 degrees it is the upright picture turned by numpy."""
    angles = [pose.turn * turns for pose in poses(motion, 8, [0.5] * 4)]
    assert angles[0] == 0 and angles == sorted(angles) and angles[-1] == 180
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (72, 72, 3), dtype=np.uint8))
    upright, turned = (np.asarray(draw(picture, Pose(0.5, 0.5, 0.75, turns * turn), 32)).astype(int) for turn in (0, 90))
    assert abs(np.rot90(upright, turns) - turned).max() <= 2
    assert abs(np.rot90(upright, -turns) - turned).max() > 20


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_emoji_stays_inside_whatever_is_drawn(motion: str) -> None:
    """Its square at least, for all corners of the draw; what turns may reach a little over with its corners."""
    for corner in range(16):
        for pose in poses(motion, 5, [corner >> i & 1 for i in range(4)]):
            assert min(pose.x, pose.y) - pose.side / 2 > -1e-9
            assert max(pose.x, pose.y) + pose.side / 2 < 1 + 1e-9


def test_a_frame_drawn_whole_is_the_picture_averaged() -> None:
    """At side 1 and as many pixels as a whole number of which make the picture's, a frame is means of its squares."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    drawn = np.asarray(draw(Image.fromarray(pixels), Pose(0.5, 0.5, 1.0), 32)).astype(float)
    means = pixels.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert abs(drawn - means).max() <= 1


def test_a_kind_that_there_is_not_and_a_model_of_pictures_are_refused() -> None:
    with pytest.raises(UserError, match=r"'hart'.*heart"):
        open_moving_emoji("moving-emoji/hart", 32, 8)
    with pytest.raises(UserError, match="is clips, and the model takes pictures"):
        open_data("moving-emoji", 32)
