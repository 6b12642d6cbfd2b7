"""`ElitPipeline`: labels to pictures, with the argument names that users of diffusers expect."""

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn

from elit.cache_fit import load_fit
from elit.card import Card, load_card, save_card
from elit.codec import Codec, load_codec, makes_pixels
from elit.console import progress_bar
from elit.elastic.model import ElasticModel
from elit.elastic.schedule import Schedule
from elit.errors import UserError
from elit.files import write_whole
from elit.front import wants_front, within
from elit.guidance import Guidance
from elit.hub import find_model
from elit.labels import label_indices
from elit.model_card import model_card
from elit.pictures import to_image
from elit.recipe import LARGEST_TILE
from elit.samplers import Callback
from elit.sampling import check_steps, sample, whole_labels
from elit.step_cache import StepCache, check_threshold
from elit.target import Budget, parse_fraction
from elit.weights import CACHE_FILE, README_FILE, fingerprint, load_model, new_model_folder, original, save_weights
from elit.words import shown


@dataclass(frozen=True)
class PipelineOutput:
    """images: what `output_type` asked for. labels: their class indices. budget: what was run."""

    images: Any
    labels: list[int]
    budget: float | Schedule


class ElitPipeline:
    """A model with its card and codec: `ElitPipeline.from_pretrained(FOLDER)(labels=[207], budget=0.25).images`."""

    def __init__(self, model: ElasticModel, card: Card | None = None, codec: Codec | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"model is one that create_model or load_model makes, not {shown(model)}")
        self.model, self.card, self.codec = model.eval(), card or Card(), codec
        self._shows_progress = True
        self._calibrated: tuple[Path, str] | None = None  # the folder of a cache's calibrations, and whose they are

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Whether a bar shows the sampler's steps. It never does where the error stream is no terminal."""
        self._shows_progress = not disable

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, codec: str | None = None) -> "ElitPipeline":
        """The pipeline of a model folder or hub id; None: the bundled model.

        codec: for latent models, an autoencoder by folder or hub id ("ema", "mse"); it may be given later, as `.codec`.
        Raises UserError for what cannot be found, fetched or read.
        """
        folder = find_model(name)
        model = load_model(folder)
        channels, card = model.samples.channels, load_card(folder)
        fits = (folder, fingerprint(model)) if (folder / CACHE_FILE).is_file() else None
        later = codec is None and not makes_pixels(card.encoding, channels)
        made = (channels, torch.device("cpu"), card.encoding, model.samples.extent.frames)
        pipe = cls(model, card, None if later else load_codec(codec, *made))
        pipe._calibrated = fits
        return pipe

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
        guidance_budget: float | str | None = None,
        autoguidance: bool = False,
        num_inference_steps: int | Sequence[int] | None = None,
        sampler: str = "euler",
        seed: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        steps: int | Sequence[int] | None = None,
        guidance: Guidance | None = None,
        callback_on_step_end: Callback | None = None,
        num_images_per_prompt: int = 1,
        cache: float | StepCache | None = None,
    ) -> PipelineOutput:
        """Pictures of the labels: `num_images_per_prompt` of each, one after another.

        Args:
            labels: class indices or names; one may stand alone.
            budget: a fraction, a `Schedule`, or a text such as "1/4", "1/4@t>0.5,1", "80gflops" or "150ms"; or "1/4,1", one
                for each stage of a model.
            guidance_scale: 1 is none; the model's own default if not given. guidance_budget: of the weak path, such as
                1/16 for cheap CFG. autoguidance: the weak path has the label too. guidance: all of it at once instead.
            num_inference_steps, or steps: the model's own default if not given; of a model of stages, one for each or all.
            seed: image i's noise comes from (seed, i). generator: draws the noise instead, or one for each image does.
            output_type: "pil" images, "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], or the model's own "latent".
                Of a model of clips a list of frames, (B, T, H, W, 3) and (B, T, 3, H, W).
            callback_on_step_end: see `elit.samplers`.
            cache: a threshold, such as 0.1, of a calibrated model (see `elit calibrate-cache`), or a `StepCache`.

        Raises UserError, naming the argument, for a value that cannot be, and for two that say the same thing.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"unknown output_type {output_type!r}; known: pil, np, pt, latent")
        if self.codec is None and output_type != "latent":
            raise UserError("the model makes latents; give from_pretrained a codec, or ask for output_type='latent'")
        if type(num_images_per_prompt) is not int or num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt is a whole number of at least 1, not {num_images_per_prompt!r}")
        if generator is not None and seed != 0:
            raise UserError(f"seed {seed!r} and a generator were given; the noise comes from one of them")
        chosen = [label for label in self.label_indices(labels) for _ in range(num_images_per_prompt)]
        strength = self._guidance(guidance, guidance_scale, guidance_budget, autoguidance)
        count, reuse = self._steps(num_inference_steps, steps), self._cache(cache, sampler, num_inference_steps, steps)
        asked = steps if num_inference_steps is None else num_inference_steps
        if isinstance(budget, str) and wants_front(budget, self.card.front, asked, cache, strength):
            assert self.card.front is not None
            recipe = replace(self.card.recipe, sampler=sampler, guidance=strength, tile=min(len(chosen), LARGEST_TILE))
            folder, weights = self._calibrated or (Path(), "")
            recipe, _ = within(budget, self.card.front, self.model, recipe, folder, weights)
            run, count, reuse = recipe.budget, recipe.steps, recipe.cache
        else:
            run = Budget.parse(budget, self.model, len(chosen)) if isinstance(budget, str) else budget
        check_steps(sampler, count)
        noise = None if generator is None else self.noise(len(chosen), generator)
        with progress_bar() if self._shows_progress else nullcontext() as bar:
            callback = callback_on_step_end
            if bar is not None and (callback is None or callable(callback)):  # `sample` refuses what is neither
                callback = _advancing(bar, count if isinstance(count, int) else sum(count), callback)
            x = sample(
                *(self.model, chosen, sampler, count, run, strength, seed),
                noise=noise,
                path=self.card.path,
                thresholds=self.card.sampling.thresholds,
                callback_on_step_end=callback,
                cache=reuse,
                shift=self.card.sampling.shift,
            )
        return PipelineOutput(self.finish(x, output_type), chosen, run)

    def _steps(
        self, num_inference_steps: int | Sequence[int] | None, steps: int | Sequence[int] | None
    ) -> int | Sequence[int]:
        if num_inference_steps is not None and steps is not None:
            raise UserError("num_inference_steps and steps are two names of one thing; give one of them")
        if num_inference_steps is None and steps is None:
            return self.card.sampling.steps
        return steps if num_inference_steps is None else num_inference_steps  # type: ignore[return-value]

    def _cache(
        self,
        cache: float | StepCache | None,
        sampler: str,
        num_inference_steps: int | Sequence[int] | None,
        given: int | Sequence[int] | None,
    ) -> StepCache | None:
        if cache is None or isinstance(cache, StepCache):
            return cache
        check_threshold(cache)
        if self._calibrated is None:
            raise UserError(
                f"cache {cache} needs a calibrated model; run elit calibrate-cache on its folder, or give a StepCache"
            )
        steps = self._steps(num_inference_steps, given)
        count = steps if isinstance(steps, int) else tuple(steps)
        return load_fit(*self._calibrated, replace(self.card.recipe, steps=count, sampler=sampler)).cache(cache)

    def _guidance(
        self, whole: Guidance | None, scale: float | None, weak_budget: float | str | None, autoguidance: bool
    ) -> Guidance:
        if whole is not None:
            if scale is not None or weak_budget is not None or autoguidance:
                raise UserError("guidance says all of it; leave guidance_scale, guidance_budget and autoguidance out")
            return whole
        weak = parse_fraction(weak_budget) if isinstance(weak_budget, str) else weak_budget
        default = self.card.sampling.guidance_scale
        return Guidance(default if scale is None else scale, weak_budget=weak, weak_label="same" if autoguidance else "null")

    def label_indices(self, labels: int | str | Sequence[int | str] | Tensor) -> list[int]:
        """The class indices of labels given by name or number. Raises UserError for what is neither."""
        if isinstance(labels, Tensor):
            labels = whole_labels(labels.reshape(-1) if labels.ndim == 0 else labels, self.model.null_class).tolist()
        try:
            listed = [labels] if isinstance(labels, int | str) else list(labels)
            if any(isinstance(label, bool) for label in listed):
                raise TypeError
            numbers = [None if isinstance(label, str) else operator.index(label) for label in listed]
        except TypeError as error:
            raise UserError(f"labels are class indices or names, or a list of them, not {shown(labels)}") from error
        names = [label for label in listed if isinstance(label, str)]
        named = iter(label_indices(names, self.model.null_class, self.card.label_names))
        return [next(named) if number is None else number for number in numbers]

    def noise(self, count: int, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """Standard normal (count, C, H, W) from one generator, on its own device, or from one for each image."""
        shape = self.model.input.shape
        if isinstance(generator, torch.Generator):
            return torch.randn((count, *shape), generator=generator, device=generator.device)
        if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
            raise UserError(f"generator is a torch.Generator, or a list of one for each image, not {shown(generator)}")
        if len(generator) != count:
            raise UserError(f"generator is a list of {len(generator)}, and {count} images are made; give one for each")
        return torch.stack([torch.randn(shape, generator=one, device=one.device).to(self.device) for one in generator])

    def finish(self, x: Tensor, output_type: str) -> Any:
        """The sampler's result as what was asked for."""
        if output_type == "latent":
            return x
        assert self.codec is not None
        images = self.codec.decode(x)
        if images.ndim == 5:
            images = images.transpose(1, 2)  # frames first, as diffusers has them
        if output_type == "pil":
            return [to_image(one.cpu()) if one.ndim == 3 else [to_image(frame.cpu()) for frame in one] for one in images]
        unit = (images / 2 + 0.5).clamp(0, 1)
        return unit if output_type == "pt" else unit.movedim(-3, -1).cpu().numpy()

    def save_pretrained(self, folder: str | Path, overwrite: bool = True) -> Path:
        """Writes config.json, model.safetensors, card.json and README.md, a model card with the table of budgets.

        A model of this library that is there already is replaced, unless `overwrite` is false. Raises UserError where the
        folder holds anything else, and WriteError where it cannot be written.
        """
        folder = Path(folder)
        with new_model_folder(folder, overwrite) as part:
            save_weights(self.model, part)
            save_card(self.card, part)
            write_whole(part / README_FILE, self.model_card(str(folder)))
        return folder

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub, with the id in README.md; returns the address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as parent:
            folder = self.save_pretrained(Path(parent) / "model")
            write_whole(folder / README_FILE, self.model_card(repo_id))
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    def model_card(self, name: str) -> str:
        """The README.md of the model in the folder, or of the hub id, `name`."""
        return model_card(original(self.model), self.card, name)


def _advancing(bar: Progress, steps: int, callback: Callback | None) -> Callback:
    """A callback that moves a bar of `steps` by one, and does what another one does."""
    task = bar.add_task("sampling", total=steps, unit="steps")

    def called(step: int, t: float, x: Tensor) -> Tensor | None:
        bar.advance(task)
        return None if callback is None else callback(step, t, x)

    return called
