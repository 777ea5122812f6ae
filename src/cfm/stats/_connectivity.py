"""Connectivity of a profile and signed gene sets: weighted Kolmogorov-Smirnov, and cosines.

Gene sets are rows of an integer matrix: positions of genes in the profile, −1 = no gene. That lets
thousands of sets be scored against one ranking without a loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

#: Entries of a block of sets, so that a million random sets need no more than a few hundred MB.
_BLOCK = 4_000_000
#: Effects are clipped at this quantile of the sizes of those that are not 0; the largest always is.
_CLIP_QUANTILE = 0.999
#: A remainder shorter than this share of the profile is rounding.
_ROUNDING = 1e-6
#: Squared length of a mean signature that has cancelled out but for rounding.
_NOTHING = 1e-20


@dataclass(frozen=True)
class Ranking:
    """A profile, ranked from its largest to its smallest value.

    Attributes
    ----------
    above
        ``(n,)`` float64, number of genes with a larger value.
    through
        ``(n,)`` float64, number of genes with a value at least as large.
    strength
        ``(n,)`` float64, what a gene of a set adds to the running sum: ``|value| ** weight``.
    """

    above: np.ndarray
    through: np.ndarray
    strength: np.ndarray

    def __len__(self) -> int:
        return len(self.above)


def rank_profile(values: ArrayLike, weight: float = 1.0) -> Ranking:
    """Rank the genes of a profile, once for all the sets that are looked for in it.

    Parameters
    ----------
    values
        ``(n,)`` finite effects.
    weight
        Exponent of the size of an effect: 1 is the weighted statistic of GSEA and of Subramanian
        2017, 0 the classical Kolmogorov-Smirnov statistic of Lamb 2006.

    Returns
    -------
    The ranking. Genes of equal value share a place, so the order of the genes never matters.

    Raises
    ------
    ValueError
        If there are no genes, a value is not finite, or the weight is negative.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values has shape {x.shape}, expected one dimension and at least a gene.")
    if not np.isfinite(x).all():
        raise ValueError("values holds NaN or infinite values; drop genes that are not measured.")
    if weight < 0:
        raise ValueError(f"weight={weight}, expected 0 or more.")
    _, inverse, count = np.unique(-x, return_inverse=True, return_counts=True)
    through = np.cumsum(count)
    above = through - count
    strength = np.abs(x) ** weight if weight else np.ones_like(x)
    place = inverse.ravel()
    return Ranking(above[place].astype(float), through[place].astype(float), strength)


def enrichment_scores(ranking: Ranking, sets: ArrayLike) -> np.ndarray:
    r"""Return the enrichment score of gene sets in a ranking.

    The running sum goes down the ranking, up by :math:`|x_g|^w / \sum_{g \in S} |x_g|^w` at a gene
    of the set and down by :math:`1 / (n - k)` at any other; the score is its largest departure
    from 0 (Subramanian et al. 2005, eq. in the appendix). Inside a run of equal values the sum is
    read at the ends of the run only.

    Parameters
    ----------
    ranking
        From :func:`rank_profile`.
    sets
        ``(m, k)`` integers: positions of each set's genes in the profile, in any order and each
        at most once; −1 fills rows of smaller sets.

    Returns
    -------
    ``(m,)`` float64 from −1 to 1; NaN of an empty set; 0 where no gene of the set moves, or every
    gene is in it.
    """
    index = _as_sets(sets, len(ranking))
    out = np.empty(len(index))
    for rows in _blocks(index):
        out[rows] = _enrichment(ranking, index[rows])[0]
    return out


def leading_edge(ranking: Ranking, genes: ArrayLike) -> np.ndarray:
    """Return which genes of one set make its enrichment score.

    Parameters
    ----------
    ranking
        From :func:`rank_profile`.
    genes
        ``(k,)`` positions of the set's genes.

    Returns
    -------
    Positions of the genes up to the peak of the running sum (after the trough, if the score is
    negative), strongest effect first; genes that do not move are left out.
    """
    index = _as_sets(np.asarray(genes, dtype=np.int64).reshape(1, -1), len(ranking))
    score, order, peak = _enrichment(ranking, index)
    if not len(order) or not np.isfinite(score[0]) or score[0] == 0:
        return np.empty(0, dtype=np.int64)
    walked = index[0, order[0]]
    walked = walked[walked >= 0]
    kept = walked[: peak[0] + 1] if score[0] > 0 else walked[peak[0] :]
    kept = kept[ranking.strength[kept] > 0]
    # Genes of equal strength go by their place in the profile, not by that in the set.
    return kept[np.lexsort((kept, -ranking.strength[kept]))]


