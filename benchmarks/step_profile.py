"""Where a training step spends its time, and its share of the machine's own matrix rate.

    python benchmarks/step_profile.py --config configs/emoji-styles.yaml --data.source data/emoji-styles/train

The product of two matrices of 1,024 and steps of a recipe, without the loop around them, take turns; both are timed by the
time of the process, so that other work on the machine counts little, with one thread. FLOPs are those of the forwards at the
budgets that were drawn, three times for forward and backward. Then a step is taken apart by kind of work.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from elit.cost import flops_by_level
from elit.distributed import local_device
from elit.elastic.model import ElasticModel
from elit.training.batch import Batch, draw_batch
from elit.training.loop import load_data
from elit.training.parts import take_apart
from elit.training.reading import load_config
from timing import open_report, spread
from training import bare_steps, ready_state

SIDE = 1024  # of the square matrices
KINDS = {  # kind: words in the names of its operators
    "linear layers": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("flash_attention", "scaled_dot_product"),
    "GELU": ("gelu",),
    "normalisation": ("layer_norm", "rms_norm", "rsqrt"),
    "optimisers": ("foreach", "fused", "lerp"),
    "products, sums and copies": (
        "aten::mul",
        "aten::add",
        "aten::sub",
        "aten::copy_",
        "aten::cat",
        "aten::sum",
        "aten::neg",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji-tiny.yaml")
    parser.add_argument("--rounds", type=int, default=9)
    args, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    config = load_config(args.config, overrides)
    parts, data = take_apart(config, local_device("cpu")), load_data(config.data, config.model)
    state = ready_state(parts)
    batches = [draw_batch(parts.draws, data, step) for step in range(args.rounds)]
    bare_steps(parts, state, batches[:1])
    matrix = torch.randn(SIDE, SIDE)
    product, step = [], []
    for batch in batches:
        product.append(2 * SIDE**3 / seconds(lambda: matrix @ matrix))
        step.append(flops_of(batch, state.model) / seconds(partial(bare_steps, parts, state, [batch])))
    share = spread([a / b for a, b in zip(step, product, strict=True)])
    out = open_report()
    out.print(f"{args.config}, {config.dtype}, batch {config.batch_size}, one thread, {args.rounds} rounds")
    out.print(f"a product runs at {spread(product).show(1e-9, 1)} GFLOP/s, a step at {spread(step).show(1e-9, 1)}")
    out.print(f"the step's share of the product's rate: {share.show(100, 0)} %")
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        bare_steps(parts, state, batches[:2])
    out.print(shares(taken))


def seconds(run: Callable[[], object]) -> float:
    """Of the process, of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def flops_of(batch: Batch, model: ElasticModel) -> float:
    """Of forward and backward at the batch's budgets."""
    given = batch.budget if isinstance(batch.budget, torch.Tensor) else torch.tensor(float(batch.budget or 1.0))
    costs = flops_by_level(model)
    return 3.0 * sum(costs[model.levels.of(budget)] for budget in given.expand(len(batch)).tolist())


def shares(taken: profile) -> Table:
    """The share of each kind of work in the time that operators themselves took."""
    found: Counter[str] = Counter()
    for event in taken.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "the rest")
        found[kind] += event.self_cpu_time_total
    table = Table("kind of work", "share of a step")
    for kind, total in found.most_common():
        table.add_row(kind, f"{total / sum(found.values()):.0%}")
    return table


if __name__ == "__main__":
    main()
