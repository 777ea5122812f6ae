"""Embeddings of any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cfm._fields import EMBEDDING_PREFIX, PARAMS
from cfm.models import DonorModel, GeneEmbeddingModel, load_model
from cfm.models._base import require_anndata
from cfm.tl._store import check_key, run_record, target, warn_overwritten

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import PretrainedModel

#: Where embeddings of each level are stored.
_SLOTS = {"observation": "obsm", "gene": "varm"}
#: What sets apart the default names of the levels, whose records stand side by side in ``uns``.
_SUFFIXES = {"gene": "_genes"}


def embed(
    adata: AnnData,
    model: str | Path | PretrainedModel = "cellpulse-mini",
    *,
    level: Literal["observation", "gene"] = "observation",
    layer: str | None = None,
    key_added: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
    copy: bool = False,
    **model_kwargs: Any,
) -> AnnData | None:
    """Embed observations with a model.

    Parameters
    ----------
    adata
        Observations by genes, of the kind that the model reads; for CellPulse contrasts with log2
        fold changes, see :func:`cfm.pp.contrasts`, for BulkFormer samples with log TPM, see
        :func:`cfm.pp.tpm`, for UCE and CellVQ cells with counts. Genes as symbols or Ensembl ids;
        genes that are absent or ``NaN`` are taken as not measured.
    model
        A model, the name of a checkpoint (:func:`cfm.hub.list_checkpoints`), a folder, or
        ``hf://org/name``.
    level
        What is embedded: ``"observation"``, or ``"gene"``: each gene by the mean of its embeddings
        in the context of these observations, from models that have such
        (:class:`cfm.models.GeneEmbeddingModel`).
    layer
        Layer to read instead of ``X``.
    key_added
        Name of the result, by default ``X_<model>``, such as ``X_cellpulse``; of genes
        ``X_<model>_genes``.
    batch_size
        Observations at a time; the result does not depend on it.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    copy
        Return a changed copy instead of writing to ``adata``.
    **model_kwargs
        Further arguments of the model's ``get_latent_representation`` or
        ``get_gene_embeddings``, such as ``pooling`` and ``genes`` of
        :class:`cfm.models.BulkFormer`, or ``units`` of :class:`cfm.models.CellVQ`.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.obsm['X_cellpulse' | key_added]``
        ``(n_obs, dim)`` float32. With ``level="gene"`` instead
    ``adata.varm['X_bulkformer_genes' | key_added]``
        ``(n_vars, dim)`` float32, ``NaN`` for genes that the model does not know, or that no
        observation expresses where the model embeds what is expressed only.
    ``adata.uns['X_cellpulse' | key_added]['params']``
        The arguments, the model's name and SHA-256, the device it ran on, and the share of its
        genes that were found.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, ``model`` is none of the above, or the model does not take an
        argument.
    KeyError
        If the layer does not exist.
    ValueError
        If too few of the model's genes are found, values are infinite, or the matrix does not
        look like what the model reads. Whatever is raised, ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If few of the model's genes are found, or a field that another tool wrote is replaced.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.embed(contrasts, "cellpulse-mini")
    >>> contrasts.obsm["X_cellpulse"].shape[0] == contrasts.n_obs
    True
    """
    require_anndata(adata)
    if key_added is not None:
        check_key(key_added)
    model = load_model(model, device=device)
    if isinstance(model, DonorModel):
        raise TypeError(
            f"{type(model).__name__} embeds donors, not single observations; use "
            "cfm.tl.embed_donors(adata, donor_key)."
        )
    key = key_added or EMBEDDING_PREFIX + type(model).__name__.lower() + _SUFFIXES.get(level, "")
    if level not in _SLOTS:
        raise ValueError(f"level={level!r}; expected {' or '.join(map(repr, _SLOTS))}.")
    arguments = {"layer": layer, "batch_size": batch_size} | model_kwargs
    if level == "gene":
        latent = _mean_gene_embeddings(model, adata, arguments)
    else:
        latent = model.get_latent_representation(adata, **arguments)
    record = run_record(model, adata, key_added=key, level=level, **arguments)
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key, {_SLOTS[level]: [key]})
    getattr(adata, _SLOTS[level])[key] = latent
    adata.uns[key] = {PARAMS: record}
    return adata if copy else None


def _mean_gene_embeddings(
    model: PretrainedModel, adata: AnnData, arguments: dict[str, Any]
) -> np.ndarray:
    """Average the embeddings of each gene of ``adata`` over its observations, in one pass."""
    if not isinstance(model, GeneEmbeddingModel):
        raise TypeError(
            f"{type(model).__name__} embeds observations only (it has no get_gene_embeddings "
            "method); leave level= out, or use a model such as BulkFormer."
        )
    if "genes" in arguments:
        raise TypeError("genes= does not go with level='gene': every gene of adata is embedded.")
    total, n = np.zeros((len(model.vocabulary), 1)), np.zeros((len(model.vocabulary), 1))
    for _, embedded in model.get_gene_embeddings(adata, **arguments):
        known = ~np.isnan(embedded[..., :1])  # some models embed what is expressed only
        total = total + embedded.sum(axis=0, dtype=np.float64, where=known)
        n += known.sum(axis=0)
    alignment = model.vocabulary.align(adata.var_names)
    out = np.full((adata.n_vars, total.shape[-1]), np.nan, dtype=np.float32)
    mean = np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)
    out[alignment.columns] = mean[alignment.positions]
    return out
