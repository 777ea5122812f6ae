"""Scores of predicted perturbations against observed ones: effects, and distributions of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.special import entr
from scipy.stats import rankdata, wasserstein_distance
from sklearn.neighbors import NearestNeighbors

from cfm._arguments import ABOVE_0, Range, checks_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = NDArray[np.float64]
Distance = Literal["l1", "l2", "cosine"]

#: Metrics of the Virtual Cell Challenge by their names in cell-eval, with the best value of each.
CHALLENGE_METRICS = {"overlap_at_N": 1.0, "discrimination_score_l1": 1.0, "mae": 0.0}
#: Distances that are held at a time (16 MiB).
_BLOCK_VALUES = 2_000_000


@checks_arguments()
def delta_pearson(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = None) -> float:
    r"""Return the Pearson correlation of an observed and a predicted effect over genes.

    .. math:: \mathrm{corr}_g(\bar p_g - \bar c_g,\; \hat p_g - \hat c_g)

    with means of log expression of perturbed and control observations. Effects are signed, as in
    cell-eval; correlations of their absolute values, which some papers define, reward genes that
    move the wrong way.

    Parameters
    ----------
    effect, predicted
        ``(genes,)`` perturbed mean minus control mean of log expression.
    n_top
        Only the genes of the largest observed absolute effect; all by default.

    Returns
    -------
    Between −1 and 1. A prediction that is the same for all genes, such as no effect, has 0. NaN
    if the observed effect is the same for all genes: then there is nothing to predict.

    Raises
    ------
    ValueError
        If shapes differ, there is no gene, or a value is not finite.

    References
    ----------
    Roohani, Huang, Leskovec. Predicting transcriptional outcomes of novel multigene perturbations
    with GEARS. Nature Biotechnology 42, 927-935 (2024); cell-eval, ``pearson_delta``.

    Examples
    --------
    >>> from cfm.metrics import delta_pearson
    >>> round(delta_pearson([1.0, 0.0, -1.0], [2.0, 0.0, -2.0]), 6)
    1.0
    >>> delta_pearson([1.0, 0.0, -1.0], [0.0, 0.0, 0.0])
    0.0
    """
    truth, guess = _top(effect, predicted, n_top)
    # Below these lengths, spread is the rounding of a constant.
    least = [1e-12 * np.sqrt(len(x)) * float(np.abs(x).max()) for x in (truth, guess)]
    return _cosine(truth - truth.mean(), guess - guess.mean(), *least)


@checks_arguments()
def delta_cosine(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = None) -> float:
    """Return the cosine of the angle between an observed and a predicted effect.

    Unlike :func:`delta_pearson` it depends on a shift that all genes share.

    Parameters
    ----------
    effect, predicted, n_top
        As for :func:`delta_pearson`.

    Returns
    -------
    Between −1 and 1; 0 for a prediction of no effect, NaN if no effect was observed.

    Raises
    ------
    ValueError
        As for :func:`delta_pearson`.

    Examples
    --------
    >>> from cfm.metrics import delta_cosine
    >>> round(delta_cosine([1.0, 1.0], [1.0, 0.0]), 3)
    0.707
    """
    truth, guess = _top(effect, predicted, n_top)
    return _cosine(truth, guess)


@checks_arguments()
def delta_r2(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = None) -> float:
    r"""Return the share of an effect that a prediction explains, its size included.

    .. math:: 1 - \frac{\sum_g (e_g - \hat e_g)^2}{\sum_g e_g^2}

    The reference is the prediction of no effect, which has 0; what is worse is negative.

    Parameters
    ----------
    effect, predicted, n_top
        As for :func:`delta_pearson`.

    Returns
    -------
    At most 1. NaN if no effect was observed.

    Raises
    ------
    ValueError
        As for :func:`delta_pearson`.

    Examples
    --------
    >>> from cfm.metrics import delta_r2
    >>> delta_r2([2.0, 0.0], [1.0, 0.0])
    0.75
    """
    truth, guess = _top(effect, predicted, n_top)
    total = float(truth @ truth)
    return 1.0 - float((truth - guess) @ (truth - guess)) / total if total > 0 else float("nan")


@checks_arguments()
def direction_accuracy(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = 50) -> float:
    """Return the share of the genes with the largest effects whose direction is predicted.

    Parameters
    ----------
    effect, predicted
        As for :func:`delta_pearson`.
    n_top
        How many genes, by observed absolute effect; all with ``None``. Genes without an effect
        have no direction and are left out.

    Returns
    -------
    Between 0 and 1. A predicted effect of exactly 0 is worth half a right answer, so that no
    effect at all has 0.5. NaN if no effect was observed.

    Raises
    ------
    ValueError
        As for :func:`delta_pearson`.

    Examples
    --------
    >>> from cfm.metrics import direction_accuracy
    >>> direction_accuracy([3.0, -2.0, 0.1], [1.0, -1.0, -5.0], n_top=2)
    1.0
    """
    truth, guess = _top(effect, predicted, n_top)
    moved = truth != 0
    if not moved.any():
        return float("nan")
    right = np.where(guess == 0, 0.5, (guess > 0) == (truth > 0))
    return float(right[moved].mean())


@checks_arguments()
def discrimination_score(
    effects: ArrayLike,
    predicted: ArrayLike,
    *,
    distance: Distance = "l1",
    excluded: Sequence[ArrayLike] | None = None,
) -> NDArray[np.float64]:
    r"""Score whether each predicted effect is nearest to that of its own perturbation.

    .. math:: 1 - \frac{r_p}{T}

    with :math:`r_p` the number of the :math:`T` observed effects that are nearer to the predicted
    effect of perturbation :math:`p` than its own observed one; of those equally near half are
    counted. This is cell-eval's convention: 1 is perfect, about
    :math:`\frac{1}{2} + \frac{1}{2T}` is chance. The Lingshu-Cell paper writes
    :math:`1 - 2 \bar r / T`, for which chance is about 0.

    Parameters
    ----------
    effects, predicted
        ``(T, genes)`` observed and predicted effects of the same perturbations. A row of
        ``predicted`` that is all NaN stands for no prediction.
    distance
        ``"l1"``, ``"l2"`` or ``"cosine"`` (an effect of zeros has distance 1 to all).
    excluded
        For each perturbation the columns that are left out of its distances: the perturbed genes,
        whose own fall or rise would give a perturbation away.

    Returns
    -------
    ``(T,)`` float64; NaN where nothing was predicted, or if there is a single perturbation and
    no other to compare with.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or ``distance`` is unknown.

    References
    ----------
    cell-eval, ``discrimination_score`` (Arc Institute, Virtual Cell Challenge 2025).

    Examples
    --------
    >>> from cfm.metrics import discrimination_score
    >>> discrimination_score([[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.8, 0.0]]).tolist()
    [1.0, 0.5]
    """
    truth = np.asarray(effects, dtype=np.float64)
    guess = np.asarray(predicted, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != guess.shape or not truth.size:
        raise ValueError(
            f"effects has shape {truth.shape} and predicted {guess.shape}; expected "
            "(perturbations, genes) twice, in the same order."
        )
    given = ~np.isnan(guess).all(axis=1)
    if not (np.isfinite(truth).all() and np.isfinite(guess[given]).all()):
        raise ValueError("effects or predicted holds NaN or infinite values.")
    if excluded is not None and len(excluded) != len(truth):
        raise ValueError(f"excluded has {len(excluded)} entries for {len(truth)} perturbations.")
    n = len(truth)
    scores = np.full(n, np.nan)
    for p in np.flatnonzero(given).tolist() if n > 1 else []:
        kept = np.ones(truth.shape[1], dtype=bool)
        if excluded is not None:
            kept[np.asarray(excluded[p], dtype=np.int64)] = False
        if distance == "cosine":
            length = np.linalg.norm(truth[:, kept], axis=1) * np.linalg.norm(guess[p, kept])
            d = 1.0 - (truth[:, kept] @ guess[p, kept]) / np.where(length > 0, length, 1.0)
        else:
            name = {"l1": "cityblock", "l2": "euclidean"}[distance]
            d = cdist(truth[:, kept], guess[None, p, kept], name).ravel()
        own, others = d[p], np.delete(d, p)
        noise = 1e-12 * max(float(d.max()), 1e-300)
        tied = np.abs(others - own) <= noise
        scores[p] = 1.0 - ((others < own - noise).sum() + tied.sum() / 2) / n
    return scores


def challenge_score(scores: pd.DataFrame, *, baseline: str = "mean_shift") -> pd.DataFrame:
    r"""Return the aggregate score of the Virtual Cell Challenge 2025 for each method.

    Three means over perturbations are scaled between the baseline, 0, and a perfect prediction, 1,
    clipped at 0, and averaged:

    .. math::
        \frac{1}{3} \left( \left[ \frac{DES - DES_0}{1 - DES_0} \right]_+
        + \left[ \frac{PDS - PDS_0}{1 - PDS_0} \right]_+
        + \left[ \frac{MAE_0 - MAE}{MAE_0} \right]_+ \right)

    with the differential expression score (``overlap_at_N``), the perturbation discrimination score
    (``discrimination_score_l1``), the mean absolute error of mean expression (``mae``), and index 0
    for the baseline. What is worse than the baseline in one of them loses nothing more, so that
    a high score does not mean that a prediction is good in all three.

    Parameters
    ----------
    scores
        Table of :func:`cfm.tl.evaluate_perturbation` with ``metrics="cell_eval:vcc"``; or any with
        the columns ``method``, ``metric`` (these names, or after ``"cell_eval:"``) and ``value``,
        with a row for each perturbation, and possibly ``group``.
    baseline
        Method that predicts the mean. ``"mean_shift"`` moves controls by the mean effect of the
        other perturbations, if no other group has the same one. The challenge takes cells that are
        all equal to the mean profile over perturbations.

    Returns
    -------
    DataFrame of float64, ``score`` and its three scaled parts, by ``group`` and ``method`` (index).
    A part with a missing value is 0, as in cell-eval.

    Raises
    ------
    KeyError
        If a metric or the baseline is not in the table.

    References
    ----------
    Roohani et al. Virtual Cell Challenge: toward a Turing test for the virtual cell. Cell 188,
    3370-3374 (2025); https://virtualcellchallenge.org/evaluation; cell-eval, ``score_agg_metrics``.

    Examples
    --------
    >>> import pandas as pd
    >>> from cfm.metrics import challenge_score
    >>> names = ["overlap_at_N", "discrimination_score_l1", "mae"]
    >>> table = pd.DataFrame({"metric": names * 2, "method": ["mine"] * 3 + ["mean_shift"] * 3})
    >>> table["value"] = [0.4, 0.75, 0.03, 0.2, 0.5, 0.02]
    >>> challenge_score(table).loc[("", "mine")].round(3).tolist()
    [0.25, 0.25, 0.5, 0.0]
    """
    table = scores.assign(metric=scores["metric"].str.removeprefix("cell_eval:"))
    if "group" not in table:
        table["group"] = ""
    by = [table[name] for name in ("group", "method", "metric")]
    means = table["value"].groupby(by, sort=False).agg(lambda v: v.mean(skipna=False)).unstack()
    methods = means.index.get_level_values("method")
    absent = [m for m in CHALLENGE_METRICS if m not in means]
    if absent := absent + [baseline] * (baseline not in methods):
        raise KeyError(
            f"scores= does not have {absent}; evaluate with metrics='cell_eval:vcc', and with the "
            "baseline among the methods."
        )
    best = pd.Series(CHALLENGE_METRICS)
    values = means[best.index]
    start = values.xs(baseline, level="method").reindex(means.index.get_level_values("group"))
    span = best.to_numpy() - start.to_numpy()
    parts = values.sub(start.to_numpy()).div(span)
    parts = parts.replace([np.inf, -np.inf], np.nan).fillna(0.0).clip(lower=0.0) + 0.0  # no -0
    parts.insert(0, "score", parts.mean(axis=1))
    return parts.rename_axis(columns=None)


@checks_arguments()
def e_distance(x: ArrayLike, y: ArrayLike, *, unbiased: bool = True) -> float:
    r"""Return the energy distance between two sets of observations.

    .. math:: 2 \, E \lVert X - Y \rVert - E \lVert X - X' \rVert - E \lVert Y - Y' \rVert

    with Euclidean distances. It is 0 if, and only if, the distributions are the same: spread and
    shape count as well. (With squared distances, which scPerturb takes, it would be
    twice the squared distance of the means, and nothing else.)

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(m, d)`` observations, for single cells usually their principal components.
    unbiased
        Take the means within a set over pairs of different observations (U statistic). The
        expectation is then the distance of the distributions whatever the numbers, and values
        scatter around 0 for equal distributions; copies of one set are slightly below. ``False``
        takes all pairs (V statistic): never negative, 0 for copies of one set, and larger the
        smaller the sets.

    Returns
    -------
    In the units of ``x``. NaN if ``unbiased`` and a set has one observation.

    Raises
    ------
    ValueError
        If shapes do not fit, a set is empty, or a value is not finite.

    References
    ----------
    Székely, Rizzo. Energy statistics: a class of statistics based on distances. Journal of
    Statistical Planning and Inference 143, 1249-1272 (2013).

    Examples
    --------
    >>> from cfm.metrics import e_distance
    >>> e_distance([[0.0], [1.0]], [[2.0], [3.0]])
    2.0
    >>> e_distance([[0.0], [1.0]], [[0.0], [1.0]], unbiased=False)
    0.0
    """
    a, b = _sets(x, y)
    across, within_a, within_b = _means(a, b, cdist, unbiased)
    return 2 * across - within_a - within_b


@checks_arguments(multiplier=Range(1, exclusive="low"), sigma=ABOVE_0)
def mmd(
    x: ArrayLike,
    y: ArrayLike,
    *,
    n_kernels: int = 5,
    multiplier: float = 2.0,
    sigma: float | None = None,
    unbiased: bool = True,
) -> float:
    r"""Return the squared maximum mean discrepancy between two sets, for Gaussian kernels.

    .. math:: k(u, v) = \sum_{s=0}^{S-1} \exp(-\lVert u - v \rVert^2 / \sigma_s), \qquad
        \sigma_s = \sigma \, m^{\, s - \lfloor S/2 \rfloor}

    and :math:`E\,k(X, X') + E\,k(Y, Y') - 2\,E\,k(X, Y)`. The sum over kernels, and these widths
    around the mean squared distance, are what papers on generated cells use.

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(m, d)`` observations, for single cells usually their principal components.
    n_kernels
        :math:`S`.
    multiplier
        :math:`m`, above 1.
    sigma
        :math:`\sigma`; by default the mean squared distance between different observations of both
        sets together (:func:`mean_squared_distance`). Give one that does not depend on ``y`` to
        compare several ``y``.
    unbiased
        As for :func:`e_distance`.

    Returns
    -------
    About 0 for equal distributions, at most ``2 * n_kernels``.

    Raises
    ------
    ValueError
        As for :func:`e_distance`, or if kernels or widths cannot be used.

    References
    ----------
    Gretton et al. A kernel two-sample test. Journal of Machine Learning Research 13, 723-773
    (2012).

    Examples
    --------
    >>> from cfm.metrics import mmd
    >>> mmd([[0.0], [1.0]], [[0.0], [1.0]], unbiased=False)
    0.0
    >>> mmd([[0.0], [1.0]], [[8.0], [9.0]]) > 1
    True
    """
    a, b = _sets(x, y)
    width = mean_squared_distance(np.vstack([a, b])) if sigma is None else float(sigma)
    if not width > 0:  # all observations are the same
        return 0.0
    widths = width * float(multiplier) ** (np.arange(n_kernels) - n_kernels // 2)

    def kernel(u: Array, v: Array) -> Array:
        squared = cdist(u, v, "sqeuclidean")
        return np.sum([np.exp(-squared / w) for w in widths], axis=0)

    across, within_a, within_b = _means(a, b, kernel, unbiased)
    return within_a + within_b - 2 * across


def mean_squared_distance(x: ArrayLike) -> float:
    """Return the mean squared distance between different observations of a set.

    Parameters
    ----------
    x
        ``(n, d)`` observations, at least two.

    Returns
    -------
    Twice the sum of the variances of the columns.

    Raises
    ------
    ValueError
        If there are fewer than two observations, or a value is not finite.

    Examples
    --------
    >>> from cfm.metrics import mean_squared_distance
    >>> mean_squared_distance([[0.0, 0.0], [3.0, 4.0]])
    25.0
    """
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(
            f"x has shape {array.shape}; expected at least two observations by dimensions, finite."
        )
    return 2.0 * float(array.var(axis=0, ddof=1).sum())


def gene_mean_correlation(x: ArrayLike, y: ArrayLike) -> dict[str, float]:
    """Correlate the mean expression of genes between two sets of observations.

    Parameters
    ----------
    x, y
        ``(n, genes)`` and ``(m, genes)`` log expression of real and generated observations.

    Returns
    -------
    dict with ``pearson`` and ``spearman``, NaN where the means of a set do not differ.

    Raises
    ------
    ValueError
        If shapes do not fit, a set is empty, or a value is not finite.

    Examples
    --------
    >>> from cfm.metrics import gene_mean_correlation
    >>> round(gene_mean_correlation([[0.0, 1.0, 3.0]], [[0.0, 2.0, 6.0]])["spearman"], 6)
    1.0
    """
    a, b = _sets(x, y)
    means = a.mean(axis=0), b.mean(axis=0)
    return {
        "pearson": correlation(*means),
        "spearman": correlation(*map(rankdata, means)),
    }


def gene_wasserstein(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return the 1-Wasserstein distance of each gene's distribution between two sets.

    Parameters
    ----------
    x, y
        As for :func:`gene_mean_correlation`.

    Returns
    -------
    ``(genes,)`` float64 in the units of ``x``; their mean is what papers on generated cells report.

    Raises
    ------
    ValueError
        As for :func:`gene_mean_correlation`.

    Examples
    --------
    >>> from cfm.metrics import gene_wasserstein
    >>> gene_wasserstein([[0.0, 1.0], [2.0, 1.0]], [[1.0, 1.0], [3.0, 4.0]]).tolist()
    [1.0, 1.5]
    """
    a, b = _sets(x, y)
    if len(a) == len(b):  # the sorted values are coupled one to one
        return np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean(axis=0)
    columns = range(a.shape[1])
    return np.array([wasserstein_distance(a[:, g], b[:, g]) for g in columns])


