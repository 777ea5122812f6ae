"""Donors that a tool goes through, each with all of its cells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm.data._matrix import check_unique_names, in_memory_frame, read_rows, to_dense
from cfm.models._base import check_column
from cfm.tl._chunk_input import Chunk, Rows

#: Donors of a chunk, unless said otherwise.
DONORS_AT_ONCE = 64
#: Cells whose values are looked at to tell whether data are the same.
_LOOKED_AT = 32


class DonorRows(Rows):
    """Donors in the order of their names.

    Parameters
    ----------
    cells
        Cells of donors; what represents them may lie in a file.
    donor_key
        Column of ``obs`` with the donor.
    given
        Whether all donors are to be embedded at once.
    """

    def __init__(self, cells: AnnData, donor_key: str, *, given: bool) -> None:
        paths = [] if cells.filename is None else [cells.filename]
        super().__init__(cells, [cells], paths, given)
        self._donor_key = donor_key
        self._cells: list[np.ndarray] | None = None

    def chunks(self, size: int) -> list[Chunk]:
        """Cut the donors into chunks."""
        n = len(self._rows_of_donors())
        starts = range(0, n, size)
        return [Chunk(0, *[slice(i, min(i + size, n))] * 2) for i in starts]

    def read(self, chunk: Chunk, layers: Sequence[str | None]) -> AnnData:
        """Return the cells of some donors; what lies in a file stays there until it is drawn."""
        return self.whole[np.sort(np.concatenate(self._rows_of_donors()[chunk.own]))]

    def digest(self, use_rep: str) -> str:
        """Return a digest of whose the cells are, and of what represents some of them."""
        digest = hashlib.sha256()
        for rows in self._rows_of_donors():
            digest.update(rows.tobytes())
        if use_rep in self.whole.obsm:
            few = np.unique(np.linspace(0, self.whole.n_obs - 1, _LOOKED_AT).astype(np.int64))
            matrix = self.whole.obsm[use_rep]
            block = matrix.iloc[few] if isinstance(matrix, pd.DataFrame) else read_rows(matrix, few)
            digest.update(to_dense(block).tobytes())
        return digest.hexdigest()

    def _rows_of_donors(self) -> list[np.ndarray]:
        """Return the rows of the cells of each donor."""
        if self._cells is None:
            check_column(self.whole, self._donor_key)
            check_unique_names(self.whole.obs_names, axis="obs")
            ids = in_memory_frame(self.whole.obs)[self._donor_key].astype(str)
            _, which = np.unique(ids.to_numpy(dtype=str), return_inverse=True)
            order = np.argsort(which, kind="stable")
            self._cells = np.split(order, np.cumsum(np.bincount(which))[:-1])
        return self._cells
