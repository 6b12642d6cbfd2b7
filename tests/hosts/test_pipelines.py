"""Pipelines of diffusers as they are, tiny and random: what their passes run at, with cheap CFG and schedules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import elit
from tiny_hosts import SIZES, TEXT, TINY, mask, text

STEPS = 2
Records = list[tuple[int, int]]


def euler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    build: of a transformer. groups: of the core at a window of 2 x 2 (x 1). asked: arguments with guidance and without.
    prompts: what makes each of those that tell the prompt, which with guidance have their like for the negative one. scale:
    the name of guidance's. text: tokens that stand among the core's latents.
    """

    transformer: str
    build: Callable[[Any], Any]
    groups: int
    one_batch: bool
    asked: dict[str, Any]
    prompts: dict[str, Callable[[], Tensor]]
    scale: str = "guidance_scale"
    text: int = 0

    def elastic(self) -> Any:
        """The pipeline with an elastic transformer."""
        pipe = self.build(self.made())
        elit.elasticize(pipe.transformer, head=2, tail=1, window=2)
        return pipe

    def made(self) -> Any:
        torch.manual_seed(0)
        if self.transformer == "DiTTransformer2DModel":  # the pipeline's null class is 1000
            return diffusers.DiTTransformer2DModel(
                **SIZES, in_channels=4, out_channels=4, num_layers=6, sample_size=8, num_embeds_ada_norm=1000
            ).eval()
        return TINY[self.transformer].made()

    def run(self, pipe: Any, guided: bool = True) -> Tensor:
        torch.manual_seed(5)
        told = {f"{sign}{name}": make() for sign in ("", "negative_")[: 1 + guided] for name, make in self.prompts.items()}
        pipe.set_progress_bar_config(disable=True)
        out = pipe(
            **(self.asked | told | {self.scale: 4.0 if guided else 1.0}),
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(1),
        )
        return torch.as_tensor(out.frames if hasattr(out, "frames") else out.images)


def vae() -> Any:
    """Of latents as large as pictures, which DiT's pipeline decodes in any case."""
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8).eval()


def flux2_vae() -> Any:
    """Whose statistics of latents Flux2's pipelines use in any case."""
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
    ).eval()


LATENT = {"output_type": "latent"}
PIXELS = LATENT | {"height": 64, "width": 96}  # 4 x 6 tokens: 24 in 6 groups
EMBEDS = {"prompt_embeds": lambda: text(1)}
POOLED = EMBEDS | {"pooled_prompt_embeds": lambda: torch.randn(1, 12)}
MASKED = EMBEDS | {"prompt_attention_mask": lambda: mask(1)}

KINDS = {
    "SD3": Kind(
        "SD3Transformer2DModel",
        lambda t: diffusers.StableDiffusion3Pipeline(t, euler(), None, None, None, None, None, None, None),
        *(6, True, PIXELS, POOLED),
    ),
    "Flux": Kind(
        "FluxTransformer2DModel",
        lambda t: diffusers.FluxPipeline(euler(), None, None, None, None, None, t),
        *(6, False, PIXELS, POOLED, "true_cfg_scale"),
    ),
    "Flux2 Klein": Kind(
        "Flux2Transformer2DModel",
        lambda t: diffusers.Flux2KleinPipeline(euler(), flux2_vae(), None, None, t),
        *(6, False, PIXELS, EMBEDS),
        text=TEXT,
    ),
    "Qwen-Image": Kind(
        "QwenImageTransformer2DModel",
        lambda t: diffusers.QwenImagePipeline(euler(), None, None, None, t),
        *(6, False, PIXELS, EMBEDS | {"prompt_embeds_mask": lambda: torch.ones(1, TEXT, dtype=torch.long)}),
        scale="true_cfg_scale",
    ),
    "Wan": Kind(
        "WanTransformer3DModel",
        lambda t: diffusers.WanPipeline(None, None, None, euler(), t),
        *(18, False, PIXELS | {"num_frames": 9}, EMBEDS),
    ),
    "DiT": Kind(
        "DiTTransformer2DModel",
        lambda t: diffusers.DiTPipeline(t, vae(), diffusers.DDIMScheduler(timestep_spacing="trailing")),
        *(4, True, {"class_labels": [3], "output_type": "np"}, {}),
    ),
    "PixArt": Kind(
        "PixArtTransformer2DModel",
        lambda t: diffusers.PixArtAlphaPipeline(None, None, None, t, diffusers.DPMSolverMultistepScheduler()),
        *(6, True, PIXELS | {"use_resolution_binning": False, "negative_prompt": None}, MASKED),
    ),
    "HunyuanVideo": Kind(
        "HunyuanVideoTransformer3DModel",
        lambda t: diffusers.HunyuanVideoPipeline(None, None, t, None, euler(), None, None),
        *(18, False, PIXELS | {"num_frames": 9}, POOLED | MASKED, "true_cfg_scale"),
    ),
    "LTX": Kind(
        "LTXVideoTransformer3DModel",
        lambda t: diffusers.LTXPipeline(euler(), None, None, None, t),
        *(18, True, LATENT | {"height": 128, "width": 192, "num_frames": 17}, MASKED),
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@contextmanager
def watched(pipe: Any, kind: Kind) -> Iterator[Records]:
    """(samples, latents of a group) of every run of the core's second block."""
    seen: Records = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        count, rest = divmod(x.shape[1] - kind.text, kind.groups)
        assert not rest
        seen.append((len(x), count))

    handle = pipe.transformer.elit.middle()[1].register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@every_kind
def test_a_pipeline_as_it_is_draws_what_it_drew(kind):
    dense = kind.run(kind.build(kind.made()))
    torch.testing.assert_close(kind.run(kind.elastic()), dense, rtol=1e-3, atol=1e-3)


@every_kind
def test_cheap_guidance_runs_the_unconditional_pass_at_a_budget_of_its_own(kind):
    """And a plain budget, none, and a schedule, in the passes that each pipeline makes."""
    pipe = kind.elastic()
    full = [(2, 4)] if kind.one_batch else [(1, 4)] * 2
    with watched(pipe, kind) as seen:
        kind.run(pipe)
        assert seen == full * STEPS
        seen.clear()
        with elit.budget(pipe.transformer, 0.75, unconditional=0.25):
            cheap = kind.run(pipe)
        assert sorted(seen) == sorted([(1, 3), (1, 1)] * STEPS)
        if not kind.one_batch:
            assert seen == [(1, 3), (1, 1)] * STEPS  # the conditional pass comes first
        seen.clear()
        with elit.budget(pipe.transformer, 0.5):
            half = kind.run(pipe)
        assert {count for _, count in seen} == {2}
        seen.clear()
        with elit.budget(pipe.transformer, elit.Schedule(((0.75, 0.25),), 1.0)):
            kind.run(pipe, guided=False)
        assert [count for _, count in seen] == [1, 4]
        seen.clear()
        kind.run(pipe)
        assert seen == full * STEPS
    assert torch.isfinite(cheap).all() and not torch.equal(cheap, half)
