"""Model folders from the Hugging Face hub."""

import re
from pathlib import Path

from elit.bundled import CARD_FILE
from elit.weights import CONFIG_FILE, WEIGHTS_FILE


def model_folder(name: str | Path) -> Path:
    """A folder of that name, or the hub's model of that id ("user/model"), downloaded once into the hub's own cache.

    Raises ValueError where there is neither, or the hub cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise ValueError(
            f"there is no folder {name}, and no model of that id could be fetched from the hub ({why});"
            " give a model folder, or fetch it where there is a network"
        ) from error
