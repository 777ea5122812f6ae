"""Reads log2 fold changes out of an AnnData, and refuses what is something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cfm.data._matrix import get_matrix, read_rows, row_blocks, to_dense
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
#: Observations that are needed, and that are read, to tell whether genes were scaled.
_FEWEST_SCALED, _MOST_SCALED = 10, 200


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
        If too few genes are found, or the values were scaled gene by gene.
    """
    require_anndata(adata)
    check_not_scaled(get_matrix(adata, layer=layer))
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


def check_not_scaled(matrix: Any) -> None:
    """Refuse values that were scaled over the observations, as :func:`scanpy.pp.scale` does.

    Two things give them away where there are ten observations or more. Of single cells: a gene
    that most cells do not express has one and the same value, other than 0, in all of them; fold
    changes are hardly ever the same twice. Of samples: every gene has mean 0 and standard
    deviation 1.

    Raises
    ------
    ValueError
        If so.
    """
    n = matrix.shape[0]
    if n < _FEWEST_SCALED:
        return
    rows = np.unique(np.linspace(0, n - 1, min(n, _MOST_SCALED)).astype(np.int64))
    values = np.asarray(to_dense(read_rows(matrix, rows), np.float32))
    seen = values[np.isfinite(values)]
    if (seen == np.round(seen)).all():
        return  # directions, or nothing at all
    ranked = np.sort(values, axis=0)
    window = int(np.ceil(0.5 * len(rows)))
    first, last = ranked[: len(rows) - window + 1], ranked[window - 1 :]
    constant = ranked[0] == ranked[-1]
    tied = ((first == last) & (first != 0)).any(axis=0) & ~constant
    found = ""
    if tied.mean() > 0.1:
        found = f"{tied.mean():.0%} of the genes have the same value, not 0, in most observations"
    elif len(rows) == n and not np.isnan(values).any():
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
        scaled = (np.abs(mean) < 0.01) & (np.abs(spread - 1.0) < 0.01)
        if (spread > 0).any() and scaled[spread > 0].mean() > 0.9:
            found = "nearly all genes have mean 0 and standard deviation 1"
    if found:
        raise ValueError(
            f"{found}: this looks like expression after scaling (sc.pp.scale, z-scores), while "
            "log2 fold changes of contrasts are expected. Make them of the counts with "
            "cfm.pp.contrasts(adata, groupby, control); for single cells name the samples with "
            "sample_key=."
        )
