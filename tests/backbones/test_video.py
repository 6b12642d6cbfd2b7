"""A DiT of clips, beside a second statement of it: positions, patches, and the whole model one frame at a time."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from elit import UserError, create_model
from elit.backbones.config import VideoConfig
from elit.backbones.layers import sincos_table
from elit.backbones.table import build_model
from elit.elastic.grid import Grid, Window, regions
from elit.elastic.grouping import token_index
from models import made

TINY = VideoConfig(
    input_size=(4, 8), frames=4, patch_size=2, in_channels=3, num_classes=3, width=36, depth=3, heads=2, head_depth=1,
    tail_depth=1, group_size=2, group_frames=2,
)  # fmt: skip


class Untouched(nn.Module):
    """In place of the last layer."""

    def forward(self, x_BNC: Tensor, c_BC: Tensor) -> Tensor:
        return x_BNC


def clips(config: VideoConfig, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (batch, config.in_channels, config.frames, *config.input_size)
    return torch.randn(shape, generator=generator), torch.rand(batch, generator=generator), torch.arange(batch)


@pytest.mark.parametrize(("width", "grid"), [(36, Grid(2, 3, 4)), (32, Grid(3, 2, 2)), (16, Grid(3, 5))])
def test_fixed_positions_are_sines_and_cosines_of_column_row_and_frame(width, grid):
    """Channel by channel in Python's own floats; what no share of the width takes up is zero."""
    axes = 3 if grid.frames > 1 else 2
    each = width // (2 * axes)
    table = sincos_table(grid, width)
    assert table.shape == (grid.size, width)
    token = 0
    for frame in range(grid.frames):
        for row in range(grid.height):
            for column in range(grid.width):
                wanted = []
                for place in (column, row, frame)[:axes]:
                    wanted += [math.sin(place * 10000 ** (-i / each)) for i in range(each)]
                    wanted += [math.cos(place * 10000 ** (-i / each)) for i in range(each)]
                wanted += [0.0] * (width - len(wanted))
                torch.testing.assert_close(table[token], torch.tensor(wanted))
                token += 1


def test_a_token_is_a_patch_of_one_frame_and_tokens_are_in_the_order_frame_row_column():
    """With an identity for an embedding, token n holds its patch's values, found by hand; and the way back is exact."""
    config = dataclasses.replace(TINY, width=12, heads=2)
    model = build_model(config)
    with torch.no_grad():
        model.patch_embedding.weight.copy_(torch.eye(12))
        model.patch_embedding.bias.zero_()
    x, _, _ = clips(config)
    tokens = model.embed(x)
    for frame in range(4):
        for row in range(2):
            for column in range(4):
                patch = x[:, :, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                n = (frame * 2 + row) * 4 + column
                assert torch.equal(tokens[:, n], patch.permute(0, 2, 3, 1).flatten(1))
    model.final = Untouched()
    assert torch.equal(model.predict(tokens, torch.zeros(2, 12), model.config.grid), x)


def test_a_window_holds_neighbours_in_space_and_time():
    """2 x 4 x 4 of the paper: the tokens of every group are one box of 2 frames, 4 rows and 4 columns."""
    grid, window = Grid(16, 16, 8), Window(4, 4, 2)
    index_GS = token_index(grid, regions(grid, window)[0])
    assert index_GS.shape == (64, 32)
    frame, row, column = index_GS // 256, index_GS // 16 % 16, index_GS % 16
    for place, side in ((frame, 2), (row, 4), (column, 4)):
        assert (place.amax(1) - place.amin(1) == side - 1).all()


@pytest.mark.parametrize("rope", [True, False])
def test_frames_are_told_apart_and_hear_each_other(rope):
    """What happens in one frame moves all others; and a clip played backwards is another clip, not the reverse of it."""
    config = dataclasses.replace(TINY, rope=rope)
    model = made(config)
    x, t, y = clips(config)
    v = model(x, t, y)
    moved = x.clone()
    moved[:, :, 1] += 0.5
    assert (model(moved, t, y) - v).abs().amax(dim=(0, 1, 3, 4)).min() > 1e-3
    assert (model(x.flip(2), t, y) - v.flip(2)).abs().max() > 1e-2


def test_without_positions_a_clip_is_a_set_of_frames():
    """The check above holds because of positions: without any, the frames of a dense model may come in any order."""
    config = dataclasses.replace(TINY, group_size=None)
    model = made(config)
    with torch.no_grad():
        model.positions.zero_()
    x, t, y = clips(config)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[:, :, order], t, y), model(x, t, y)[:, :, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [3, 5, 6])
def test_clips_of_another_length_run_where_positions_are_rotary(frames):
    """Windows cut short at the end of a clip too: every budget runs, and the full one is the model made for that length."""
    config = dataclasses.replace(TINY, rope=True)
    model, longer = made(config), dataclasses.replace(config, frames=frames)
    made_for_it = build_model(longer)
    made_for_it.load_state_dict(model.state_dict())
    x, t, y = clips(longer)
    for budget in (1 / 8, 1.0):
        v = model(x, t, y, budget)
        assert v.isfinite().all()
        assert torch.equal(v, made_for_it(x, t, y, budget))


def test_a_sharp_elastic_model_is_the_dense_one():
    """Anchored in three dimensions, made of a dense model's weights: at the full budget the dense model, within rounding."""
    dense = made(dataclasses.replace(TINY, group_size=None, rope=True))
    elastic = build_model(dataclasses.replace(TINY, rope=True, anchor="sharp"))
    names, theirs = elastic.canonical_names(), dense.canonical_names()
    state = elastic.state_dict()
    for canonical, name in theirs.items():
        state[names[canonical]] = dense.state_dict()[name]
    elastic.load_state_dict(state)
    x, t, y = clips(TINY)
    wanted = dense(x, t, y)
    assert ((elastic(x, t, y) - wanted).norm() / wanted.norm()).item() < 1e-4


@pytest.mark.parametrize(("size", "depth", "width", "split"), [("S", 12, 384, (2, 8, 2)), ("XL", 28, 1152, (4, 20, 4))])
def test_the_presets_are_the_papers_shape(size, depth, width, split):
    """8 x 32 x 32 inputs, 2,048 tokens in 64 windows of 2 x 4 x 4, and the split of the images' models."""
    with torch.device("meta"):
        model = create_model(f"ELIT-SiT-{size}/1x2x2", in_channels=16)
    assert model.input.shape == (16, 8, 32, 32)
    assert model.config.grid == Grid(16, 16, 8) and model.config.grid.size == 2048
    assert model.core is not None and model.core.window == Window(4, 4, 2)
    assert model.latents == 32
    before = list(model.blocks).index(model.core)
    assert (before, len(model.core.blocks), len(model.blocks) - before - 1) == split
    assert model.config.depth == depth
    assert model.patch_embedding.weight.shape == (width, 16 * 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frames": 1}, "frames is 1"),
        ({"group_frames": 5}, "group_frames 5 is more than the 4 frames"),
        ({"group_frames": 0}, "group_frames is 0"),
        ({"frames": 1024, "input_size": 128, "rope": True}, "a grid of 1024x64x64 tokens is too large"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(TINY, **fields)


def test_a_picture_and_a_single_frame_are_no_clips():
    model = made(dataclasses.replace(TINY, rope=True))
    x, t, y = clips(TINY)
    for wrong in (x[:, :, 0], x[:, :, :1], x.transpose(1, 2)):
        with pytest.raises(UserError, match=r"clips \(B, 3, T, H, W\) of at least 2 frames"):
            model(wrong, t, y)
