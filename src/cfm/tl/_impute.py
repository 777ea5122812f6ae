"""Missing and masked expression, predicted by a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._adata import check_key, takes_anndata
from cfm._arguments import check_layer
from cfm._docs import fill_docs
from cfm._fields import PARAMS
from cfm.data._matrix import get_matrix, read_rows, to_dense
from cfm.models import BulkFormer, load_model
from cfm.models.bulkformer._data import check_mask
from cfm.models.bulkformer._module import MISSING
from cfm.tl._run import TEXTS, Run, model_record

#: Names of the genes that the data lack, where their predictions are an array.
ABSENT_GENES = "absent_genes"

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.tl._run import Data


@takes_anndata(others=True)
@fill_docs(TEXTS)
def impute(
    adata: Data,
    model: str | Path | BulkFormer,
    *,
    mask: str | np.ndarray | None = None,
    layer: str | None = None,
    absent_genes: bool = False,
    key_added: str = "imputed",
    batch_size: int = 64,
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Fill in missing expression; observed values stay unchanged.

    Parameters
    ----------
    adata
        Samples by genes, natural log1p of TPM (:func:`cfm.pp.tpm`); ``NaN`` and −10 are missing.
        %(paths)s
        Each file is read with all of its genes; the results have the genes of all files.
    model
        A :class:`cfm.models.BulkFormer`.
        %(load)s
    mask
        Entries to hide from the model and predict, too: ``(n_obs, n_vars)`` bool, or the name of
        such a layer.
    layer
        Layer with the log TPM instead of ``X``.
    absent_genes
        Also predict the genes of the model that ``adata`` lacks.
    key_added
        Name of the results.
    batch_size
        Samples to read at a time; the result does not depend on it.
    %(device)s
    %(output)s
    %(overwrite)s
    %(copy)s

    Returns
    -------
    %(returns)s
    Writes

    ``adata.layers['imputed' | key_added]``
        ``(n_obs, n_vars)`` float32 log TPM: observed entries unchanged, missing ones predicted, or
        ``NaN`` where the model lacks the gene.
    ``adata.obsm['imputed' | key_added]``
        With ``absent_genes`` only: DataFrame, samples by genes that ``adata`` lacks, float32 log
        TPM. With ``output`` an array; ``uns['imputed']['absent_genes']`` holds its column names.
    ``adata.uns['imputed' | key_added]``
        ``params`` (arguments, model, SHA-256, device, share of genes found); ``n_imputed``,
        entries filled in; ``n_left``, missing entries of genes that the model lacks.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, or the model is not a BulkFormer.
    KeyError
        If a layer does not exist.
    ValueError
        If the matrix is not log TPM, too few genes are found, the mask is of another shape, or
        nothing is missing. ``adata`` stays unchanged.
    %(output_errors)s

    Warns
    -----
    %(few_genes)s

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
    check_key(key_added)
    run = Run(adata, output, overwrite=overwrite, copy=copy)
    filler = load_model(model, device=device)
    if not isinstance(filler, BulkFormer):
        raise TypeError(f"model= is a {type(filler).__name__}; expected BulkFormer.")
    if isinstance(mask, str):
        check_layer(run.whole, mask)
    if mask is not None and not isinstance(mask, str):
        mask = check_mask(mask, run.whole)
    genes = run.whole.var_names
    names = filler.absent_genes(run.whole) if absent_genes else pd.Index([])

    def compute(part: AnnData, rows: slice) -> dict[str, np.ndarray]:
        hidden = _mask(part, genes, mask, rows)
        options: Any = {"layer": layer, "mask": hidden, "batch_size": batch_size}
        made = {}
        if len(names):
            filled, absent = filler.impute(part, absent_genes=True, **options)
            made["absent"] = absent.to_numpy()
        else:
            filled = filler.impute(part, **options)
        stored = read_rows(get_matrix(part, layer=layer), np.arange(part.n_obs))
        values = to_dense(stored, np.float32)
        missing = np.isnan(values) | (values == MISSING)
        missing |= False if hidden is None else hidden
        if not part.var_names.equals(genes):  # a file with its genes in another order
            columns = part.var_names.get_indexer(genes)
            filled, missing = filled[:, columns], missing[:, columns]
        made["filled"] = filled
        made["n_missing"] = missing.sum(keepdims=True).ravel()
        made["n_left"] = np.isnan(made["filled"]).sum(keepdims=True).ravel()
        return made

    arguments = {
        "layer": layer,
        "mask": mask,
        "absent_genes": absent_genes,
        "batch_size": batch_size,
    }
    layers = list(dict.fromkeys([layer, mask] if isinstance(mask, str) else [layer]))
    with run.compute(compute, filler, tool="impute", layers=layers, arguments=arguments) as results:
        n_missing = int(results.take("n_missing").sum())
        n_left = int(results.take("n_left").sum())
        if not n_missing and not len(names):
            results.discard()
            raise ValueError(
                "Nothing is missing (NaN or −10) and no mask hides anything, so there is nothing "
                "to fill in; pass mask=, or absent_genes=True for genes that adata lacks."
            )
        made = run.target
        fields = {"layers": [key_added]} | ({"obsm": [key_added]} if len(names) else {})
        run.warn_overwritten(key_added, fields)
        record = model_record(
            filler,
            run.rows.vocabulary_share(filler),
            key_added=key_added,
            layer=layer,
            mask=mask if isinstance(mask, str) else mask is not None,
            absent_genes=absent_genes,
            batch_size=batch_size,
        )
        counted = {"n_imputed": n_missing - n_left, "n_left": n_left}
        made.uns[key_added] = {PARAMS: record} | counted
        run.put("layers", key_added, "filled")
        if len(names) and run.output is None:
            columns = names.rename(None)
            made.obsm[key_added] = pd.DataFrame(
                results.take("absent"), index=made.obs_names, columns=columns
            )
        elif len(names):
            made.uns[key_added][ABSENT_GENES] = names.to_numpy(dtype=object)
            run.put("obsm", key_added, "absent")
    return run.result


def _mask(
    part: AnnData, genes: pd.Index, mask: str | np.ndarray | None, rows: slice
) -> np.ndarray | None:
    """Return the mask of some rows on their own genes; a text names a layer."""
    if mask is None:
        return None
    if isinstance(mask, str):
        return to_dense(read_rows(part.layers[mask], np.arange(part.n_obs)), bool)
    if part.var_names.equals(genes):
        return mask[rows]
    out = np.zeros(part.shape, dtype=bool)
    out[:, part.var_names.get_indexer(genes)] = mask[rows]
    return out
