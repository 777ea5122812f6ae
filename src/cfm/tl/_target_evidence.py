"""Target evidence: compounds whose targets stand high among the host factors of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._fields import RESULTS, SET_SEPARATOR
from cfm.data._warn import warn_user
from cfm.stats._evidence import random_set_means, rank_shares
from cfm.tl._signatures import symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: Targets in this upper share of the host factors are named as evidence.
TOP_SHARE = 0.1


@dataclass(frozen=True)
class GroupTargets:
    """Target evidence of one group.

    Attributes
    ----------
    score
        Series by compound key: mean place of its targets among the genes, 0 to 1.
    n_targets
        Series by compound key: targets that have a score.
    genes
        Series by compound key: targets in the upper tenth, first ones first.
    null
        ``(n_permutations, k)``: means of random sets of 1, 2, … targets.
    """

    score: pd.Series
    n_targets: pd.Series
    genes: pd.Series
    null: np.ndarray


def host_factor_scores(
    adata: AnnData, key: str, given: Any, groups: Sequence[str]
) -> dict[str, pd.Series]:
    """Return the score of every gene symbol, by group.

    Parameters
    ----------
    adata
        Profiles with the host factors.
    key
        Where :func:`cfm.tl.host_factors` stored them.
    given
        A Series or DataFrame to be used instead, or ``None``.
    groups
        Names of the groups.

    Raises
    ------
    KeyError, TypeError, ValueError
        If there are none, or they lack a column or all the groups.
    """
    if given is None:
        record = adata.uns.get(key)
        if not isinstance(record, Mapping) or RESULTS not in record:
            raise KeyError(
                f"targets= needs host factors, and adata.uns[{key!r}] holds none; run "
                "cfm.tl.host_factors(adata, …) first, or pass host_factors=."
            )
        given = record[RESULTS]
    if isinstance(given, pd.Series):
        given = pd.DataFrame({"gene": given.index.astype(str), "score": given.to_numpy()})
    if not isinstance(given, pd.DataFrame):
        raise TypeError(
            f"host_factors= is a {type(given).__name__}; expected a Series of scores by gene, or a "
            "DataFrame with gene, score and perhaps group."
        )
    missing = [c for c in ("gene", "score") if c not in given]
    if missing:
        raise KeyError(f"The host factors lack {missing}; they have {given.columns.tolist()}.")
    table = pd.DataFrame({"gene": given["gene"], "score": given["score"].astype(np.float64)})
    table["group"] = given["group"].astype(str) if "group" in given else ""
    table = table[np.isfinite(table["score"]) & table["gene"].notna()]
    if table.empty:
        raise ValueError("The host factors hold no gene with a finite score.")
    table["gene"] = symbols(table["gene"].astype(str))
    scores = table.groupby(["group", "gene"])["score"].mean()
    if "group" not in given:
        return {group: scores[""] for group in groups}
    known = set(table["group"])
    absent = [group for group in groups if group not in known]
    if len(absent) == len(groups):
        raise ValueError(
            f"The host factors are of {sorted(known)[:5]}, none of which is among the groups "
            f"{list(groups)[:5]}; run cfm.tl.host_factors with the same groupby=."
        )
    if absent:
        warn_user(f"There are no host factors of {absent}; these groups get no target evidence.")
    return {group: scores[group] for group in groups if group in known}


def score_targets(
    targets: pd.DataFrame, scores: pd.Series, *, n_permutations: int, seed: int
) -> GroupTargets:
    """Score compounds by their targets.

    Parameters
    ----------
    targets
        Unique pairs of ``key`` and ``gene``.
    scores
        Score by gene symbol, larger = more important.
    n_permutations, seed
        Of the random sets, which are drawn from genes that are targets of some compound.

    Raises
    ------
    ValueError
        If no target has a score.
    """
    places = pd.Series(rank_shares(scores), index=scores.index)
    found = targets.assign(place=places.reindex(targets["gene"]).to_numpy()).dropna()
    if found.empty:
        raise ValueError(
            f"None of the {targets['gene'].nunique()} targets (such as {targets['gene'].iloc[0]}) "
            f"is among the {len(scores)} host factors (such as {scores.index[0]}); check that both "
            "hold gene symbols or Ensembl ids."
        )
    by_compound = found.groupby("key")["place"]
    n_targets = by_compound.size()
    pool = found.drop_duplicates("gene")["place"].sort_values()  # whatever the genes are called
    null = random_set_means(pool, int(n_targets.max()), n_permutations, seed)
    top = found[found["place"] > 1 - TOP_SHARE].sort_values(
        ["place", "gene"], ascending=[False, True]
    )
    genes = top.groupby("key")["gene"].agg(SET_SEPARATOR.join)
    return GroupTargets(by_compound.mean(), n_targets, genes, null)
