"""What speaks against an input being what it is taken for, in words for a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cfm.pp._design import Contrast

#: Single cells are recognised by being at least so many, of fewer counts than a bulk sample has.
_MANY = 100
_CELL_LIBRARY = 20_000.0


def hints_about_logs(adata: AnnData) -> list[str]:
    """What ``uns`` says against ``X`` holding log2 expression."""
    scanpy = adata.uns.get("log1p")
    if not (isinstance(scanpy, Mapping) and scanpy.get("base") in (None, np.e)):
        return []
    return [
        "adata.uns['log1p'] says that X holds natural logarithms, but units='log' expects "
        "log2 values; divide X by np.log(2), or pass the counts."
    ]


def hints_about_counts(adata: AnnData) -> list[str]:
    """What ``uns`` says against ``X`` holding counts."""
    stated = adata.uns.get("units")
    if not isinstance(stated, str) or "count" in stated.lower():
        return []
    return [
        f"adata.uns['units'] calls the values of X {stated!r}, but counts are expected: low "
        "expression may not be told from noise; pass counts, or log2 values with units='log'."
    ]


def hints_about_cells(library_size: np.ndarray) -> list[str]:
    """What ``(n_obs,)`` sums of counts say against each observation being a sample."""
    typical = float(np.median(library_size))
    if len(library_size) < _MANY or not 0 < typical < _CELL_LIBRARY:
        return []
    return [
        f"{len(library_size)} observations with a median of {typical:.0f} counts look like single "
        "cells, but each is taken for a sample; name the column that says which sample a cell is "
        "of by sample_key=, so that their counts are summed."
    ]


def hints_about_pooling(
    obs: pd.DataFrame, contrasts: Sequence[Contrast], groupby: str
) -> list[str]:
    """Columns whose levels the pooled controls have and the cases of a contrast lack.

    Such controls are of another study, treatment or time than the cases. Columns that name single
    samples (more levels than half the samples) or are another name of the condition (no level in
    common) say nothing.
    """
    found: dict[str, str] = {}
    for column in obs.columns.drop(groupby):
        values = obs[column].astype(str).where(obs[column].notna(), "").to_numpy(dtype=str)
        if 2 * len(np.unique(values)) > len(values):
            continue
        for contrast in contrasts:
            cases, controls = set(values[contrast.cases]), set(values[contrast.controls])
            if controls & cases and controls - cases:
                level = repr(str(min(controls - cases)))
                found[str(column)] = f"{column!r} (controls of {level} for {contrast.level})"
                break
    if not found:
        return []
    names = list(found)
    return [
        f"the pooled controls differ from the cases in {', '.join(found.values())}, and what that "
        f"changes would look like an effect of {groupby!r}. Compare within by={names!r}, or drop "
        "those controls."
    ]
