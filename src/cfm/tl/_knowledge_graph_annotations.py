"""Which annotations the cells of a code have more often than others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from cfm.data._matrix import in_memory_frame
from cfm.data._warn import warn_user
from cfm.stats._enrichment import benjamini_hochberg
from cfm.tl._knowledge_graph_cells import category_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    from cfm.tl._knowledge_graph_cells import CodedCells


def read_annotations(
    adata: AnnData, columns: Sequence[str], codes: str, reserved: Iterable[str]
) -> dict[str, np.ndarray]:
    """Read columns of ``obs`` as text, ``""`` where they are missing.

    Raises
    ------
    TypeError
        If ``columns`` is no list of names.
    KeyError
        If a column does not exist.
    ValueError
        If a column is asked for twice, is that of the codes, has the name of another kind of node
        or edge, or holds measurements.
    """
    if isinstance(columns, str):
        raise TypeError(f"annotations={columns!r} is one text; expected a list: [{columns!r}].")
    wanted = [str(name) for name in columns]
    obs = in_memory_frame(adata.obs)
    missing = [name for name in wanted if name not in obs]
    if missing:
        raise KeyError(
            f"adata.obs has no columns {missing} (annotations=); it has {obs.columns.tolist()}."
        )
    if len(set(wanted)) < len(wanted) or codes in wanted:
        raise ValueError(
            f"annotations={wanted} with codes={codes!r}; expected each column once, and others "
            "than that of the codes."
        )
    clash = sorted(set(reserved).intersection(wanted))
    if clash:
        raise ValueError(
            f"annotations holds {clash}, which are names of other kinds in the graph; rename "
            f"the columns, as in adata.obs.rename(columns={{{clash[0]!r}: 'my_{clash[0]}'}})."
        )
    return {name: category_texts(obs[name], f"annotations: obs[{name!r}]") for name in wanted}


def enrichment(cells: CodedCells, annotations: dict[str, np.ndarray]) -> pd.DataFrame:
    r"""Test each code and level of each annotation.

    One-sided hypergeometric test that the code has the level more often than the other cells;
    background are all cells with a code and the annotation. The log odds ratio is

    .. math:: \ln \frac{(a + \frac12)(d + \frac12)}{(b + \frac12)(c + \frac12)}

    of the two by two table.

    Returns
    -------
    A row per code, annotation and level: ``code`` (place in ``cells.names``), ``annotation``,
    ``level``, ``overlap``, ``code_cells``, ``level_cells``, ``expected``, ``log_odds``,
    ``p_value`` and ``fdr`` (Benjamini-Hochberg within the annotation).

    Warns
    -----
    UserWarning
        If an annotation has fewer than two levels; it is left out.
    """
    tables = [_one(cells, name, labels[cells.rows]) for name, labels in annotations.items()]
    found = [table for table in tables if table is not None]
    if found:
        return pd.concat(found, ignore_index=True)
    return pd.DataFrame(columns=["code", "annotation", "level", "fdr", "log_odds"])


def _one(cells: CodedCells, name: str, labels: np.ndarray) -> pd.DataFrame | None:
    known = labels != ""
    levels, level = np.unique(labels[known].astype(str), return_inverse=True)
    if len(levels) < 2:
        what = f"one level ({str(levels[0])!r})" if len(levels) else "no value"
        warn_user(
            f"obs[{name!r}] has {what} in the cells with a code: nothing can be enriched, and the "
            "annotation is left out of the graph."
        )
        return None
    n_codes = len(cells.names)
    code = cells.code[known]
    inside = code >= 0
    place = code[inside] * len(levels) + level[inside]
    both = np.bincount(place, minlength=n_codes * len(levels)).reshape(n_codes, len(levels))
    total = int(known.sum())
    of_level = np.bincount(level, minlength=len(levels))[None]
    of_code = both.sum(axis=1, keepdims=True)
    p_value = hypergeom.sf(both - 1, total, of_level, of_code)
    only_code, only_level = of_code - both, of_level - both
    neither = total - both - only_code - only_level
    odds = (both + 0.5) * (neither + 0.5) / ((only_code + 0.5) * (only_level + 0.5))
    row, column = (x.ravel() for x in np.indices(both.shape))
    return pd.DataFrame(
        {
            "code": row,
            "annotation": name,
            "level": levels[column].astype(object),
            "overlap": both.ravel(),
            "code_cells": of_code[row, 0],
            "level_cells": of_level[0, column],
            "expected": (of_code * of_level / total).ravel(),
            "log_odds": np.log(odds).ravel(),
            "p_value": p_value.ravel(),
            "fdr": benjamini_hochberg(p_value.ravel()),
        }
    )
