"""Open files of any size as one AnnData whose matrices stay on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import anndata as ad
import numpy as np
import pandas as pd

from cfm.data._disk_parts import (
    CompressedPart,
    DensePart,
    Element,
    MemoryPart,
    encoding,
    open_store,
)
from cfm.data._matrix import check_unique_names
from cfm.data._row_stack import stack_rows
from cfm.data._stored_rows import teach_anndata
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from cfm.data._disk_parts import Part

#: What happens to genes that not all files have.
Join = Literal["inner", "exact"]
_SUFFIXES = (".h5ad", ".zarr")
#: Above this share of the genes of a file that other files lack, a warning says so.
_LOST_SHARE = 0.25


class _File(NamedTuple):
    """One file: tables in memory, matrices opened."""

    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    x: Part | None
    layers: dict[str, Part]
    obsm: dict[str, Part]


def open_files(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, join: Join = "inner"
) -> ad.AnnData:
    """Open ``.h5ad`` and ``.zarr`` files as one AnnData, without loading their matrices.

    ``X``, ``layers`` and ``obsm`` stay in the files and are read by rows when rows are asked for;
    everything of this package that takes an AnnData takes the result, and so do views,
    ``adata[rows].to_memory()`` and ``adata.write_h5ad``. ``obs``, ``var`` and ``uns`` are loaded.
    Of several files the rows lie one file after the other, in the order given.

    Parameters
    ----------
    paths
        A file or several: ``.h5ad``, or folders ``.zarr`` as ``AnnData.write_zarr`` makes them.
    join
        Genes of several files, which may come in any order: ``"inner"`` keeps those that all
        files have, in the order of the first; ``"exact"`` is an error where they differ.

    Returns
    -------
    The AnnData. Of several files ``obs`` has the columns that all have and a column ``file``
    (name of the file; its path where names are alike), ``var`` the columns that are alike in all,
    ``layers`` and ``obsm`` what all have, and ``uns`` is that of the first. ``raw``, ``varm``,
    ``obsp`` and ``varp`` are left out.

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
    >>> path = Path(folder.name) / "toy.h5ad"
    >>> cfm.datasets.toy_contrasts().write_h5ad(path)
    >>> adata = cfm.data.open_files(path)
    >>> block = adata[:2].to_memory()
    """
    if join not in get_args(Join):
        raise ValueError(f"join={join!r}; expected one of {get_args(Join)}.")
    files = [_open(path) for path in _checked_paths(paths)]
    teach_anndata()
    if len(files) == 1:
        (file,) = files
        return ad.AnnData(
            X=None if file.x is None else stack_rows([file.x]),
            obs=file.obs,
            var=file.var,
            uns=file.uns,
            layers={name: stack_rows([part]) for name, part in file.layers.items()},
            obsm={name: stack_rows([part]) for name, part in file.obsm.items()},
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
    except OSError as error:
        raise ValueError(
            f"{path} cannot be opened: {error}. It is no {path.suffix} or is cut short; copy or "
            "download it again."
        ) from error
    missing = [name for name in ("obs", "var") if name not in store]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}, so it holds no AnnData; it has "
            f"{sorted(store)}. Write it with adata.write_h5ad or adata.write_zarr."
        )
    obs, var = (_table(store[name], path, name) for name in ("obs", "var"))
    uns = ad.io.read_elem(store["uns"]) if "uns" in store else {}
    x = _part(path, "X", store["X"]) if "X" in store else None
    matrices = {}
    for field in ("layers", "obsm"):
        within = store.get(field, {})
        matrices[field] = {
            name: part
            for name in sorted(within)
            if (part := _part(path, f"{field}/{name}", within[name])) is not None
        }
    return _File(path, obs, var, uns, x, matrices["layers"], matrices["obsm"])


def _table(stored: Any, path: Path, name: str) -> pd.DataFrame:
    table = ad.io.read_elem(stored)
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"{path} holds {name} as an old version of anndata wrote it; read it with "
            "ad.read_h5ad and write it again."
        )
    return table


def _part(path: Path, key: str, stored: Any) -> Part | None:
    """Open a matrix; None for what is no matrix of numbers (tables and arrays in obsm)."""
    kind = encoding(stored)
    element = Element(path, key)
    if kind == "csr_matrix":
        return CompressedPart(element)
    if kind == "csc_matrix":
        n_bytes = sum(
            stored[name].size * stored[name].dtype.itemsize for name in ("data", "indices")
        )
        warn_user(
            f"{key} of {path} is stored by columns (CSC), so its rows cannot be read one by one "
            f"and the whole matrix is loaded ({n_bytes / 2**30:.2g} GiB). Write the file with "
            "adata.X = adata.X.tocsr() to leave it on disk."
        )
        return MemoryPart(ad.io.read_elem(stored).tocsr())
    is_matrix = kind in ("array", "") and len(getattr(stored, "shape", ())) == 2
    return DensePart(element) if is_matrix and stored.dtype.kind in "biuf" else None


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
        obsm={
            name: stack_rows([file.obsm[name] for file in files])
            for name, part in files[0].obsm.items()
            if all(
                name in file.obsm and file.obsm[name].shape[1] == part.shape[1] for file in files
            )
        },
    )


def _common_genes(files: list[_File], join: Join) -> pd.Index:
    """Return the genes that all files have, in the order of the first."""
    genes = files[0].var.index
    for file in files[1:]:
        genes = genes[genes.isin(file.var.index)]
    if not len(genes):
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
