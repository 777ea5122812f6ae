"""Gene sets: which of them a list of genes holds, and how active they are in a profile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control


def benjamini_hochberg(p_values: np.ndarray, *, n_tests: int | None = None) -> np.ndarray:
    """Return false-discovery rates; ``NaN`` stays ``NaN`` and counts as no test.

    Parameters
    ----------
    p_values
        ``(n,)``.
    n_tests
        Number of tests, if more were made than are given; those left out had p-value 1.
    """
    out = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    if not len(known):
        return out
    others = np.ones((n_tests or len(known)) - len(known))
    out[known] = false_discovery_control(np.append(p_values[known], others))[: len(known)]
    return out


def overrepresentation(
    genes: Sequence[str], background: Sequence[str], gene_sets: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    r"""Test which gene sets a list of genes holds (hypergeometric, :func:`gseapy.enrich`).

    .. math:: p = \sum_{i \ge k} \binom{K}{i} \binom{N - K}{n - i} \Big/ \binom{N}{n}

    for :math:`k` of the :math:`n` genes in a set that has :math:`K` of the :math:`N` genes of the
    background.

    Parameters
    ----------
    genes
        The list; its genes belong to the background.
    background
        Genes that could have been in it.
    gene_sets
        Genes by name of the set.

    Returns
    -------
    A row per set that shares a gene with the list, by p-value: ``term``, ``overlap``,
    ``term_size`` (:math:`K`; both int64), ``odds_ratio``, ``p_value``, ``fdr`` (float64,
    Benjamini-Hochberg over all sets that share a gene with the background) and ``genes`` (the
    shared ones, sorted list).
    """
    import gseapy

    # gseapy turns names to upper case where it guesses that they are meant so (C1orf21 would be
    # lost), hence numbers in their place.
    universe = sorted(set(background) | set(genes))
    code = {gene: f"G{i}" for i, gene in enumerate(universe)}
    coded = {t: [code[g] for g in listed if g in code] for t, listed in gene_sets.items()}
    sets = {term: listed for term, listed in coded.items() if listed}
    own = {code[gene] for gene in genes}
    columns: dict[str, type] = {
        "term": object, "overlap": np.int64, "term_size": np.int64, "odds_ratio": np.float64,
        "p_value": np.float64, "fdr": np.float64, "genes": object,
    }  # fmt: skip
    if not any(own.intersection(listed) for listed in sets.values()):
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gseapy.enrich(
            sorted(own), sets, background=list(code.values()), outdir=None, no_plot=True
        ).results
    p_value = found["P-value"].to_numpy(float)
    shared = [sorted(universe[int(c[1:])] for c in g.split(";")) for g in found["Genes"]]
    table = pd.DataFrame(
        {
            "term": found["Term"].astype(str),
            "overlap": [len(g) for g in shared],
            "term_size": [len(sets[term]) for term in found["Term"]],
            "odds_ratio": found["Odds Ratio"].to_numpy(float),
            "p_value": p_value,
            # gseapy returns, and corrects for, only the sets that share a gene
            "fdr": benjamini_hochberg(p_value, n_tests=len(sets)),
            "genes": shared,
        }
    )
    return table.astype(columns).sort_values(["p_value", "term"], kind="stable")


def univariate_linear_model(
    values: np.ndarray, weights: np.ndarray, *, min_genes: int = 3
) -> np.ndarray:
    r"""Return the activity of signed gene sets in profiles (:func:`decoupler.mt.ulm`).

    The t-value of the slope :math:`b` of :math:`x_g = a + b\,w_g + \varepsilon_g` over the genes
    that a profile measures.

    Parameters
    ----------
    values
        ``(n, genes)`` effects, ``NaN`` = not measured.
    weights
        ``(genes, k)`` signed weights of each set, 0 outside.
    min_genes
        Measured genes that a set needs.

    Returns
    -------
    ``(n, k)`` float32: 0 where nothing moves, ``NaN`` where too few genes of a set are measured.
    """
    out = np.full((len(values), weights.shape[1]), np.nan, dtype=np.float32)
    # Profiles that measure the same genes are fitted together.
    known = np.isfinite(values)
    _, first, which = np.unique(
        np.packbits(known, axis=1), axis=0, return_index=True, return_inverse=True
    )
    for i, row in enumerate(first):
        rows, genes = np.flatnonzero(which.ravel() == i), np.flatnonzero(known[row])
        out[rows] = _complete(values[np.ix_(rows, genes)], weights[genes], min_genes)
    return out


def _complete(values: np.ndarray, weights: np.ndarray, min_genes: int) -> np.ndarray:
    """Return the activities of profiles without missing values."""
    import decoupler

    out = np.full((len(values), weights.shape[1]), np.nan, dtype=np.float32)
    if values.shape[1] < min_genes:
        return out
    enough = np.count_nonzero(weights, axis=0) >= min_genes
    out[:, enough] = 0.0
    moving = np.flatnonzero(values.std(axis=1) > 0)
    if not len(moving) or not enough.any():
        return out
    gene, member_of = np.nonzero(weights * enough)
    net = pd.DataFrame(
        {
            "source": member_of.astype(str),
            "target": gene.astype(str),
            "weight": weights[gene, member_of].astype(np.float64),
        }
    )
    names = np.arange(values.shape[1]).astype(str)
    data = pd.DataFrame(values[moving], index=moving.astype(str), columns=names)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, _ = decoupler.mt.ulm(data, net, tmin=min_genes, empty=False)
    scores = scores.loc[moving.astype(str)]
    out[np.ix_(moving, scores.columns.astype(int))] = scores.to_numpy(np.float32)
    return out