def connectivity_scores(up: ArrayLike, down: ArrayLike) -> np.ndarray:
    r"""Return the weighted connectivity score of signed sets.

    .. math:: w = \begin{cases}(e_{up} - e_{down}) / 2 & e_{up} e_{down} < 0\\ 0\end{cases}

    with the enrichment scores :math:`e` of the two sides (Subramanian et al. 2017, STAR Methods).

    Parameters
    ----------
    up, down
        Enrichment scores of the two sides, of one shape. NaN is a side that is missing: the other
        one is then the score, up with its sign and down with the opposite one.

    Returns
    -------
    float64 from −1 to 1, of their shape; NaN where both sides are missing.
    """
    e_up, e_down = np.asarray(up, dtype=np.float64), np.asarray(down, dtype=np.float64)
    if e_up.shape != e_down.shape:
        raise ValueError(f"up has shape {e_up.shape} and down {e_down.shape}; expected the same.")
    both = np.where(e_up * e_down < 0, (e_up - e_down) / 2, 0.0)
    return np.where(np.isnan(e_up), -e_down, np.where(np.isnan(e_down), e_up, both))


def clean_profile(values: ArrayLike, common: ArrayLike | None = None) -> np.ndarray:
    r"""Return a profile ready for :func:`signed_cosines`.

    The strongest effects, a thousandth of them, are clipped, so that no single gene decides; the
    mean is taken off, so that a set with more genes up than down does not gain from a profile that
    goes up as a whole; and what is left along ``common`` is projected out,
    :math:`x - h (h^\top x) / (h^\top h)` with :math:`h` the centred ``common``. Projection matters
    where taking the mean off the sets would not: it changes the order of the sets, not only their
    level.

    Parameters
    ----------
    values
        ``(n,)`` finite effects.
    common
        ``(n,)`` direction to remove, such as the mean signature of a library; ``None`` = none.

    Returns
    -------
    ``(n,)`` float64 of length 1; 0 where nothing is left.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values has shape {x.shape}, expected one dimension and at least a gene.")
    if not np.isfinite(x).all():
        raise ValueError("values holds NaN or infinite values; drop genes that are not measured.")
    size = np.abs(x)
    moved = size[size > 0]
    if not len(moved):
        return np.zeros_like(x)
    limit = np.quantile(moved, _CLIP_QUANTILE, method="lower")
    x = np.clip(x, -limit, limit)
    whole = np.linalg.norm(x)
    x = x - x.mean()
    if common is not None:
        h = np.asarray(common, dtype=np.float64)
        if h.shape != x.shape:
            raise ValueError(f"common has shape {h.shape} and values {x.shape}; expected the same.")
        h = h - h.mean()
        length = h @ h
        if length > _NOTHING:
            x = x - h * (h @ x / length)
    left = np.linalg.norm(x)
    return x / left if left > _ROUNDING * whole else np.zeros_like(x)


def mean_signature(up: ArrayLike, down: ArrayLike, groups: ArrayLike, n_genes: int) -> np.ndarray:
    """Return the mean of signed sets, every group of sets counted once.

    Parameters
    ----------
    up, down
        ``(m, k)`` positions of the genes of each set, −1 = no gene.
    groups
        ``(m,)`` group of each set (its compound), ids from 0.
    n_genes
        Length of the result.

    Returns
    -------
    ``(n_genes,)`` float64 from −1 to 1.
    """
    group = np.asarray(groups, dtype=np.int64)
    counts = np.bincount(group)
    share = 1.0 / (counts[group] * np.count_nonzero(counts))
    out = np.zeros(n_genes)
    for side, sign in ((up, 1.0), (down, -1.0)):
        index = np.asarray(side, dtype=np.int64)
        row, column = np.nonzero(index >= 0)
        out += sign * np.bincount(index[row, column], weights=share[row], minlength=n_genes)
    return out


def signed_cosines(profile: np.ndarray, up: ArrayLike, down: ArrayLike) -> np.ndarray:
    """Return the cosine of a profile and of signed sets: 1 up, −1 down, 0 elsewhere.

    Parameters
    ----------
    profile
        ``(n,)`` from :func:`clean_profile`.
    up, down
        ``(m, k)`` positions in the profile, −1 = no gene.

    Returns
    -------
    ``(m,)`` float64 from −1 to 1; NaN of a set without any gene.
    """
    padded = np.append(profile, 0.0)  # position −1
    total = np.zeros(len(np.asarray(up)))
    size = np.zeros(len(total))
    for side, sign in ((up, 1.0), (down, -1.0)):
        index = np.asarray(side, dtype=np.int64)
        total += sign * padded[index].sum(axis=1)
        size += (index >= 0).sum(axis=1)
    return np.where(size > 0, total / np.sqrt(np.maximum(size, 1)), np.nan)


def summarize_replicates(scores: ArrayLike, groups: ArrayLike) -> np.ndarray:
    r"""Summarise the scores of the signatures of one compound.

    Of the 67th and the 33rd percentile the one that lies farther from 0 is taken (Subramanian et
    al. 2017, "maximum quantile"): one silent signature does not hide a strong one, and one strong
    signature does not decide alone.

    Parameters
    ----------
    scores
        ``(m, …)`` scores of signatures, NaN = none; signatures of one group are neighbours.
    groups
        ``(m,)`` group of each signature, ids from 0 in ascending order.

    Returns
    -------
    ``(n_groups, …)`` float64; NaN for a group without any score.
    """
    values = np.asarray(scores, dtype=np.float64)
    group = np.asarray(groups, dtype=np.int64)
    if group.shape != values.shape[:1] or (len(group) and (np.diff(group) < 0).any()):
        raise ValueError("groups needs an ascending id for each score.")
    counts = np.bincount(group)
    out = np.full((len(counts), *values.shape[1:]), np.nan)
    start = np.concatenate([[0], np.cumsum(counts)])
    # Groups of one size at a time: most compounds have the same few numbers of signatures.
    for size in np.unique(counts[counts > 0]):
        chosen = np.flatnonzero(counts == size)
        stacked = values[start[chosen][:, None] + np.arange(size)]  # (chosen, size, …)
        out[chosen] = stacked[:, 0] if size == 1 else _summary(stacked)
    return out


def random_signed_sets(
    n_genes: int, n_up: int, n_down: int, n: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw random up and down sets, of which the first genes make sets of any smaller size.

    Parameters
    ----------
    n_genes
        Genes to draw from.
    n_up, n_down
        Largest sizes that are needed.
    n
        Number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    ``(n, n_up)`` and ``(n, n_down)`` int64. The first ``a`` genes up and the first ``b`` down of
    one draw have none in common as long as ``a + b <= n_genes``.
    """
    if max(n_up, n_down) > n_genes:
        raise ValueError(f"Cannot draw sets of {max(n_up, n_down)} out of {n_genes} genes.")
    rng = np.random.default_rng(seed)
    up = np.empty((n, n_up), dtype=np.int64)
    down = np.empty((n, n_down), dtype=np.int64)
    take = min(n_genes, n_up + n_down)
    for i in range(n):
        drawn = rng.choice(n_genes, take, replace=False)
        up[i] = drawn[:n_up]
        down[i] = drawn[::-1][:n_down]
    return up, down


