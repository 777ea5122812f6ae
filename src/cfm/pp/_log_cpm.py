"""Counts to log2 counts per million with a prior that scales with the library."""

from __future__ import annotations

import numpy as np


def log2_cpm(counts: np.ndarray, library_size: np.ndarray, prior: float | np.ndarray) -> np.ndarray:
    r"""Return log2 counts per million, shrunken at low counts.

    .. math:: \log_2 \frac{y_{ig} / N_i + c}{1 + 2c} \cdot 10^6

    with :math:`y_{ig}` the count of gene :math:`g` in sample :math:`i`, :math:`N_i` its library
    size and :math:`c` the prior as a share of a library. It equals ``cpm(log=TRUE)`` of edgeR for
    :math:`c` = ``prior.count`` / mean library size: the prior count is scaled with each library,
    so a gene without counts has the same value in every sample and no fold change.

    Parameters
    ----------
    counts
        ``(n, n_genes)`` counts.
    library_size
        ``(n,)`` their row sums, above 0.
    prior
        :math:`c`, above 0; one for all, or ``(n,)``.

    Returns
    -------
    ``(n, n_genes)`` float64.

    Notes
    -----
    Robinson, McCarthy and Smyth (2010), edgeR; the moderated fold changes made from it are in the
    spirit of its ``predFC`` (Phipson 2013).
    """
    values = np.asarray(counts, dtype=np.float64) / library_size[:, None]
    if isinstance(prior, np.ndarray):
        prior = prior[:, None]
    values += prior
    values *= 1e6 / (1.0 + 2.0 * prior)
    return np.log2(values, out=values)
