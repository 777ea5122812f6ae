"""One ranking of compounds out of all the evidence there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm.stats._evidence import (
    standardize,
    sum_of_correlated,
    tail_p_values,
    upper_p_values,
)
from cfm.tl._program_enrichment import benjamini_hochberg
from cfm.tl._reversal_evidence import MIN_LIBRARY
from cfm.tl._signatures import compound_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.tl._reversal_evidence import GroupReversal
    from cfm.tl._target_evidence import GroupTargets

#: Readings of a signature, and the columns of their values.
READINGS = {
    "cosine": "cosine_reversal",
    "connectivity": "reversal",
    "model": "embedding_reversal",
}


def rank_compounds(
    names: np.ndarray | None,
    pairs: pd.DataFrame | None,
    reversal: GroupReversal | None,
    by_target: GroupTargets | None,
    readings: Sequence[str],
) -> tuple[pd.DataFrame, float]:
    """Join the evidence of one group, and rank the compounds that have any.

    Parameters
    ----------
    names
        ``(c,)`` compounds of the reversal.
    pairs
        Targets: ``key``, ``compound`` and ``gene``.
    reversal, by_target
        The evidence; ``None`` = none of this kind.
    readings
        Readings of the signatures that enter the score; the others are only reported.

    Returns
    -------
    A row per compound, in the order of their ranks, with the columns of
    :func:`cfm.tl.screen_drugs` but ``group``; and what :func:`inflation` the standard scores of
    the signatures were divided by. Where that is unknown (``NaN``) they are as they are, and the
    p-values of compounds with a signature ``NaN``.
    """
    out = _compounds(names, pairs)
    # Null of the combined score, by the class of a compound's signatures and number of targets.
    z_signature, signature_nulls, signature_class = _signature_part(out, names, reversal, readings)
    spread = inflation(z_signature, list(signature_nulls.values()))
    z_signature = z_signature / np.nan_to_num(spread, nan=1.0)
    z_target, target_nulls = _target_part(out, by_target)
    score = sum_of_correlated([z_signature, z_target], np.eye(2))
    p_value = np.full(len(out), np.nan)
    kinds = np.stack([signature_class, out["n_targets"].to_numpy(np.int64)], axis=1)
    for s, t in np.unique(kinds, axis=0).tolist():
        rows = (kinds == (s, t)).all(axis=1)
        nulls = [x for x in (signature_nulls.get(s), target_nulls.get(t)) if x is not None]
        if nulls and (s < 0 or not np.isnan(spread)):
            null = sum_of_correlated(nulls, np.eye(len(nulls)))
            p_value[rows] = tail_p_values(score[rows], null)
    out["score"], out["p_value"] = score, p_value
    out = out[~np.isnan(score)]
    # Names decide between scores that are equal but for rounding.
    out = out.assign(falling=-out["score"].round(9)).sort_values("falling", kind="stable")
    out["rank"] = np.arange(1, len(out) + 1)
    out["fdr"] = benjamini_hochberg(out["p_value"].to_numpy())
    return out.drop(columns="falling"), spread


def inflation(z: np.ndarray, nulls: Sequence[np.ndarray]) -> float:
    """Return how much wider the standard scores of a library lie than those of random signatures.

    Random signatures hold genes that have nothing to do with each other; those of compounds hold
    genes that move together, and hit or miss a profile together. Most compounds of a library do
    nothing for the profile, so the spread of their middle shows what such signatures reach by
    chance (the empirical null of Efron 2004; as genomic control, it never narrows).

    Parameters
    ----------
    z
        ``(c,)`` standard scores, NaN = none.
    nulls
        Standard scores of random signatures.

    Returns
    -------
    Ratio of the ranges that hold the middle 80 %, at least 1; ``NaN`` for fewer than 100 scores:
    they are too few to measure it, and may have been chosen for the profile.
    """
    known = z[~np.isnan(z)]
    if not len(known):
        return 1.0
    if len(known) < MIN_LIBRARY:
        return float("nan")
    ranges = [np.quantile(x, 0.9) - np.quantile(x, 0.1) for x in (known, np.concatenate(nulls))]
    return max(1.0, float(ranges[0] / ranges[1])) if ranges[1] > 0 else 1.0


def _compounds(names: np.ndarray | None, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Return a row without evidence for each compound, in the order of their names."""
    spelling = pd.Series(dtype=object)
    if pairs is not None:
        spelling = pairs.drop_duplicates("key").set_index("key")["compound"]
    if names is not None:
        own = pd.Series(names, index=compound_key(pd.Series(names, dtype=object)))
        spelling = pd.concat([own, spelling[~spelling.index.isin(own.index)]])
    out = pd.DataFrame({"compound": spelling.sort_index()})
    for column in (*READINGS.values(), "target_score", "p_target"):
        out[column] = np.nan
    for column in ("n_signatures", "n_targets"):
        out[column] = 0
    for column in ("reversal_genes", "target_genes"):
        out[column] = ""
    return out


def _signature_part(
    out: pd.DataFrame,
    names: np.ndarray | None,
    found: GroupReversal | None,
    readings: Sequence[str],
) -> tuple[np.ndarray, dict[int, np.ndarray], np.ndarray]:
    """Fill in the reversal; return its z, the null of z by class, and the class (−1 = none)."""
    z = np.full(len(out), np.nan)
    group = np.full(len(out), -1, dtype=np.int64)
    if found is None or names is None:
        return z, {}, group
    keys = compound_key(pd.Series(names, dtype=object)).to_numpy()
    for name, values in found.readings.items():
        out[READINGS[name]] = pd.Series(values, index=keys).reindex(out.index)
    counts = pd.Series(found.n_signatures, index=keys).reindex(out.index, fill_value=0)
    out["n_signatures"] = counts.astype(np.int64)
    out["reversal_genes"] = pd.Series(found.genes, index=keys).reindex(out.index, fill_value="")
    own = pd.Series(found.null_class, index=keys).reindex(out.index, fill_value=-1)
    group = np.where(out["reversal"].isna(), -1, own).astype(np.int64)
    nulls: dict[int, np.ndarray] = {}
    for k in np.unique(group[group >= 0]):
        rows = group == k
        each = [standardize(out.loc[rows, READINGS[n]], found.nulls[n][k]) for n in readings]
        # Standard scores: their mean product is their correlation, 0 where one does not vary.
        stacked = np.stack([standardize(found.nulls[n][k], found.nulls[n][k]) for n in readings])
        rho = stacked @ stacked.T / stacked.shape[1]
        z[rows] = sum_of_correlated(each, rho)
        nulls[k] = sum_of_correlated(stacked, rho)
    return z, nulls, group


def _target_part(
    out: pd.DataFrame, found: GroupTargets | None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Fill in the target evidence; return its z, and the null of z by number of targets."""
    z, p = np.full((2, len(out)), np.nan)
    nulls: dict[int, np.ndarray] = {}
    if found is None:
        return z, nulls
    out["target_score"] = found.score.reindex(out.index)
    out["n_targets"] = found.n_targets.reindex(out.index, fill_value=0).astype(np.int64)
    out["target_genes"] = found.genes.reindex(out.index, fill_value="")
    n_targets = out["n_targets"].to_numpy()
    for size in np.unique(n_targets[n_targets > 0]):
        rows = n_targets == size
        null = found.null[:, size - 1]
        score = out["target_score"][rows]
        p[rows] = upper_p_values(score, null)
        z[rows], nulls[size] = standardize(score, null), standardize(null, null)
    out["p_target"] = p
    return z, nulls
