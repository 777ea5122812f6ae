"""What data are read from: files that no result may replace, and what identifies data.

What a lazy matrix reads from stands in no attribute of it: a dask array, for example, holds a graph
of functions, some of which hold a path. Pickling visits all that an object needs to be used
elsewhere, whatever made it, so it finds the files of any of them.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xxhash
from anndata import AnnData
from cloudpickle import Pickler  # graphs of dask hold functions of any kind
from scipy import sparse

from cfm.data._matrix import row_blocks

#: Files that a folder of zarr has at its root.
_ZARR = ("zarr.json", ".zgroup", ".zarray")
#: Tables in memory; and the AnnData that parts of a view hold on to, but do not read from.
_PASSED_OVER = (pd.DataFrame, pd.Series, pd.Index, pd.api.extensions.ExtensionArray, AnnData)
_PICKLE_PROTOCOL = 5


def input_files(*inputs: Any) -> list[Path]:
    """Return the files and zarr folders that data are read from, each once.

    Parameters
    ----------
    inputs
        Any number of AnnData, paths, lists of them, and ``None``. Of an AnnData everything
        is looked at: matrices that are backed, lazy, of dask or opened with
        :func:`cfm.data.open_files`, tables, ``raw`` and ``uns``, also through a view.
    """
    walk = _Walk()
    for each in inputs:
        if isinstance(each, AnnData):
            for part in _parts(each):
                walk.dump(part)
        elif isinstance(each, str | os.PathLike):
            walk.files.add(Path(each))
        elif isinstance(each, Sequence):
            walk.files.update(input_files(*each))
    return sorted(walk.files)


def check_apart(output: Path, *inputs: Any, name: str = "output=") -> None:
    """Check that nothing is read and written at once.

    Parameters
    ----------
    output
        Where results go.
    inputs
        What is read, as :func:`input_files` takes it.
    name
        What the caller calls ``output``.

    Raises
    ------
    ValueError
        If ``output`` is, contains, lies in or is a link to a file that is read.
    """
    out = output.resolve()
    link = output.parent.resolve() / output.name  # where it lies if it is a link
    for file in map(_store_of, input_files(*inputs)):
        if _same(out, file):
            how = "is a link to" if output.is_symlink() else "is"
        elif any(_same(parent, file) for parent in (*out.parents, *link.parents)):
            how = "lies in"
        elif any(_same(out, parent) for parent in file.parents):
            how = "contains"
        else:
            continue
        raise ValueError(f"{name} {output} {how} {file}, which is read; choose another {name}")


def describe_files(paths: Iterable[Path]) -> dict[str, str]:
    """Return what changes when files, or any file of folders, are changed or replaced.

    By number and name of each how many files it is, and their names within it, inodes, sizes and
    times of change. Not where they lie, so that a workflow may link them into another folder, and
    not the number of the device, which on a network differs between machines.
    """
    unique = dict.fromkeys(path.resolve() for path in paths)
    return {f"input {i + 1} ({p.name})": _state(p) for i, p in enumerate(unique)}


def _state(path: Path) -> str:
    walked = os.walk(path, followlinks=True) if path.is_dir() else [("", [], [str(path)])]
    files = sorted(os.path.join(folder, name) for folder, _, names in walked for name in names)
    digest, n_bytes, latest = xxhash.xxh3_128(), 0, 0
    for file in files:
        about = os.stat(file)
        within = os.path.relpath(file, path) if len(files) > 1 else ""
        digest.update(os.fsencode(within))
        digest.update(f"\n{about.st_ino} {about.st_size} {about.st_mtime_ns}\n".encode())
        n_bytes += about.st_size
        latest = max(latest, about.st_mtime_ns)
    modified = datetime.fromtimestamp(latest / 1e9, UTC).isoformat(timespec="milliseconds")
    counted = f"{len(files)} files" if len(files) != 1 else "1 file"
    return f"{counted}, {n_bytes} bytes, modified {modified}, state {digest.hexdigest()[:16]}"


def matrix_identity(matrix: Any) -> tuple[str, list[Path]]:
    """Return a digest of a matrix, and the files whose state completes its identity.

    Parameters
    ----------
    matrix
        What :func:`cfm.data._matrix.by_rows` returned. All bytes of what lies in memory are
        hashed; of what lies in files only which part of them it is. Dask arrays are computed once,
        a block at a time, since the same values may come from another graph.
    """
    digest = xxhash.xxh3_128(str(matrix.shape).encode())
    walk = _Walk(digest)
    if hasattr(matrix, "dask"):
        for _, block in row_blocks(matrix):
            _update_matrix(digest, block)
    elif sparse.issparse(matrix) or isinstance(matrix, np.ndarray):
        _update_matrix(digest, matrix)
    else:
        walk.dump(matrix)
    return digest.hexdigest(), sorted(walk.files)


def table_identity(values: pd.Series | pd.Index | np.ndarray) -> str:
    """Return a digest of names, of a column, or of an array."""
    digest = xxhash.xxh3_128()
    if not isinstance(values, np.ndarray):
        values = pd.util.hash_pandas_object(values, index=False).to_numpy()
    update_digest(digest, values)
    return digest.hexdigest()


def update_digest(digest: Any, array: np.ndarray) -> None:
    """Add type, shape and all bytes of an array to a digest."""
    if array.dtype == object:
        array = pd.util.hash_array(array.ravel()).reshape(array.shape)
    digest.update(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _update_matrix(digest: Any, matrix: Any) -> None:
    arrays = (matrix.data, matrix.indices, matrix.indptr) if sparse.issparse(matrix) else (matrix,)
    for array in arrays:
        update_digest(digest, array)


class _Nowhere:
    """What pickles are written to."""

    def write(self, content: Any) -> int:
        return len(content)


class _Walk(Pickler):
    """Goes through all that an object holds.

    Parameters
    ----------
    digest
        Takes the text and the arrays in memory that are met; ``None`` passes them over.

    Attributes
    ----------
    files
        Files and zarr folders that were met.
    """

    def __init__(self, digest: Any = None) -> None:
        super().__init__(_Nowhere(), _PICKLE_PROTOCOL)
        self.files: set[Path] = set()
        self._digest = digest
        self._text: set[str] = set()

    def persistent_id(self, value: Any) -> str | None:
        """Take what matters out of the pickle."""
        if isinstance(value, str):
            if value not in self._text:
                self._text.add(value)
                self._take_path(value.removeprefix("file://"))
            if self._digest is not None:
                self._digest.update(value.encode(errors="backslashreplace") + b"\n")
            return None
        if isinstance(value, np.ndarray):
            if self._digest is not None:
                update_digest(self._digest, value)
            return "array"
        if isinstance(value, h5py.HLObject):
            if value:  # a closed one has no file
                self._take_path(value.file.filename)
                self.persistent_id(str(value.name))
            return "HDF5"
        if isinstance(value, os.PathLike):
            self._take_path(os.fspath(value))
            return "path"
        return "passed over" if isinstance(value, _PASSED_OVER) else None

    def reducer_override(self, value: Any) -> Any:
        """Pass over what cannot be pickled, such as locks: it holds no data."""
        inherited = getattr(super(), "reducer_override", None)
        found = NotImplemented if inherited is None else inherited(value)
        known = getattr(self, "dispatch_table", copyreg.dispatch_table)
        if found is NotImplemented and not isinstance(value, type) and type(value) not in known:
            try:
                value.__reduce_ex__(_PICKLE_PROTOCOL)
            except TypeError:
                return str, ()
        return found

    def _take_path(self, text: str | bytes) -> None:
        path = Path(os.fsdecode(text))
        try:
            found = path.is_file() or _is_zarr(path)
        except (OSError, ValueError):  # too long for a path, or with a null byte
            return
        if found:
            self.files.add(path)


def _parts(adata: AnnData) -> Iterator[Any]:
    """Yield what an AnnData holds."""
    if adata.is_view and not adata.isbacked:
        adata = adata[:1]  # a view copies what lies in memory
    yield adata.filename
    if not adata.isbacked:  # X and raw lie in that file
        yield adata.X
        yield None if adata.raw is None else adata.raw.X
    for slot in (adata.layers, adata.obsm, adata.varm, adata.obsp, adata.varp):
        yield [slot[name] for name in slot if name is not None]  # layers[None] is X
    yield adata.obs
    yield adata.var
    yield list(_leaves(adata.uns))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what ``uns`` holds, without text: the name of a file is only noted there."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    elif not isinstance(value, str | os.PathLike):
        yield value


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in _ZARR)


def _store_of(path: Path) -> Path:
    """Return the folder of zarr that a group or array lies in; all else as it is."""
    path = path.resolve()
    while _is_zarr(path.parent):
        path = path.parent
    return path


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file or folder, also by links."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return False
