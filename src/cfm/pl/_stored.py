"""Reading what the tools stored, with a clear word when it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import (
    INFECTED,
    PROBABILITIES,
    RESPONSE,
    RESPONSE_PROBABILITIES,
    SUPPORT_SUFFIX,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class StoredPrediction:
    """What :func:`cfm.tl.predict_virus` left in an AnnData of ``n`` profiles.

    Attributes
    ----------
    call, response
        ``(n,)`` names: the answer, and the kind of response.
    infected, support
        ``(n,)`` numbers in [0, 1]; support may be NaN.
    response_proba, virus_proba
        ``(n, kinds)`` and ``(n, viruses)``; columns are the names.
    """

    call: np.ndarray
    response: np.ndarray
    infected: np.ndarray
    support: np.ndarray
    response_proba: pd.DataFrame
    virus_proba: pd.DataFrame


def stored_prediction(adata: AnnData, key: str) -> StoredPrediction:
    """Collect the fields of a virus call.

    Raises
    ------
    KeyError
        If any of them is missing; the text names the tool that writes them.
    """
    columns = [key, *(key + part for part in (RESPONSE, INFECTED, SUPPORT_SUFFIX))]
    tables = [key + part for part in (RESPONSE_PROBABILITIES, PROBABILITIES)]
    missing = [f"obs[{name!r}]" for name in columns if name not in adata.obs]
    missing += [f"obsm[{name!r}]" for name in tables if name not in adata.obsm]
    if missing:
        raise KeyError(
            f"{', '.join(missing)} not found; run cfm.tl.predict_virus(adata, key_added={key!r}) "
            "first, or pass the key it was stored under."
        )
    for name in tables:
        if not isinstance(adata.obsm[name], pd.DataFrame):
            raise TypeError(
                f"obsm[{name!r}] is a {type(adata.obsm[name]).__name__}; expected the DataFrame "
                "(profiles by names) that cfm.tl.predict_virus stores: run it again."
            )
    call, response, infected, support = (adata.obs[name] for name in columns)
    return StoredPrediction(
        call=call.astype(str).to_numpy(dtype=object),
        response=response.astype(str).to_numpy(dtype=object),
        infected=infected.to_numpy(dtype=np.float64),
        support=support.to_numpy(dtype=np.float64),
        response_proba=adata.obsm[tables[0]],
        virus_proba=adata.obsm[tables[1]],
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
