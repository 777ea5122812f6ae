"""Representations of observations, from ``obsm`` or from any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from cfm._adata import params_of
from cfm._fields import EMBEDDING_PREFIX
from cfm.data._matrix import check_indices, to_dense
from cfm.models import PretrainedModel

if TYPE_CHECKING:
    from anndata import AnnData


@runtime_checkable
class LatentModel(Protocol):
    """Any model that embeds observations, such as those of cfm and of scvi-tools."""

    def get_latent_representation(self, adata: AnnData) -> np.ndarray:
        """Return ``(n_obs, dim)``."""


def representation_name(use_rep: str | LatentModel) -> str:
    """Return the ``obsm`` key, or ``X_<class>`` of a model, as :func:`cfm.tl.embed` does.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(use_rep, str):
        return use_rep
    if isinstance(use_rep, type) or not isinstance(use_rep, LatentModel):
        raise TypeError(
            f"use_rep is a {type(use_rep).__name__}; expected the name of an obsm key, or a model "
            "with get_latent_representation(adata)."
        )
    return EMBEDDING_PREFIX + type(use_rep).__name__.lower()


def read_representation(adata: AnnData, use_rep: str | LatentModel, what: str) -> np.ndarray:
    """Return the representation of all observations.

    Parameters
    ----------
    adata
        The observations. A model may write into it: scvi-tools registers its AnnData.
    use_rep
        ``obsm`` key, or a model.
    what
        Name of the AnnData in errors.

    Returns
    -------
    ``(n_obs, dim)`` float64; may hold NaN.

    Raises
    ------
    KeyError
        If there is no such key.
    TypeError
        If a table has columns that hold no numbers.
    ValueError
        If it is no table with a row for each observation.
    """
    values: Any
    if not isinstance(use_rep, str):
        values, where = use_rep.get_latent_representation(adata), f"{type(use_rep).__name__}'s"
    elif use_rep in adata.obsm:
        values, where = adata.obsm[use_rep], f"{what}.obsm[{use_rep!r}]"
    else:
        raise KeyError(
            f"{what}.obsm has no {use_rep!r}; it has {sorted(adata.obsm)}. Embeddings come from "
            "cfm.tl.embed(adata)."
        )
    if isinstance(values, pd.DataFrame):
        wrong = [str(c) for c in values if not pd.api.types.is_numeric_dtype(values[c].dtype)]
        if wrong:
            raise TypeError(f"{where} has columns that hold no numbers: {wrong[:5]}.")
        values = values.to_numpy(dtype=np.float64, na_value=np.nan)
    values = check_indices(values, where)
    table = to_dense(values.compute() if hasattr(values, "compute") else values)
    if table.ndim != 2 or not table.shape[1] or len(table) != adata.n_obs:
        raise ValueError(
            f"{where} representation has shape {table.shape}; expected a row of numbers for each "
            f"of {adata.n_obs} observations."
        )
    return table


def representation_record(adata: AnnData, use_rep: str | LatentModel) -> dict[str, str]:
    """Return the model of a representation: ``model``, ``module`` of its class, and ``sha256``.

    The values of an ``obsm`` key come from its record in ``uns``; without a record the result is
    empty. The checksum of a model of another package is ``""``.
    """
    if isinstance(use_rep, str):
        former = params_of(adata.uns, use_rep)
        return {k: str(former[k]) for k in ("model", "module", "sha256") if k in former}
    known = use_rep.weights_record() if isinstance(use_rep, PretrainedModel) else {}
    kind: Any = type(use_rep)
    return {"model": kind.__name__, "module": kind.__module__, "sha256": ""} | known
