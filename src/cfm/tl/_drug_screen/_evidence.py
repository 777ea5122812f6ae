"""Evidence for compounds in one group: their signatures, and their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi import settings
from scvi.utils import track

from cfm._adata import warn_user
from cfm._fields import RESULTS, SET_SEPARATOR
from cfm.models.cellpulse._attribution import signature_scores
from cfm.stats._connectivity import (
    Ranking,
    clean_profile,
    connectivity_scores,
    enrichment_scores,
    leading_edge,
    mean_signature,
    random_signed_sets,
    rank_profile,
    signed_cosines,
    size_classes,
    summarize_replicates,
)
from cfm.stats._evidence import random_set_means, rank_shares
from cfm.tl._signatures import SignatureTable, compound_key, signed_rows, symbols

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import CellPulse

#: Readings of a signature, and the columns of their values.
READINGS = {
    "cosine": "cosine_reversal",
    "connectivity": "reversal",
    "model": "embedding_reversal",
}
#: Largest number of genes listed as evidence of a compound.
MAX_GENES = 25
#: Least number of compounds for a removal of their mean signature. A few compounds may share the
#: mechanism that they are chosen for.
MIN_LIBRARY = 100
#: Targets in this upper share of the host factors are listed as evidence.
TOP_SHARE = 0.1
#: Ratio of neighbouring size classes of random sets: for running sums, and for the model.
_FINE, _COARSE = 1.1, 1.5
#: Least number of profiles to embed for a progress bar.
_LONG = 500


@dataclass(frozen=True)
class Evidence:
    """Evidence of one kind in one group, and its null distributions.

    Attributes
    ----------
    table
        A row per compound key. Of signatures: the columns of :data:`READINGS` (above 0 is
        reversal, ``NaN`` = none), ``n_signatures`` and ``reversal_genes`` as in
        :func:`cfm.tl.screen_drugs`, and ``null_class``, the row of the nulls for the sizes of
        the compound's signatures. Of targets: ``target_score``, ``n_targets`` and
        ``target_genes``.
    nulls
        ``(k, n_permutations)`` of each reading, by class; of ``"target"`` the means of random sets
        of 1, 2, … targets.
    """

    table: pd.DataFrame
    nulls: dict[str, np.ndarray]


@dataclass
class ReversalScorer:
    """Scores signatures against one profile after another.

    Parameters
    ----------
    table
        Signatures; their genes are positions in ``labels``, −1 = not in the data.
    labels
        ``(g,)`` names of the background genes, for rankings and random draws.
    n_permutations, seed
        Number and seed of the random signatures.
    model
        A model for the reversal in its space.
    positions
        ``(g,)`` place of the background genes in the model's vocabulary, −1 = not in it.
    """

    table: SignatureTable
    labels: np.ndarray
    n_permutations: int
    seed: int
    model: CellPulse | None = None
    positions: np.ndarray | None = None
    _class: np.ndarray = field(init=False)
    _sizes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Draw the random signatures, and embed all signatures in the model's space."""
        n = len(self.labels)
        up, down = ((s >= 0).sum(axis=1) for s in (self.table.up, self.table.down))
        parts = []
        for step in (_FINE, _COARSE):
            n_up = np.minimum(size_classes(up, step=step), n)
            parts += [n_up, np.minimum(size_classes(down, step=step), n - n_up)]
        self._sizes, at = np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)
        self._class = at.ravel()
        widest = self._sizes.max(axis=0)
        self._up, self._down = random_signed_sets(
            n, max(widest[[0, 2]]), max(widest[[1, 3]]), self.n_permutations, self.seed
        )
        self._combinations, self._null_class = self._compound_classes()
        self.common: np.ndarray | None = None
        if len(self.table.compounds) >= MIN_LIBRARY:
            self.common = mean_signature(self.table.up, self.table.down, self.table.compound, n)
        if self.model is not None and self.positions is not None:
            self._embed(self.model, self.positions)

    def __call__(self, effects: np.ndarray, query: np.ndarray | None = None) -> Evidence:
        """Score all compounds for a profile.

        Parameters
        ----------
        effects
            ``(g,)`` log2 fold changes of the background genes, NaN = not measured.
        query
            ``(n_vocabulary,)`` the profile on the model's vocabulary.
        """
        measured = np.isfinite(effects)
        ranking = rank_profile(effects[measured])
        place = np.full(len(effects) + 1, -1, dtype=np.int64)  # the last entry is for "no gene"
        place[np.flatnonzero(measured)] = np.arange(len(ranking))
        sides = place[self.table.up], place[self.table.down]
        enriched = [enrichment_scores(ranking, side) for side in sides]
        each = -connectivity_scores(*enriched)
        common = None if self.common is None else self.common[measured]
        cleaned = clean_profile(effects[measured], common)
        scores = {"cosine": -signed_cosines(cleaned, *sides), "connectivity": each}
        nulls = self._nulls(ranking, cleaned, place)
        if self.model is not None and query is not None:
            z = signature_scores(self.model, [query])[0]
            known = np.abs(self._placed).any(axis=1) & np.isfinite(each)
            scores["model"] = np.where(known, -(self._placed @ z), np.nan)
            nulls["model"] = np.stack([-(p @ z) for p in self._null_placed])[self._null_of]
        compound = self.table.compound
        table = {READINGS[k]: summarize_replicates(v, compound) for k, v in scores.items()}
        table["n_signatures"] = np.bincount(compound, weights=np.isfinite(each)).astype(np.int64)
        background = self.labels[measured]
        table["reversal_genes"] = self._leading_genes(ranking, background, sides, enriched, each)
        table["null_class"] = self._null_class
        keys = compound_key(pd.Series(self.table.compounds, dtype=object)).to_numpy()
        return Evidence(
            pd.DataFrame(table, index=keys),
            {name: self._of_compounds(null) for name, null in nulls.items()},
        )

    def _embed(self, model: CellPulse, positions: np.ndarray) -> None:
        """Embed the signatures and, once for each pair of coarse sizes, the random ones."""
        coarse, self._null_of = np.unique(self._sizes[:, 2:], axis=0, return_inverse=True)
        self._null_of = self._null_of.ravel()
        width = len(model.vocabulary)
        total = len(self.table) + len(coarse) * self.n_permutations
        quiet = total < _LONG or settings.verbosity > 20

        def placed(up: np.ndarray, down: np.ndarray, what: str) -> np.ndarray:
            rows = signed_rows(up, down, positions, width)
            bar = track(rows, description=what, disable=quiet, total=len(up))
            return signature_scores(model, bar)

        self._placed = placed(self.table.up, self.table.down, "Signatures")
        self._null_placed = [
            placed(self._up[:, :n_up], self._down[:, :n_down], "Random signatures")
            for n_up, n_down in coarse
        ]

    def _nulls(
        self, ranking: Ranking, cleaned: np.ndarray, place: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Score random signatures of each class, ``(classes, n_permutations)`` by reading."""
        up, down = place[self._up], place[self._down]
        sizes = self._sizes[:, :2].tolist()
        e_up, e_down = (
            {n: enrichment_scores(ranking, drawn[:, :n]) for n in set(of_side)}
            for drawn, of_side in zip((up, down), zip(*sizes, strict=True), strict=True)
        )
        scores = {
            "cosine": [signed_cosines(cleaned, up[:, :a], down[:, :b]) for a, b in sizes],
            "connectivity": [connectivity_scores(e_up[a], e_down[b]) for a, b in sizes],
        }
        # A random set may consist of genes that this group does not measure.
        return {name: -np.nan_to_num(np.stack(rows)) for name, rows in scores.items()}

    def _compound_classes(self) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """Return the different combinations of classes, and that of each compound."""
        start = np.searchsorted(self.table.compound, np.arange(len(self.table.compounds) + 1))
        own = [tuple(sorted(self._class[a:b].tolist())) for a, b in pairwise(start)]
        different = sorted(set(own))
        number = {combination: i for i, combination in enumerate(different)}
        return different, np.array([number[c] for c in own], dtype=np.int64)

    def _of_compounds(self, null: np.ndarray) -> np.ndarray:
        """Summarise the null like the signatures; replicates share their random draw.

        Replicates of a compound are not independent, so their number must not narrow the null.
        """
        group = np.zeros(1, dtype=np.int64)
        return np.concatenate(
            [summarize_replicates(null[list(c)], group.repeat(len(c))) for c in self._combinations]
        )

    def _leading_genes(
        self,
        ranking: Ranking,
        background: np.ndarray,
        sides: tuple[np.ndarray, np.ndarray],
        enriched: Sequence[np.ndarray],
        each: np.ndarray,
    ) -> np.ndarray:
        """Return the genes that the best signature of each compound reverses, as text."""
        reached = np.nan_to_num(each)
        best = pd.Series(reached).groupby(self.table.compound).idxmax().to_numpy()
        out = np.full(len(best), "", dtype=object)
        for compound, k in enumerate(best):
            found = [
                leading_edge(ranking, side[k][side[k] >= 0])
                for side, score, sign in zip(sides, enriched, (-1, 1), strict=True)
                if reached[k] > 0 and score[k] * sign > 0
            ]
            genes = np.concatenate([np.empty(0, dtype=np.int64), *found])
            order = np.lexsort((genes, -ranking.strength[genes]))[:MAX_GENES]
            out[compound] = SET_SEPARATOR.join(background[genes[order]])
        return out


def host_factor_scores(
    adata: AnnData, given: str | pd.Series | pd.DataFrame, groups: Sequence[str]
) -> dict[str, pd.Series]:
    """Return the score of every gene symbol, by group.

    Parameters
    ----------
    adata
        Profiles with the host factors.
    given
        The key where :func:`cfm.tl.host_factors` stored them, or a Series or DataFrame.
    groups
        Names of the groups.

    Raises
    ------
    KeyError, TypeError, ValueError
        If there are none, or they lack a column or all of the groups.
    """
    if isinstance(given, str):
        record = adata.uns.get(given)
        if not isinstance(record, Mapping) or RESULTS not in record:
            raise KeyError(
                f"targets= needs host factors, and adata.uns[{given!r}] holds none; run "
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
            f"The host factors are of {sorted(known)[:5]}, and none is among the groups "
            f"{list(groups)[:5]}; run cfm.tl.host_factors with the same groupby=."
        )
    if absent:
        warn_user(f"There are no host factors of {absent}; these groups get no target evidence.")
    return {group: scores[group] for group in groups if group in known}


def score_targets(
    targets: pd.DataFrame, scores: pd.Series, *, n_permutations: int, seed: int
) -> Evidence:
    """Score compounds by their targets.

    Parameters
    ----------
    targets
        Unique pairs of ``key`` and ``gene``.
    scores
        Score by gene symbol, larger = more important.
    n_permutations, seed
        Number and seed of the random sets, drawn from the targets of all compounds.

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
    pool = found.drop_duplicates("gene")["place"].sort_values()  # independent of gene names
    null = random_set_means(pool, int(n_targets.max()), n_permutations, seed)
    top = found[found["place"] > 1 - TOP_SHARE].sort_values(
        ["place", "gene"], ascending=[False, True]
    )
    genes = top.groupby("key")["gene"].agg(SET_SEPARATOR.join)
    table = pd.DataFrame(
        {"target_score": by_compound.mean(), "n_targets": n_targets, "target_genes": genes}
    )
    return Evidence(table, {"target": null.T})
