"""Fine-tuning: a model that starts from another's weights, a dense one made elastic among them.

A dense SiT or DiT gives an elastic model its embeddings, its blocks (the i-th becomes the i-th, in the head, the core or
the tail) and its final layer; Read and Write are fresh, with the learned queries and the three learned tables of positions:
those that Read and Write add to the tokens, and that of the latents (which a `rope` model has not). Write's two branches
start at zero, so before the first step the converted model computes its head and then its tail: the dense model without the
blocks of the core, plus the two fresh tables on the tokens (N(0, 0.02) each). Read's gates start at zero too, so the latents
are at first the queries and their positions, whatever the image.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from elit.backbones.config import DiTConfig
from elit.backbones.table import backbone_of, build_model
from elit.card import load_card
from elit.console import say
from elit.distributed import is_main
from elit.elastic.model import ElasticModel
from elit.errors import UserError
from elit.flow import FlowPath
from elit.hub import find_model
from elit.weights import load_model

# What a dense model need not share with the elastic one that starts from it.
OF_THE_INTERFACE = (
    "group_size",
    "group_frames",
    "head_depth",
    "tail_depth",
    "read_depth",
    "write_depth",
    "interface_mlp_ratio",
    "write_sees_dropped",
    "latent_table",
    "anchor",
)


@dataclass(frozen=True)
class OwnOrigin:
    """A model of this library, of a configuration, whose weights are drawn or taken from the folder `init_from`."""

    model: DiTConfig
    init_from: str | None

    def make(self, path: FlowPath, fresh: bool, distilled: bool) -> tuple[ElasticModel, ElasticModel | None]:
        """The model, and the one that it starts from where that is read; errors as of `start_from`."""
        model = build_model(self.model)
        if self.init_from is None or not (fresh or distilled):
            return model, None
        return model, start_from(model, self.init_from, path)


def start_from(model: ElasticModel, folder: str | Path, path: FlowPath) -> ElasticModel:
    """Copies the weights of a model folder into `model`, says on the console which, and returns the original model.

    `path`: of the flow that the model will be trained on. Raises UserError for a folder that is no model, for one trained
    on another path, and for tensors or settings that do not fit, listing them.
    """
    folder = find_model(folder)
    source = load_model(folder)
    if type(source.config) is not type(model.config):
        kinds = [backbone_of(config).architecture for config in (source.config, model.config)]
        raise UserError(f"{folder} is a {kinds[0]}, from which no {kinds[1]} can start; give one of its own kind")
    if (theirs := load_card(folder).path) != path:
        raise UserError(f"{folder} was trained on the {theirs} path; set flow.path {theirs}, not {path}")
    own, given = model.canonical_names(), source.canonical_names()
    state, taken = source.state_dict(), model.state_dict()
    interface = model.interface_parameters()
    fresh = [name for place, name in own.items() if place not in given]
    wrong = differing(source.config, model.config)
    wrong += [f"{name} is not there" for name in fresh if source.core is not None or name not in interface]
    wrong += [f"{name} has no place here" for place, name in given.items() if place not in own]
    wrong += [
        f"{name} is {tuple(state[given[place]].shape)} there and {tuple(taken[name].shape)} here"
        for place, name in own.items()
        if place in given and state[given[place]].shape != taken[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise UserError(f"the model cannot start from {folder}: {'; '.join(wrong[:12])}{more}")
    common = {own[place]: state[name] for place, name in given.items()}
    model.load_state_dict(common, strict=False)
    if is_main():
        say(describe(folder, list(common), fresh))
    return source


def describe(folder: Path, taken: list[str], fresh: list[str]) -> str:
    """For people: how many tensors are taken, and every fresh one."""
    told = f"{len(taken)} tensors are taken from {folder}"
    return f"{told}\n{len(fresh)} are fresh: {', '.join(fresh)}" if fresh else f"{told}; none is fresh"


def differing(source: DiTConfig, wanted: DiTConfig) -> list[str]:
    """The settings that must agree and do not. The input's size may differ where no learned position depends on it."""
    free = set(OF_THE_INTERFACE) if source.window is None else set()
    if source.window is None or source.rope:
        free |= {"input_size", "frames"}
    return [
        f"model.{field.name} is {getattr(source, field.name)} there and {getattr(wanted, field.name)} here"
        for field in fields(wanted)
        if field.name not in free and getattr(source, field.name) != getattr(wanted, field.name)
    ]


def held_parameters(model: ElasticModel) -> list[nn.Parameter]:
    """The parameters outside Read and Write that learn."""
    free = model.interface_parameters()
    return [p for name, p in model.named_parameters() if name not in free and p.requires_grad]


def hold_all_but_interface(model: ElasticModel) -> None:
    """Lets go of the gradients of everything but Read and Write, so that the optimisers leave all else as it is."""
    for parameter in held_parameters(model):
        parameter.grad = None