@checks_arguments(perplexity=ABOVE_0)
def ilisi(x: ArrayLike, batch: ArrayLike, *, perplexity: float = 30.0) -> float:
    r"""Return how well batches mix, such as real and generated cells: the integration LISI.

    The inverse Simpson index :math:`1 / \sum_b p_b^2` of the batches among the neighbours of each
    observation, its median :math:`L` scaled to :math:`(L - 1) / (B - 1)` for :math:`B` batches.
    Neighbours are the ``3 * perplexity`` nearest, with Gaussian weights of that perplexity.

    Parameters
    ----------
    x
        ``(n, d)`` observations, for single cells usually their principal components.
    batch
        ``(n,)`` batch of each observation.
    perplexity
        Effective number of neighbours.

    Returns
    -------
    Between 0, each batch by itself, and 1, all batches equally often around every observation.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, there is a single batch, or there are not more
        than ``3 * perplexity`` observations.

    References
    ----------
    Korsunsky et al. Fast, sensitive and accurate integration of single-cell data with Harmony.
    Nature Methods 16, 1289-1296 (2019); scaled as in scib-metrics.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import ilisi
    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> round(ilisi(x, np.arange(400) % 2), 1)
    0.9
    >>> round(ilisi(x, x[:, 0] > 0), 1)
    0.0
    """
    points, labels = np.asarray(x, dtype=np.float64), np.asarray(batch)
    names, code = np.unique(labels, return_inverse=True)
    k = int(3 * perplexity)
    if points.ndim != 2 or labels.shape != points.shape[:1] or not np.isfinite(points).all():
        raise ValueError(
            f"x has shape {points.shape} and batch {labels.shape}; expected (n, d), finite, and "
            "(n,)."
        )
    if len(names) < 2 or len(points) <= k or k < 1:
        raise ValueError(
            f"{len(names)} batches of {len(points)} observations; expected at least two batches "
            f"and more than 3 * perplexity = {k} observations."
        )
    distance, near = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    distance = distance - distance[:, :1]
    low, high = np.full((2, len(points), 1), [[[-50.0]], [[50.0]]])  # log of the inverse width
    for _ in range(60):
        middle = (low + high) / 2
        weight = np.exp(-distance * np.exp(middle))
        weight /= weight.sum(axis=1, keepdims=True)
        wide = entr(weight).sum(axis=1, keepdims=True) > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    share = np.einsum("nk,nkb->nb", weight, np.eye(len(names))[code[near]])
    return float((np.median(1 / (share**2).sum(axis=1)) - 1) / (len(names) - 1))


