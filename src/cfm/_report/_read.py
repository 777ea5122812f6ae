"""Reading the counts of a bulk study from the files people have."""

from __future__ import annotations

import csv
import gzip
import logging
import warnings
import zlib
from typing import TYPE_CHECKING, Literal, TextIO, get_args

import anndata as ad
import numpy as np
import pandas as pd

from cfm._arguments import check_choice
from cfm.data import open_files
from cfm.data._disk_parts import READ_ERRORS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

Orientation = Literal["auto", "genes-in-rows", "samples-in-rows"]
#: Lines that htseq-count and STAR add to a table of genes.
_TALLIES = (
    *("__no_feature", "__ambiguous", "__too_low_aQual", "__not_aligned", "__alignment_not_unique"),
    *("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"),
)
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}


def read_counts(
    path: Path,
    *,
    metadata: Path | None = None,
    orientation: Orientation = "auto",
    sample_column: str | None = None,
) -> ad.AnnData:
    """Read counts and what is known about the samples into one AnnData.

    Parameters
    ----------
    path
        ``.h5ad``, ``.zarr``, or a table (``.csv``, ``.tsv``, ``.txt``, each also ``.gz``) with one
        header line, after lines of comment if any (``#``, as featureCounts writes). The first
        column of a table holds the names of the genes or of the samples. Tallies of htseq-count
        and STAR (``__no_feature``, ``N_unmapped``, …) are left out with a warning.
    metadata
        Table with one line per sample; required for a table of counts, optional for ``.h5ad`` and
        ``.zarr``, where its columns are added. All its cells are read as text.
    orientation
        Which way round a table of counts is. ``"auto"`` looks where the sample names of the
        metadata are.
    sample_column
        Column of the metadata that holds the sample names; ``None`` is its first column.

    Returns
    -------
    Samples by genes; samples without a line in the metadata are left out with a warning.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file cannot be read as what its name says, a cell of the counts is no number, sample
        names are repeated, or counts and metadata share no sample.
    """
    check_choice("orientation", orientation, get_args(Orientation))
    stored = path.suffix.lower() == ".zarr"  # a folder, or a zip of one; opening it looks
    for file in (None if stored else path, metadata):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"{file} does not exist or is not a file; check the path.")
    samples = None if metadata is None else _read_metadata(metadata, sample_column)
    if stored:
        return _add_metadata(open_files(path).to_memory(), samples)
    if path.suffix.lower() == ".h5ad":
        return _add_metadata(_read_h5ad(path), samples)
    if samples is None:
        raise ValueError(
            f"{path} is a table of counts and says nothing about its samples; give a metadata "
            "table too (--metadata FILE), with one line per sample."
        )
    table = _read_table(path)
    genes_in_rows = _genes_in_rows(table, samples.index, orientation, path)
    return _assemble(table.T if genes_in_rows else table, samples, path)


def _read_h5ad(path: Path) -> ad.AnnData:
    try:
        return ad.read_h5ad(path)
    except READ_ERRORS as error:
        raise ValueError(f"{path} is not a readable .h5ad file: {error}") from error


def _separator(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in _SEPARATORS:
        raise ValueError(
            f"{path} has an unknown file type; expected .h5ad, .zarr, or {', '.join(_SEPARATORS)} "
            "(each may be followed by .gz)."
        )
    return _SEPARATORS[suffixes[-1]]


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_frame(path: Path, *, text: bool) -> pd.DataFrame:
    """Read a table whose first column is the index; with ``text`` every cell stays as written."""
    separator = _separator(path)
    try:
        n_comments, header = _read_header(path, separator)
        if len(header) == 1 and (other := _other_separator(header[0], separator)):
            raise ValueError(
                f"{path} seems to be separated by {other!r}, but its name promises {separator!r}; "
                "expected .csv with commas, or .tsv or .txt with tabs."
            )
        repeated = sorted({name for name in header if name and header.count(name) > 1})
        if repeated:
            raise ValueError(
                f"{path} names the column {repeated[0]!r} {header.count(repeated[0])} times; "
                "expected every name once."
            )
        # the words "NA" and "None" are levels that people use, so only an empty cell is missing
        with _open_text(path) as lines:
            for _ in range(n_comments):  # skiprows= stumbles over quotes in them
                next(lines)
            frame = pd.read_csv(
                lines,
                sep=separator,
                index_col=0,
                dtype=str if text else None,
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
            )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        csv.Error,
    ) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    # blanks around a name cannot be seen, and names of two tables must agree
    frame.index = frame.index.astype(str).str.strip()
    frame.columns = frame.columns.astype(str).str.strip()
    if frame.empty:
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
                return number, cells
    return 0, []


