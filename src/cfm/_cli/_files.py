"""What commands read and write: tables of counts, metadata, tables of results, copies of inputs."""

from __future__ import annotations

import csv
import gzip
import logging
import os
import shutil
import stat
import zlib
from collections import Counter
from contextlib import ExitStack, nullcontext
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem

from cfm._adata import text_is_written, warn_user
from cfm.data import map_identifiers, open_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

logger = logging.getLogger(__name__)

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
#: What can be read.
READ = (".h5ad", ".zarr", ".h5mu", *_SEPARATORS)
#: Lines that htseq-count and STAR add to a table of genes.
_TALLIES = """__no_feature __ambiguous __too_low_aQual __not_aligned __alignment_not_unique
N_unmapped N_multimapping N_noFeature N_ambiguous"""
#: Names that are looked up to distinguish genes from samples.
_LOOKED_UP = 2000
#: Rows of a table that are written at a time, and values of a matrix that are copied.
_ROWS, _VALUES = 8192, 4_000_000
#: ``uns[GENES_IN_ROWS]`` of what :func:`read_inputs` made of a table.
GENES_IN_ROWS = "genes_in_rows"


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case, of a table without ``.gz``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def read_inputs(given: SimpleNamespace, inputs: list[Path]) -> ad.AnnData | list[Path]:
    """Read a table or a modality; leave files that tools read a part at a time as they are.

    Parameters
    ----------
    given
        Options: ``metadata``, a table with one line per sample, whose columns are added to ``obs``
        as text; ``sample_column``, that of the names, if not the first; ``orientation`` of a table,
        ``None`` to look where the samples of the metadata are, or without metadata where names of
        genes are; ``modality`` of an ``.h5mu``.
    inputs
        ``.h5ad`` and ``.zarr``, one or several; or one ``.h5mu``; or one table (``.csv``, ``.tsv``,
        ``.txt``, each also ``.gz``) with one header line, after lines of comment if any (``#``, as
        featureCounts writes). The first column of a table holds the names of the genes or of the
        samples. Tallies of htseq-count and STAR (``__no_feature``, ``N_unmapped``, …) are left out
        with a warning.

    Returns
    -------
    Samples by genes, without those that have no line in the metadata; or the paths.

    Raises
    ------
    FileNotFoundError
        If the metadata do not exist.
    ValueError
        If a file is not of the kind of its name, a cell of the table is no number, sample
        names are repeated, or table and metadata share no sample.
    """
    path = inputs[0]
    if len(inputs) > 1 and any(suffix_of(p) not in READ[:2] for p in inputs):
        raise ValueError("several IN have to be .h5ad or .zarr; give a table or an .h5mu alone.")
    if (given.modality is not None) != (path.suffix == ".h5mu"):
        raise ValueError("--modality names what to read of an .h5mu: give both, or neither.")
    samples = None
    if given.metadata is not None:
        samples = _read_metadata(given.metadata, given.sample_column)
    if suffix_of(path) in _SEPARATORS:
        adata = _read_matrix(path, samples, given.orientation)
    elif path.suffix == ".h5mu":
        modalities = mudata.read_h5mu(path).mod
        if given.modality not in modalities:
            raise KeyError(f"{path} has no modality {given.modality!r}, but {list(modalities)}.")
        adata = modalities[given.modality]
    elif samples is None:
        return inputs
    else:
        adata = open_files(inputs)
    if samples is None:
        return adata
    known = _known(adata.obs_names, samples, path)
    adata = adata if known.all() else adata[known].to_memory()
    absent = samples.index.difference(adata.obs_names)
    if len(absent):
        warn_user(
            f"{len(absent)} samples of the metadata have no counts in {path.name}: {_some(absent)}."
        )
    for name, values in samples.loc[adata.obs_names].items():
        adata.obs[str(name)] = values.to_numpy()
    return adata


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_frame(path: Path, *, text: bool) -> pd.DataFrame:
    """Read a table whose first column is the index; with ``text`` every cell stays as written."""
    if suffix_of(path) not in _SEPARATORS:
        known = ", ".join(_SEPARATORS)
        raise ValueError(f"{path} has an unknown file type; expected {known}, or these and .gz.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; check the path.")
    separator = _SEPARATORS[suffix_of(path)]
    try:
        n_comments, header = _read_header(path, separator)
        with _open_text(path) as lines:
            for _ in range(n_comments):  # skiprows= stumbles over quotes in them
                next(lines)
            # the words "NA" and "None" are levels that people use: only an empty cell is missing
            frame = pd.read_csv(
                lines,
                sep=separator,
                index_col=0,
                dtype=str if text else None,
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
            )
    except (ValueError, gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table (text in UTF-8): {error}") from error
    others = {other: header[0].count(other) for other in ";\t," if other != separator}
    if len(header) == 1 and any(others.values()):
        other = max(others, key=lambda o: others[o])
        raise ValueError(
            f"{path} seems to be separated by {other!r}, but its name promises {separator!r}; "
            "expected .csv with commas, or .tsv or .txt with tabs."
        )
    (name, n), *_ = Counter(filter(None, header)).most_common(1) or [("", 0)]
    if n > 1:
        raise ValueError(f"{path} has the column {name!r} {n} times; expected every name once.")
    # blanks around a name cannot be seen, and names of two tables must agree
    frame.index = frame.index.astype(str).str.strip()
    frame.columns = frame.columns.astype(str).str.strip()
    if frame.shape[0] == 0 or (frame.shape[1] == 0 and not text):
        raise ValueError(
            f"{path} has {frame.shape[0]} lines and {frame.shape[1]} columns besides the names; "
            f"expected at least one of each, separated by {separator!r}."
        )
    return frame


def _read_header(path: Path, separator: str) -> tuple[int, list[str]]:
    """Return how many lines of comment (``#``) come first, as featureCounts writes, and the next.

    A header may begin with ``#`` too (``#Geneid``), with no blank after it and names that follow.
    """
    with _open_text(path) as lines:
        for number, line in enumerate(lines):
            cells = next(csv.reader([line], delimiter=separator), [])
            comment = line.startswith("# ") or (line.startswith("#") and len(cells) == 1)
            if not comment:
                return number, cells or [""]
    return 0, [""]


def _read_metadata(path: Path, sample_column: str | None) -> pd.DataFrame:
    frame = _read_frame(path, text=True)
    if sample_column is not None and sample_column != frame.index.name:
        if sample_column not in frame:
            raise ValueError(
                f"{path} has no column {sample_column!r}; expected one of "
                f"{_some([str(frame.index.name), *frame.columns])}."
            )
        frame = frame.reset_index().set_index(sample_column)
    repeated = frame.index[frame.index.duplicated()]
    if len(repeated):
        raise ValueError(
            f"{path} has {len(repeated)} repeated sample names (such as {repeated[0]!r}); "
            "expected one line per sample (--sample-column names the column to read)."
        )
    return frame


def _read_matrix(path: Path, samples: pd.DataFrame | None, orientation: str | None) -> ad.AnnData:
    """Read a table of numbers as samples by genes."""
    table = _read_frame(path, text=False)
    genes_in_rows = orientation == "genes-in-rows"
    if orientation is None:
        genes_in_rows = _genes_in_rows(table, samples, path)
    table = table.T if genes_in_rows else table
    tallies = table.columns.isin(_TALLIES.split())
    if tallies.any():
        warn_user(
            f"{int(tallies.sum())} rows or columns of {path.name} are no genes but what the "
            "counting program tallied beside them, and are left out: "
            f"{_some(table.columns[tallies])}."
        )
    table = table.loc[:, ~tallies]
    if samples is not None:  # columns such as "Chr" hold no numbers
        table = table.loc[_known(table.index, samples, path)]
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise ValueError(f"{path} has the sample {repeated[0]!r} twice; expected every name once.")
    cells: Any = table.to_numpy()
    if cells.dtype == object:  # a column holds text
        cells = pd.to_numeric(pd.Series(cells.ravel()), errors="coerce").to_numpy()
    numbers = cells.reshape(table.shape).astype(np.float64)
    if np.isnan(numbers).any():
        row, column = np.argwhere(np.isnan(numbers))[0]
        cell = table.iat[row, column]
        what = f"holds {cell!r}" if isinstance(cell, str) else "is empty"
        raise ValueError(
            f"{path}: the cell of sample {table.index[row]!r} and gene {table.columns[column]!r} "
            f"{what} (one of {int(np.isnan(numbers).sum())}); expected a number in every cell."
        )
    return ad.AnnData(
        numbers.astype(np.float32),
        obs=pd.DataFrame(index=table.index),
        var=pd.DataFrame(index=table.columns.astype(str)),
        uns={GENES_IN_ROWS: genes_in_rows},
    )


def _genes_in_rows(table: pd.DataFrame, samples: pd.DataFrame | None, path: Path) -> bool:
    """Find out where the genes are, and report it."""
    shares = {}
    for genes, others in ((table.index, table.columns), (table.columns, table.index)):
        where = "rows" if genes is table.index else "columns"
        if samples is not None:
            shares[where] = float(others.isin(samples.index).mean())
        else:
            some = genes[:: max(1, len(genes) // _LOOKED_UP)].astype(str)
            shares[where] = float(map_identifiers(some).mapped.mean())
    if shares["rows"] == shares["columns"]:
        raise ValueError(
            f"{path} may have its genes in rows ({_some(table.index)}) or in columns "
            f"({_some(table.columns)}): none of the samples in the metadata are found, or as many "
            "names of genes in both; give --orientation, --metadata or --sample-column."
        )
    where = max(shares, key=lambda w: shares[w])
    by = "samples of the metadata" if samples is not None else "names of genes"
    logger.info("%s: genes in %s, by %s", path.name, where, by)
    return where == "rows"


def _known(names: pd.Index, samples: pd.DataFrame, path: Path) -> np.ndarray:
    """Return which names have a line in the metadata, and warn of the others."""
    known = np.asarray(names.isin(samples.index))
    if not known.any():
        raise ValueError(
            f"none of the samples in the metadata ({_some(samples.index)}) is among those of "
            f"{path} ({_some(names)}); the names must agree (see --sample-column, --orientation)."
        )
    if not known.all():
        warn_user(
            f"{int((~known).sum())} of {len(known)} samples of {path.name} have no line in the "
            f"metadata and are left out: {_some(names[~known])}."
        )
    return known


def _some(names: Sequence[str] | pd.Index, limit: int = 4) -> str:
    return ", ".join(map(str, names[:limit])) + (", …" if len(names) > limit else "")


def only_results(adata: ad.AnnData, before: set[str]) -> ad.AnnData:
    """Return ``obs``, ``var``, ``uns`` and the matrices that are not in ``before``, without X."""
    made = ad.AnnData(obs=adata.obs, var=adata.var, uns=dict(adata.uns))
    for slot in ("obsm", "layers"):
        for name, value in getattr(adata, slot).items():
            if name is not None and name not in before:
                getattr(made, slot)[name] = value
    return made


def write_store(adata: ad.AnnData, path: Path) -> None:
    """Write an ``.h5ad`` or ``.zarr``, which has its name when it is whole."""
    part = path.with_name(f"part{path.suffix}")
    with text_is_written():
        (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(part)
    part.replace(path)


def write_table(
    results: ad.AnnData, file: TextIO, separator: str, *, genes_in_rows: bool = False
) -> None:
    """Write results as a table, some rows at a time.

    Parameters
    ----------
    results
        With a layer: samples by genes. Else ``obs``, then the columns of each matrix of ``obsm``,
        named ``X_cellpulse_0``, ``X_cellpulse_1``, …, of tables ``predicted_virus_proba_IAV``, ….
    file
        Where to.
    separator
        Between columns.
    genes_in_rows
        Write a layer as genes by samples.
    """
    name = results.obs.index.name or "name"
    if results.layers:
        table = results.to_memory().to_df(layer=next(iter(results.layers)))
        (table.T if genes_in_rows else table).to_csv(file, sep=separator, index_label="name")
        return
    for start in range(0, max(1, results.n_obs), _ROWS):
        rows = slice(start, min(start + _ROWS, results.n_obs))
        parts = [results.obs.iloc[rows]]
        for key, matrix in results.obsm.items():
            parts.append(_columns(key, matrix, rows).set_axis(parts[0].index, axis=0))
        block = pd.concat(parts, axis=1)
        block.to_csv(file, sep=separator, index_label=name, header=start == 0)


def _columns(key: str, matrix: Any, rows: slice) -> pd.DataFrame:
    if isinstance(matrix, pd.DataFrame):
        return matrix.iloc[rows].add_prefix(f"{key}_")
    block = np.asarray(matrix[rows])
    return pd.DataFrame(block, columns=[f"{key}_{i}" for i in range(block.shape[1])])


def copy_with_results(source: Path, results: Path, made: Path) -> None:
    """Copy ``source`` to ``made`` and put the results in; matrices are copied a part at a time.

    Parameters
    ----------
    source
        The input, ``.h5ad`` or ``.zarr``.
    results
        ``obs``, ``var``, ``uns``, ``obsm`` and ``layers`` of the same rows and columns, a file of
        the same kind.
    made
        What is made; must not exist.
    """
    if source.is_dir():
        # contents only: an input may be read-only
        shutil.copytree(source, made, copy_function=shutil.copyfile)
        for folder, _, _ in os.walk(made):
            os.chmod(folder, os.stat(folder).st_mode | stat.S_IRWXU)
    else:
        shutil.copyfile(source, made)
    with ExitStack() as stack:
        target, found = (
            stack.enter_context(_opened(p, m)) for p, m in ((made, "r+"), (results, "r"))
        )
        stack.enter_context(text_is_written())
        for slot in ("obsm", "layers"):
            if slot not in target:
                write_elem(target, slot, {})
            for name in list(found[slot]):
                _copy(found[slot][name], target[slot], name)
        for slot in ("obs", "var", "uns"):
            write_elem(target, slot, read_elem(found[slot]))
        if source.is_dir():
            zarr.consolidate_metadata(target.store)


def _copy(element: Any, group: Any, name: str) -> None:
    """Copy an element, replacing what has its name."""
    if not hasattr(element, "shape"):  # a table or a sparse matrix
        write_elem(group, name, read_elem(element))
        return
    if name in group:
        del group[name]
    make = getattr(group, "create_array", None) or group.create_dataset
    out = make(name, shape=element.shape, dtype=element.dtype, chunks=element.chunks)
    out.attrs.update(dict(element.attrs))
    step = max(1, _VALUES // max(1, int(element.shape[1])))
    for start in range(0, element.shape[0], step):
        out[start : start + step] = element[start : start + step]


def _opened(path: Path, mode: Any) -> Any:
    if path.is_dir():
        # what is written has to be visible at once, not its summary
        return nullcontext(zarr.open_group(str(path), mode=mode, use_consolidated=False))
    return h5py.File(path, mode)


def sha256_of(path: Path) -> str:
    """Hash a file in pieces, or of a folder (zarr) the names and hashes of its files."""
    if not path.is_dir():
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()