def correlation(a: Array, b: Array) -> float:
    """Return the Pearson correlation, NaN if either side is constant but for rounding."""
    constant = any(np.ptp(v) <= 1e-12 * np.abs(v).max() for v in (a, b))
    return float("nan") if constant else delta_pearson(a, b)


def _top(effect: ArrayLike, predicted: ArrayLike, n_top: int | None) -> tuple[Array, Array]:
    """Check two effects, and return them on the genes of the largest observed ones."""
    truth = np.asarray(effect, dtype=np.float64)
    guess = np.asarray(predicted, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != guess.shape or not len(truth):
        raise ValueError(
            f"effect has shape {truth.shape} and predicted {guess.shape}; expected (genes,) twice, "
            "the same genes in the same order."
        )
    if not (np.isfinite(truth).all() and np.isfinite(guess).all()):
        raise ValueError("effect or predicted holds NaN or infinite values; drop those genes.")
    if n_top is None:
        return truth, guess
    size = np.abs(truth)
    # All genes that are as large as the last one stay, so that their order decides nothing.
    chosen = size >= np.partition(size, -min(n_top, len(size)))[-min(n_top, len(size))]
    return truth[chosen], guess[chosen]


def _cosine(
    truth: Array, guess: Array, least_truth: float = 0.0, least_guess: float = 0.0
) -> float:
    a, b = float(np.linalg.norm(truth)), float(np.linalg.norm(guess))
    if a <= least_truth:
        return float("nan")
    if b <= least_guess:
        return 0.0
    return float(np.clip((truth / a) @ (guess / b), -1.0, 1.0))


def _sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or not a.size or not b.size:
        raise ValueError(
            f"x has shape {a.shape} and y {b.shape}; expected (n, d) and (m, d), with at least one "
            "observation each and the same d."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("x or y holds NaN or infinite values; drop those observations.")
    return a, b


def _means(
    a: Array, b: Array, function: Callable[[Array, Array], Array], unbiased: bool
) -> tuple[float, float, float]:
    """Return the mean of a function of pairs across two sets, within the first, and the second."""
    across = _total(a, b, function) / (len(a) * len(b))
    within_a, within_b = (_within(one, function, unbiased) for one in (a, b))
    return across, within_a, within_b


def _within(a: Array, function: Callable[[Array, Array], Array], unbiased: bool) -> float:
    total, n = _total(a, a, function), len(a)
    if not unbiased:
        return total / n**2
    itself = float(function(a[:1], a[:1])[0, 0])  # the same for all observations
    return (total - n * itself) / (n * (n - 1)) if n > 1 else float("nan")


def _total(a: Array, b: Array, function: Callable[[Array, Array], Array]) -> float:
    step = max(1, _BLOCK_VALUES // len(b))
    return float(sum(function(a[i : i + step], b).sum() for i in range(0, len(a), step)))
