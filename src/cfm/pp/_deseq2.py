"""One level against the control with PyDESeq2."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

#: Replicates that a dispersion needs in each arm.
MIN_REPLICATES = 2


def deseq2(
    counts: np.ndarray,
    is_case: np.ndarray,
    genes: pd.Index,
    *,
    shrink: bool = False,
    n_cpus: int | None = 1,
) -> pd.DataFrame:
    """Test every gene for a difference between cases and controls.

    Parameters
    ----------
    counts
        ``(n, n_genes)`` counts; fractional ones are rounded.
    is_case
        ``(n,)`` bool.
    genes
        Names of the columns.
    shrink
        Whether to shrink fold changes by PyDESeq2's apeglm prior.
    n_cpus
        Processes.

    Returns
    -------
    DataFrame (genes × ``lfc``, ``stat``, ``pval``, ``padj``): Wald test. A gene without any count
    has ``lfc`` 0 and is not tested (NaN); outliers and low counts have no ``padj``, as in DESeq2.

    Notes
    -----
    Love, Huber and Anders (2014), Genome Biology 15:550, as implemented by PyDESeq2 (Muzellec
    2023). What PyDESeq2 warns of goes to the log.
    """
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    names = [f"s{i}" for i in range(len(counts))]
    table = pd.DataFrame(np.rint(counts).astype(np.int64), index=names, columns=genes)
    # names of our own, so that no level can upset the design formula
    condition = pd.Categorical(np.where(is_case, "case", "ctrl"), categories=["ctrl", "case"])
    metadata = pd.DataFrame({"condition": condition}, index=names)
    # the median of ratios needs a gene that every sample has
    size_factors = "ratio" if (table.to_numpy() > 0).all(axis=0).any() else "poscounts"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dds = DeseqDataSet(
            counts=table,
            metadata=metadata,
            design="~condition",
            size_factors_fit_type=size_factors,
            quiet=True,
            n_cpus=n_cpus,
        )
        dds.deseq2()
        stats = DeseqStats(dds, contrast=["condition", "case", "ctrl"], quiet=True, n_cpus=n_cpus)
        stats.summary()
        if shrink:
            stats.lfc_shrink(coeff="condition[T.case]")
    for warning in caught:
        logger.info("PyDESeq2: %s", warning.message)
    result = stats.results_df.rename(columns={"log2FoldChange": "lfc", "pvalue": "pval"})[
        ["lfc", "stat", "pval", "padj"]
    ]
    result["lfc"] = result["lfc"].fillna(0.0)
    return result
