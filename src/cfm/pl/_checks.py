"""What a figure is drawn from."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from cfm._tables import check_tables


def require_anndata(adata: object) -> None:
    """Check that something is an AnnData, with its tables in memory.

    Raises
    ------
    TypeError
        If it is not; the error says what to pass instead.
    ValueError
        If names are no text, or a column is there twice.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"Found a {type(adata).__name__}; expected an AnnData. Of a MuData, pass one modality: "
            "mdata['rna']."
        )
    if not isinstance(adata.obs, pd.DataFrame):
        raise TypeError(
            "adata was read by anndata.experimental.read_lazy, and a figure is drawn from memory; "
            "pass adata.to_memory()."
        )
    check_tables(adata)
