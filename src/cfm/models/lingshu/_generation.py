"""Cells block by block: counts that are given, blocks of new counts, the file that they go to."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata.io import sparse_dataset, write_elem
from scipy import sparse
from scvi import settings
from scvi.utils import track

from cfm._arguments import check_flag, check_whole
from cfm._tables import text_is_written
from cfm.data._matrix import check_unique_names
from cfm.data._work_folder import put_in_place
from cfm.models.lingshu._conditions import shown
from cfm.models.lingshu._data import check_counts
from cfm.models.lingshu._module import MASK
from cfm.models.lingshu._quantiser import Dequantise, dequantise, quantise
from cfm.models.lingshu._sampler import Guidance, Sampler, draw_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from anndata import AnnData

    from cfm.data import GeneVocabulary
    from cfm.models.lingshu._data import CountReader
    from cfm.models.lingshu._module import Conditions, LingshuModule

#: In counts: a gene that is to be drawn.
FREE = -1

#: From cells to counts of them, ``(b, n_genes)`` int64.
CountBlock = Callable[[slice], np.ndarray]


def wanted_cells(cells: int | pd.DataFrame) -> pd.DataFrame:
    """Return a table with a row per cell that is asked for, named and with its conditions.

    Raises
    ------
    TypeError, ValueError
        If it is neither a number nor a table with a row.
    """
    if isinstance(cells, pd.DataFrame):
        if not len(cells):
            raise ValueError("cells= has no row; ask for at least one cell.")
        table = cells.set_axis(cells.index.astype(str), axis=0)
        check_unique_names(table.index, axis="obs")
        return table
    if isinstance(cells, bool) or not isinstance(cells, int | np.integer):
        raise TypeError(
            f"cells= is a {type(cells).__name__}; expected a number of cells, or a table with a "
            "row for each."
        )
    return pd.DataFrame(index=pd.Index([f"cell{i}" for i in range(check_whole("cells", cells))]))


def read_frozen(frozen: Any, n: int, vocabulary: GeneVocabulary) -> CountBlock:
    """Return a function from cells to their given counts, ``(b, n_genes)`` int64, −1 = free.

    Parameters
    ----------
    frozen
        ``None``; counts by gene for all cells (mapping or Series); a DataFrame, ``n`` cells by
        genes; or an array, ``n`` cells by all genes of the vocabulary. ``NaN`` is free.
    n
        Number of cells.
    vocabulary
        Genes of the model.

    Raises
    ------
    KeyError
        If a gene is unknown.
    TypeError, ValueError
        If it is something else, of another shape, or holds no counts.
    """
    n_genes = len(vocabulary)
    if frozen is None:
        return lambda rows: np.full((rows.stop - rows.start, n_genes), FREE, dtype=np.int64)
    if isinstance(frozen, Mapping | pd.Series):
        named = pd.Series(dict(frozen), dtype=np.float64)
        positions = gene_positions(named.index.tolist(), vocabulary)
        row = np.full(n_genes, FREE, dtype=np.int64)
        row[positions] = _counts(named.to_numpy())
        return lambda rows: np.tile(row, (rows.stop - rows.start, 1))
    if isinstance(frozen, pd.DataFrame):
        positions = gene_positions(frozen.columns.tolist(), vocabulary)
        values = frozen.to_numpy(dtype=np.float64)
    elif isinstance(frozen, np.ndarray) and frozen.ndim == 2 and frozen.shape[1] == n_genes:
        positions, values = np.arange(n_genes), frozen
    else:
        raise TypeError(
            f"frozen= is a {type(frozen).__name__}; expected counts by gene, a DataFrame of cells "
            f"by genes, or an array of cells by the model's {n_genes} genes."
        )
    if len(values) != n:
        raise ValueError(f"frozen= has {len(values)} rows for {n} cells; expected one for each.")
    counts = _counts(values)

    def read(rows: slice) -> np.ndarray:
        out = np.full((rows.stop - rows.start, n_genes), FREE, dtype=np.int64)
        out[:, positions] = counts[rows]
        return out

    return read


def gene_positions(genes: Sequence[str], vocabulary: GeneVocabulary) -> np.ndarray:
    """Return the places of genes in the vocabulary, ``(m,)`` int64.

    Raises
    ------
    KeyError, TypeError, ValueError
        If one is unknown or named twice, or ``genes`` is one text.
    """
    if isinstance(genes, str):
        raise TypeError(f"genes={genes!r} is a single string; give a list of gene names.")
    names = [str(g) for g in genes]
    found = vocabulary.genes.get_indexer(pd.Index(names, dtype=object))
    unknown = [g for g, i in zip(names, found, strict=True) if i < 0]
    if unknown:
        raise KeyError(
            f"The model does not know the genes {shown(unknown, 5)}; it knows "
            f"{', '.join(vocabulary.genes[:3])}, … (model.vocabulary.genes)."
        )
    if len(set(names)) < len(names):
        raise ValueError("A gene is named twice among those that are given; name each once.")
    return found.astype(np.int64)


def _counts(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    check_counts(values[~np.isnan(values)], "frozen=")
    return np.where(np.isnan(values), FREE, values).astype(np.int64)


def keep_counts(
    frozen: CountBlock, reader: CountReader, adata: AnnData, genes: Sequence[str]
) -> CountBlock:
    """Add the counts that ``adata`` has of some genes to those that are given.

    Raises
    ------
    KeyError, TypeError
        If a gene is not measured or not known to the model, or ``genes`` is one text.
    """
    if isinstance(genes, str):
        raise TypeError(f"keep_genes={genes!r} is a single string; give a list of gene names.")
    alignment = reader.alignment
    place = dict(zip(adata.var_names[alignment.columns], alignment.positions, strict=True))
    unknown = [g for g in genes if g not in place]
    if unknown:
        raise KeyError(
            f"keep_genes names {unknown[:5]}, which are not both measured and known to the model."
        )
    kept = np.array([place[g] for g in genes], dtype=np.int64)

    def read(rows: slice) -> np.ndarray:
        out = frozen(rows)
        if rows.stop > rows.start and len(kept):
            counts = reader.counts(np.arange(rows.start, rows.stop))[:, kept]
            out[:, kept] = np.where(out[:, kept] == FREE, counts, out[:, kept])
        return out

    return read


@dataclass(frozen=True)
class Generation:
    """How cells are made.

    Attributes
    ----------
    n_steps
        Steps of the sampler.
    guidance
        Away from the control of the same source.
    dequantise
        Count of a value above 100.
    batch_size
        Cells of a block, at least.
    dtype
        Of the trunk's matrix products.
    seed
        Of all cells, beside their names.
    """

    n_steps: int
    guidance: Guidance
    dequantise: Dequantise
    batch_size: int
    dtype: torch.dtype
    seed: int

    def blocks(
        self,
        module: LingshuModule,
        names: Sequence[str],
        conditions: Conditions,
        frozen: CountBlock,
        origin: tuple[CountBlock, Conditions] | None = None,
    ) -> Iterator[sparse.csr_matrix]:
        """Check what is asked for, and return an iterator over blocks of counts, CSR int32.

        Parameters
        ----------
        module
            The network.
        names
            Of the cells.
        conditions
            Of the cells.
        frozen
            Counts that are given; −1 = to be drawn.
        origin
            Counts of cells (−1 = not measured) and their conditions: these very cells are made
            again under ``conditions``.
        """
        dequantise(np.zeros(0, dtype=np.int64), self.dequantise, uniform=np.zeros(0))
        frozen(slice(0, 0))
        return self._blocks(module, names, conditions, frozen, origin)

    def _blocks(
        self,
        module: LingshuModule,
        names: Sequence[str],
        conditions: Conditions,
        frozen: CountBlock,
        origin: tuple[CountBlock, Conditions] | None,
    ) -> Iterator[sparse.csr_matrix]:
        module.eval()
        sampler = Sampler(module, self.dtype)
        held: list[sparse.csr_matrix] = []
        for rows in _chunks(len(names), sampler.cells_at_once):
            draws = draw_numbers(names[rows], module.n_genes, self.seed)
            given = frozen(rows)
            tokens = _tokens(given)
            asked = conditions.rows(rows).to(sampler.device)
            if origin is not None:
                observed, before = origin[0](rows), origin[1].rows(rows).to(sampler.device)
                values = _tokens(observed)
                draws = sampler.explain(tokens, values, before, draws, n_steps=self.n_steps)
            found = sampler.sample(
                tokens, asked, draws, n_steps=self.n_steps, guidance=self.guidance
            )
            counts = dequantise(found, self.dequantise, uniform=draws.inside)
            if origin is not None:  # a value that stays is the same count
                counts = np.where(found == values, observed, counts)
            counts = np.where(given == FREE, counts, given).astype(np.int32)
            held.append(sparse.csr_matrix(counts))
            if sum(block.shape[0] for block in held) >= self.batch_size:
                yield sparse.vstack(held, format="csr")
                held = []
        if held:
            yield sparse.vstack(held, format="csr")


def _tokens(counts: np.ndarray) -> np.ndarray:
    """Return tokens, int64; the mask for −1."""
    return np.where(counts < 0, MASK, quantise(np.maximum(counts, 0))).astype(np.int64)


def _chunks(n: int, size: int) -> Iterator[slice]:
    """Yield slices of cells, with a progress bar if there are several."""
    starts = range(0, n, size)
    silent = settings.verbosity > logging.INFO or len(starts) < 2
    for start in track(starts, description="Generating cells", style="tqdm", disable=silent):
        yield slice(start, min(start + size, n))


class CellFile:
    """An AnnData file, ``.h5ad`` or ``.zarr``, whose ``X`` grows by blocks of rows.

    It is written under a hidden name and takes its own when it is complete; after an error
    nothing is left.

    Parameters
    ----------
    path
        Where it goes.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        If there is one.
    ValueError
        If the name ends otherwise.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix not in (".h5ad", ".zarr"):
            raise ValueError(f"path={str(path)!r}; expected a name that ends in .h5ad or .zarr.")
        self._overwrite = check_flag("overwrite", overwrite)
        if os.path.lexists(self.path) and not overwrite:
            raise FileExistsError(f"{self.path} exists; choose another path, or overwrite=True.")
        self._draft = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}{self.path.suffix}")
        self._root: Any = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix == ".zarr":
            import zarr

            self._root = zarr.open_group(str(self._draft), mode="w")
        else:
            import h5py

            self._root = h5py.File(self._draft, "w")
        self._root.attrs["encoding-type"] = "anndata"
        self._root.attrs["encoding-version"] = "0.1.0"
        return self

    def append(self, block: sparse.csr_matrix) -> None:
        """Add rows."""
        if "X" in self._root:
            sparse_dataset(self._root["X"]).append(block)
            return
        first = block.copy()
        first.indptr = first.indptr.astype(np.int64)  # there may be more than 2**31 values
        write_elem(self._root, "X", first)

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]) -> None:
        """Write what belongs to the rows and columns."""
        with text_is_written():
            for name, element in {"obs": obs, "var": var, "uns": uns}.items():
                write_elem(self._root, name, element)
        for name in ("obsm", "varm", "obsp", "varp", "layers"):
            write_elem(self._root, name, {})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path.suffix == ".h5ad":
            self._root.close()
        if kind is None:
            put_in_place(self._draft, self.path, overwrite=self._overwrite)
        elif self._draft.is_dir():
            shutil.rmtree(self._draft, ignore_errors=True)
        else:
            self._draft.unlink(missing_ok=True)

    def read(self) -> ad.AnnData:
        """Open the finished file; ``X`` stays on disk."""
        if self.path.suffix == ".h5ad":
            return ad.read_h5ad(self.path, backed="r")
        import zarr

        root = zarr.open_group(str(self.path), mode="r")
        rest = {name: ad.io.read_elem(root[name]) for name in ("obs", "var", "uns")}
        return ad.AnnData(X=sparse_dataset(root["X"]), **rest)
