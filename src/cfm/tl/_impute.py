"""Missing and masked expression, filled in by a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._arguments import check_layer
from cfm._fields import PARAMS
from cfm.data._matrix import get_matrix, read_rows, to_dense
from cfm.data._store import check_key
from cfm.data._takes_anndata import takes_anndata
from cfm.models import BulkFormer, load_model
from cfm.models.bulkformer._data import check_mask
from cfm.models.bulkformer._module import MISSING
from cfm.tl._run import Run
from cfm.tl._store import model_record

#: Names of the columns of an array of genes that the data do not have.
ABSENT_GENES = "absent_genes"

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.tl._run import Data


@takes_anndata(others=True)
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
    """Fill in missing expression; what was observed stays as it is.

    Parameters
    ----------
    adata
        Samples by genes, natural log1p of TPM (:func:`cfm.pp.tpm`); ``NaN`` and −10 are missing.
        Or one or more paths of ``.h5ad`` and ``.zarr`` files, which are opened with
        :func:`cfm.data.open_files`, each read with all genes that it has; the
        results are on the genes that all have.
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
    output
        File to write results to as they are made, ``.zarr`` or ``.h5ad``, instead of ``adata``,
        which is left as it was. A run that was stopped goes on where it was when the same call is
        made again.
    overwrite
        Replace ``output`` if it exists, and what a stopped run of another call left of it.
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Given paths, an AnnData whose matrices stay
    in the files, with the results in memory. With ``output`` the AnnData of results, opened from
    there: ``obs``, ``var`` and ``uns`` of the input and what is written; no ``X``. Writes

    ``adata.layers['imputed' | key_added]``
        ``(n_obs, n_vars)`` float32 log TPM: observed entries as they were, the others predicted,
        ``NaN`` where a missing gene is not among the model's.
    ``adata.obsm['imputed' | key_added]``
        With ``absent_genes`` only: DataFrame, samples by genes that ``adata`` does not have,
        float32 log TPM. With ``output`` an array, whose columns ``uns['imputed']['absent_genes']``
        names.
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
    FileExistsError
        If ``output`` exists.
    OSError
        If the disk is full; what is done is kept, and the same call goes on from there.

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
        filled, n_missing = filler.impute_and_count(
            part, layer=layer, mask=hidden, batch_size=batch_size
        )
        columns = None if part.var_names.equals(genes) else part.var_names.get_indexer(genes)
        if columns is not None:
            values = to_dense(get_matrix(part, layer=layer), np.float32)[:, columns]
            missing = np.isnan(values) | (values == MISSING)
            missing |= False if hidden is None else hidden[:, columns]
            filled, n_missing = filled[:, columns], int(missing.sum())
        made = {
            "filled": filled,
            "n_missing": np.array([n_missing]),
            "n_left": np.array([np.isnan(filled).sum()]),
        }
        if len(names):
            made["absent"] = filler.predict_expression(
                part,
                layer=layer,
                genes=[str(n) for n in names],
                mask=hidden,
                batch_size=batch_size,
            ).to_numpy()
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
                "to fill in; pass mask=, or absent_genes=True for genes that adata does not have."
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
    """Return the mask of some rows, which may be a layer, on the genes that they have."""
    if mask is None:
        return None
    if isinstance(mask, str):
        return to_dense(read_rows(part.layers[mask], np.arange(part.n_obs)), bool)
    if part.var_names.equals(genes):
        return mask[rows]
    out = np.zeros(part.shape, dtype=bool)
    out[:, part.var_names.get_indexer(genes)] = mask[rows]
    return out
