from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from cfm.hub._format import CONFIG_NAME

# Folders whose subfolders are checkpoints of the site, separated as in PATH.
CHECKPOINTS_VARIABLE = "CFM_CHECKPOINTS"

_registered: dict[str, str] = {}


def register_checkpoint(name: str, source: str | Path) -> None:
    """Give a checkpoint a short name for this Python session.

    For every session, put its folder into one that the environment variable
    ``CFM_CHECKPOINTS`` names.

    Parameters
    ----------
    name
        The short name, without ``/``.
    source
        A folder or file, or ``hf://org/name[@revision]``.

    Raises
    ------
    ValueError
        If the name is empty, holds a path separator, or belongs to a bundled checkpoint.

    Examples
    --------
    >>> import cfm
    >>> cfm.hub.register_checkpoint("our-donors", cfm.hub.resolve("pulsar-mini"))
    >>> cfm.hub.load_checkpoint("our-donors").model
    'Pulsar'
    """
    if not name or {"/", "\\"} & set(name) or name in {".", ".."}:
        raise ValueError(
            f"The name {name!r} cannot be registered; use one without path separators."
        )
    if name in bundled_folders():
        raise ValueError(f"{name!r} is the name of a bundled checkpoint; choose another one.")
    _registered[name] = str(source)


def bundled_folders() -> dict[str, Path]:
    """Folders of the checkpoints that ship with the package, by name."""
    root = files("cfm.hub") / "checkpoints"
    # Inside a zip there are no paths for safetensors to map; pip always unpacks wheels.
    return dict(_subfolders(root)) if isinstance(root, Path) else {}


def named_folders() -> dict[str, tuple[Path, str]]:
    """Folder and origin of every checkpoint with a name; bundled ones come first and win."""
    found = {name: (folder, "bundled") for name, folder in bundled_folders().items()}
    for root in os.environ.get(CHECKPOINTS_VARIABLE, "").split(os.pathsep):
        if root:
            for name, folder in _subfolders(Path(root)):
                found.setdefault(name, (folder, "local"))
    return found


def registered_source(name: str) -> str | None:
    """What :func:`register_checkpoint` stored under `name`."""
    return _registered.get(name)


def known_names() -> list[str]:
    """All names that can be resolved without a path, sorted."""
    return sorted({*named_folders(), *_registered})


def _subfolders(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_dir():
        for folder in sorted(root.iterdir()):
            # Hidden ones are saves in progress.
            if not folder.name.startswith(".") and _has_config(folder):
                yield folder.name, folder


def _has_config(folder: Path) -> bool:
    """Whether a folder has a ``config.json``, also while it is replaced."""
    with suppress(OSError):
        before = folder.stat()
        while not (folder / CONFIG_NAME).is_file():
            seen = folder.stat()
            if os.path.samestat(before, seen):
                return False
            before = seen
        return True
    return False
