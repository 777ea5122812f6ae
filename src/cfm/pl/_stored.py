"""Reading what the tools stored, with a clear word when it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import (
    CONFIDENCE,
    INFECTED,
    NOVELTY,
    PREDICTION_SET,
    PROBABILITIES,
    SET_SEPARATOR,
    params_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from anndata import AnnData


@dataclass(frozen=True)
class StoredPrediction:
    """What :func:`cfm.tl.predict_virus` left in an AnnData of ``n`` profiles and ``k`` classes.

    Attributes
    ----------
    call
        ``(n,)`` names: a virus, "uninfected" or "unknown".
    confidence, infected, novelty
        ``(n,)`` numbers in [0, 1].
    candidates
        Conformal set of each profile.
    probabilities
        ``(n, k)``; columns are the classes.
    params
        How it was made.
    """

    call: np.ndarray
    confidence: np.ndarray
    infected: np.ndarray
    novelty: np.ndarray
    candidates: list[tuple[str, ...]]
    probabilities: pd.DataFrame
    params: Mapping[str, Any]


def stored_prediction(adata: AnnData, key: str) -> StoredPrediction:
    """Collect the fields of a virus call.

    Raises
    ------
    KeyError
        If any of them is missing; the text names the tool that writes them.
    """
    columns = [key, *(key + part for part in (CONFIDENCE, INFECTED, NOVELTY, PREDICTION_SET))]
    missing = [f"obs[{name!r}]" for name in columns if name not in adata.obs]
    if key + PROBABILITIES not in adata.obsm:
        missing.append(f"obsm[{key + PROBABILITIES!r}]")
    if missing:
        raise KeyError(
            f"{', '.join(missing)} not found; run cfm.tl.predict_virus(adata, key_added={key!r}) "
            "first, or pass the key it was stored under."
        )
    probabilities = adata.obsm[key + PROBABILITIES]
    if not isinstance(probabilities, pd.DataFrame):
        raise TypeError(
            f"obsm[{key + PROBABILITIES!r}] is a {type(probabilities).__name__}; expected the "
            "DataFrame (profiles by classes) that cfm.tl.predict_virus stores: run it again."
        )
    sets = adata.obs[key + PREDICTION_SET].astype(str)
    return StoredPrediction(
        call=adata.obs[key].astype(str).to_numpy(dtype=object),
        confidence=adata.obs[key + CONFIDENCE].to_numpy(dtype=np.float64),
        infected=adata.obs[key + INFECTED].to_numpy(dtype=np.float64),
        novelty=adata.obs[key + NOVELTY].to_numpy(dtype=np.float64),
        candidates=[tuple(part for part in text.split(SET_SEPARATOR) if part) for text in sets],
        probabilities=probabilities,
        params=params_of(adata.uns, key),
    )


def stored_table(
    adata: AnnData,
    key: str,
    table: str,
    *,
    tool: str,
    columns: Sequence[str],
    empty: bool = False,
    arguments: str = "",
) -> pd.DataFrame:
    """Read the table that a ranking tool left in ``uns[key][table]``.

    Parameters
    ----------
    adata
        Where it is stored.
    key
        ``key_added`` of the tool.
    table
        Name of the table.
    tool
        Name of the tool, such as ``"host_factors"``, for the error.
    columns
        What has to be there.
    empty
        Whether a table without rows will do.
    arguments
        What the tool has to be told so that it writes the table, such as ``"groupby=…"``.

    Returns
    -------
    A copy whose texts are plain: a file gives them back as categories.

    Raises
    ------
    KeyError
        If the table or a column is missing; the text names the tool that writes them.
    ValueError
        If the table has no rows.
    """
    stored = adata.uns.get(key)
    frame = stored.get(table) if hasattr(stored, "get") else None
    call = ", ".join(filter(None, ("adata", arguments, f"key_added={key!r}")))
    advice = f"run cfm.tl.{tool}({call}) first, or pass the key it was stored under."
    if not isinstance(frame, pd.DataFrame):
        raise KeyError(f"uns[{key!r}][{table!r}] not found; {advice}")
    missing = [name for name in columns if name not in frame]
    if missing:
        raise KeyError(f"uns[{key!r}][{table!r}] has no column {', '.join(missing)}; {advice}")
    if frame.empty and not empty:
        raise ValueError(
            f"uns[{key!r}][{table!r}] has no rows: cfm.tl.{tool} found nothing to draw."
        )
    plain = frame.copy()
    for name in plain:
        if not pd.api.types.is_numeric_dtype(plain[name]):
            plain[name] = plain[name].astype(str)
    return plain
