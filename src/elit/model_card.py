"""The README.md of a model folder: what the model is, what it costs, whose it is, and how to load it."""

from elit.card import Card
from elit.codec import makes_pixels
from elit.cost import flops_by_level
from elit.elastic.model import ElasticModel
from elit.recipe import steps_text
from elit.words import one_line

LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "openrail")  # as the hub's front matter spells them


def model_card(model: ElasticModel, card: Card, name: str) -> str:
    """Markdown with the front matter that the hub reads. name: of the folder or hub id, as its loading line has it."""
    config, sampling = model.config, card.sampling
    size = " x ".join(str(side) for side in model.samples.shape)
    return "\n".join(
        [
            *("---", "library_name: elit", f"license: {_licence_id(card)}", "tags: [diffusion, elit]", "---"),
            *("# An elastic diffusion transformer", ""),
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {config.num_classes} classes, inputs of",
            f"{size}. Sampled with {steps_text(sampling.steps)} and guidance {sampling.guidance_scale:g} unless asked"
            " otherwise.",
            *("", *_loading(model, card, name), ""),
            *("## Budgets", "", *_budgets(model, card), ""),
            *("## Labels", "", _labels(model, card), ""),
            *("## Licence", "", card.licence or "The card of these weights names none; ask whoever made them.", ""),
            *((f"Made from {card.source}.", "") if card.source else ()),
        ]
    )


def _licence_id(card: Card) -> str:
    """The licence as the hub's front matter names it."""
    if card.licence is None:
        return "unknown"
    return card.licence.lower() if card.licence.lower() in LICENCES else "other"


def _loading(model: ElasticModel, card: Card, name: str) -> list[str]:
    """Python that runs as it stands: latents need no codec, which the card does not know."""
    label = repr(card.label_names[0]) if card.label_names else "0"
    budget = "" if model.core is None else f", budget={model.levels.fractions()[0]:g}"
    load = f"pipe = elit.ElitPipeline.from_pretrained({name!r})"
    lines = ["```python", "import elit", "", load]
    if makes_pixels(card.encoding, model.samples.channels):
        return [*lines, f"image = pipe(labels=[{label}]{budget}).images[0]", "```"]
    decoded = f"# with the codec of its training data, from_pretrained({name!r}, codec=...), images are pictures"
    return [*lines, f"latents = pipe(labels=[{label}]{budget}, output_type='latent').images", decoded, "```"]


def _budgets(model: ElasticModel, card: Card) -> list[str]:
    """A table of the GFLOPs of one forward at every budget and, where they were measured, two figures of quality."""
    measured = {} if card.quality is None else {round(row["budget"], 6): row for row in card.quality["budgets"]}
    lines = ["| budget | GFLOPs | Fréchet distance | in the asked category |", "|---|---|---|---|"]
    for level, flops in flops_by_level(model).items():
        row = measured.get(round(level / model.latents, 6), {})
        figures = [f"{row[name]:.{digits}f}" if name in row else "" for name, digits in (("frechet", 1), ("accuracy", 3))]
        lines.append(f"| {model.levels.name(level)} | {flops / 1e9:.2f} | {' | '.join(figures)} |")
    return lines


def _labels(model: ElasticModel, card: Card) -> str:
    """The number of every class, with its name where the card has one."""
    if not card.label_names:
        return f"0 to {model.null_class - 1}; the card has no names for them. {model.null_class} stands for no label."
    return ", ".join(f"{i} {one_line(name)}" for i, name in enumerate(card.label_names)) + "."
