"""Groups of observations, for several tools."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from cfm.data._matrix import check_not_empty, in_memory_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def profile_groups(
    adata: AnnData, groupby: str, groups: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the row numbers of each level of a column, levels in sorted order.

    Parameters
    ----------
    adata
        Observations.
    groupby
        Column of ``obs``; rows without a value belong to no group.
    groups
        Levels to return, in this order; all by default.

    Raises
    ------
    KeyError
        If the column or a level does not exist.
    ValueError
        If there is no group.
    """
    check_not_empty(adata)
    obs = in_memory_frame(adata.obs)
    if groupby not in obs:
        raise KeyError(
            f"adata.obs has no column {groupby!r}; it has {obs.columns.tolist()}. Name the "
            "one with the groups by groupby=."
        )
    column = obs[groupby]
    present = column.notna().to_numpy()
    values = column.astype(str).to_numpy(dtype=object)
    levels = sorted(set(values[present]))
    if not levels:
        raise ValueError(f"adata.obs[{groupby!r}] is missing in all {adata.n_obs} rows.")
    wanted = levels if groups is None else [str(g) for g in groups]
    unknown = [g for g in wanted if g not in levels]
    if unknown:
        raise KeyError(f"adata.obs[{groupby!r}] has no {unknown}; it has {levels}.")
    if not wanted:
        raise ValueError(f"No group of adata.obs[{groupby!r}] is chosen; it has {levels}.")
    return {g: np.flatnonzero(present & (values == g)) for g in wanted}


def content_hash(values: np.ndarray) -> int:
    """Return a hash of the values of a row, which orders rows and seeds random draws.

    Results then depend neither on the names of the rows nor on their order.
    """
    plain = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, and no −0
    return int.from_bytes(hashlib.blake2b(plain.tobytes(), digest_size=8).digest(), "little")
