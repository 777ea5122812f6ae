"""In-silico reversal: what each gene's effect does to the classifier's logits, exactly.

Setting one gene to another value moves the profile's median, its length and its statistics only a
little, but for every gene by another amount. Running the classifier once per gene would take
``genes²`` steps a profile; here each of its terms is updated for all genes at once from sorted
values and sums, with the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cfm.models.cellpulse._classifier import CLIP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfm.models.cellpulse._classifier import VirusClassifier

    Array = NDArray[np.float64]


class ReversedLogits(NamedTuple):
    """Uncalibrated logits of a profile before and after each change.

    ``before`` ``(outputs,)`` and ``after`` ``(m, outputs)``: of all viruses, without the
    embedding's term, or of the infection alone.
    """

    before: Array
    after: Array


class ReversalWeights(NamedTuple):
    """Weights of a classifier as arrays; ``g`` genes, columns are outputs."""

    every: Array  # (g, outputs)
    common: Array | None  # (g, outputs)
    is_common: NDArray[np.bool_]
    statistics: Array | None  # (8,)
    bias: Array  # (outputs,)
    interferon: NDArray[np.bool_]

    @classmethod
    def of(cls, classifier: VirusClassifier, *, infected: bool) -> ReversalWeights:
        """Take the weights of the viruses' logits, or of the log-odds of infection."""
        state = {k: v.detach().double().cpu().numpy() for k, v in classifier.state_dict().items()}
        return cls(
            state["infected_all"][:, None] if infected else state["wide_all"].T.copy(),
            None if infected else state["wide_common"].T.copy(),
            state["common"] > 0,
            state["infected_statistics"] if infected else None,
            np.atleast_1d(state["infected_bias"] if infected else state["bias"]),
            state["interferon"] > 0,
        )


def reversed_logits(
    effects: NDArray[np.floating], values: NDArray[np.floating], weights: ReversalWeights
) -> ReversedLogits:
    """Replace each gene's effect by another value, one gene at a time.

    Parameters
    ----------
    effects
        ``(g,)`` log2 fold changes on the vocabulary, NaN = not measured.
    values
        ``(g,)`` what each effect becomes; read where ``effects`` is not NaN.
    weights
        Of the classifier.

    Returns
    -------
    Logits before, and after the change of each measured gene in turn (in vocabulary order).
    """
    seen = np.flatnonzero(~np.isnan(effects))
    x, y = effects[seen].astype(np.float64), values[seen].astype(np.float64)
    before, after = weights.bias.copy(), np.tile(weights.bias, (len(seen), 1))
    if not len(seen):
        return ReversedLogits(before, after)
    everything = np.ones(len(seen), dtype=bool)
    for rows, table in (
        (everything, weights.every),
        (weights.is_common[seen], weights.common),
    ):
        if table is not None and rows.any():
            old, new = _unit_products(x[rows], y[rows], table[seen[rows]])
            before += old
            after += old
            after[rows] += new - old
    if weights.statistics is not None:
        old, new = _statistics(x, y, weights.interferon[seen])
        before += old @ weights.statistics
        after += (new @ weights.statistics)[:, None]
    return ReversedLogits(before, after)


def shifted_order(values: Array, replaced: Array, k: int) -> Array:
    """Return the ``k``-th smallest value after each value in turn is replaced by another.

    Parameters
    ----------
    values, replaced
        ``(n,)``; in turn ``i`` the list is ``values`` with ``values[i]`` become ``replaced[i]``.
    k
        From 0.
    """
    n = len(values)
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    padded = np.concatenate([[-np.inf], ranked, [np.inf, np.inf]])
    # Without its own entry, what stands at k - 1 and at k; the new value comes in between them.
    low = padded[np.where(rank <= k - 1, k + 1, k)]
    high = padded[np.where(rank <= k, k + 2, k + 1)]
    return np.clip(replaced, low, high)


def _by_median(x: Array, y: Array) -> tuple[float, list[tuple[float, NDArray[np.int64]]]]:
    """Return the median, and the genes by the median that their change leads to."""
    k = (len(x) - 1) // 2  # torch.nanmedian takes the lower of two middle values
    medians = shifted_order(x, y, k)
    levels, group = np.unique(medians, return_inverse=True)
    members = [(float(level), np.flatnonzero(group == i)) for i, level in enumerate(levels)]
    return float(np.partition(x, k)[k]), members