def size_classes(sizes: ArrayLike, *, step: float = 1.5) -> np.ndarray:
    """Return the sizes that random sets are drawn for, so that sets of similar size share them.

    Parameters
    ----------
    sizes
        Sizes of gene sets, 0 or more.
    step
        Ratio of two neighbouring classes; the median size is a class of its own.

    Returns
    -------
    int64 of the same shape; 0 stays 0, and no class is smaller than 1.
    """
    size = np.asarray(sizes, dtype=np.float64)
    filled = size[size > 0]
    if not len(filled):
        return np.zeros(size.shape, dtype=np.int64)
    middle = np.median(filled)
    steps = np.round(np.log(np.maximum(size, 1) / middle) / np.log(step))
    rounded = np.maximum(np.round(middle * step**steps), 1)
    return np.where(size > 0, rounded, 0).astype(np.int64)


def _summary(stacked: np.ndarray) -> np.ndarray:
    """Summarise axis 1 of ``(groups, signatures, …)``, NaN left out."""
    n_known = np.isfinite(stacked).sum(axis=1)
    ordered = np.sort(stacked, axis=1)  # NaN goes last
    low, high = (_quantile(ordered, n_known, q) for q in (0.33, 0.67))
    return np.where(n_known > 0, np.where(np.abs(high) >= np.abs(low), high, low), np.nan)


