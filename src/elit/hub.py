"""Files from the Hugging Face hub."""

import re
from pathlib import Path

from elit.card import CARD_FILE
from elit.errors import UserError
from elit.weights import CONFIG_FILE, WEIGHTS_FILE


def from_hub(repository: str, files: list[str], remedy: str) -> Path:
    """A folder with these files of a hub's repository ("user/name"), downloaded once into the hub's own cache.

    The first file must be there; the others may be. Raises UserError, ending in the remedy, where it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=files))
        if (folder / files[0]).is_file():
            return folder
        why = f"it holds no {files[0]}, or only its other files were fetched before"
    except Exception as error:  # no network, no such repository, a broken cache: each has its own kinds of exception
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    raise UserError(f"could not fetch {files[0]} of {repository} from the hub ({why}); {remedy}")


def model_folder(name: str | Path) -> Path:
    """A folder of that name, or that of the hub's model of that id ("user/model").

    Raises UserError where there is neither, or the hub cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return folder
    remedy = f"there is no folder {name} either: give a model folder, or fetch it where there is a network"
    return from_hub(str(name), [WEIGHTS_FILE, CONFIG_FILE, CARD_FILE], remedy)
