"""Where a model is: bundled, in a folder, in a run, or on the Hugging Face hub."""

import re
from pathlib import Path

from elit.bundled import FOLDER
from elit.errors import UserError
from elit.files import found
from elit.weights import CACHE_FILE, CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, is_host, model_in
from elit.words import one_line

BUNDLED = "bundled"  # what commands call the bundled model
REASONS = {  # what errors of the hub's client mean, whose own texts are long
    "LocalEntryNotFoundError": "it was not fetched before, and the hub cannot be reached",
    "RepositoryNotFoundError": "the hub has none of that name that you may see",
    "GatedRepoError": "its owner wants you to accept terms there first",
}


def from_hub(repository: str, files: list[str], remedy: str) -> Path:
    """A folder with these files of a hub's repository ("user/name"), downloaded once into the hub's own cache.

    The first file must be there; the others may be. Raises UserError, ending in the remedy, where it cannot be had.
    """
    folder = fetched(repository, files, files[0], remedy)
    if not (folder / files[0]).is_file():
        why = f"it holds no {files[0]}, or only its other files were fetched before"
        raise UserError(f"could not fetch {files[0]} of {repository} from the hub ({why}); {remedy}")
    return folder


def fetched(repository: str, patterns: list[str], what: str, remedy: str) -> Path:
    """A folder with what a hub's repository has of these patterns. what: its name in the error; errors as of `from_hub`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # no network, no such repository, a broken cache: each has its own kinds of exception
        kind = type(error).__name__
        why = REASONS.get(kind) or f"{kind}: {one_line(str(error))[:160]}"
        raise UserError(f"could not fetch {what} of {repository} from the hub ({why}); {remedy}") from error


def find_model(name: str | Path | None = None) -> Path:
    """The model folder that a name stands for, in every command and in the library.

    None or "bundled": the bundled model (a folder of that name is ./bundled). A model folder: itself. The folder of a
    training run: its last checkpoint. "user/name", where there is no such folder: the hub's model of that id. Raises
    UserError for any other name, and where the hub cannot be reached.
    """
    if name is None or str(name) == BUNDLED:
        return FOLDER
    folder = found(Path(name).expanduser())
    if folder.exists() or not is_hub_id(str(name)):
        return model_in(folder)
    remedy = f"there is no folder {name} either: give a model folder, or fetch it where there is a network"
    return from_hub(str(name), [WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, CACHE_FILE], remedy)


def names_model(name: str) -> bool:
    """Whether a name, which may be that of pictures too, is meant for a model: see `find_model`."""
    folder = found(Path(name).expanduser())
    if name == BUNDLED or not folder.exists():
        return name == BUNDLED or is_hub_id(name)
    return (folder / CONFIG_FILE).is_file() or is_host(folder) or any((folder / "checkpoints").glob("step_*"))


def is_hub_id(name: str) -> bool:
    """Whether a name is written as the hub writes its own: "user/name"."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
