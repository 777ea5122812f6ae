r"""Similarities of contrasts, and their null: pure functions on arrays.

A contrast is a row of effects, ``NaN`` = not measured. Each similarity is a cosine after a
transformation of the rows (:class:`Similarity`), but for the weighted connectivity:

``"cosine"``
    graded directions :math:`z_g = \tanh(x_g / q)` with :math:`q` the 1,000th largest effect;
``"centered"``
    the same without what the library has in common, :math:`z / |z| - m`, with :math:`m` the mean
    unit-length row of the references (each study weighs the same);
``"leading"``
    as ``"centered"``, with :math:`z_g = \tanh((x_g / q)^3)` and :math:`q` the 200th largest effect:
    the strongest genes decide, and the many weak ones hardly count;
``"kernel"``
    the rows :math:`c` of ``"leading"`` seen through the gene covariance
    :math:`K = \sum_i w_i u_i u_i^\top` of the references, :math:`c^\top (K + \bar d I) c'` with
    :math:`\bar d` the mean of its eigenvalues, normalised to a cosine. Genes that move together
    stand in for each other (the covariance of CellPulse's linear term, with the rows themselves
    as factors);
``"spearman"``
    correlation of ranks among the genes that are measured;
``"connectivity"``
    weighted connectivity of the match's 100 most raised and most lowered genes in the ranked
    query (Subramanian et al. 2017; :mod:`cfm.stats._connectivity`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from cfm.stats._connectivity import connectivity_scores, enrichment_scores, rank_profile

Floats = NDArray[np.float32]

METHODS = ("cosine", "centered", "leading", "kernel", "spearman", "connectivity")
#: Genes of a side that stand for a match in the weighted connectivity.
N_SIDE = 100
#: A spread is estimated from so many references of other studies at least.
MIN_REFERENCES = 20


def grade_effects(effects: Any, n_top: int = 1000, power: int = 1) -> Floats:
    r"""Return :math:`\tanh((x / q)^p)`, ``NaN`` as it was.

    Parameters
    ----------
    effects
        ``(n, genes)``, ``NaN`` = not measured.
    n_top
        :math:`q` is the size of the ``n_top``-th largest effect of a row, at most that of the
        middle one of those that are not 0.
    power
        :math:`p`, 1 or 3.

    Returns
    -------
    ``(n, genes)`` float32.
    """
    out = np.array(effects, dtype=np.float32)
    size = np.abs(out)
    if np.isnan(size.sum()):
        size[np.isnan(size)] = 0
    k = min(n_top, size.shape[1])
    place = size.shape[1] - np.clip(np.count_nonzero(size, axis=1) // 2, 1, max(k, 1))
    for at in np.unique(place):
        rows = np.flatnonzero(place == at)
        part = size if len(rows) == len(size) else size[rows]
        part.partition(at, axis=1)
        size[rows, 0] = np.maximum(part[:, at], np.float32(1e-30))
    out /= size[:, :1]
    if power == 3:
        np.multiply(out, np.multiply(out, out, out=size), out=out)
    return np.tanh(out, out=out)


def rank_effects(effects: Any) -> Floats:
    """Return ranks among the measured genes, centred to the mean 0; ``NaN`` as it was."""
    out = np.array(effects, dtype=np.float32)
    for row in out:
        measured = np.isfinite(row)
        ranks = rankdata(row[measured])
        row[measured] = ranks - ranks.mean() if len(ranks) else ranks
    return out


class Rows(NamedTuple):
    """Rows as :func:`pairwise_cosines` needs them, made once for many comparisons.

    Attributes
    ----------
    values
        ``(n, genes)`` float32, 0 where not measured.
    known
        ``(n, genes)`` bool, measured; ``None`` if all are.
    squares
        ``(n,)`` sums of squares.
    """

    values: Floats
    known: NDArray[np.bool_] | None
    squares: Floats


def as_rows(rows: Floats) -> Rows:
    """Split rows into values and what is measured."""
    squares = np.einsum("ij,ij->i", rows, rows)
    known = None
    if np.isnan(squares).any():
        known = ~np.isnan(rows)
        rows = np.where(known, rows, np.float32(0))
        squares = np.einsum("ij,ij->i", rows, rows)
    return Rows(rows, known, squares)


def pairwise_cosines(a: Floats | Rows, b: Floats | Rows) -> Floats:
    r"""Return cosines over the genes that both rows measure.

    .. math:: s_{ij} = \frac{\sum_g a_{ig} b_{jg}}
        {\sqrt{\sum_{g \in M_j} a_{ig}^2 \sum_{g \in M_i} b_{jg}^2}}

    Parameters
    ----------
    a, b
        ``(n, genes)`` and ``(m, genes)``, ``NaN`` = not measured.

    Returns
    -------
    ``(n, m)`` float32; ``NaN`` where a row is 0 on all genes that both measure.
    """
    a, b = (x if isinstance(x, Rows) else as_rows(x) for x in (a, b))
    length = _squares_within(a, b) * _squares_within(b, a).T
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = _products(a.values, b.values) / np.sqrt(length)
    cosine[length < 1e-18] = np.nan
    return np.clip(cosine, -1, 1, out=cosine)


def _products(a: Floats, b: Floats) -> Floats:
    """Return ``a @ b.T``; OpenBLAS is four times faster with the longer matrix first."""
    return a @ b.T if len(a) >= len(b) else (b @ a.T).T


def _squares_within(rows: Rows, others: Rows) -> Floats:
    """Sum the squares of each row over the genes that each other one measures."""
    if others.known is None:
        return np.broadcast_to(rows.squares[:, None], (len(rows.values), len(others.values)))
    # Contrasts of one study measure the same genes: each different mask is taken once.
    number: dict[bytes, int] = {}
    packed = np.packbits(others.known, axis=1)
    which = np.array([number.setdefault(mask.tobytes(), len(number)) for mask in packed])
    first = np.unique(which, return_index=True)[1]
    masks = others.known[first].astype(np.float32)
    return _products(rows.values * rows.values, masks)[:, which]


@dataclass
class Similarity:
    """One of :data:`METHODS`, with what it takes from reference contrasts.

    Parameters
    ----------
    method
        Its name.
    references
        ``(r, genes)`` effects of contrasts of the library, ``NaN`` = not measured.
    weights
        ``(r,)`` of each in the mean and in the covariance, with the sum 1.
    """

    method: str
    references: Floats
    weights: NDArray[np.float64]
    _mean: Floats | None = field(init=False, default=None)
    _factors: Floats | None = field(init=False, default=None)
    _noise: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        """Learn the mean and the factors where the method has any."""
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}; expected one of {METHODS}.")
        if self.method in ("centered", "leading", "kernel"):
            unit = _unit(self._grade(self.references))
            weight = self.weights.astype(np.float32)
            # A single study has nothing in common with others that could be taken off.
            if len(unit) >= MIN_REFERENCES:
                self._mean = weight @ np.nan_to_num(unit)
            if self.method == "kernel":
                rows = _unit(unit if self._mean is None else unit - self._mean)
                self._factors = np.nan_to_num(rows) * np.sqrt(weight)[:, None]
                self._noise = 1.0 / max(1, len(rows))  # the eigenvalues have the sum 1

    def transform(self, effects: Floats) -> Any:
        """Return rows ready for :meth:`compare`."""
        if self.method == "connectivity":
            return effects
        if self.method == "spearman":
            return as_rows(rank_effects(effects))
        graded = self._grade(effects)
        if self.method == "cosine":
            return as_rows(graded)
        length = _lengths(graded)
        graded /= np.maximum(length, np.float32(1e-12))[:, None]
        if self._mean is not None:
            graded -= self._mean
        graded[length == 0] = 0  # not minus the mean
        if self._factors is None:
            return as_rows(graded)
        seen = np.nan_to_num(graded)
        noise = np.float32(np.sqrt(self._noise))
        return as_rows(np.hstack([_products(seen, self._factors), noise * seen]))

    def compare(self, queries: Any, matches: Any) -> Floats:
        """Return ``(queries, matches)`` similarities of transformed rows, ``NaN`` = none."""
        if self.method == "connectivity":
            return _connectivity(queries, matches)
        return pairwise_cosines(queries, matches)

    def compare_references(self, references: Any, matches: Any) -> Floats:
        """As :meth:`compare` for the references themselves, cut or not.

        A reference is part of the mean that is taken off the matches, a query is not: without that
        part of the mean, of its weight, the cosine is larger by about the weight.
        """
        found = self.compare(references, matches)
        if self._mean is not None and self.method != "kernel":
            found = found + self.weights.astype(np.float32)[:, None]
        return found

    def _grade(self, effects: Floats) -> Floats:
        if self.method in ("leading", "kernel"):
            return grade_effects(effects, n_top=200, power=3)
        return grade_effects(effects)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(_lengths(rows), 1e-12)[:, None], dtype=np.float32)


def _lengths(rows: Floats) -> Floats:
    square = np.einsum("ij,ij->i", rows, rows)
    broken = np.isnan(square)
    if broken.any():
        square[broken] = np.nansum(np.square(rows[broken]), axis=1)
    return np.asarray(np.sqrt(square), dtype=np.float32)


def _connectivity(queries: Floats, matches: Floats) -> Floats:
    """Return the weighted connectivity of the leading genes of matches in ranked queries."""
    filled = np.nan_to_num(matches)
    order = np.argsort(filled, axis=1, kind="stable")
    take = min(N_SIDE, matches.shape[1] // 2)
    sides = []
    for index, sign in ((order[:, ::-1][:, :take], 1), (order[:, :take], -1)):
        moved = np.take_along_axis(filled, index, axis=1) * sign > 0
        sides.append(np.where(moved, index, -1))
    out = np.full((len(queries), len(matches)), np.nan, dtype=np.float32)
    for row, effects in zip(out, queries, strict=True):
        known = np.flatnonzero(np.isfinite(effects))
        if not np.nan_to_num(effects).any():
            continue
        place = np.full(len(effects) + 1, -1, dtype=np.int64)  # the last entry is for "no gene"
        place[known] = np.arange(len(known))
        ranking = rank_profile(effects[known].astype(np.float64), 1.0)
        row[:] = connectivity_scores(*(enrichment_scores(ranking, place[s]) for s in sides))
    return out


def spread_over_studies(
    studies: Sequence[str] | NDArray[Any], names: Sequence[str] | NDArray[Any], n: int
) -> NDArray[np.int64]:
    """Return up to ``n`` rows, of each study as many as of the others or all that it has.

    The choice depends on the names only, not on the order of the rows.
    """
    order = sorted(
        range(len(names)), key=lambda i: (zlib.crc32(str(names[i]).encode()), str(names[i]))
    )
    turn: dict[str, int] = {}
    place = np.empty(len(names), dtype=np.int64)
    for i in order:
        place[i] = turn[studies[i]] = turn.get(studies[i], -1) + 1
    chosen = sorted(order, key=lambda i: int(place[i]))[:n]  # stable: by turn, then by name
    return np.sort(np.array(chosen, dtype=np.int64))


def study_weights(studies: Sequence[str] | NDArray[Any]) -> NDArray[np.float64]:
    """Return weights of rows that give every study the same, with the sum 1."""
    _, code, size = np.unique(np.asarray(studies, str), return_inverse=True, return_counts=True)
    weight = 1.0 / size[code]
    return weight / weight.sum() if len(weight) else weight


def cut_to_lists(effects: Floats, n_up: int, n_down: int) -> Floats:
    """Return rows of -1, 0 and 1: the ``n_up`` largest and ``n_down`` smallest effects of each."""
    filled = np.nan_to_num(effects)
    out = np.zeros_like(filled)
    order = np.argsort(filled, axis=1, kind="stable")
    np.put_along_axis(out, order[:, :n_down], -1, axis=1)
    np.put_along_axis(out, order[:, order.shape[1] - n_up :], 1, axis=1)
    return np.where(out * filled > 0, out, np.float32(0))


def reference_p_values(
    similarity: NDArray[Any],
    null: NDArray[Any],
    other: NDArray[np.bool_],
    dense: NDArray[np.bool_],
    floor: float,
) -> NDArray[np.float64]:
    r"""Return one-sided p-values against what random contrasts of a library reach.

    For the match :math:`j`, :math:`s_{rj}` are its similarities with reference contrasts :math:`r`
    of other studies. Contrasts move genes together, so these vary far more than those of permuted
    genes. Some references are truly related to the match, nearly always by a positive similarity;
    what lies below the median :math:`c_j` is the unrelated ones, and gives the spread (an empirical
    null from its central and lower part; Efron 2004):

    .. math:: p_{ij} = T_{R/2}\left(-\frac{s_{ij} - c_j}{\sigma_j}\right), \quad
        \sigma_j^2 = \max_{S} \operatorname{mean}_{r \in S,\, s_{rj} < c_j} (s_{rj} - c_j)^2

    with Student's :math:`T`, over all references and over the dense ones, and at least the spread
    under permuted genes. With fewer than :data:`MIN_REFERENCES` references the centre is 0 and the
    spread their root mean square.

    Parameters
    ----------
    similarity
        ``(queries, matches)``, ``NaN`` = none.
    null
        ``(references, matches)``, ``NaN`` = none.
    other
        ``(references, matches)``: reference and match are of different studies.
    dense
        ``(references,)``: measured contrasts, not lists of genes.
    floor
        Standard deviation under permuted genes.

    Returns
    -------
    ``(queries, matches)`` float64; ``NaN`` where there is no similarity.
    """
    values = np.asarray(similarity, dtype=np.float64)
    reached = np.where(other, np.asarray(null, dtype=np.float64), np.nan)
    n = np.isfinite(reached).sum(axis=0)
    centre, spread = np.zeros(values.shape[1]), np.full(values.shape[1], floor)
    enough = n >= MIN_REFERENCES
    if enough.any():
        centre[enough] = np.nanmedian(reached[:, enough], axis=0)
    below = reached - centre
    below[(below >= 0) & enough] = np.nan
    for rows, least in ((slice(None), 1), (dense, MIN_REFERENCES // 2)):
        square = below[rows] ** 2
        size = np.isfinite(square).sum(axis=0)
        root = np.sqrt(np.nansum(square, axis=0) / np.maximum(size, 1))
        spread = np.where(size >= least, np.maximum(spread, root), spread)
    freedom = np.where(enough, n / 2, np.inf)
    return np.asarray(student.sf((values - centre) / spread, freedom), dtype=np.float64)
