from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cfm.hub._safetensors import check_finite


def load_torch(path: str | Path) -> dict[str, Any]:
    """Read a ``.pt``, ``.pth``, ``.ckpt`` or ``.torch`` file of others without running its code.

    Such files are pickles, and a pickle can run anything when it is opened. Here only tensors and
    plain containers are accepted (:func:`torch.load` with ``weights_only=True``); a file that
    needs more is refused before any of it runs.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        What the file holds, tensors on the CPU: mostly a state dict, or a dictionary that has one
        inside. A file of one bare tensor gives ``{"tensor": tensor}``.

    Raises
    ------
    ValueError
        If the file is missing, empty, truncated, not a torch file, a TorchScript archive, asks for
        code or for classes other than tensors and plain containers, holds something other than a
        dictionary or tensor, or holds NaN.

    Examples
    --------
    >>> import cfm, torch
    >>> torch.save({"state_dict": {"weight": torch.zeros(2, 3)}}, "theirs.pt")
    >>> cfm.hub.load_torch("theirs.pt")["state_dict"]["weight"].shape
    torch.Size([2, 3])
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}; give the path of a .pt or .ckpt file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; the download was probably cut short: repeat it.")
    _refuse_script(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused because it is damaged or asks for more than tensors and plain "
            f"containers ({_reason(error)}); nothing in it was executed. Ask its authors for "
            "safetensors, or convert it on a machine where that file may run code."
        ) from error
    except PermissionError:
        raise
    except (
        OSError,  # a seek before the start of what is left of the archive
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
    ) as error:
        # What torch raises on random or cut bytes depends on where they stop making sense.
        raise ValueError(
            f"{path} is truncated or not a file written by torch.save ({_reason(error)}); nothing "
            "was loaded: download it again."
        ) from error
    if isinstance(loaded, torch.Tensor):
        loaded = {"tensor": loaded}
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors (a state "
            "dict) or a tensor; save model.state_dict() instead."
        )
    # Infinity is left alone: published buffers use it in attention masks.
    check_finite(dict(_tensors(loaded, "")), str(path), infinite=True)
    return dict(loaded)


def _refuse_script(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.split("/")[1:2] == ["code"] for name in archive.namelist()):
            raise ValueError(
                f"{path} is a TorchScript archive, which carries code; nothing in it was "
                "executed: save model.state_dict() instead."
            )


def _tensors(value: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}[{index}]")


def _reason(error: BaseException) -> str:
    # torch appends advice on how to switch the protection off: only its finding is wanted.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    finding = next((line for line in lines if "GLOBAL" in line or "global" in line), "")
    text = finding or (lines[0] if lines else type(error).__name__)
    return text if len(text) <= 200 else text[:200] + "…"
