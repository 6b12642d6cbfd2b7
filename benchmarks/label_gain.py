"""What a label is worth at each time: the loss of held-out pictures with their labels, and without.

python benchmarks/label_gain.py runs/emoji-styles --data data/emoji-styles/test --count 64
"""

import argparse

import torch
from rich.table import Table
from torch import Tensor

from elit.console import output
from elit.data.opening import open_data
from elit.elastic.model import ElasticModel
from elit.hub import find_model
from elit.seeding import generator_for
from elit.weights import load_model
from elit.words import spread

TIMES = (0.7, 0.85, 0.93, 0.97, 0.99)
BATCH = 16


@torch.no_grad()
def losses(model: ElasticModel, x: Tensor, noise: Tensor, labels: Tensor, t: float) -> Tensor:
    """(N,) of each picture at a time of the linear path, at the full budget."""
    parts = zip(x.split(BATCH), noise.split(BATCH), labels.split(BATCH), strict=True)
    found = [((model((1 - t) * a + t * n, torch.full((len(y),), t), y) - (n - a)) ** 2).mean((1, 2, 3)) for a, n, y in parts]
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--data", default="data/emoji-styles/test", help="held-out pictures, prepared")
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    table = Table("model", "t", "loss with labels", "without", "gain ± standard error")
    for name in options.models:
        model = load_model(find_model(name))
        data = open_data(options.data, model.input.shape[-1])
        rows = torch.tensor(list(spread(options.count, len(data))))
        x, labels = data.read(rows, [generator_for("unused", i) for i in rows.tolist()])
        noise = torch.stack([torch.randn(x.shape[1:], generator=generator_for("gain", i)) for i in rows.tolist()])
        for t in TIMES:
            told = losses(model, x, noise, labels, t)
            untold = losses(model, x, noise, torch.full_like(labels, model.null_class), t)
            gain = untold - told
            shown = f"{gain.mean():.4f} ± {gain.std() / len(gain) ** 0.5:.4f}"
            table.add_row(name, f"{t:g}", f"{told.mean():.4f}", f"{untold.mean():.4f}", shown)
    output.print(table)


if __name__ == "__main__":
    main()