def _centred(x: Array, median: float) -> Array:
    return np.clip(x - median, -CLIP, CLIP)


def _unit_products(x: Array, y: Array, table: Array) -> tuple[Array, Array]:
    """Return products of the unit-length centred profile with each column, before and after."""
    median, members = _by_median(x, y)
    old = _centred(x, median)
    before = old @ table / max(float(np.linalg.norm(old)), 1e-12)
    after = np.empty((len(x), table.shape[1]))
    for level, genes in members:
        c, new = _centred(x, level), _centred(y[genes], level)
        square = np.maximum(c @ c - c[genes] ** 2 + new**2, 0.0)
        product = c @ table + (new - c[genes])[:, None] * table[genes]
        after[genes] = product / np.maximum(np.sqrt(square), 1e-12)[:, None]
    return before, after


def _statistics(x: Array, y: Array, interferon: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return ``profile_statistics`` before, and after each change: ``(8,)`` and ``(n, 8)``."""
    median, members = _by_median(x, y)
    response = x[interferon].sum() / max(1, interferon.sum())
    change = np.where(interferon, y - x, 0.0) / max(1, interferon.sum())
    same = np.array([0])
    before = _statistics_at(x, x[same], same, median, np.array([response]))[0]
    after = np.empty((len(x), len(before)))
    for level, genes in members:
        after[genes] = _statistics_at(x, y[genes], genes, level, response + change[genes])
    return before, after


def _statistics_at(
    x: Array, y: Array, genes: NDArray[np.int64], median: float, response: Array
) -> Array:
    """Return the statistics after each of ``genes`` becomes ``y``, all centred by ``median``."""
    n = len(x)
    c, new = _centred(x, median), _centred(y, median)
    size, new_size = np.abs(c), np.abs(new)
    old, old_size = c[genes], size[genes]
    rms = np.sqrt(np.maximum(c @ c - old**2 + new**2, 0.0) / n).clip(min=1e-3)
    cubes = (c**3).sum() - old**3 + new**3
    large = (size > 1.0).sum() - (old_size > 1.0) + (new_size > 1.0)
    replaced = size.copy()
    replaced[genes] = new_size
    robust = (1.4826 * shifted_order(size, replaced, (n - 1) // 2)[genes]).clip(min=1e-3)
    falling = np.argsort(-size, kind="stable")
    ranked = np.append(size[falling], 0.0)
    reach = 3.0 * robust
    far = n - np.searchsorted(np.sort(size), reach, side="right")
    far = far - (old_size > reach) + (new_size > reach)
    rank = np.empty(n, dtype=np.int64)
    rank[falling] = np.arange(n)
    signs = np.append(np.sign(c[falling]), 0.0)
    top = -(-n // 100)
    tops = _sum_of_largest(ranked, ranked, rank[genes], new_size, new_size, top)
    fiftieth = -(-n // 50)
    tilt = _sum_of_largest(ranked, signs, rank[genes], new_size, np.sign(new), fiftieth)
    return np.stack(
        [
            np.log(rms),
            np.log(large / n + 1e-3),
            np.arcsinh(response),
            np.log(far / n + 1e-3),
            np.log(tops / top / robust + 1e-3),
            response / rms,
            tilt / fiftieth,
            np.arcsinh(cubes / rms**3 / n),
        ],
        axis=1,
    )


def _sum_of_largest(
    ranked: Array,
    summed: Array,
    rank: NDArray[np.int64],
    new_size: Array,
    new_summed: Array,
    k: int,
) -> Array:
    """Sum ``summed`` over the ``k`` largest sizes after the entry at ``rank`` gets a new size.

    ``ranked`` falls and ends with a 0 past its end; ``summed`` goes with it.
    """
    total = summed[:k].sum()
    inside = rank < k
    # An entry that was inside leaves its place to the next one, unless it is still larger.
    stays = new_size >= ranked[k]
    after_inside = total - summed[rank] + np.where(stays, new_summed, summed[k])
    enters = new_size > ranked[k - 1]
    after_outside = total + np.where(enters, new_summed - summed[k - 1], 0.0)
    return np.where(inside, after_inside, after_outside)
