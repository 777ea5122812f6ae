"""Codes merged into fewer groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cfm.tl._code_tables import UsedCodes


def merge_codes(vectors: np.ndarray, weight: np.ndarray, n_groups: int) -> np.ndarray:
    r"""Merge codes by Ward's method, each weighing as many cells as it has.

    Two groups of weights :math:`w_a, w_b` and means :math:`c_a, c_b` become one whose merger adds
    least to the sum of squares, :math:`w_a w_b / (w_a + w_b) \lVert c_a - c_b \rVert^2`.

    Parameters
    ----------
    vectors
        ``(n_codes, dim)``.
    weight
        ``(n_codes,)`` cells of each code.
    n_groups
        Groups to end with.

    Returns
    -------
    ``(n_codes,)`` int64 number of the group; 0 has most cells, of equals the one with the first
    code.
    """
    centre, mass = vectors.astype(np.float64), weight.astype(np.float64)
    group = np.arange(len(vectors))
    cost = np.array([_added(centre, mass, i) for i in range(len(vectors))])
    for _ in range(len(vectors) - n_groups):
        a, b = sorted(divmod(int(cost.argmin()), len(vectors)))
        centre[a] = (mass[a] * centre[a] + mass[b] * centre[b]) / (mass[a] + mass[b])
        mass[a] += mass[b]
        mass[b] = 0.0
        group[group == b] = a
        cost[b] = cost[:, b] = np.inf
        cost[a] = cost[:, a] = _added(centre, mass, a)
    first, place = np.unique(group, return_inverse=True)
    order = np.argsort(-mass[first], kind="stable")
    rank = np.empty(len(first), dtype=np.int64)
    rank[order] = np.arange(len(first))
    return rank[place]


def _added(centre: np.ndarray, mass: np.ndarray, a: int) -> np.ndarray:
    """Return what merging group ``a`` with each other one adds to the sum of squares."""
    distance = ((centre - centre[a]) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        added = mass * mass[a] / (mass + mass[a]) * distance
    added[mass == 0] = np.inf  # merged away
    added[a] = np.inf
    return added


def group_column(used: UsedCodes, group: np.ndarray) -> pd.Categorical:
    """Return the group of each cell, missing where it has no code."""
    names: pd.Index[Any] = pd.Index([str(i) for i in range(int(group.max()) + 1)])
    return pd.Categorical.from_codes(np.append(group, -1)[used.place], categories=names)
