"""Generation of cells: blocks of counts from the sampler, and the file of the cells."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata as ad
import numpy as np
import torch
from anndata.io import sparse_dataset, write_elem
from scipy import sparse
from scvi import settings
from scvi.utils import track

from cfm._adata import text_is_written
from cfm._arguments import check_flag
from cfm.data._result_store import put_in_place
from cfm.models.lingshu._counts import Dequantise, dequantise
from cfm.models.lingshu._data import FREE, to_tokens
from cfm.models.lingshu._sampler import Guidance, Sampler, draw_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import pandas as pd

    from cfm.models.count_model._module import Conditions
    from cfm.models.lingshu._data import CountBlock
    from cfm.models.lingshu._module import LingshuModule


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
        """Check the arguments, and return an iterator over blocks of counts, CSR int32.

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
            tokens = to_tokens(given)
            wanted = conditions.rows(rows).to(sampler.device)
            if origin is not None:
                observed, before = origin[0](rows), origin[1].rows(rows).to(sampler.device)
                values = to_tokens(observed)
                draws = sampler.explain(tokens, values, before, draws, n_steps=self.n_steps)
            found = sampler.sample(
                tokens, wanted, draws, n_steps=self.n_steps, guidance=self.guidance
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
        """Write ``obs``, ``var`` and ``uns``."""
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
