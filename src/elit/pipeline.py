"""`ElitPipeline`: labels to pictures, with the argument names that users of diffusers expect."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from elit.bundled import FOLDER
from elit.card import Card, load_card, save_card
from elit.codec import Codec, load_codec, makes_pixels
from elit.cost import flops_by_level
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.files import whole_folder
from elit.guidance import Guidance
from elit.hub import model_folder
from elit.labels import label_index
from elit.pictures import to_image
from elit.samplers import Callback
from elit.sampling import sample
from elit.target import Budget
from elit.weights import load_model, save_weights


@dataclass(frozen=True)
class PipelineOutput:
    """images: what `output_type` asked for. labels: their class indices. budget: what was run."""

    images: Any
    labels: list[int]
    budget: float | Schedule


class ElitPipeline:
    """A model with its card and codec: `ElitPipeline.from_pretrained(FOLDER)(labels=[207], budget=0.25).images`."""

    def __init__(self, model: ElasticModel, card: Card | None = None, codec: Codec | None = None) -> None:
        self.model, self.card, self.codec = model.eval(), card or Card(), codec

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, codec: str | None = None) -> "ElitPipeline":
        """The pipeline of a model folder or hub id; None: the bundled model.

        codec: for latent models, an AutoencoderKL by folder or hub id ("ema", "mse"); it may be given later, as `.codec`.
        Raises UserError for what cannot be found, fetched or read.
        """
        folder = FOLDER if name is None else model_folder(name)
        model = load_model(folder)
        channels, card = model.input.channels, load_card(folder)
        later = codec is None and not makes_pixels(card.encoding, channels)
        return cls(model, card, None if later else load_codec(codec, channels, torch.device("cpu"), card.encoding))

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "ElitPipeline":
        """Moves model and codec, in place, and returns the pipeline."""
        if isinstance(device, torch.dtype):  # pipe.to(torch.float16), as diffusers has it
            device, dtype = None, device
        self.model.to(device=device, dtype=dtype)
        if self.codec is not None:
            self.codec.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __call__(
        self,
        labels: int | str | Sequence[int | str] | Tensor,
        budget: float | str | Schedule = 1.0,
        guidance_scale: float | None = None,
        guidance_budget: float | None = None,
        autoguidance: bool = False,
        num_inference_steps: int | None = None,
        sampler: str = "euler",
        seed: int = 0,
        generator: torch.Generator | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        steps: int | None = None,
        guidance: Guidance | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> PipelineOutput:
        """One picture for each label.

        Args:
            labels: class indices or names; one may stand alone.
            budget: a fraction, a `Schedule`, or a text such as "1/4", "1/4@t>0.5,1", "80gflops" or "150ms".
            guidance_scale: 1 is none; the model's own default if not given. guidance_budget: of the weak path, such as
                1/16 for cheap CFG. autoguidance: the weak path has the label too. guidance: all of it at once instead.
            num_inference_steps, or steps: the model's own default if not given.
            seed: image i's noise comes from (seed, i). generator: draws the noise instead.
            output_type: "pil" images, "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], or the model's own "latent".

        Raises UserError for a label, budget or count of steps that cannot be.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"unknown output_type {output_type!r}; known: pil, np, pt, latent")
        if self.codec is None and output_type != "latent":
            raise UserError("the model makes latents; give from_pretrained a codec, or ask for output_type='latent'")
        listed = [labels] if isinstance(labels, int | str) else list(labels)
        chosen = [self.label(label) for label in listed]
        run = Budget.parse(budget, self.model, len(chosen)) if isinstance(budget, str) else budget
        count = num_inference_steps if num_inference_steps is not None else steps
        if guidance is None:
            scale = self.card.sampling.guidance_scale if guidance_scale is None else guidance_scale
            guidance = Guidance(scale, weak_budget=guidance_budget, weak_label="same" if autoguidance else "null")
        x = sample(
            self.model,
            chosen,
            sampler,
            self.card.sampling.steps if count is None else count,
            run,
            guidance,
            seed,
            noise=None if generator is None else self.noise(len(chosen), generator),
            path=self.card.path,
            callback_on_step_end=callback_on_step_end,
        )
        return PipelineOutput(self.finish(x, output_type), chosen, run)

    def label(self, label: int | str | Tensor) -> int:
        """The index of a label given by name or number."""
        if isinstance(label, str):
            return label_index(label, self.model.null_class, self.card.label_names)
        return int(label)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal (count, C, H, W) from the generator, on its own device."""
        shape = (count, *self.model.input.shape)
        return torch.randn(shape, generator=generator, device=generator.device)

    def finish(self, x: Tensor, output_type: str) -> Any:
        """The sampler's result as what was asked for."""
        if output_type == "latent":
            return x
        assert self.codec is not None
        images = self.codec.decode(x)
        if output_type == "pil":
            return [to_image(image.cpu()) for image in images]
        unit = (images / 2 + 0.5).clamp(0, 1)
        return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json, model.safetensors, card.json and README.md, a model card with the table of budgets.

        Raises UserError where the folder exists and holds something else than a model.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} holds something else; give a new folder")
        with whole_folder(folder) as part:
            save_weights(self.model, part)
            save_card(self.card, part)
            (part / "README.md").write_text(self.model_card(), encoding="utf8")
        return folder

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub; returns the address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            return str(api.upload_folder(repo_id=repo_id, folder_path=self.save_pretrained(Path(folder) / "model")))

    def model_card(self) -> str:
        """Markdown: what the model is, its budgets with their GFLOPs and, where known, quality, and how to use it."""
        config, quality = self.model.config, {row["budget"]: row for row in (self.card.quality or {}).get("budgets", [])}
        lines = ["---", "library_name: elit", "tags: [diffusion, elit]", "---", "# An elastic diffusion transformer", ""]
        lines += [f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.1f} M parameters, {config.num_classes} classes,"]
        lines += [
            f"inputs of {config.in_channels} x {self.model.input.shape[1]} x {self.model.input.shape[2]}. Sampled with"
        ]
        lines += [
            f"{self.card.sampling.steps} steps and guidance {self.card.sampling.guidance_scale:g} unless asked otherwise.",
            "",
        ]
        lines += ["| budget | GFLOPs | Fréchet distance | in the asked category |", "|---|---|---|---|"]
        for level, flops in flops_by_level(self.model).items():
            row = quality.get(level / self.model.latents, {})
            figures = [
                f"{row[name]:.{digits}f}" if name in row else "" for name, digits in (("frechet", 1), ("accuracy", 3))
            ]
            lines += [f"| {self.model.levels.name(level)} | {flops / 1e9:.2f} | {' | '.join(figures)} |"]
        lines += ["", "```python", "import elit", "", 'pipe = elit.ElitPipeline.from_pretrained("THIS FOLDER OR ID")']
        lines += ["pipe(labels=[0], budget=0.25).images[0]", "```", ""]
        return "\n".join(lines)
