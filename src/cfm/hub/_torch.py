"""Read files of torch.save without running the code in them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cfm.hub._checkpoint import check_finite, load_safetensors

# Containers in containers that a file may hold; weights have two or three.
_DEEPEST = 50
# Bytes that one tensor, and all of them, may claim in a file that is smaller: buffers may be views
# that repeat a value, and weights may be named twice.
_CLAIMED_BY_ONE, _CLAIMED_IN_ALL = 2**25, 2**27
# Records of an archive, a tensor each, and bytes of the pickle that lists them; both cost time. The
# file with an embedding for each human protein has 19,790 and 2 MB.
_MOST_RECORDS, _LARGEST_LIST = 50_000, 2**23
# What torch and zipfile raise on random or cut bytes depends on where they stop making sense.
_DAMAGED = (
    OSError,  # a seek before the start of what is left of the archive
    RuntimeError,
    EOFError,
    MemoryError,  # of a length that the bytes claim
    ArithmeticError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)


def load_torch(path: str | Path) -> dict[str, Any]:
    """Read a ``.pt``, ``.pth``, ``.ckpt`` or ``.torch`` file of others without running its code.

    Such files are pickles, and a pickle can run anything when it is opened. Here only tensors and
    plain containers are accepted (:func:`torch.load` with ``weights_only=True``); a file that
    needs more is refused before any of it runs.

    Parameters
    ----------
    path
        The file. A ``.safetensors`` file goes to :func:`load_safetensors`.

    Returns
    -------
    dict
        What the file holds, tensors on the CPU: mostly a state dict, or a dictionary that has one
        inside. A file of one bare tensor gives ``{"tensor": tensor}``.

    Raises
    ------
    ValueError
        If the file is missing, empty, truncated, not a torch file, a TorchScript archive, needs
        code or classes other than tensors and plain containers; if its tensors are far larger
        than the file (a packed archive, tensors that repeat a value), or has more than 50,000
        records or a list of contents of more than 8 MB; if it holds something other than a tensor
        or a dictionary with names, tensors that are not dense, or NaN.

    Examples
    --------
    >>> import cfm, torch
    >>> torch.save({"state_dict": {"weight": torch.zeros(2, 3)}}, "theirs.pt")
    >>> cfm.hub.load_torch("theirs.pt")["state_dict"]["weight"].shape
    torch.Size([2, 3])
    """
    path = Path(path)
    if path.suffix == ".safetensors":  # torch.load reads it, too, without these checks
        return dict(load_safetensors(path))
    loaded = read_plain(path)
    if isinstance(loaded, torch.Tensor):
        loaded = {"tensor": loaded}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        found = "dictionary without names" if isinstance(loaded, dict) else type(loaded).__name__
        raise ValueError(
            f"{path} holds a {found}, expected a dictionary of tensors (a state dict) or a tensor; "
            "save model.state_dict() instead."
        )
    tensors = list(_tensors(loaded, "", path, set(), 0))
    _check_tensor_sizes(tensors, path)
    # Infinity is left alone: published buffers use it in attention masks.
    check_finite(tensors, str(path), infinite=True)
    return dict(loaded)


def read_plain(path: Path) -> Any:
    """Read tensors and plain containers that :func:`torch.save` wrote, and nothing else.

    Raises
    ------
    ValueError
        If the file is missing, damaged, packed, or needs more; none of it is executed. Sizes and
        values of the tensors are not checked.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}; give the path of a .pt or .ckpt file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; the download was probably cut short: repeat it.")
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused because it is damaged or contains more than tensors and plain "
            f"containers ({_reason(error)}); nothing in it was executed. Ask its authors for "
            "safetensors, or convert it on a machine where that file may run code."
        ) from error
    except PermissionError:
        raise
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is truncated or not a file written by torch.save ({_reason(error)}); nothing "
        "was loaded: download it again."
    )


def _check_archive(path: Path) -> None:
    """Refuse archives that carry code, and those that may unpack to more than they are."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except PermissionError:
        raise
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if any(entry.filename.split("/")[1:2] == ["code"] for entry in entries):
        raise ValueError(
            f"{path} is a TorchScript archive, which carries code; nothing in it was "
            "executed: save model.state_dict() instead."
        )
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(
            f"{path} is a packed archive, which torch.save does not write and which may unpack to "
            "any size; nothing was loaded: ask its authors for the file that torch.save wrote."
        )
    listed = max((e.file_size for e in entries if e.filename.endswith("data.pkl")), default=0)
    if len(entries) > _MOST_RECORDS or listed > _LARGEST_LIST:
        raise ValueError(
            f"{path} has {len(entries):,} records and a list of them of {listed / 1e6:,.0f} MB, "
            f"expected at most {_MOST_RECORDS:,} and {_LARGEST_LIST / 1e6:,.0f} MB of weights; "
            "nothing was loaded: save model.state_dict() alone."
        )


def _tensors(
    value: object, name: str, path: Path, seen: set[int], depth: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Go through containers in containers, each of them once however often it is named."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        if depth > _DEEPEST:
            raise ValueError(
                f"{path} holds containers nested more than {_DEEPEST} deep, expected a state dict; "
                "save model.state_dict() instead."
            )
        seen.add(id(value))
        if isinstance(value, dict):
            items = ((f"{name}.{key}" if name else str(key), item) for key, item in value.items())
        else:
            items = ((f"{name}[{index}]", item) for index, item in enumerate(value))
        for inner, item in items:
            yield from _tensors(item, inner, path, seen, depth + 1)


def _check_tensor_sizes(tensors: list[tuple[str, torch.Tensor]], path: Path) -> None:
    """Refuse tensors that are not dense, or that repeat what is stored to any size."""
    stored, in_all = path.stat().st_size, 0
    for name, tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(
                f"The tensor {name!r} in {path} is sparse, quantised or without data, expected a "
                "plain dense tensor; convert it and save it again."
            )
        claimed = tensor.numel() * tensor.element_size()
        in_all += claimed
        if claimed > max(_CLAIMED_BY_ONE, stored) or in_all > max(_CLAIMED_IN_ALL, 8 * stored):
            raise ValueError(
                f"The tensors of {path} claim more than the file holds (up to {name!r} "
                f"{in_all / 1e6:,.0f} MB of {stored / 1e6:,.1f} MB): they repeat what is stored "
                "and may fill the memory. Ask its authors for plain tensors."
            )


def _reason(error: BaseException) -> str:
    # torch appends advice on how to switch the protection off: only its finding is wanted.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    finding = next((line for line in lines if "GLOBAL" in line or "global" in line), "")
    text = finding or (lines[0] if lines else type(error).__name__)
    return text if len(text) <= 200 else text[:200] + "…"
