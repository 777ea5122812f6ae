"""What :func:`cfm.tl.cell_codes` checks, and the columns of ``obs`` that every run writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._fields import MARGIN, SIMILARITY
from cfm.data._matrix import in_memory_frame
from cfm.data._warn import warn_user
from cfm.tl._code_tables import Annotation, UsedCodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cfm.models.cellvq import CellCodes


def read_annotations(adata: AnnData, groupby: str | Sequence[str] | None) -> dict[str, Annotation]:
    """Read the columns of ``groupby``, before anything is computed."""
    if groupby is None:
        return {}
    names = [groupby] if isinstance(groupby, str) else list(dict.fromkeys(groupby))
    obs = in_memory_frame(adata.obs)
    annotations = {}
    for name in names:
        if name not in obs:
            raise KeyError(f"adata.obs has no column {name!r}; it has {obs.columns.tolist()}.")
        column = obs[name]
        if column.dtype.kind == "f":
            raise ValueError(
                f"adata.obs[{name!r}] holds {column.dtype} numbers; expected categories: cut it "
                "into intervals (pandas.cut), or convert it to text if the numbers are names."
            )
        annotation = Annotation.of(column)
        if not len(annotation.levels):
            raise ValueError(f"adata.obs[{name!r}] is missing in all {adata.n_obs} cells.")
        if len(annotation.levels) == 1:
            level = str(annotation.levels[0])
            warn_user(
                f"adata.obs[{name!r}] has one level ({level!r}), so every code is "
                "pure and nothing can be said of it."
            )
        annotations[name] = annotation
    return annotations


def readable_cells(found: CellCodes) -> np.ndarray:
    """Return which cells have a code."""
    readable = (found.code >= 0) & np.isfinite(found.similarity)
    if not readable.any():
        raise ValueError(
            f"The model could not read any of the {len(readable)} cells; do they express its genes?"
        )
    return readable


def check_use(used: UsedCodes, n_codes: int, n_groups: int | None) -> None:
    """Name a codebook of which one code is used; refuse more groups than codes."""
    n_cells = int(used.size.sum())
    if n_groups is not None and n_groups > len(used.names):
        raise ValueError(
            f"n_groups is {n_groups}, but the {n_cells} cells have {len(used.names)} codes; "
            "expected at most as many groups."
        )
    if len(used.names) == 1 and n_cells > 1 and n_codes > 1:
        warn_user(
            f"All {n_cells} cells have the code {used.names[0]}, of {n_codes} that the model has: "
            "either they are alike, or the model's codebook has collapsed; see its "
            "history['perplexity']."
        )


def obs_columns(found: CellCodes, used: UsedCodes, key: str) -> dict[str, Any]:
    """Return the columns of ``obs`` that every run writes."""
    unread = used.place < 0
    return {
        key: pd.Categorical.from_codes(used.place, categories=pd.Index(list(used.names))),
        key + SIMILARITY: np.where(unread, np.nan, found.similarity).astype(np.float32),
        key + MARGIN: np.where(unread, np.nan, found.margin).astype(np.float32),
    }
