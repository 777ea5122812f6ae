"""Ward's method for points that weigh differently."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist


def weighted_ward(points: np.ndarray, weight: np.ndarray, n_groups: int) -> np.ndarray:
    r"""Merge weighted points into groups by Ward's method.

    Two groups of weights :math:`w_a, w_b` and means :math:`c_a, c_b` become one whose merger adds
    least to the sum of squares, :math:`w_a w_b / (w_a + w_b) \lVert c_a - c_b \rVert^2`.
    :func:`scipy.cluster.hierarchy.linkage` gives all points the same weight. Mergers are found
    along chains of nearest neighbours (Murtagh 1983) in :math:`O(n^2)`, and what they cost another
    group :math:`k` by the Lance-Williams formula,

    .. math:: d_{k,ab} = \frac{(w_a + w_k) d_{ka} + (w_b + w_k) d_{kb} - w_k d_{ab}}
        {w_a + w_b + w_k}

    Parameters
    ----------
    points
        ``(n, dim)``.
    weight
        ``(n,)`` above 0, such as the number of cells at a point.
    n_groups
        Groups to end with, 1 to ``n``.

    Returns
    -------
    ``(n,)`` int64 number of the group; 0 weighs most, of equals the one with the first point.
    """
    n, mass = len(points), weight.astype(np.float64)
    cost = cdist(points, points, "sqeuclidean") * (mass * mass[:, None] / (mass + mass[:, None]))
    np.fill_diagonal(cost, np.inf)
    alive = np.ones(n, dtype=bool)
    mergers: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(mergers) < n - 1:
        chain = chain or [int(alive.argmax())]
        nearest = int(cost[chain[-1]].argmin())
        if len(chain) == 1 or cost[chain[-1], nearest] < cost[chain[-1], chain[-2]]:
            chain.append(nearest)
            continue
        a, b = sorted(chain[-2:])
        del chain[-2:]
        mergers.append((float(cost[a, b]), a, b))
        both = (mass[a] + mass) * cost[a] + (mass[b] + mass) * cost[b] - mass * cost[a, b]
        cost[a] = cost[:, a] = both / (mass[a] + mass[b] + mass)  # infinite at a itself
        cost[b] = cost[:, b] = np.inf
        mass[a] += mass[b]
        alive[b] = False
    # A merger never costs less than those that made its two groups, so the cheapest come first.
    first = sorted(mergers)[: n - n_groups]
    ends = tuple(np.array([merger[1:] for merger in first], dtype=np.int64).reshape(-1, 2).T)
    linked = coo_matrix((np.ones(len(first)), ends), shape=(n, n))
    group = connected_components(linked, directed=False)[1]  # numbered by their first point
    order = np.argsort(-np.bincount(group, weights=weight), kind="stable")
    return np.argsort(order)[group]
