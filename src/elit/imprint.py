"""What a picture says of how it was drawn: settings inside its PNG file, with which it can be drawn again to the byte."""

import io
import json
import zlib
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from PIL import Image, PngImagePlugin

from elit.errors import UserError
from elit.files import read_bytes
from elit.records import Count, Fraction, Share, Shift, Whole, parse_json, record

KEY = "elit"  # of the PNG's text
PICTURE_BYTES = 2**28
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]


@record
class Imprint:
    """All that decides the pixels of one of the images of a request.

    model: the fingerprint of the model. labels: of all images of the request; index: of this one. prompts: of all images
    too, where the model is told texts and no labels. levels: latents per group at every time that the sampler asked for, in
    order. alone: whether no other request shared its calls of the model; the bytes of one that shared them may differ in
    last bits. dtype: torch's name of it. The rest is as in `elit.sample`.
    """

    model: str
    labels: tuple[Whole, ...]
    index: Whole
    seed: Seed
    sampler: str
    steps: Count
    levels: tuple[Count, ...]
    guidance_scale: float
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    guidance_budget: Fraction | None = None
    weak_label: Literal["null", "same"] | int = "null"
    codec: str = "pixels"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    alone: bool = False
    shift: Shift = 1.0
    prompts: tuple[str, ...] = ()


def png(image: Image.Image, imprint: Imprint) -> bytes:
    """A PNG file of a picture, with its imprint in its text."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "elit")
    told = {**vars(imprint)}
    if not imprint.prompts:  # as in pictures of before there were any
        del told["prompts"]
    info.add_text(KEY, json.dumps(told, sort_keys=True))
    out = io.BytesIO()
    image.save(out, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE)  # as small as the default, and sooner done
    return out.getvalue()


def read_imprint(file: Path) -> Imprint:
    """The imprint of a PNG file. Raises UserError for a file without one, or with one that cannot be."""
    content = read_bytes(file, PICTURE_BYTES)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
            text = getattr(image, "text", {}).get(KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as a PNG file; give one that elit app or elit serve made") from error
    if text is None:
        raise UserError(f"{file} does not say how it was drawn; give a PNG file that elit app or elit serve made")
    return parse_json(text, Imprint, f"the settings in {file}")
