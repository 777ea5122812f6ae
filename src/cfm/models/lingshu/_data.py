"""AnnData to counts and tokens in the order of the model's genes; other units are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.data._modality import require_anndata
from cfm.data._row_buffer import RowBuffer
from cfm.data._units import check_single_cells
from cfm.data._warn import warn_user
from cfm.models.lingshu._module import MISSING
from cfm.models.lingshu._quantiser import LARGEST, quantise

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.data import GeneAlignment, GeneVocabulary

#: Below this share of the vocabulary a warning says so.
LOW_SHARE = 0.25
#: Cells that are read at a time.
_BLOCK = 512
_REMEDY = (
    "raw counts are expected: pass the layer that holds them with layer=, such as layer='counts'; "
    "round expected counts first."
)


class CountReader:
    """Counts of an AnnData by gene of a vocabulary, a few cells at a time.

    Parameters
    ----------
    adata
        Cells by genes, any storage.
    vocabulary
        Genes of the model.
    layer
        Layer with the counts instead of ``X``.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If the layer does not exist.
    ValueError
        If these are bulk samples or none of the genes is found, now; if values are no counts, when
        they are read.

    Warns
    -----
    UserWarning
        If few of the model's genes are measured.
    """

    def __init__(self, adata: AnnData, vocabulary: GeneVocabulary, layer: str | None) -> None:
        require_anndata(adata)
        self._rows = RowBuffer(get_matrix(adata, layer=layer))
        self._where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        check_single_cells(self._rows.matrix, self._where)
        self.alignment: GeneAlignment = vocabulary.align(adata.var_names)
        if self.alignment.found_share < LOW_SHARE:
            warn_user(
                f"Only {self.alignment.found_share:.0%} of the model's {len(vocabulary)} genes are "
                f"measured ({len(self.alignment.columns)}); what is said of so few is less certain."
            )

    @property
    def measured(self) -> np.ndarray:
        """Which genes of the vocabulary are measured, ``(n_genes,)`` bool."""
        out = np.zeros(self.alignment.n_vocabulary, dtype=bool)
        out[self.alignment.positions] = True
        return out

    def prefetch(self, rows: np.ndarray) -> None:
        """Read these cells ahead from a file; they are asked for in this order."""
        self._rows.expect(rows)

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return ``(b, n_genes)`` int64 counts; −1 = not measured."""
        block = self._rows[rows]
        check_counts(block.data if sparse.issparse(block) else block, self._where)
        out = np.full((len(rows), self.alignment.n_vocabulary), MISSING, dtype=np.int64)
        out[:, self.alignment.positions] = to_dense(block)[:, self.alignment.columns]
        return out

    def counts_of(self, rows: slice) -> np.ndarray:
        """Return :meth:`counts` of neighbouring cells."""
        return self.counts(np.arange(rows.start, rows.stop))

    def depths(self) -> np.ndarray:
        """Return the library size of each cell over the genes of the model, ``(n,)`` float32."""
        n = self._rows.matrix.shape[0]
        starts = range(0, n, _BLOCK)
        sums = [np.maximum(self.counts_of(slice(i, min(i + _BLOCK, n))), 0).sum(1) for i in starts]
        return np.concatenate(sums).astype(np.float32)

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(b, n_genes)`` int64 tokens, −1 = not measured, and depths ``(b,)`` float32."""
        counts = self.counts(rows)
        known = np.maximum(counts, 0)
        tokens = np.where(counts < 0, MISSING, quantise(known))
        return tokens.astype(np.int64), known.sum(axis=1).astype(np.float32)


def check_counts(values: np.ndarray, where: str) -> None:
    """Check that values are counts.

    Raises
    ------
    ValueError
        If a value is not finite, negative or not whole.
    """
    if not values.size:
        return
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError(f"{where} holds NaN or infinite values; {_REMEDY}")
        broken = values[values != np.rint(values)]
        if broken.size:
            raise ValueError(
                f"{where} holds values that are not whole (such as {broken.flat[0]:.4g}), so these "
                f"are not counts; {_REMEDY}"
            )
    if values.min() < 0:
        raise ValueError(
            f"{where} holds negative values (smallest {values.min():.4g}), so these are not "
            f"counts; {_REMEDY}"
        )


def check_count_matrix(matrix: Any, where: str) -> None:
    """Check a whole matrix, and warn of counts that share the overflow token.

    Raises
    ------
    ValueError
        If it does not hold counts.

    Warns
    -----
    UserWarning
        If counts lie above 9,999.
    """
    beyond, largest = 0, 0.0
    for _, block in row_blocks(matrix):
        values = block.data if sparse.issparse(block) else block
        check_counts(values, where)
        if values.size:
            beyond += int((values > LARGEST).sum())
            largest = max(largest, float(values.max()))
    if beyond:
        warn_user(
            f"{beyond} counts of {where} lie above {LARGEST:,} (largest {largest:,.0f}); the model "
            "knows them as one value, more than that, and generates it as 10,000."
        )


def check_control(adata: AnnData, perturbation_key: str | None, control: str | None) -> None:
    """Check that the column of perturbations and its control are given together and exist.

    Raises
    ------
    ValueError
        If they are not, or no cell is a control.
    """
    if perturbation_key is None:
        if control is not None:
            raise ValueError(
                f"control={control!r} was given without perturbation_key=, the column that holds "
                "it."
            )
        return
    found = sorted(set(adata.obs[perturbation_key].astype(str)))
    if control is None:
        raise ValueError(
            f"perturbation_key={perturbation_key!r} was given without control=; say which of "
            f"{found[:8]} is unperturbed."
        )
    if control not in found:
        raise ValueError(
            f"adata.obs[{perturbation_key!r}] has no control {control!r}; it has {found[:8]}. "
            "Unperturbed cells are what the model compares with."
        )
