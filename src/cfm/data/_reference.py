"""Embeddings with a table of their labels, indexed for search by cosine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments

if TYPE_CHECKING:
    from anndata import AnnData

#: Columns of a published DONORxEMBED table.
_EMBEDDING, _DONOR = "embedding", "donor_id"
#: Similarities held in memory at a time (64 MiB in float32).
_AT_ONCE = 16_000_000


class Reference:
    """Embeddings of donors, samples or contrasts, for :func:`cfm.tl.map_reference`.

    Parameters
    ----------
    embedding
        ``(n, dim)`` embeddings.
    table
        ``n`` rows of labels and data sets.
    names
        ``(n,)`` names; by default the index of ``table``.
    centre
        Take the mean of the reference off every embedding, so that what all have in common does
        not count as likeness.

    Attributes
    ----------
    n, dim
        Embeddings, and their width.
    table, names
        What they are.

    Raises
    ------
    ValueError
        If there are none, sizes do not fit, or values are ``NaN``, infinite or all 0.

    Examples
    --------
    >>> import cfm, numpy as np, pandas as pd
    >>> table = pd.DataFrame({"disease": ["lupus", "normal"]}, index=["a", "b"])
    >>> reference = cfm.data.Reference(np.eye(2), table)
    >>> similarity, place = reference.search(np.array([[1.0, 0.2]]), 1)
    >>> reference.names[place[0, 0]]
    'a'
    """

    def __init__(
        self,
        embedding: np.ndarray,
        table: pd.DataFrame,
        names: np.ndarray | None = None,
        *,
        centre: bool = False,
    ) -> None:
        found = np.array(embedding, dtype=np.float32)  # a copy: it is scaled in place
        if found.ndim != 2 or not found.size or len(found) != len(table):
            raise ValueError(
                f"The embeddings are {found.shape} for {len(table)} rows of the table; expected a "
                "row of numbers each."
            )
        self.table = table.reset_index(drop=True)
        names = table.index.astype(str).to_numpy() if names is None else np.asarray(names)
        self.names = names.astype(str).astype(object)
        self.centre = centre
        self._mean = found.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._embedding = self._scaled(found, "the reference")

    @property
    def n(self) -> int:
        """Number of embeddings."""
        return len(self._embedding)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self._embedding.shape[1])

    @classmethod
    @checks_arguments()
    def from_anndata(cls, adata: AnnData, use_rep: str, *, centre: bool = False) -> Self:
        """Index an embedding of an AnnData, with its ``obs``.

        Raises
        ------
        KeyError, ValueError
            If there is no such embedding, or it cannot be indexed.
        """
        if use_rep not in adata.obsm:
            raise KeyError(f"The reference's obsm has no {use_rep!r}; it has {sorted(adata.obsm)}.")
        return cls(np.asarray(adata.obsm[use_rep]), adata.obs, centre=centre)

    @classmethod
    @checks_arguments()
    def from_parquet(cls, path: str | Path, *, centre: bool = False) -> Self:
        """Index a parquet file, or a folder of such, as DONORxEMBED is published.

        Parameters
        ----------
        path
            Of a file or folder; or ``hf://datasets/org/name``, with a folder or file after it, on
            the Hugging Face hub, which is read in parts. With the columns ``donor_id`` and
            ``embedding`` (a list of numbers each); what else is there, such as
            ``disease_label`` and ``dataset_id``, comes along.
        centre
            As for the class.

        Raises
        ------
        ImportError
            If pyarrow is not installed.
        ValueError
            If there is no such file, the hub cannot be reached, it is no parquet, lacks a column,
            or widths differ.
        """
        try:
            import pyarrow as pa
            import pyarrow.dataset as ds
        except ImportError as error:
            raise ImportError(
                "Parquet is read with pyarrow, which is not installed; "
                "pip install 'cfm-tools[parquet]'."
            ) from error
        system, files = _parquet_files(path)
        try:
            data = ds.dataset(files, format="parquet", filesystem=system)
            lacking = {_EMBEDDING, _DONOR} - set(data.schema.names)
            if lacking:
                raise ValueError(
                    f"{path} has the columns {data.schema.names}; {sorted(lacking)} is expected."
                )
            rest = [name for name in data.schema.names if name != _EMBEDDING]
            # in parts, so that lists of numbers are never held beside the array
            parts, widths = [], set()
            for batch in data.to_batches(columns=[_EMBEDDING]):
                column = batch.column(0)
                found = pa.compute.list_value_length(column).unique().to_pylist()
                widths |= set(found)
                parts.append(column.flatten().to_numpy(zero_copy_only=False).astype(np.float32))
            table = data.to_table(columns=rest).to_pandas()
        except (pa.ArrowInvalid, OSError, IndexError) as error:
            raise ValueError(f"{path} holds no readable parquet ({error}).") from error
        if len(widths) != 1 or not all(widths):
            shown = sorted(widths, key=lambda w: w or 0)[:5]
            raise ValueError(f"The embeddings in {path} have widths {shown}; expected one.")
        embedding = np.concatenate(parts).reshape(-1, *widths)
        return cls(embedding, table, table[_DONOR].astype(str).to_numpy(), centre=centre)

    @checks_arguments()
    def search(
        self, query: np.ndarray, k: int, exclude: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest of the reference, exactly.

        Parameters
        ----------
        query
            ``(m, dim)``.
        k
            How many; all if there are fewer.
        exclude
            For each query ``(n,)`` bool of what must not be found, or ``None``.

        Returns
        -------
        similarity
            ``(m, k)`` float32 cosine, the highest first; −inf where nothing was left.
        place
            ``(m, k)`` int64; of equals the first.

        Raises
        ------
        ValueError
            If the width differs, or values are ``NaN``, infinite or all 0.
        """
        query = np.array(query, dtype=np.float32)
        if query.ndim != 2 or query.shape[1] != self.dim:
            raise ValueError(
                f"The query is {query.shape}; the reference has embeddings of {self.dim} numbers: "
                "embed both with the same model."
            )
        query = self._scaled(query, "the query")
        k = min(k, self.n)
        similarity = np.empty((len(query), k), dtype=np.float32)
        place = np.empty((len(query), k), dtype=np.int64)
        step = max(1, _AT_ONCE // self.n)
        for start in range(0, len(query), step):
            found = query[start : start + step] @ self._embedding.T
            for i, row in enumerate(found, start=start):
                if exclude is not None and exclude[i] is not None:
                    row[exclude[i]] = -np.inf
                # every one that ties with the last, so that of equals the first is taken
                least = np.partition(row, self.n - k)[self.n - k]
                near = np.flatnonzero(row >= least)
                near = near[np.argsort(-row[near], kind="stable")[:k]]
                similarity[i], place[i] = row[near], near
        return similarity, place

    def typical_similarity(self, share: float, key: str | None = None, n_most: int = 2000) -> float:
        """Return the similarity to the nearest other below which a share of the reference lies.

        Parameters
        ----------
        share
            In 0…1.
        key
            Column of ``table``: rows with the same value do not count as others.
        n_most
            Rows that are looked at, spread evenly.

        Returns
        -------
        Cosine; −inf if no row has another.
        """
        rows = np.unique(np.linspace(0, self.n - 1, min(self.n, n_most)).astype(np.int64))
        values = np.arange(self.n) if key is None else pd.factorize(self.table[key].astype(str))[0]
        nearest = np.empty(len(rows), dtype=np.float32)
        step = max(1, _AT_ONCE // self.n)
        for start in range(0, len(rows), step):
            own = rows[start : start + step]
            found = self._embedding[own] @ self._embedding.T
            found[np.arange(len(own)), own] = -np.inf
            found[values[own][:, None] == values[None, :]] = -np.inf
            nearest[start : start + step] = found.max(axis=1)
        nearest = nearest[np.isfinite(nearest)]
        return float(np.quantile(nearest, share)) if len(nearest) else -np.inf

    def _scaled(self, x: np.ndarray, what: str) -> np.ndarray:
        """Bring rows to length 1, in place."""
        if self.centre:
            x -= self._mean
        length = np.sqrt(np.einsum("ij,ij->i", x, x))
        bad = int((~np.isfinite(length) | (length == 0)).sum())
        if bad:
            raise ValueError(
                f"{bad} of {len(x)} embeddings of {what} are NaN, infinite or 0; drop those rows."
            )
        x /= length[:, None]
        return x


def _parquet_files(path: str | Path) -> tuple[Any, list[str]]:
    """Return a file system (``None`` for this machine's) and the parquet files below a path."""
    if str(path).startswith("hf://"):
        address = str(path).removeprefix("hf://").rstrip("/")
        if not address.startswith("datasets/"):
            raise ValueError(
                f"{str(path)!r} names a model; a reference is a data set: hf://datasets/org/name."
            )
        import huggingface_hub
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        system = huggingface_hub.HfFileSystem()
        try:
            names = [address] if address.endswith(".parquet") else system.find(address)
        except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise ValueError(
                f"{path} could not be opened ({error}); check the name and the network, or "
                "download the folder and pass its path."
            ) from error
        files = sorted(name for name in names if name.endswith(".parquet"))
        if not files:
            raise ValueError(f"{path} holds no parquet file.")
        return PyFileSystem(FSSpecHandler(system)), files
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}; give that of the reference.")
    files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
    if not files:
        raise ValueError(f"{path} holds no readable parquet (no file *.parquet).")
    return None, files
