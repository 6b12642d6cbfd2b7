"""What a picture says of how it was drawn: written and read back, and refused where it cannot be."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from elit import UserError
from elit.imprint import Imprint, png, read_imprint

IMPRINT = Imprint("a" * 8, (3, 9), 1, 2**63 - 1, "heun", 3, (4, 4, 1), 2.5, (0.1, 0.9), 0.25, "same", "sd", "bfloat16", True)
PICTURE = Image.effect_noise((9, 7), 80).convert("RGB")


def written(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    return file


def with_text(**text: str) -> bytes:
    """A PNG file that says this."""
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in text.items():
        info.add_text(key, value)
    PICTURE.save(out, format="PNG", pnginfo=info)
    return out.getvalue()


@pytest.mark.parametrize("weak_label", ["null", "same", 2])
def test_a_picture_keeps_its_pixels_and_says_all_of_its_settings(tmp_path: Path, weak_label: Any) -> None:
    imprint = replace(IMPRINT, weak_label=weak_label)
    file = written(tmp_path, png(PICTURE, imprint))
    assert read_imprint(file) == imprint
    with Image.open(file) as image:
        assert image.format == "PNG" and image.tobytes() == PICTURE.tobytes()
        assert image.text["Software"] == "elit" and json.loads(image.text["elit"])["levels"] == [4, 4, 1]  # type: ignore[attr-defined]


def test_the_same_settings_are_the_same_bytes() -> None:
    assert png(PICTURE, IMPRINT) == png(PICTURE, replace(IMPRINT))
    assert png(PICTURE, IMPRINT) != png(PICTURE, replace(IMPRINT, index=0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1), ("seed", 2**63), ("steps", 0), ("more", 1),
        ("index", -1), ("levels", [0]), ("labels", [-1]), ("weak_label", "other"),
        ("guidance_budget", 0), ("guidance_budget", 1.5), ("guidance_interval", [0.5, 1.5]),
        ("dtype", "nn"), ("dtype", "int8"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path: Path, field: str, value: object) -> None:
    file = written(tmp_path, with_text(elit=json.dumps({**asdict(IMPRINT), field: value})))
    with pytest.raises(UserError, match=rf"the settings in .*picture\.png.*{field}"):
        read_imprint(file)


def test_what_says_nothing_is_told(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    PICTURE.save(jpeg, format="JPEG")
    for content, said in (
        (with_text(other="x"), "does not say how it was drawn"),
        (jpeg.getvalue(), "cannot be read as a PNG file"),
        (png(PICTURE, IMPRINT)[:-30], "cannot be read as a PNG file"),
        (b"", "cannot be read as a PNG file"),
    ):
        with pytest.raises(UserError, match=said):
            read_imprint(written(tmp_path, content))
