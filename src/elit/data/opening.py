"""The data of a run, whatever keeps them."""

from pathlib import Path

import torch

from elit.codec import Codec, KLCodec, PixelCodec, load_codec
from elit.data.dataset import INFO_FILE, SETTINGS_FILE, PreparedData
from elit.data.images import load_images
from elit.data.loader import Data
from elit.data.published_layout import FOLDER, PublishedLatents
from elit.data.published_layout import SCALE as PUBLISHED_SCALE
from elit.data.stream import StreamedData
from elit.errors import UserError


def open_data(source: str, size: int) -> Data:
    """The data that training and evaluation read.

    source: "emoji", the embedded images; a folder that `elit prepare` wrote, streamed if it is a URL; the published layout,
    a folder with vae-sd/; or a folder of class folders, which is read into memory, fit for a few thousand images. size:
    pixels of a side, for the first and the last; prepared data have their own. Raises UserError for a source that is none
    of these.
    """
    folder = Path(source)
    if "://" in source:
        return StreamedData(source)
    if (folder / INFO_FILE).is_file() or (folder / SETTINGS_FILE).is_file():
        return PreparedData(folder)
    if (folder / FOLDER).is_dir():
        return PublishedLatents(folder)
    return load_images(source, size)


def check_fit(data: Data, shape: tuple[int, int, int], num_classes: int, any_size: bool = False) -> None:
    """Raises UserError, with the keys to set, where data do not fit a model of inputs (C, H, W) and so many classes.

    any_size: whether the model takes any height and width, as one with rotary positions does; data in buckets need that.
    """
    channels, height, width = data.shape
    if len(data.members) > 1 and not any_size:
        raise UserError("the data have several sizes; set model.rope true, or prepare them with another --crop")
    if channels != shape[0] or (not data.members and data.shape != shape):
        size = height if height == width else f"[{height},{width}]"
        raise UserError(
            f"the data are {channels} x {height} x {width} and the model takes {' x '.join(map(str, shape))};"
            f" set model.in_channels {channels} and model.input_size {size}"
        )
    if int(data.labels.max()) >= num_classes:
        raise UserError(f"labels go up to {int(data.labels.max())}; set model.num_classes {len(data.label_names)}")


def decoder_of(data: Data, codec: str | None, device: torch.device) -> Codec | None:
    """What decodes the samples of a model of this data: nothing is needed for pixels; None for latents without a `codec`.

    Raises UserError where a codec's channels, scale or shift are not those of the latents, which are thus another's. A
    decoder tuned further, as "ema" and "mse" are of each other, may have other weights.
    """
    if data.shape[0] == 3:
        return PixelCodec()
    if codec is None:
        return None
    assert isinstance(data, PreparedData | PublishedLatents | StreamedData)
    found, info = load_codec(codec, data.shape[0], device), None if isinstance(data, PublishedLatents) else data.info
    assert isinstance(found, KLCodec)
    scale, shift = (PUBLISHED_SCALE, 0.0) if info is None else (info.scale, info.shift)
    if (found.scale, found.shift) != (scale, shift):
        raise UserError(
            f"the codec {codec} has scale {found.scale:g} and shift {found.shift:g}, and the latents {scale:g} and"
            f" {shift:g}; give the codec that they were made with ({(info and info.codec) or 'not recorded'})"
        )
    return found
