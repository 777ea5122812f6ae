"""Signature reversal of one group after another, in several readings with one null."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scvi import settings
from scvi.utils import track

from cfm._fields import SET_SEPARATOR
from cfm.models.cellpulse._attribution import signature_scores
from cfm.stats._connectivity import (
    Ranking,
    connectivity_scores,
    enrichment_scores,
    leading_edge,
    random_signed_sets,
    rank_profile,
    size_classes,
    summarize_replicates,
)
from cfm.stats._signed_cosine import clean_profile, mean_signature, signed_cosines
from cfm.tl._signatures import signed_rows

if TYPE_CHECKING:
    from cfm.models import CellPulse
    from cfm.tl._signatures import SignatureTable

#: Most genes that are named as evidence of a compound.
MAX_GENES = 25
#: Compounds from which on they have a mean signature that is worth removing. What a handful has in
#: common may be what they were chosen for.
MIN_LIBRARY = 100
#: Ratio of neighbouring size classes of random sets: for running sums, and for the model.
_FINE, _COARSE = 1.1, 1.5
#: From this many profiles to embed on there is a progress bar.
_LONG = 500


@dataclass(frozen=True)
class GroupReversal:
    """Reversal of one group by compounds, and what random signatures reach.

    Attributes
    ----------
    readings
        ``(c,)`` each: ``"cosine"``, ``"connectivity"`` and, with a model, ``"model"``, all with
        their signs turned so that above 0 is reversal; NaN = none.
    genes
        ``(c,)`` str, reversed genes of the leading edge, strongest first.
    n_signatures
        ``(c,)`` int64, signatures with a measured gene.
    nulls
        ``(k, n_permutations)`` each: the same of random signatures, by class.
    null_class
        ``(c,)`` int64, row of the null that fits the sizes of a compound's signatures.
    """

    readings: dict[str, np.ndarray]
    genes: np.ndarray
    n_signatures: np.ndarray
    nulls: dict[str, np.ndarray]
    null_class: np.ndarray


@dataclass
class ReversalScorer:
    """Scores signatures against one profile after another.

    Parameters
    ----------
    table
        Signatures; their genes are positions in ``labels``, −1 = not in the data.
    labels
        ``(g,)`` names of the background genes: those that are ranked and drawn from.
    n_permutations, seed
        Of the random signatures.
    weight
        Exponent of the size of an effect in the running sum.
    model
        Adds the reversal in its space.
    positions
        ``(g,)`` place of the background genes in the model's vocabulary, −1 = unknown to it.
    """

    table: SignatureTable
    labels: np.ndarray
    n_permutations: int
    seed: int
    weight: float = 1.0
    model: CellPulse | None = None
    positions: np.ndarray | None = None
    _class: np.ndarray = field(init=False)
    _sizes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Draw the random signatures, and place all signatures in the model's space."""
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

    def __call__(self, effects: np.ndarray, query: np.ndarray | None = None) -> GroupReversal:
        """Score all compounds for a profile.

        Parameters
        ----------
        effects
            ``(g,)`` log2 fold changes of the background genes, NaN = not measured.
        query
            ``(n_vocabulary,)`` the profile on the model's vocabulary.
        """
        measured = np.isfinite(effects)
        ranking = rank_profile(effects[measured], self.weight)
        place = np.full(len(effects) + 1, -1, dtype=np.int64)  # the last entry is for "no gene"
        place[np.flatnonzero(measured)] = np.arange(len(ranking))
        up, down = place[self.table.up], place[self.table.down]
        e_up, e_down = enrichment_scores(ranking, up), enrichment_scores(ranking, down)
        each = -connectivity_scores(e_up, e_down)
        common = None if self.common is None else self.common[measured]
        cleaned = clean_profile(effects[measured], common)
        scores = {"cosine": -signed_cosines(cleaned, up, down), "connectivity": each}
        nulls = {
            "cosine": self._null_cosine(cleaned, place),
            "connectivity": self._null_reversal(ranking, place),
        }
        if self.model is not None and query is not None:
            z = signature_scores(self.model, [query])[0]
            known = np.abs(self._placed).any(axis=1) & np.isfinite(each)
            scores["model"] = np.where(known, -(self._placed @ z), np.nan)
            nulls["model"] = np.stack([-(p @ z) for p in self._null_placed])[self._null_of]
        compound = self.table.compound
        return GroupReversal(
            {name: summarize_replicates(values, compound) for name, values in scores.items()},
            self._evidence(ranking, np.flatnonzero(measured), up, down, e_up, e_down, each),
            np.bincount(compound, weights=np.isfinite(each)).astype(np.int64),
            {name: self._of_compounds(null) for name, null in nulls.items()},
            self._null_class,
        )

    def _embed(self, model: CellPulse, positions: np.ndarray) -> None:
        """Place the signatures and, once for each pair of coarse sizes, the random ones."""
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

    def _null_reversal(self, ranking: Ranking, place: np.ndarray) -> np.ndarray:
        """Score random signatures of each class, ``(classes, n_permutations)``."""
        sides = []
        for drawn, sizes in ((self._up, self._sizes[:, 0]), (self._down, self._sizes[:, 1])):
            sets = place[drawn]
            sides.append({n: enrichment_scores(ranking, sets[:, :n]) for n in np.unique(sizes)})
        pairs = zip(self._sizes[:, 0], self._sizes[:, 1], strict=True)
        scores = [connectivity_scores(sides[0][a], sides[1][b]) for a, b in pairs]
        # A random set may fall on genes that this group does not measure.
        return -np.nan_to_num(np.stack(scores))

    def _null_cosine(self, cleaned: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Score random signatures of each class by their cosine, ``(classes, n_permutations)``."""
        up, down = place[self._up], place[self._down]
        scores = [signed_cosines(cleaned, up[:, :a], down[:, :b]) for a, b in self._sizes[:, :2]]
        return -np.nan_to_num(np.stack(scores))

    def _compound_classes(self) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """Return the different combinations of classes, and that of each compound."""
        start = np.searchsorted(self.table.compound, np.arange(len(self.table.compounds) + 1))
        own = [tuple(sorted(self._class[a:b].tolist())) for a, b in pairwise(start)]
        different = sorted(set(own))
        number = {combination: i for i, combination in enumerate(different)}
        return different, np.array([number[c] for c in own], dtype=np.int64)

    def _of_compounds(self, null: np.ndarray) -> np.ndarray:
        """Summarise the null as signatures are; replicates share their random draw.

        Replicates of a compound are not independent of each other, so many of them must not make
        the null narrower than one does.
        """
        group = np.zeros(1, dtype=np.int64)
        return np.concatenate(
            [summarize_replicates(null[list(c)], group.repeat(len(c))) for c in self._combinations]
        )

    def _evidence(
        self,
        ranking: Ranking,
        background: np.ndarray,
        up: np.ndarray,
        down: np.ndarray,
        e_up: np.ndarray,
        e_down: np.ndarray,
        each: np.ndarray,
    ) -> np.ndarray:
        """Name the genes that the best signature of each compound reverses."""
        best: dict[int, int] = {}
        for i in np.flatnonzero(np.nan_to_num(each) > 0).tolist():
            compound = int(self.table.compound[i])
            if compound not in best or each[i] > each[best[compound]]:
                best[compound] = i
        out = np.full(len(self.table.compounds), "", dtype=object)
        for compound, k in best.items():
            found = [
                leading_edge(ranking, side[side >= 0])
                for side, score, sign in ((up[k], e_up[k], -1), (down[k], e_down[k], 1))
                if score * sign > 0
            ]
            genes = np.concatenate(found)
            order = np.lexsort((genes, -ranking.strength[genes]))[:MAX_GENES]
            out[compound] = SET_SEPARATOR.join(self.labels[background[genes[order]]])
        return out
