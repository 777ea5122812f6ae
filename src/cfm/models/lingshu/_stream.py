"""Writes generated cells to a file as they are made."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata as ad
import numpy as np
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from cfm._arguments import check_flag
from cfm._tables import text_is_written
from cfm.data._work_folder import put_in_place

if TYPE_CHECKING:
    from types import TracebackType

    import pandas as pd


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