def _quantile(ordered: np.ndarray, n_known: np.ndarray, q: float) -> np.ndarray:
    """Linear-interpolated quantile of the first ``n_known`` entries of axis 1."""
    place = q * np.maximum(n_known - 1, 0)
    floor = np.floor(place).astype(np.int64)
    above = np.minimum(floor + 1, np.maximum(n_known - 1, 0))
    lower, upper = (
        np.take_along_axis(ordered, np.expand_dims(at, 1), axis=1)[:, 0] for at in (floor, above)
    )
    return lower + (place - floor) * (upper - lower)


def _as_sets(sets: ArrayLike, n_genes: int) -> np.ndarray:
    index = np.asarray(sets)
    if index.ndim != 2:
        raise ValueError(f"sets has shape {index.shape}, expected sets by genes.")
    if not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"sets is {index.dtype}, expected integer positions and −1.")
    if index.size and (index.max() >= n_genes or index.min() < -1):
        raise ValueError(f"sets holds positions outside the {n_genes} genes of the ranking.")
    return index


def _blocks(index: np.ndarray) -> Iterator[slice]:
    n_rows = max(1, _BLOCK // max(1, index.shape[1]))
    return (slice(start, start + n_rows) for start in range(0, len(index), n_rows))


def _enrichment(ranking: Ranking, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores, the order of each set down the ranking, and where its peak lies.

    ``(m,)`` scores, ``(m, k)`` columns of ``index`` by falling value (−1 last), ``(m,)`` ints: the
    step, counted from 0 in genes of the set, after which (score > 0) or before which (< 0) the
    running sum is farthest from 0.
    """
    m, k = index.shape
    present = index >= 0
    size = present.sum(axis=1)
    if not k:
        return np.full(m, np.nan), np.empty((m, 0), np.int64), np.zeros(m, np.int64)
    through = np.where(present, ranking.through[index], np.inf)
    order = np.argsort(through, axis=1, kind="stable")
    genes = np.take_along_axis(index, order, axis=1)
    hit = np.where(genes >= 0, ranking.strength[genes], 0.0)
    total = hit.sum(axis=1, keepdims=True)
    step = np.arange(1, k + 1)
    real = step <= size[:, None]
    reached = np.cumsum(hit, axis=1) / np.where(total > 0, total, 1.0)
    misses = np.maximum(len(ranking) - size, 1)[:, None]
    # At the end of a run of equal values all its hits are counted, at its beginning none: reading
    # every hit at these two places gives the extremes whatever the order inside the run.
    after = np.where(real, reached - (ranking.through[genes] - step) / misses, -np.inf)
    before = np.concatenate([np.zeros((m, 1)), reached[:, :-1]], axis=1)
    before = np.where(real, before - (ranking.above[genes] - step + 1) / misses, np.inf)
    highest = np.maximum(after.max(axis=1), 0.0)
    lowest = np.minimum(before.min(axis=1), 0.0)
    rises = highest > -lowest
    score = np.where(rises, highest, lowest)
    score = np.where((total[:, 0] > 0) & (size < len(ranking)), score, 0.0)
    peak = np.where(rises, after.argmax(axis=1), before.argmin(axis=1))
    return np.where(size > 0, score, np.nan), order, peak
