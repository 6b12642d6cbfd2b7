"""Fine-tuning: a model that starts from another's weights, a dense one made elastic among them.

A dense SiT or DiT gives an elastic model its embeddings, its blocks (the i-th becomes the i-th, in the head, the core or
the tail) and its final layer; Read and Write are fresh, with the learned queries and the three learned tables of positions:
those that Read and Write add to the tokens, and that of the latents (which a `rope` model has not). Write's two branches
start at zero, so before the first step the converted model computes its head and then its tail: the dense model without the
blocks of the core, plus the two fresh tables on the tokens (N(0, 0.02) each). Read's gates start at zero too, so the latents
are at first the queries and their positions, whatever the image.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from elit.backbones.dit import DiT, DiTConfig
from elit.bundled import load_card
from elit.flow import Path as FlowPath
from elit.weights import load_model

# What a dense model need not share with the elastic one that starts from it.
OF_THE_INTERFACE = (
    "group_size",
    "head_depth",
    "tail_depth",
    "read_depth",
    "write_depth",
    "interface_mlp_ratio",
    "write_sees_dropped",
    "latent_table",
)


@dataclass(frozen=True)
class Start:
    """Where a model's tensors come from: the names of those taken from `source`, and of those that are fresh."""

    source: Path
    taken: list[str]
    fresh: list[str]

    def describe(self) -> str:
        """What to tell people: every taken part, and every fresh tensor by name."""
        parts = sorted({".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in self.taken})
        text = f"{len(self.taken)} tensors are taken from {self.source}: those of {', '.join(parts)}"
        return f"{text}\n{len(self.fresh)} are fresh: {', '.join(self.fresh) or 'none'}"


def start_from(model: DiT, folder: str | Path, path: str) -> tuple[Start, DiT]:
    """Copies the weights of a model folder into `model`; returns what came from where, and the original model.

    `path`: of the flow that the model will be trained on. Raises ValueError for a folder that is no model, for one trained
    on another path, and for tensors or settings that do not fit, listing them.
    """
    folder = Path(folder)
    source = load_model(folder)
    if (theirs := load_card(folder).path) != FlowPath(path):
        raise ValueError(f"{folder} was trained on the {theirs} path; set flow.path {theirs}, not {path}")
    own, given = places(model), places(source)
    state, taken = source.state_dict(), model.state_dict()
    fresh = [name for place, name in own.items() if place not in given]
    wrong = differing(source.config, model.config)
    wrong += [f"{name} is not there" for name in fresh if source.core is not None or not is_interface(model, name)]
    wrong += [f"{name} has no place here" for place, name in given.items() if place not in own]
    wrong += [
        f"{name} is {tuple(state[given[place]].shape)} there and {tuple(taken[name].shape)} here"
        for place, name in own.items()
        if place in given and state[given[place]].shape != taken[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise ValueError(f"the model cannot start from {folder}: {'; '.join(wrong[:12])}{more}")
    common = {own[place]: state[name] for place, name in given.items()}
    model.load_state_dict(common, strict=False)
    return Start(folder, list(common), fresh), source


def places(model: DiT) -> dict[str, str]:
    """A name for every learned tensor that does not depend on the split (host.3.mlp.fc1.weight), with the model's own."""
    moved = {f"{name}.": f"host.{i}." for i, name in enumerate(model.host_blocks())}
    if model.core is not None:
        moved |= {f"blocks.{model.config.head_depth}.{part}.": f"{part}." for part in ("read", "write")}
    out = {}
    for name in model.state_dict():
        prefix = next((prefix for prefix in moved if name.startswith(prefix)), "")
        out[moved.get(prefix, "") + name.removeprefix(prefix)] = name
    return out


def is_interface(model: DiT, name: str) -> bool:
    """Whether a tensor of the model belongs to Read or Write."""
    core = f"blocks.{model.config.head_depth}."
    return model.core is not None and name.startswith((f"{core}read.", f"{core}write."))


def differing(source: DiTConfig, wanted: DiTConfig) -> list[str]:
    """The settings that must agree and do not. The input's size may differ where no learned position depends on it."""
    free = set(OF_THE_INTERFACE) if source.window is None else set()
    if source.window is None or source.rope:
        free.add("input_size")
    return [
        f"model.{field.name} is {getattr(source, field.name)} there and {getattr(wanted, field.name)} here"
        for field in fields(DiTConfig)
        if field.name not in free and getattr(source, field.name) != getattr(wanted, field.name)
    ]


def hold_all_but_interface(model: DiT) -> None:
    """Lets go of the gradients of everything but Read and Write, so that the optimisers leave all else as it is."""
    for name, parameter in model.named_parameters():
        if not is_interface(model, name):
            parameter.grad = None


def prime(optimizers: Iterable[Optimizer]) -> None:
    """Makes the moments of every parameter, zero, as its first gradient would: one that is held has moments to save too."""
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = zero_moments(optimizer, parameter)


def zero_moments(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    if not isinstance(optimizer, AdamW):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
