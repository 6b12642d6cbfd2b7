"""The data of a run, whatever keeps them."""

from pathlib import Path

import torch

from elit.codec import Codec, Latents, PixelCodec, load_codec
from elit.data.dataset import PreparedData, is_prepared
from elit.data.emoji import SPLITS, emoji_part
from elit.data.images import LabelledImages, load_folder
from elit.data.loader import Data
from elit.data.moving_emoji import MovingEmoji, is_moving_emoji, open_moving_emoji
from elit.data.published_layout import FOLDER, PublishedLatents
from elit.data.sources import is_data_set
from elit.data.stream import StreamedData
from elit.errors import UserError
from elit.labels import labels_in_full


def open_data(source: str, size: int, frames: int | None = None) -> Data:
    """The data that training reads.

    source: "emoji", the embedded images, or a part of them (see `emoji_part`); a folder that `elit prepare` wrote, streamed
    if it is a URL; the published layout, a folder with vae-sd/; a folder or zip file of pictures, which is read into
    memory, fit for a few thousand; or "moving-emoji", the embedded clips. size: pixels of a side, for the first and the last
    two; prepared data have their own. frames: of the clips that the model takes, None where it takes pictures. Raises
    UserError for a source that is none of these.
    """
    if is_moving_emoji(source):
        return open_moving_emoji(source, size, frames)
    folder = Path(source).expanduser()
    if "://" in source:
        return StreamedData(source)
    if is_prepared(folder):
        return PreparedData(folder)
    if (folder / FOLDER).is_dir():
        return PublishedLatents(folder)
    if is_data_set(source):
        what = "is a data set" if folder.exists() else "is not a folder; if it is a data set"
        raise UserError(f"{source} {what}, prepare it first, and train on that: elit prepare images {source} --out FOLDER")
    return load_images(source, size)


def load_images(source: str, size: int) -> LabelledImages:
    """The images of "emoji", a part of them, or of a folder or zip file (see `load_folder`), in memory."""
    return emoji_part(source, size) if source in SPLITS else load_folder(source, size)


def check_fit(data: Data, shape: tuple[int, ...], num_classes: int, any_size: bool = False) -> None:
    """Raises UserError, with the keys to set, where data do not fit a model of inputs (C, H, W), or clips (C, T, H, W), and
    so many classes.

    any_size: whether the model takes any height and width, as one with rotary positions does; data in buckets need that.
    """
    if len(data.shape) > len(shape):
        raise UserError("the data are clips and the model takes pictures; give a preset such as SiT-S/1x2x2")
    if len(data.shape) < len(shape):
        raise UserError(
            "the data are pictures and the model takes clips; set data.source moving-emoji, or make clips into a folder for"
            " it with elit prepare clips"
        )
    channels = data.shape[0]
    if len(data.members) > 1 and not any_size:
        raise UserError("the data have several sizes; set model.rope true, or prepare them with another --crop")
    if channels != shape[0] or (not data.members and data.shape != shape):
        raise UserError(
            f"the data are {' x '.join(map(str, data.shape))} and the model takes {' x '.join(map(str, shape))};"
            f" set {_keys_to_fit(data, shape)}"
        )
    highest = max((label for label, count in enumerate(data.label_counts) if count), default=-1)
    if highest >= num_classes:
        raise UserError(f"labels go up to {highest}; set model.num_classes {max(highest + 1, len(data.label_names))}")


def _keys_to_fit(data: Data, shape: tuple[int, ...]) -> str:
    """The keys that fit data and model to each other: pictures that are resampled anyway may have the model's size."""
    channels, *frames, height, width = data.shape
    size = height if height == width else f"[{height},{width}]"
    keys = [f"model.in_channels {channels}"] if channels != shape[0] else []
    if frames != list(shape[1:-2]):
        keys.append(f"model.frames {frames[0]}")
    if (height, width) != shape[-2:]:
        smaller = isinstance(data, LabelledImages | MovingEmoji) and shape[-1] == shape[-2]
        keys.append(f"data.size {shape[-1]}, or model.input_size {size}" if smaller else f"model.input_size {size}")
    return " and ".join(keys)


def classes_without_pictures(data: Data, num_classes: int) -> list[int]:
    """The labels of a model of so many classes that no row has; none where nothing is labelled at all.

    Labels that leave a factor open are none of them: they are learned from the rows of every value.
    """
    counts = data.label_counts
    labels = labels_in_full(data.label_names) or range(num_classes)
    return [label for label in labels if label >= len(counts) or not counts[label]] if any(counts) else []


def decoder_of(data: Data, codec: str | None, device: torch.device) -> Codec | None:
    """What decodes the samples of a model of this data: nothing is needed for pixels; None for latents without a `codec`.

    Raises UserError as `load_codec` does.
    """
    if not isinstance(data.encoding, Latents):
        return PixelCodec()
    channels, *frames, _, _ = data.shape
    return None if codec is None else load_codec(codec, channels, device, data.encoding, *frames)
