"""Reading what the tools stored, with a clear word when it is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import (
    PROBABILITIES,
    RESPONSE,
    RESPONSE_PROBABILITIES,
    SUPPORT,
    SUPPORT_SUFFIX,
    UNINFECTED,
    UNRESOLVED,
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
        ``(n,)`` names: the call, and the kind of response.
    call_support, response_support
        ``(n,)`` shares of such answers that were right in studies left out of training; NaN where
        none was given, and for what is ``"unresolved"``.
    response_proba, virus_proba
        ``(n, kinds)`` and ``(n, viruses)``; columns are the names as they stand in ``obs``.
    """

    call: np.ndarray
    response: np.ndarray
    call_support: np.ndarray
    response_support: np.ndarray
    response_proba: pd.DataFrame
    virus_proba: pd.DataFrame


def stored_prediction(adata: AnnData, key: str) -> StoredPrediction:
    """Collect the fields of a virus call.

    Raises
    ------
    KeyError
        If any of them is missing; the text names the tool that writes them.
    """
    columns = [key, key + RESPONSE, key + SUPPORT_SUFFIX]
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
    call, response = (adata.obs[n].astype(str).to_numpy(dtype=object) for n in columns[:2])
    support = adata.obs[columns[2]].to_numpy(dtype=np.float64)
    # the support that is stored beside these calls is that of the response
    of_response = np.where(np.isin(call, (UNINFECTED, UNRESOLVED)), support, np.nan)
    stored = adata.uns.get(key)
    made = stored if isinstance(stored, Mapping) else {}
    known = answer_support(stored)
    in_table = [known.get(("response", name), (np.nan, 0))[0] for name in response]
    return StoredPrediction(
        call=call,
        response=response,
        call_support=np.where(call == UNRESOLVED, np.nan, support),
        response_support=np.where(np.isnan(of_response), in_table, of_response),
        response_proba=_named(adata.obsm[tables[0]], [*made.get("responses", ()), *response]),
        virus_proba=_named(adata.obsm[tables[1]], [*made.get("classes", ()), *call]),
    )


def _named(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Put the names into the columns, in which ``|`` stands for ``/``."""
    return table.rename(columns={str(name).replace("/", "|"): str(name) for name in names})


def answer_support(stored: object) -> dict[tuple[str, str], tuple[float, int]]:
    """Return ``(share, n_studies)`` by level and answer from ``uns[key]``, if they are there."""
    table = stored.get(SUPPORT) if isinstance(stored, Mapping) else None
    if not isinstance(table, pd.DataFrame):
        return {}
    answers = zip(table["level"].astype(str), table["answer"].astype(str), strict=True)
    numbers = zip(table["share"].astype(float), table["n_studies"].astype(int), strict=True)
    return dict(zip(answers, numbers, strict=True))


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