def _other_separator(line: str, separator: str) -> str | None:
    """Return the separator that a line of one column may have been meant to be cut by."""
    counted = {other: line.count(other) for other in (";", "\t", ",") if other != separator}
    likely = max(counted, key=lambda other: counted[other])
    return likely if counted[likely] else None


def _read_table(path: Path) -> pd.DataFrame:
    return _read_frame(path, text=False)


def _read_metadata(path: Path, sample_column: str | None) -> pd.DataFrame:
    frame = _read_frame(path, text=True)
    if sample_column is not None and sample_column != frame.index.name:
        if sample_column not in frame:
            raise ValueError(
                f"{path} has no column {sample_column!r}; expected one of "
                f"{', '.join([str(frame.index.name), *frame.columns])}."
            )
        frame = frame.reset_index().set_index(sample_column)
    repeated = frame.index[frame.index.duplicated()]
    if len(repeated):
        raise ValueError(
            f"{path} has {len(repeated)} repeated sample names (such as {repeated[0]!r}); "
            "expected one line per sample (--sample-column names the column to read)."
        )
    return frame


def _genes_in_rows(
    table: pd.DataFrame, samples: pd.Index, orientation: Orientation, path: Path
) -> bool:
    in_columns = table.columns.isin(samples).sum()
    in_rows = table.index.isin(samples).sum()
    if orientation == "auto":
        found = max(in_columns, in_rows)
        genes_in_rows = bool(in_columns >= in_rows)
    else:
        genes_in_rows = orientation == "genes-in-rows"
        found = in_columns if genes_in_rows else in_rows
    if not found:
        where = {"auto": "rows or columns", "genes-in-rows": "columns", "samples-in-rows": "rows"}
        raise ValueError(
            f"none of the samples in the metadata ({_some(samples)}) is among the "
            f"{where[orientation]} of {path} (columns {_some(table.columns)}; rows "
            f"{_some(table.index)}); the names must agree (see --sample-column, --orientation)."
        )
    logger.info("%s in rows, %d samples found", "genes" if genes_in_rows else "samples", found)
    return genes_in_rows


def _assemble(table: pd.DataFrame, samples: pd.DataFrame, path: Path) -> ad.AnnData:
    """Bring samples-by-genes numbers and metadata together."""
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise ValueError(f"{path} has the sample {repeated[0]!r} twice; expected every name once.")
    known = table.index.isin(samples.index)
    if not known.all():
        warnings.warn(
            f"{int((~known).sum())} of {len(known)} rows or columns of {path.name} have no line in "
            f"the metadata and are left out: {_some(table.index[~known])}.",
            UserWarning,
            stacklevel=3,
        )
    absent = samples.index.difference(table.index)
    if len(absent):
        warnings.warn(
            f"{len(absent)} samples of the metadata have no counts in {path.name}: "
            f"{_some(absent)}.",
            UserWarning,
            stacklevel=3,
        )
    tallies = table.columns.isin(_TALLIES)
    if tallies.any():
        warnings.warn(
            f"{int(tallies.sum())} rows or columns of {path.name} are no genes but what the "
            f"counting program tallied beside them, and are left out: "
            f"{_some(table.columns[tallies])}.",
            UserWarning,
            stacklevel=3,
        )
    table = table.loc[known, ~tallies]
    numbers = table.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
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
        obs=samples.loc[table.index].copy(),
        var=pd.DataFrame(index=table.columns.astype(str)),
    )


def _add_metadata(adata: ad.AnnData, samples: pd.DataFrame | None) -> ad.AnnData:
    if samples is None:
        return adata
    known = adata.obs_names.isin(samples.index)
    if not known.any():
        raise ValueError(
            f"none of the samples in the metadata ({_some(samples.index)}) is in obs_names "
            f"({_some(adata.obs_names)}); the names must agree (see --sample-column)."
        )
    if not known.all():
        warnings.warn(
            f"{int((~known).sum())} of {adata.n_obs} samples have no line in the metadata and are "
            f"left out: {_some(adata.obs_names[~known])}.",
            UserWarning,
            stacklevel=3,
        )
    adata = adata[known].copy()
    for name, values in samples.loc[adata.obs_names].items():
        adata.obs[str(name)] = values.to_numpy()
    return adata


def _some(names: Sequence[str] | pd.Index, limit: int = 4) -> str:
    shown = ", ".join(map(str, names[:limit]))
    return shown + (", …" if len(names) > limit else "")
