"""Chunks of donors, each donor with all of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm.data._inputs import describe_files, matrix_identity
from cfm.data._matrix import by_rows, check_unique_names, in_memory_frame
from cfm.models import load_model
from cfm.models._base import check_column
from cfm.tl._run import Chunk, Rows

if TYPE_CHECKING:
    from pathlib import Path

    from cfm.models import PretrainedModel

#: Donors of a chunk.
DONORS_AT_ONCE = 64


def load_donor_model(
    source: str | Path | PretrainedModel, *, device: str | None = None
) -> PretrainedModel:
    """Return a model as :func:`cfm.models.load_model`.

    Raises
    ------
    ConnectionError
        If a model on the hub cannot be reached; the message names models that work offline.
    """
    try:
        return load_model(source, device=device)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error} A released PULSAR also needs obsm['X_uce'] of cfm.tl.embed(adata, uce). "
            "Without network use model='pulsar-mini', which reads raw counts, or train a "
            "cfm.models.Pulsar on these cells."
        ) from error


class DonorRows(Rows):
    """Donors in the order of their names.

    Parameters
    ----------
    cells
        Cells of donors; their representation may be on disk.
    donor_key
        Column of ``obs`` with the donor.
    use_rep
        Name in ``obsm`` of the representation of cells; ``None`` if the model reads counts.
    """

    def __init__(self, cells: AnnData, donor_key: str, use_rep: str | None) -> None:
        super().__init__(cells)
        self._donor_key = donor_key
        self._use_rep = use_rep
        self._cells: list[np.ndarray] | None = None

    def chunks(self, most: int | None = None) -> list[Chunk]:
        """Cut the donors into chunks, of at most ``most`` donors."""
        n = len(self._rows_of_donors())
        size = min(DONORS_AT_ONCE, most or DONORS_AT_ONCE)
        return [Chunk(0, *[slice(i, min(i + size, n))] * 2) for i in range(0, n, size)]

    def read(self, chunk: Chunk, layers: Sequence[str | None]) -> AnnData:
        """Return the cells of some donors; data on disk stay there until they are drawn."""
        return self.whole[np.sort(np.concatenate(self._rows_of_donors()[chunk.own]))]

    def identity(
        self, layers: Sequence[str | None], arguments: Mapping[str, Any]
    ) -> dict[str, str]:
        """Return digests that identify these cells; parameters as of :class:`Rows`."""
        found = super().identity(layers, arguments)
        if self._use_rep is None or self._use_rep not in self.whole.obsm:  # the model raises
            return found
        matrix = self.whole.obsm[self._use_rep]
        if isinstance(matrix, pd.DataFrame):
            matrix = matrix.to_numpy()
        digest, files = matrix_identity(by_rows(matrix))
        return found | {f"obsm[{self._use_rep!r}]": digest} | describe_files(files)

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
