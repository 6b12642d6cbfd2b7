"""A DiT that sees its input within a border of zeros: more tokens, and nothing more to see (section 4 of the paper).

Its loss is that of the input alone, for nothing is predicted in the border.
"""

import torch.nn.functional as F
from torch import Tensor

from elit.backbones.config import PaddedConfig
from elit.backbones.dit import DiT
from elit.condition import Condition
from elit.elastic.levels import Level
from elit.elastic.model import Around


class PaddedDiT(DiT):
    """v = model(x, t, y, budget), as a DiT computes it on x with `config.padding` tokens of zeros on every side."""

    config: PaddedConfig

    @property
    def border(self) -> int:
        """Values of zeros on every side."""
        return self.config.padding * self.config.patch_size

    def run(self, x: Tensor, t: Tensor, condition: Condition, level: Level, around: Around | None = None) -> Tensor:
        """The velocity at a level, cut to x; see `ElasticModel.forward`."""
        self.check(x, t, condition)
        padded = super().run(F.pad(x, (self.border,) * 4), t, condition, level, around)
        rows, columns = (slice(self.border, self.border + side) for side in x.shape[2:])
        return padded[:, :, rows, columns]
