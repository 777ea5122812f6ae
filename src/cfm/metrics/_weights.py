"""Sample weights that make every (label, group) unit count the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfm._arguments import checks_arguments


@checks_arguments()
def unit_weights(
    labels: ArrayLike, groups: ArrayLike, *, balance_labels: bool = False
) -> NDArray[np.float64]:
    r"""Weigh samples so that each (label, group) unit counts the same.

    With :math:`n_u` samples in the unit :math:`u` of a sample and :math:`U` units, the weight is
    :math:`1 / (U n_u)`. A unit is, for example, one virus in one study: ten contrasts of it tell
    little more than one. With ``balance_labels`` it is :math:`1 / (L\, m_y\, n_u)` with
    :math:`L` labels and :math:`m_y` groups that hold label :math:`y`, so that in addition each
    label counts the same; this is the weighting to *train* a classifier with.

    Parameters
    ----------
    labels
        ``(n,)`` labels.
    groups
        ``(n,)`` groups, such as studies.
    balance_labels
        Let every label weigh the same too.

    Returns
    -------
    ``(n,)`` float64 weights with sum 1.

    Raises
    ------
    ValueError
        If the lengths differ or there are no samples.

    Examples
    --------
    >>> unit_weights(["a", "a", "a", "b"], [1, 1, 2, 1]).round(3).tolist()
    [0.167, 0.167, 0.333, 0.333]
    >>> unit_weights(["a", "a", "a", "b"], [1, 1, 2, 1], balance_labels=True).tolist()
    [0.125, 0.125, 0.25, 0.5]
    """
    label = np.unique(np.asarray(labels), return_inverse=True)[1].ravel()
    group = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(label) != len(group):
        raise ValueError(
            f"Got {len(label)} labels and {len(group)} groups; give one of each per sample."
        )
    if not len(label):
        raise ValueError("Got no samples; unit weights need at least one.")
    pairs, unit, size = np.unique(
        np.column_stack([label, group]), axis=0, return_inverse=True, return_counts=True
    )
    unit = unit.ravel()
    weight = 1.0 / size[unit]
    if balance_labels:
        weight /= np.bincount(pairs[:, 0])[label]
    return np.asarray(weight / weight.sum(), dtype=np.float64)
