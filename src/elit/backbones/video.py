"""A DiT of clips: frames of one size, cut into patches of one frame each, whose tokens all attend to each other.

Shapes: B batch, N tokens, C width; clips are (B, channels, frames, height, width). Tokens are in the order (frame, row,
column), as all grids are, so that what works on an image's tokens works on these.
"""

from torch import Tensor

from elit.backbones.config import VideoConfig, pair
from elit.backbones.dit import DiT
from elit.backbones.layers import patchify, unpatchify
from elit.elastic.grid import Extent, Grid
from elit.elastic.model import Input
from elit.errors import UserError


class VideoDiT(DiT):
    """A diffusion transformer on clips: v = model(x, t, y, budget), with x (B, C, T, H, W)."""

    config: VideoConfig

    def make_input(self) -> Input:
        config = self.config
        return Input(config.in_channels, Extent(*pair(config.input_size), config.frames), config.patch_size)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        tokens_BTNC = self.patch_embedding(patchify(x_BCTHW.transpose(1, 2).flatten(0, 1), self.config.patch_size))
        return tokens_BTNC.unflatten(0, (len(x_BCTHW), -1)).flatten(1, 2)

    def predict(self, x_BNC: Tensor, c_BC: Tensor, grid: Grid) -> Tensor:
        frames = self.final(x_BNC, c_BC).unflatten(1, (grid.frames, -1)).flatten(0, 1)
        v_BTCHW = unpatchify(frames, Grid(grid.height, grid.width), self.config.patch_size).unflatten(0, (len(x_BNC), -1))
        return v_BTCHW.transpose(1, 2).contiguous()

    def grid_of(self, x: Tensor) -> Grid:
        channels, patch = self.input.channels, self.input.patch
        if x.ndim != 5 or x.shape[1] != channels or x.shape[2] < 2 or x.shape[3] % patch or x.shape[4] % patch:
            raise UserError(
                f"the input is clips (B, {channels}, T, H, W) of at least 2 frames, with H and W multiples of {patch}, not"
                f" {tuple(x.shape)}"
            )
        return Grid(x.shape[3] // patch, x.shape[4] // patch, x.shape[2])
