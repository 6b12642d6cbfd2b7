"""LoRAs (Hu et al., 2022) on a transformer of diffusers, by peft. What there is to set is known without torch."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen

from elit.errors import UserError
from elit.records import Count, record
from elit.words import one_line

ADAPTER, LORA_FILE = "elit", "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

Names = Annotated[tuple[Annotated[str, MinLen(1), MaxLen(200)], ...], MinLen(1), MaxLen(100)]


@record
class Lora:
    """LoRAs on the linears of the transformer's own blocks.

    rank: of the two matrices; 0 trains the whole transformer instead.
    alpha: their product is scaled by alpha / rank; null is the rank.
    targets: the ends of the names of those linears.
    """

    rank: Annotated[int, Ge(0), Le(2**12)] = 0
    alpha: Count | None = None
    targets: Names = ATTENTION


def add_lora(transformer: Any, lora: Lora) -> None:
    """Adds LoRAs, and freezes all but them and the interface; fresh, they change nothing.

    Raises UserError where peft is missing, where the class takes none, and for targets that no linear has.
    """
    from torch import nn

    from elit.backbones.hosts.table import host_named

    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError("LoRA needs peft; install it with pip install 'elit-diffusion[hosts]'") from error
    name = type(transformer).__name__
    if not hasattr(transformer, "add_adapter"):
        raise UserError(f"a {name} of diffusers takes no LoRA; train the whole of it, with --lora.rank 0")
    lists = host_named(name).lists
    linears = [
        place
        for place, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and place.startswith(tuple(f"{one}." for one in lists))
    ]
    chosen = [place for place in linears if place.endswith(tuple(f".{target}" for target in lora.targets))]
    unknown = [t for t in lora.targets if not any(p.endswith(f".{t}") for p in linears)]
    if not chosen or (unknown and lora.targets != ATTENTION):
        ends = sorted({place.split(".", 2)[2] for place in linears})
        listed = ", ".join(unknown or lora.targets)
        raise UserError(f"lora.targets {listed}: no linear of a {name} is called so; there are {', '.join(ends)}")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=chosen)
    transformer.add_adapter(config, adapter_name=ADAPTER)
    for place, parameter in transformer.named_parameters():
        parameter.requires_grad_(place.startswith("elit.") or ".lora_" in place)


def check_lora(file: Path) -> None:
    """Raises UserError for a file that is not whole, or holds no LoRA of finite numbers."""
    from elit.weights import check_finite, read_tensors

    tensors = read_tensors(file)
    if not any(".lora_" in name for name in tensors):
        raise UserError(f"{file} holds no LoRA; fetch or write it again")
    check_finite(tensors, f"{file} holds no LoRA")


def load_lora(transformer: Any, file: Path, adapter: str = ADAPTER) -> None:
    """Puts a LoRA that diffusers wrote into a file onto a transformer.

    Raises UserError as `check_lora` does, and for a LoRA of another transformer.
    """
    check_lora(file)
    try:
        transformer.load_lora_adapter(
            str(file.parent),
            prefix=None,
            adapter_name=adapter,
            weight_name=file.name,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
        why = one_line(str(error))[:200]
        raise UserError(f"{file} is no LoRA of this {type(transformer).__name__} ({why}); give that one's") from error
