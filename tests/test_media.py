"""Clips as GIF and MP4: written, read back by another reader, and what is no clip refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from elit import UserError
from elit.media import FRAMES_PER_SECOND, check_format, read_clip, read_frames, save_clip
from elit.pictures import moving_sheet, sheet


def frames(count: int = 5, size: tuple[int, int] = (24, 16)) -> list[Image.Image]:
    """Few flat colours, which a palette holds exactly: a bar that moves over stripes."""
    made = []
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
        pixels[np.arange(size[1]) // 4 % 2 == 0] = (200, 40, 40)
        pixels[:, 4 * i : 4 * i + 4] = (10, 90, 160)
        made.append(Image.fromarray(pixels))
    return made


def test_a_gif_holds_the_frames_in_order_at_their_rate_and_for_ever(tmp_path: Path) -> None:
    save_clip(frames(), tmp_path / "a.gif", made_by="us")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5 and image.info["loop"] == 0 and image.info["comment"] == b"us"
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(image)] == [1000 // FRAMES_PER_SECOND] * 5
        found = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    for frame, wanted in zip(found, frames(), strict=True):
        assert np.array_equal(frame, np.asarray(wanted))
    first = (tmp_path / "a.gif").read_bytes()
    save_clip(frames(), tmp_path / "a.gif", made_by="us")
    assert (tmp_path / "a.gif").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]


def test_white_stays_white_among_many_colours(tmp_path: Path) -> None:
    """Half of each frame is white, the other half all shades of two colours, of which a palette has means."""
    shades = np.linspace(0, 254, 64 * 64).reshape(64, 64)
    pixels = np.full((64, 128, 3), 255, dtype=np.uint8)
    pixels[:, 64:, 0], pixels[:, 64:, 1] = shades, shades.T
    save_clip([Image.fromarray(pixels), Image.fromarray(np.roll(pixels, 3, 0))], tmp_path / "a.gif")
    clip = read_clip(tmp_path / "a.gif")
    assert (clip[:, :, :, :64] == 255).all()
    found = clip[:, 0].permute(1, 2, 0).numpy()[:, 64:].astype(int)
    assert abs(found - pixels[:, 64:].astype(int)).max() < 40


def test_frames_that_stand_still_come_back_as_many(tmp_path: Path) -> None:
    still = [frames()[i] for i in (0, 0, 0, 1, 2, 2)]
    save_clip(still, tmp_path / "a.gif")
    clip = read_clip(tmp_path / "a.gif")
    assert clip.shape == (3, 6, 16, 24)
    for i, frame in enumerate(still):
        assert np.array_equal(clip[:, i].permute(1, 2, 0).numpy(), np.asarray(frame))


@pytest.mark.parametrize("size", [(24, 16), (25, 17)])
def test_an_mp4_holds_the_frames_nearly(tmp_path: Path, size: tuple[int, int]) -> None:
    """Within what its compression loses; equal frames make equal bytes."""
    save_clip(frames(size=size), tmp_path / "a.mp4")
    first = (tmp_path / "a.mp4").read_bytes()
    save_clip(frames(size=size), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == first
    clip = read_clip(tmp_path / "a.mp4").permute(1, 2, 3, 0).numpy()[:, : size[1], : size[0]].astype(int)
    wanted = np.stack([np.asarray(frame) for frame in frames(size=size)]).astype(int)
    assert clip.shape == wanted.shape
    assert abs(clip - wanted).mean() < 6
    assert abs(clip[[1, 2, 3, 4, 0]] - wanted).mean() > 20  # in another order they are others


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_animations_of_others_are_read(form: str) -> None:
    stream, made = io.BytesIO(), frames()
    made[0].save(stream, form, save_all=True, append_images=made[1:], lossless=True, duration=50)
    found = [np.asarray(frame.convert("RGB")) for frame in read_frames(stream.getvalue(), f".{form.lower()}")]
    assert len(found) == 5 and all(np.array_equal(a, np.asarray(b)) for a, b in zip(found, made, strict=True))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4", ".mkv"])
@pytest.mark.parametrize("content", [b"", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"GIF89a" + bytes(40)])
def test_what_is_no_clip_is_refused_in_a_sentence(suffix: str, content: bytes) -> None:
    with pytest.raises(UserError, match=r"its frames cannot be read|its frames are"):
        list(read_frames(content, suffix))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    save_clip(frames(), tmp_path / "a.gif")
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.gif cannot be read as a clip .*; remove it"):
        read_clip(tmp_path / "a.gif")


def test_mp4_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_format("gif")
    with pytest.raises(UserError, match=r"pip install 'elit-diffusion\[video\]'"):
        check_format("mp4")


def test_a_moving_sheet_is_a_sheet_of_each_frame() -> None:
    clips = torch.rand(4, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = moving_sheet(clips, ["a", "b"], ["first", "second"])
    assert len(made) == 3
    for i, frame in enumerate(made):
        assert frame.tobytes() == sheet(clips[:, :, i], ["a", "b"], ["first", "second"]).tobytes()
