"""Resolves what a user calls a checkpoint to its file and metadata."""

from pathlib import Path

from .download import Progress, RetryPolicy
from .published import Facts, list_published, read_facts
from .resources import checkpoint_dir, read_manifest
from .weight_files import obtain

__all__ = ["find_checkpoint", "is_file_name", "locate"]

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_FILE = "model.safetensors"
_HUB, _FOLDER = "hf-hub:", "local-dir:"


def is_file_name(checkpoint: str | Path) -> bool:
    """Whether this is a file name, and not a name in the manifest, a published name or a repository."""
    text = str(checkpoint)
    if isinstance(checkpoint, Path) or text.endswith(_ENDINGS):
        return True
    return not text.startswith((_HUB, _FOLDER)) and ("/" in text or "\\" in text)


def find_checkpoint(checkpoint: str | Path) -> tuple[Path | None, Facts | None]:
    """The file of a checkpoint, if no download is needed, and its metadata.

    Args:
        checkpoint: A name `<model>.<tag>`, a file, `hf-hub:ORG/NAME[@REVISION]` or `local-dir:FOLDER`.

    Returns:
        The file, or none if `obtain` has to look for it; the manifest's entry, or what the file says of itself, or none
        if it says nothing.

    Raises:
        FileNotFoundError: If there is no such file, or the repository can't be reached.
        ValueError: If there is no checkpoint of this name, or the file is damaged.
    """
    text = str(checkpoint)
    if is_file_name(checkpoint):
        return Path(checkpoint), read_facts(_existing(Path(checkpoint)))
    if text.startswith(_FOLDER):
        path = _existing(Path(text.removeprefix(_FOLDER)) / _FILE)
        return path, read_facts(path)
    if text.startswith(_HUB):
        path = _from_hub(text.removeprefix(_HUB))
        return path, read_facts(path)
    manifest = read_manifest()
    if text in manifest:
        entry = manifest[text]
        if {"kind": "packaged"} not in entry["sources"]:
            return None, entry
        path = checkpoint_dir() / entry["file"]
        return path, {**(read_facts(path) or {}), **entry}
    published = list_published()
    if text in published:
        return published[text], read_facts(published[text])
    near = [other for other in {**manifest, **published} if other.split(".")[0] == text.split(".")[0]]
    where = f"of this network there are: {', '.join(near)}" if near else "visionattn.checkpoints.list() names them"
    raise ValueError(
        f"no checkpoint {text!r}, neither packaged nor in ./checkpoints or where VISIONATTN_CHECKPOINTS points; {where}"
    )


def locate(
    checkpoint: str | Path,
    progress: Progress = lambda done, total: None,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is immutable)
) -> tuple[Path, Facts | None]:
    """As `find_checkpoint`, downloading the file if necessary.

    Raises:
        FileNotFoundError: If there is no such file, or it can't be downloaded; the message says how a person gets it.
        ValueError: If there is no checkpoint of this name, or the file is damaged.
    """
    path, facts = find_checkpoint(checkpoint)
    if path is None:
        assert facts is not None  # an entry of the manifest
        path = obtain(facts, progress, retry)
    return path, facts


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return path


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, _FILE, revision=revision or None))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no {_FILE} of {repository} on the hub: {str(error).splitlines()[0]}") from error
