"""Open files of any size as one AnnData whose matrices stay on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import anndata as ad
import numpy as np
import pandas as pd

from cfm._adata import warn_user
from cfm.data._disk_parts import (
    READ_ERRORS,
    REMEDY,
    CompressedPart,
    DensePart,
    Element,
    MemoryPart,
    Part,
    encoding,
    load_by_columns,
    open_store,
    reading,
)
from cfm.data._matrix import check_unique_names
from cfm.data._row_stack import register_anndata_types, stack_rows

#: What happens to genes that not all files have.
Join = Literal["inner", "exact"]
_SUFFIXES = (".h5ad", ".zarr")
#: Kinds of matrices that are read by rows; old files do not name those that are dense.
_MATRICES = ("csr_matrix", "csc_matrix", "array", "")
#: Above this share of the genes of a file that other files lack, there is a warning.
_LOST_SHARE = 0.25


class _File(NamedTuple):
    """One file: tables in memory, matrices opened."""

    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    x: Part | None
    layers: dict[str, Part]
    obsm: dict[str, Any]
    varm: dict[str, Any]


def open_files(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, join: Join = "inner"
) -> ad.AnnData:
    """Open ``.h5ad`` and ``.zarr`` files as one AnnData, without loading their matrices.

    ``X``, ``layers`` and the matrices of ``obsm`` stay in the files and are read by rows when rows
    are asked for; what else there is is loaded. Everything of this package that takes an AnnData
    takes the result; ``adata[rows].to_memory()`` loads rows of it, ``adata.write_h5ad`` writes it
    elsewhere, block by block. Of several files the rows lie one file after the other, in the
    order given.

    Parameters
    ----------
    paths
        A file or several: ``.h5ad``, or folders ``.zarr`` as ``AnnData.write_zarr`` makes them.
    join
        Genes of several files, which may come in any order: ``"inner"`` keeps those that all
        files have, in the order of the first; ``"exact"`` is an error where they differ.

    Returns
    -------
    The AnnData, without ``raw``, ``obsp`` and ``varp``. Of several files ``obs`` has the columns
    that all have and a column ``file`` (name of the file; its path where names are alike),
    ``var`` the columns that are alike in all, ``layers`` and ``obsm`` what all have; ``uns`` is
    that of the first, and there is no ``varm``.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    TypeError
        If ``paths`` is no path and no list of paths.
    ValueError
        If there is no file, one is neither ``.h5ad`` nor ``.zarr``, holds no AnnData or is
        damaged, if genes of a file are not unique, the files have no gene in common, or their
        genes differ with ``join="exact"``.

    Warns
    -----
    UserWarning
        If many genes of a file are left out, if names of observations are made unique by the name
        of their file, or if a matrix is stored by columns (CSC) and has to be loaded.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import cfm
    >>> folder = TemporaryDirectory()
    >>> paths = [Path(folder.name) / name for name in ("a.h5ad", "b.zarr")]
    >>> cells = cfm.datasets.toy_infection_cells()
    >>> cells[:100].write_h5ad(paths[0])
    >>> cells[100:].write_zarr(paths[1])
    >>> adata = cfm.data.open_files(paths)
    >>> adata.shape == cells.shape
    True
    >>> block = adata[adata.obs["file"] == "b.zarr"][:5].to_memory()
    """
    if join not in get_args(Join):
        raise ValueError(f"join={join!r}; expected one of {get_args(Join)}.")
    files = [_open(path) for path in _checked_paths(paths)]
    register_anndata_types()
    if len(files) == 1:
        (file,) = files
        with reading(file.path, "its AnnData"):
            return ad.AnnData(
                X=None if file.x is None else stack_rows([file.x]),
                obs=file.obs,
                var=file.var,
                uns=file.uns,
                layers={name: stack_rows([part]) for name, part in file.layers.items()},
                obsm={name: _above_each_other([found]) for name, found in file.obsm.items()},
                varm=file.varm,
            )
    return _stacked(files, join)


def _checked_paths(paths: Any) -> list[Path]:
    if isinstance(paths, str | PathLike):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise TypeError(f"expected a path or a list of paths, found {type(paths).__name__}.")
    found = list(paths)
    if not found:
        raise ValueError("no file was given; expected at least one .h5ad or .zarr.")
    for path in found:
        if not isinstance(path, str | PathLike):
            raise TypeError(f"expected paths, found {type(path).__name__} among them.")
    out = [Path(path) for path in found]
    for path in out:
        if path.suffix not in _SUFFIXES:
            raise ValueError(
                f"{path} is neither .h5ad nor .zarr; write it as one of them, for example with "
                "adata.write_h5ad(path)."
            )
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist (seen from {Path.cwd()}).")
    return out


def _open(path: Path) -> _File:
    """Read the tables of a file and open its matrices."""
    try:
        store = open_store(path)
        names = sorted(store)
    except READ_ERRORS as error:
        raise ValueError(
            f"{path} cannot be opened: {error}. It is no {path.suffix} or is cut short; copy or "
            "download it again."
        ) from error
    missing = [name for name in ("obs", "var") if name not in names]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}, so it holds no AnnData; it has "
            f"{names}. Write it with adata.write_h5ad or adata.write_zarr."
        )
    obs, var = (_table(store, path, name) for name in ("obs", "var"))
    uns, varm = (_mapping(store, path, name) for name in ("uns", "varm"))
    with reading(path, "X"):
        has_x = "X" in names and encoding(store["X"]) != "null"
    x = _part(store, path, "X") if has_x else None
    layers = {key: _part(store, path, f"layers/{key}") for key in _keys(store, path, "layers")}
    obsm = {key: _rows(store, path, f"obsm/{key}") for key in _keys(store, path, "obsm")}
    expected: list[tuple[str, Any, tuple[int, ...]]] = [
        *((f"layers/{key}", part, (len(obs), len(var))) for key, part in layers.items()),
        *((f"obsm/{key}", found, (len(obs),)) for key, found in obsm.items()),
        *((f"varm/{key}", found, (len(var),)) for key, found in varm.items()),
    ]
    if x is not None:
        expected.append(("X", x, (len(obs), len(var))))
    for key, found, shape in expected:
        own = getattr(found, "shape", None) or (len(found),)
        if tuple(own[: len(shape)]) != shape:
            raise ValueError(
                f"{path}: {key} has shape {own} beside {len(obs)} rows of obs and {len(var)} of "
                f"var; {REMEDY}."
            )
    return _File(path, obs, var, uns, x, layers, obsm, varm)


def _loaded(store: Any, path: Path, key: str) -> Any:
    with reading(path, key):
        return ad.io.read_elem(store[key])


def _mapping(store: Any, path: Path, key: str) -> dict[str, Any]:
    """Load a group; without a group of that name there is nothing in it."""
    found = _loaded(store, path, key) if key in store else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {key} is a {type(found).__name__}, not a group; {REMEDY}.")
    return found


def _keys(store: Any, path: Path, key: str) -> list[str]:
    with reading(path, key):
        return sorted(store[key]) if key in store else []


def _table(store: Any, path: Path, key: str) -> pd.DataFrame:
    with reading(path, key):
        is_table = encoding(store[key]) == "dataframe"
    if not is_table:
        raise ValueError(
            f"{path} holds {key} as an old version of anndata wrote it; read it with "
            "ad.read_h5ad and write it again."
        )
    table: pd.DataFrame = _loaded(store, path, key)
    return table


def _rows(store: Any, path: Path, key: str) -> Any:
    """Open a matrix; load a table, or an array of three dimensions."""
    with reading(path, key):
        stored = store[key]
        is_matrix = encoding(stored) in _MATRICES and getattr(stored, "ndim", 2) == 2
    return _part(store, path, key) if is_matrix else _loaded(store, path, key)


def _part(store: Any, path: Path, key: str) -> Part:
    """Open a matrix."""
    with reading(path, key):
        stored = store[key]
        kind = encoding(stored)
    if kind not in _MATRICES:
        raise ValueError(
            f"{key} of {path} is stored as {kind or 'something that has no name'}; a dense or "
            "sparse matrix is expected."
        )
    element = Element(path, key)
    if kind == "csr_matrix":
        return CompressedPart(element)
    if kind == "csc_matrix":
        with reading(path, key):
            n_bytes = sum(
                stored[name].size * stored[name].dtype.itemsize for name in ("data", "indices")
            )
        warn_user(
            f"{key} of {path} is stored by columns (CSC), so its rows cannot be read one by one "
            f"and the whole matrix is loaded ({n_bytes / 2**30:.2g} GiB). Write the file with "
            "adata.X = adata.X.tocsr() to leave it on disk."
        )
        return MemoryPart(load_by_columns(element), path)
    with reading(path, key):
        shape, dtype = stored.shape, stored.dtype
    if len(shape) != 2 or dtype.kind not in "biuf":
        raise ValueError(
            f"{key} of {path} has shape {shape} and holds {dtype} values; a matrix "
            "of numbers is expected."
        )
    return DensePart(element)


def _stacked(files: list[_File], join: Join) -> ad.AnnData:
    """Put several files one above the other."""
    for file in files:
        try:
            check_unique_names(file.var.index, axis="var")
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from error
    genes = _common_genes(files, join)
    columns = [_columns(file.var.index, genes) for file in files]
    frames = [ad.AnnData(obs=file.obs, var=file.var.loc[genes], uns={}) for file in files]
    labels = _labels(files)
    together = ad.concat(
        frames, join="inner", merge="same", label="file", keys=labels, index_unique=_unique(files)
    )
    x = [file.x for file in files]
    has_x = all(part is not None for part in x)
    obsm = {
        name: _above_each_other([file.obsm.get(name) for file in files]) for name in files[0].obsm
    }
    for name, table in obsm.items():
        if isinstance(table, pd.DataFrame):
            obsm[name] = table.set_axis(together.obs_names)
    return ad.AnnData(
        X=stack_rows([part for part in x if part is not None], columns) if has_x else None,
        obs=together.obs,
        var=together.var,
        uns=files[0].uns,
        layers={
            name: stack_rows([file.layers[name] for file in files], columns)
            for name in files[0].layers
            if all(name in file.layers for file in files)
        },
        obsm={name: found for name, found in obsm.items() if found is not None},
    )


def _above_each_other(found: list[Any]) -> Any:
    """Put what the files have under one name in obsm together; None where that cannot be."""
    if len(found) == 1 and not isinstance(found[0], Part):
        return found[0]
    if all(isinstance(one, Part) for one in found):
        return stack_rows(found) if len({part.shape[1] for part in found}) == 1 else None
    if all(isinstance(one, pd.DataFrame) for one in found):
        alike = all(one.columns.equals(found[0].columns) for one in found)
        return pd.concat(found) if alike else None
    return None


def _common_genes(files: list[_File], join: Join) -> pd.Index:
    """Return the genes that all files have, in the order of the first."""
    genes = files[0].var.index
    for file in files[1:]:
        genes = genes[genes.isin(file.var.index)]
    if not len(genes) and any(file.var.shape[0] for file in files):
        raise ValueError(
            f"the {len(files)} files have no gene in common: {files[0].path} has "
            f"{_some(files[0].var.index)}, {files[-1].path} has {_some(files[-1].var.index)}. Name "
            "genes alike in all, for example with cfm.pp.map_genes."
        )
    largest = max(files, key=lambda file: file.var.shape[0])
    n_most = largest.var.shape[0]
    if join == "exact" and len(genes) < n_most:
        lacking = largest.var.index[~largest.var.index.isin(genes)]
        raise ValueError(
            f"{len(lacking)} genes of {largest.path} ({_some(lacking)}) are not in all files, and "
            "join='exact'; pass join='inner' to leave them out."
        )
    if len(genes) < (1 - _LOST_SHARE) * n_most:
        warn_user(
            f"Only {len(genes)} of the {n_most} genes of {largest.path} are in all {len(files)} "
            "files; the others are left out."
        )
    return genes


def _columns(own: pd.Index, genes: pd.Index) -> np.ndarray | None:
    """Return where genes are in a file; None if they are all of its genes in order."""
    if own.equals(genes):
        return None
    return own.get_indexer(genes)


def _labels(files: list[_File]) -> list[str]:
    """Name the files, each by another name."""
    names = [file.path.name for file in files]
    if len(set(names)) == len(names):
        return names
    paths = [str(file.path) for file in files]
    twice = [path for path, n in Counter(paths).items() if n > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given more than once; give each file once.")
    return paths


def _unique(files: list[_File]) -> str | None:
    """Return what joins the name of an observation and of its file, if names are not unique."""
    if "file" in files[0].obs and all("file" in file.obs for file in files):
        warn_user("The column 'file' of obs is replaced by the name of the file of each row.")
    n_names = sum(file.obs.index.nunique() for file in files)
    names = files[0].obs.index.unique()
    for file in files[1:]:
        names = names.union(file.obs.index.unique(), sort=False)
    if len(names) == n_names:
        return None
    warn_user(
        f"{n_names - len(names)} names of observations are in more than one file, so the name of "
        "the file is added to all: 'name-file'. Rename them in the files to have them otherwise."
    )
    return "-"


def _some(names: pd.Index) -> str:
    shown = ", ".join(str(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown}, …"
