"""Reads log2 fold changes out of an AnnData, and refuses what is something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.data._modality import require_anndata
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from cfm.data import GeneAlignment, GeneVocabulary

#: Least number of vocabulary genes that a profile must measure to be read.
MIN_GENES = 50
#: Below this share of the vocabulary a warning says so.
LOW_SHARE = 0.25


def align_effects(
    adata: AnnData, vocabulary: GeneVocabulary, *, layer: str | None = None
) -> GeneAlignment:
    """Find the model's genes in ``var_names`` and check that the matrix can be read.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If the layer does not exist.
    ValueError
        If too few genes are found.
    """
    require_anndata(adata)
    get_matrix(adata, layer=layer)
    alignment = vocabulary.align(adata.var_names, min_genes=min(MIN_GENES, len(vocabulary)))
    if alignment.found_share < LOW_SHARE:
        warn_user(
            f"Only {alignment.found_share:.0%} of the model's {len(vocabulary)} genes are "
            f"measured ({len(alignment.columns)}); predictions from so few are less certain."
        )
    return alignment


def effect_blocks(
    adata: AnnData, *, layer: str | None = None, n_rows: int = 256
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of ``(rows, effects)``, effects float32 with ``NaN`` = not measured.

    Raises
    ------
    ValueError
        If a value is infinite, or the matrix looks like expression instead of fold changes.
    """
    for rows, block in row_blocks(get_matrix(adata, layer=layer), n_rows):
        effects = np.asarray(to_dense(block, np.float32))
        check_effects(effects)
        yield rows, effects


def check_effects(effects: np.ndarray) -> None:
    """Refuse infinite values and matrices that cannot be log2 fold changes.

    A contrast has genes that fall; a matrix with hundreds of positive values in some row and no
    negative one anywhere in it is expression.
    """
    if np.isinf(effects).any():
        raise ValueError(
            "The matrix holds infinite values; log2 fold changes must be finite, or NaN where a "
            "gene is not measured. Add a pseudocount before taking logarithms, or make contrasts "
            "with cfm.pp.contrasts."
        )
    with np.errstate(invalid="ignore"):
        negative = (effects < 0).any(axis=1)
        positive = (effects > 0).sum(axis=1)
    if ((positive >= 200) & ~negative).any():
        row = int(np.flatnonzero((positive >= 200) & ~negative)[0])
        raise ValueError(
            f"Row {row} has {positive[row]} positive values and no negative one: this looks like "
            "expression or counts, while log2 fold changes of contrasts are expected. Make them "
            "with cfm.pp.contrasts(adata, groupby, control), or give groupby= and control= to "
            "cfm.tl.predict_virus."
        )
