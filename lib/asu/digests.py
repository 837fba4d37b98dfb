"""What files are: SHA-256 digests, each file read once as long as it stays as it is."""

import functools
import hashlib
import re
from pathlib import Path

from asu.errors import AsuError

WEIGHTS_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt"})  # what a number can depend on


def of_file(path: Path) -> str:
    """SHA-256 of a file."""
    stat = path.stat()
    return _at(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _at(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_weights(folder: Path, name: str) -> str:
    """SHA-256 over names and contents of a weights folder's files; AsuError if it holds no weights of model `name`."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in WEIGHTS_SUFFIXES)
    if not any(file.suffix == ".safetensors" for file in files):
        raise AsuError(f"the weights of {name} are missing: no .safetensors file in {folder}",
                       "restore them (git checkout data/models), or train them: make miniature")
    lines = [f"{file.relative_to(folder)} {of_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.cache
def of_hub(hub: str, revision: str) -> str:
    """The commit a revision stands for: itself if it is one, from the local cache, else asked of the hub."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(hub, "config.json", revision=revision)).parent.name
    except LocalEntryNotFoundError as error:
        raise AsuError(f"{hub} is not on this machine and the hub cannot be reached",
                       "connect once, or set HF_HOME to a cache that has the model, and run again") from error
    except HfHubHTTPError as error:
        raise AsuError(f"the hub refuses {hub} at revision {revision}: {error}",
                       "accept the model's conditions on its hub page and set HF_TOKEN, then run again") from error
