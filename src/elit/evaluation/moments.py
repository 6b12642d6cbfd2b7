"""Mean and covariance of any number of rows, streamed, and bit for bit the same however the rows are cut and ordered.

Floating-point sums depend on their order; integer sums do not. So every value is rounded to a multiple of UNIT, 2^-26 (a
float32 near 1 has steps of 2^-23), and written as high * 2^20 + low with |low| <= 2^19 and, for |x| <= 16,384,
|high| <= 2^20. The matrix products of a slab of at most 8,192 such rows are whole numbers below 2^53, which float64 holds
exactly whatever the order of a processor's sums. The slabs add up in int64, which holds those of 2^22 rows. Batches, files
and processes therefore merge by adding integers, and nothing is rounded again before the end.

Memory: 24 D^2 bytes of sums, 100 MB for 2,048 features, and a slab of rows; the count of rows does not matter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from elit.distributed import sum_over_ranks
from elit.errors import UserError

UNIT = 2.0**-26
HALF = 2.0**20  # high counts these
LARGEST = UNIT * HALF * HALF  # 16,384
MOST_ROWS = 2**22
SLAB = 1024  # rows multiplied at a time


@dataclass(frozen=True)
class Moments:
    """mean (D,) and unbiased covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor

    @property
    def width(self) -> int:
        return len(self.mean)


class MomentSums:
    """The exact sums that mean and covariance are made of. D features; add rows, merge, and ask for the moments."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self.count = 0
        self.sums = torch.zeros(2, width, dtype=torch.int64, device=device)  # of high and low
        self.products = torch.zeros(3, width, width, dtype=torch.int64, device=device)  # high high, high low, low low
        self._waiting: list[Tensor] = []

    def add(self, rows_ND: Tensor) -> None:
        """Adds rows. Raises UserError for values that are not finite or beyond 16,384, or another width."""
        if rows_ND.ndim != 2 or rows_ND.shape[1] != self.width:
            raise UserError(f"rows of {self.width} features are summed here, not {tuple(rows_ND.shape)}")
        rows = rows_ND.detach().to(self.sums.device)
        if not len(rows):
            return
        if not bool((rows.abs() <= LARGEST).all()):  # false for NaN too
            raise UserError(
                f"features are not finite, or beyond {LARGEST:,.0f}: the images or the network are damaged"
                " (in half precision: try fp32)"
            )
        self.count += len(rows)
        if self.count > MOST_ROWS:
            raise UserError(f"more than {MOST_ROWS:,} images cannot be summed exactly; give fewer")
        for row in rows.split(SLAB):
            self._waiting.append(row)
            if sum(map(len, self._waiting)) >= SLAB:
                self._flush()

    def _flush(self) -> None:
        """Multiplies the rows that wait: fewer than two slabs, so that every partial sum stays below 2^53."""
        if not self._waiting:
            return
        units = (torch.cat(self._waiting).double() / UNIT).round_()
        self._waiting = []
        high = (units / HALF).round_()
        low = units.sub_(high, alpha=HALF)
        for place, (a, b) in enumerate(((high, high), (high, low), (low, low))):
            self.products[place] += (a.T @ b).long()
        self.sums += torch.stack([high.sum(0), low.sum(0)]).long()

    def merge(self, other: "MomentSums") -> None:
        """Adds another's rows to these."""
        assert other.width == self.width
        self._flush()
        other._flush()
        self.count += other.count
        self.sums += other.sums.to(self.sums.device)
        self.products += other.products.to(self.sums.device)

    def merge_processes(self) -> None:
        """Adds the rows of all processes of a torchrun, in each of them."""
        self._flush()
        self.count = int(sum_over_ranks(torch.tensor(self.count)))
        self.sums, self.products = (sum_over_ranks(sums.cpu()).to(sums.device) for sums in (self.sums, self.products))

    def moments(self) -> Moments:
        """Exact to the rounding of the last steps: the sums are centred as integers, so a large mean costs no digits.

        Raises UserError for fewer than 2 rows.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, not {self.count}")
        self._flush()
        n, (high, low) = self.count, self.sums.cpu()
        total = high * int(HALF) + low
        centre = total.div(n, rounding_mode="floor")  # a multiple of UNIT, from which the deviations are taken
        centre_high = (centre / HALF).round().long()
        centre_low = centre - centre_high * int(HALF)
        rest = (total - n * centre).double()

        def centred(place: int, a: Tensor, sum_a: Tensor, b: Tensor, sum_b: Tensor) -> Tensor:
            """Sum of (x - a) (y - b) from the sum of x y; integers throughout."""
            product = self.products[place].cpu()
            return (product - torch.outer(sum_a, b) - torch.outer(a, sum_b) + n * torch.outer(a, b)).double()

        cross = centred(1, centre_high, high, centre_low, low)
        scatter = centred(0, centre_high, high, centre_high, high) * HALF**2 + (cross + cross.T) * HALF
        scatter += centred(2, centre_low, low, centre_low, low) - torch.outer(rest, rest) / n
        return Moments((centre.double() + rest / n) * UNIT, scatter * (UNIT**2 / (n - 1)))
