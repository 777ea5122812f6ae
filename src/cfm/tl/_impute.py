"""Missing and masked expression, filled in by a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import PARAMS
from cfm.data._matrix import to_dense
from cfm.models import BulkFormer, load_model
from cfm.models._base import require_anndata
from cfm.tl._store import check_key, run_record, target, warn_overwritten

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def impute(
    adata: AnnData,
    model: str | Path | BulkFormer,
    *,
    mask: str | np.ndarray | None = None,
    layer: str | None = None,
    absent_genes: bool = False,
    key_added: str = "imputed",
    batch_size: int = 64,
    device: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Fill in missing expression; what was observed stays as it is.

    Parameters
    ----------
    adata
        Samples by genes, natural log1p of TPM (:func:`cfm.pp.tpm`); ``NaN`` and −10 are missing.
    model
        A BulkFormer, the name of one, a folder, or ``hf://org/name``.
    mask
        Entries to hide from the model and predict as well: ``(n_obs, n_vars)`` bool, or the name
        of a layer with it.
    layer
        Layer with the log TPM instead of ``X``.
    absent_genes
        Also predict the model's genes that ``adata`` does not have.
    key_added
        Name of the results.
    batch_size
        Samples to read at a time; the result does not depend on it.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.layers['imputed' | key_added]``
        ``(n_obs, n_vars)`` float32 log TPM: observed entries as they were, the others predicted,
        ``NaN`` where a missing gene is not among the model's.
    ``adata.obsm['imputed' | key_added]``
        With ``absent_genes`` only: DataFrame, samples by genes that ``adata`` does not have,
        float32 log TPM.
    ``adata.uns['imputed' | key_added]``
        ``params`` (arguments, model, SHA-256, device, share of genes found); ``n_imputed``,
        entries filled in; ``n_left``, missing entries of genes that the model does not know.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, or the model is not a BulkFormer.
    KeyError
        If a layer does not exist.
    ValueError
        If the matrix is not log TPM, too few genes are found, the mask is of another shape, or
        there is nothing to fill in. Whatever is raised, ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If few of the model's genes are found, or a field that another tool wrote is replaced.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, cfm
    >>> level = np.random.default_rng(0).uniform(1, 5, size=(40, 1))
    >>> adata = ad.AnnData(np.repeat(level, 60, axis=1).astype("float32"))
    >>> adata.var_names = [f"GENE{i}" for i in range(60)]
    >>> cfm.models.BulkFormer.setup_anndata(adata)
    >>> model = cfm.models.BulkFormer(adata, dim=16, n_heads=2, n_layers=1)
    >>> adata.X[0, 0] = np.nan
    >>> cfm.tl.impute(adata, model)
    >>> bool(np.isfinite(adata.layers["imputed"]).all())
    True
    """
    require_anndata(adata)
    check_key(key_added)
    filler = load_model(model, device=device)
    if not isinstance(filler, BulkFormer):
        raise TypeError(f"model= is a {type(filler).__name__}; expected BulkFormer.")
    hidden = _mask(adata, mask)
    filled, n_missing = filler.impute_and_count(
        adata, layer=layer, mask=hidden, batch_size=batch_size
    )
    names = filler.absent_genes(adata) if absent_genes else pd.Index([])
    if not n_missing and not len(names):
        raise ValueError(
            "Nothing is missing (NaN or −10) and no mask hides anything, so there is nothing to "
            "fill in; pass mask=, or absent_genes=True for genes that adata does not have."
        )
    absent = None
    if len(names):
        absent = filler.predict_expression(
            adata, layer=layer, genes=[str(n) for n in names], mask=hidden, batch_size=batch_size
        )
        absent.columns.name = None
    record = run_record(
        filler,
        adata,
        key_added=key_added,
        layer=layer,
        mask=mask if isinstance(mask, str) else mask is not None,
        absent_genes=absent_genes,
        batch_size=batch_size,
    )
    adata = target(adata, copy=copy)
    fields = {"layers": [key_added]} | ({} if absent is None else {"obsm": [key_added]})
    warn_overwritten(adata, key_added, fields)
    adata.layers[key_added] = filled
    if absent is not None:
        adata.obsm[key_added] = absent
    n_left = int(np.isnan(filled).sum())
    adata.uns[key_added] = {PARAMS: record, "n_imputed": n_missing - n_left, "n_left": n_left}
    return adata if copy else None


def _mask(adata: AnnData, mask: str | np.ndarray | None) -> np.ndarray | None:
    """Return a mask that may be a layer."""
    if not isinstance(mask, str):
        return mask
    if mask not in adata.layers:
        raise KeyError(
            f"no layer {mask!r} to be the mask; adata has layers {sorted(adata.layers)}."
        )
    return to_dense(adata.layers[mask], bool)
