from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cfm.hub._format import LARGEST_HEADER, MOST_TENSORS, find_file

# Also what torch says of a size that it has no room for, and of a file that is just being replaced.
_UNREADABLE = (SafetensorError, TypeError, RuntimeError)
# The names that torch gives to what safetensors abbreviates.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, checking that it is whole and that its values are finite.

    For weights published by others in their own layout; a folder written by
    :func:`cfm.hub.save_checkpoint` is read with :func:`cfm.hub.load_checkpoint`.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Tensors by name, on the CPU, in the dtype in which they are stored.

    Raises
    ------
    ValueError
        If the file is missing, truncated, not safetensors (for example a pickle), or holds NaN
        or infinite values; if it has more than 10,000 tensors or a header of more than 2 MB.

    Examples
    --------
    >>> import cfm
    >>> weights = cfm.hub.load_safetensors(cfm.hub.resolve("pulsar-mini") / "model.safetensors")
    >>> len(weights), sorted({str(tensor.dtype) for tensor in weights.values()})
    (59, ['torch.float16', 'torch.float32'])
    """
    path = Path(path)
    find_file(path.parent, path.name)
    header = read_header(path)
    return read_tensors(path, list(header))


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor in a safetensors file, without reading the tensors.

    Returns
    -------
    dict
        ``{name: {"shape": list of int, "dtype": str}}``, dtypes named as in torch.

    Raises
    ------
    ValueError
        If the file is truncated, is not a safetensors file, or has more than 10,000 tensors or a
        header of more than 2 MB.
    """
    with path.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > LARGEST_HEADER:
        raise _unreadable(path, f"a header of {size / 1e6:,.0f} MB; expected at most 2 MB")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MOST_TENSORS:
                raise _unreadable(
                    path, f"{len(names):,} tensors; expected at most {MOST_TENSORS:,}"
                )
            slices = {name: file.get_slice(name) for name in names}
            return {
                name: {
                    "shape": [int(size) for size in piece.get_shape()],
                    "dtype": _DTYPES.get(piece.get_dtype(), piece.get_dtype()),
                }
                for name, piece in slices.items()
            }
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_tensors(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The tensors called `names`, on the CPU, refused if one holds NaN or infinity."""
    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                tensors[name] = file.get_tensor(name)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    check_finite(tensors.items(), str(path))
    return tensors


def check_finite(
    tensors: Iterable[tuple[str, torch.Tensor]], where: str, *, infinite: bool = False
) -> None:
    """Raise ValueError if a tensor holds NaN, or infinity unless `infinite` allows it."""
    for name, tensor in tensors:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if tensor.element_size() == 1:  # float8 has no minimum and maximum on the CPU
            try:
                tensor = tensor.float()
            except NotImplementedError as error:
                raise ValueError(
                    f"The tensor {name!r} in {where} has dtype {tensor.dtype}, which torch cannot "
                    "convert to float32; convert it with the program that wrote it."
                ) from error
        # Minimum and maximum pass NaN on and need no second array of the tensor's size.
        low, high = (float(value) for value in torch.aminmax(tensor))
        if math.isnan(low) or (not infinite and not (math.isfinite(low) and math.isfinite(high))):
            raise ValueError(
                f"The tensor {name!r} in {where} holds NaN{'' if infinite else ' or infinite'} "
                "values, but weights must be finite; the training probably diverged: use an "
                "earlier checkpoint."
            )


def _unreadable(path: Path, error: Exception | str) -> ValueError:
    return ValueError(
        f"{path} is truncated or not a safetensors file ({error}); nothing was loaded: download "
        "or save it again."
    )
