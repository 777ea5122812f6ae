"""From the source of a checkpoint to its files: names, folders, and the Hugging Face hub."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")

#: File that makes a folder a checkpoint.
CONFIG_NAME = "config.json"
#: Seconds after which a reader gives up on a folder that is replaced again and again.
PATIENCE = 60.0


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


_HF_PREFIX = "hf://"
_HF_SOURCE = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)
# What weights of other frameworks come in: never read here, often large.
_IGNORED = ["*.h5", "*.msgpack", "*.onnx", "*.tflite", "*.gguf", "*.ipynb", "*.mp4", "*.png"]


def resolve(source: str | Path) -> Path:
    """Find a checkpoint: the local path of its folder or file.

    Parameters
    ----------
    source
        The name of a bundled checkpoint (``"cellpulse-mini"``), of one in a folder that the
        environment variable ``CFM_CHECKPOINTS`` names, or of one given to
        :func:`cfm.hub.register_checkpoint`; a local folder or file; or
        ``"hf://org/name"``/``"hf://org/name@revision"`` for the Hugging Face hub, which is
        downloaded once into its cache. A bundled name wins over a folder of the same name in the
        working directory; write ``"./cellpulse-mini"`` for the latter.

    Returns
    -------
    pathlib.Path
        An existing path. What lies there is not checked yet.

    Raises
    ------
    TypeError
        If `source` is neither a string nor a path.
    ValueError
        If there is nothing of that name, or the address is malformed or unknown to the hub.
    ConnectionError
        If the hub cannot be reached and its cache does not hold the checkpoint, or if a transfer
        was cut short; what had arrived is kept, and the next call goes on from there.
    OSError
        If the cache of the hub cannot be written.

    Examples
    --------
    >>> import cfm
    >>> cfm.hub.resolve("cellpulse-mini").name
    'cellpulse-mini'
    """
    if isinstance(source, Path):
        return _existing(source)
    if not isinstance(source, str):
        raise TypeError(
            f"A checkpoint is given by a name, a path or hf://org/name, not by an object of type "
            f"{type(source).__name__}."
        )
    if source.startswith(_HF_PREFIX):
        return _download(source)
    if "://" in source:
        raise ValueError(
            f"Checkpoints are not read from {source!r}; use hf://org/name, or download the folder "
            "and give its path."
        )
    named = named_folders()
    if source in named:
        return named[source][0]
    registered = registered_source(source)
    if registered is not None:
        return _download(registered) if registered.startswith(_HF_PREFIX) else _existing(registered)
    return _existing(source)


def local_path(source: object) -> Path | None:
    """Path of a checkpoint that lies on this machine, ``None`` for anything else."""
    registered = registered_source(source) if isinstance(source, str) else None
    if not isinstance(source, str | Path) or "://" in str(registered or source):
        return None
    with suppress(ValueError):
        return resolve(source)
    return None


def checkpoint_name(source: str | Path) -> str:
    """Return the name of a source, without folders, prefix and revision."""
    match = _HF_SOURCE.fullmatch(str(source))
    return match["repo"] if match else Path(source).resolve().name


def _existing(source: str | Path) -> Path:
    with suppress(OSError, RuntimeError, ValueError):  # no path: too long, a null byte, ~nobody
        path = Path(source).expanduser()
        if str(source) and _exists(path):
            return path.resolve() if path.is_symlink() else path
    known = known_names()
    close = difflib.get_close_matches(str(source), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    bundled = "" if bundled_folders() else " (this installation has no bundled checkpoints)"
    raise ValueError(
        f"There is no checkpoint {str(source)!r}.{hint} Give one of {known}{bundled}, the path of "
        "an existing folder or file, or hf://org/name."
    )


def _exists(path: Path) -> bool:
    """Whether something is there, maybe after a moment: a new checkpoint may take its name."""
    for _ in range(50):
        if path.exists():
            return True
        if not any(p.name.startswith(f".{path.name}.") for p in path.parent.iterdir()):
            break
        time.sleep(0.02)  # where names cannot be exchanged, the old one steps aside first
    return path.exists()


def _download(source: str) -> Path:
    match = _HF_SOURCE.fullmatch(source)
    if match is None or ".." in source:
        raise ValueError(
            f"{source!r} is not an address on the Hugging Face hub; write hf://org/name or "
            "hf://org/name@revision."
        )
    # Imported here because it takes a third of a second and most calls need no hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    # The classes that the hub's own errors are made of are those of its transport: OSError, and
    # HTTPError of requests, httpx or httpx2, as it goes with the version.
    transport = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))
    repo, revision = match["repo"], match["revision"]
    try:
        return Path(snapshot_download(repo_id=repo, revision=revision, ignore_patterns=_IGNORED))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{source} is not in the local cache and the Hugging Face hub could not be reached; "
            "connect to the internet, or give the path of a folder that you copied here."
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"The Hugging Face hub does not give out {source} ({type(error).__name__}); check the "
            "name, the revision and, for a private repository, your login (`hf auth login`)."
        ) from error
    except transport as error:
        number = getattr(error, "errno", None)
        if isinstance(number, int) and not isinstance(error, ConnectionError | TimeoutError):
            raise OSError(
                number,
                f"{source} could not be written to the cache of the Hugging Face hub ({error}); "
                "make room there, or set the environment variable HF_HOME to another folder",
            ) from error
        raise ConnectionError(
            f"The transfer of {source} was cut short ({type(error).__name__}); try again: what "
            "has arrived is kept."
        ) from error


def reread(source: object, read: Callable[[], T]) -> T:
    """Read a checkpoint; if its folder is replaced meanwhile and reading fails, read it again.

    Tensors are ordinary ones also inside :func:`torch.inference_mode`, so that models can be
    trained later.

    Parameters
    ----------
    source
        As for :func:`cfm.hub.resolve`; anything else is never replaced.
    read
        Reads it.

    Raises
    ------
    Exception
        The error of ``read``, if the folder stays or is replaced for a minute on end.
    """
    end = time.monotonic() + PATIENCE
    for attempt in itertools.count(1):
        before = _identity(source)
        try:
            with torch.inference_mode(False):
                return read()
        except (OSError, ValueError):
            late = time.monotonic() > end and attempt > 3
            if late or _identity(source) == before:
                raise
    raise AssertionError("not reached")


def reads_checkpoint(reader: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose argument ``source`` is a checkpoint; see :func:`reread`."""
    signature = inspect.signature(reader)

    @functools.wraps(reader)
    def read(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs).arguments
        return reread(given["source"], lambda: reader(*args, **kwargs))

    return read


def _identity(source: object) -> tuple[int, int, int] | None:
    """Return device, inode and time of a folder, ``None`` where there is none."""
    path = local_path(source)
    try:
        seen = None if path is None else path.stat()
    except OSError:
        return None
    return None if seen is None else (seen.st_dev, seen.st_ino, seen.st_mtime_ns)
