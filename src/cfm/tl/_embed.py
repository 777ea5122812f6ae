"""Embeddings of any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cfm._adata import check_key, takes_anndata, target, warn_overwritten
from cfm._docs import fill_docs
from cfm._fields import EMBEDDING_PREFIX, GENES, PARAMS
from cfm.models import DonorModel, GeneEmbeddingModel, PretrainedModel, load_model
from cfm.tl._run import TEXTS, Run, model_record, refuse_other_model, run_record

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.tl._run import Data

#: Where embeddings of each level are stored.
_SLOTS = {"observation": "obsm", "gene": "varm"}
#: Suffix of the default name: the records of the levels stand side by side in ``uns``.
_SUFFIXES = {"gene": "_genes"}
_BATCH_SIZE = 64
#: Values of a chunk of embeddings of genes in observations, at a width of about a thousand.
_CHUNK_VALUES, _TYPICAL_WIDTH = 2**27, 1024


@takes_anndata(others=True)
@fill_docs(TEXTS)
def embed(
    adata: Data,
    model: str | Path | PretrainedModel | Any = "cellpulse-mini",
    *,
    level: Literal["observation", "gene"] = "observation",
    layer: str | None = None,
    key_added: str | None = None,
    batch_size: int = _BATCH_SIZE,
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    **model_kwargs: Any,
) -> AnnData | None:
    """Store the embedding that a model computes for each observation or gene.

    Parameters
    ----------
    adata
        Observations by genes, in the units of the model: contrasts with log2 fold changes for
        CellPulse (:func:`cfm.pp.contrasts`), samples with log TPM for BulkFormer
        (:func:`cfm.pp.tpm`), cells with counts for UCE and CellVQ. Genes as symbols or Ensembl ids;
        genes that are absent or ``NaN`` count as not measured.
        %(paths)s
        Files are embedded one by one: genes may differ between them.
    model
        A model; or, for an AnnData in memory, any object with
        ``get_latent_representation(adata)``, such as a trained :class:`scvi.model.SCVI`.
        %(load)s
    level
        ``"observation"``; or ``"gene"`` for the mean embedding of each gene over these
        observations, from a :class:`cfm.models.GeneEmbeddingModel`. With ``output``, the embedding
        of each gene in each observation.
    %(layer)s
    key_added
        Name of the result, by default ``X_<model>``, such as ``X_cellpulse``; of genes
        ``X_<model>_genes``.
    batch_size
        Observations at a time; the result does not depend on it.
    %(device)s
    %(output)s
    %(overwrite)s
    %(copy)s
    **model_kwargs
        Further arguments of the model's ``get_latent_representation`` or
        ``get_gene_embeddings``, such as ``pooling`` and ``genes`` of
        :class:`cfm.models.BulkFormer`, or ``units`` of :class:`cfm.models.CellVQ`. With
        ``level="gene"`` and ``output``, ``genes`` are the genes to write; by default those of
        ``adata`` that the model knows.

    Returns
    -------
    %(returns)s
    Writes

    ``adata.obsm['X_cellpulse' | key_added]``
        ``(n_obs, dim)`` float32. With ``level="gene"`` instead
    ``adata.varm['X_bulkformer_genes' | key_added]``
        ``(n_vars, dim)`` float32, ``NaN`` for genes outside of the model's vocabulary, and for
        unexpressed genes if the model embeds expressed genes only. With ``output`` instead
    ``adata.obsm['X_bulkformer_genes' | key_added]``
        ``(n_obs, n_genes * dim)`` float32, a matrix of genes by dimensions in each row, read from
        the file when rows are taken: ``row.reshape(n_genes, -1)``. A chunk of the file is about
        4 MB, at least one observation.
    ``adata.uns['X_bulkformer_genes' | key_added]['genes']``
        Names of those genes, in order.
    ``adata.uns['X_cellpulse' | key_added]['params']``
        The arguments, the model's name and SHA-256, the device it ran on, and the share of its
        genes that were found.

    Raises
    ------
    TypeError
        If ``adata`` or ``model`` is of another type, or the model has no such argument or, as
        :class:`cfm.models.LingshuCell`, no embedding.
    KeyError
        If the layer does not exist.
    ValueError
        If too few of the model's genes are found, values are infinite or in other units, ``output``
        has another suffix, is an input file or holds chunks of another run, or ``adata`` has the
        embedding of another model under the default name. ``adata`` stays unchanged.
    %(output_errors)s

    Warns
    -----
    %(few_genes)s

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> cfm.tl.embed(contrasts, "cellpulse-mini")
    >>> contrasts.obsm["X_cellpulse"].shape[0] == contrasts.n_obs
    True
    """
    run = Run(adata, output, overwrite=overwrite, copy=copy)
    if key_added is not None:
        check_key(key_added)
    if not isinstance(model, PretrainedModel) and hasattr(model, "get_latent_representation"):
        if level == "gene" or layer is not None or device is not None:
            raise ValueError(
                f"level=, layer= and device= go with models of cfm; {type(model).__name__} reads "
                "what it was set up with."
            )
        if batch_size != _BATCH_SIZE:
            model_kwargs["batch_size"] = batch_size
        return _embed_with_other(model, run, key_added, model_kwargs)
    model = load_model(model, device=device)
    if isinstance(model, DonorModel):
        raise TypeError(
            f"{type(model).__name__} embeds donors, not single observations; use "
            "cfm.tl.embed_donors(adata, donor_key)."
        )
    if level == "observation" and not hasattr(model, "get_latent_representation"):
        raise TypeError(
            f"{type(model).__name__} does not embed observations; use scanpy.pp.pca, or a model "
            "that does, such as CellVQ, UCE or scvi.model.SCVI for cells."
        )
    key = key_added or EMBEDDING_PREFIX + type(model).__name__.lower() + _SUFFIXES.get(level, "")
    if key_added is None and output is None:
        refuse_other_model(run.whole, key, model)
    arguments = {"layer": layer, "batch_size": batch_size} | model_kwargs
    if level == "gene":
        return _embed_genes(model, run, key, arguments)
    loaded = model

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        return {"embedding": loaded.get_latent_representation(part, **arguments)}

    with run.compute(compute, model, tool="embed", layers=[layer], arguments=arguments):
        run.warn_overwritten(key, {"obsm": [key]})
        run.put("obsm", key, "embedding")
        share = run.rows.vocabulary_share(loaded)
        record = model_record(loaded, share, key_added=key, level=level, **arguments)
        run.target.uns[key] = {PARAMS: record}
    return run.result


def _embed_with_other(
    model: Any, run: Run, key_added: str | None, arguments: dict[str, Any]
) -> AnnData | None:
    """Embed with a model of another package, which reads the AnnData by itself."""
    name = type(model).__name__
    if run.output is not None or run.rows.paths:
        raise ValueError(
            f"Paths and output= go with models of cfm; pass {name} an AnnData, and write it "
            "yourself."
        )
    key = key_added or EMBEDDING_PREFIX + name.lower()
    latent = np.asarray(model.get_latent_representation(run.whole, **arguments))
    if latent.ndim != 2 or len(latent) != run.whole.n_obs:
        raise ValueError(
            f"{name}.get_latent_representation returned an array of shape {latent.shape}; expected "
            f"({run.whole.n_obs}, dim)."
        )
    adata = run.target
    run.warn_overwritten(key, {"obsm": [key]})
    adata.obsm[key] = latent
    record = {"model": name, "module": type(model).__module__, "sha256": "", "key_added": key}
    adata.uns[key] = {PARAMS: record | arguments}
    return run.result


def _embed_genes(
    model: PretrainedModel,
    run: Run,
    key: str,
    arguments: dict[str, Any],
) -> AnnData | None:
    """Embed the genes of all rows: their mean, or with ``output`` a matrix per row."""
    if not isinstance(model, GeneEmbeddingModel):
        raise TypeError(
            f"{type(model).__name__} embeds observations only (it has no get_gene_embeddings "
            "method); leave level= out, or use a model such as BulkFormer."
        )
    # a table of features has its digest in the run, and its shape in the record
    recorded = {
        name: f"{value.shape[0]} genes × {value.shape[1]}" if hasattr(value, "shape") else value
        for name, value in arguments.items()
    }
    if run.output is not None:
        return _write_gene_embeddings(model, run, key, arguments, recorded)
    adata = run.whole
    latent = _mean_gene_embeddings(model, adata, arguments)
    record = run_record(model, adata, key_added=key, level="gene", **recorded)
    adata = target(adata, copy=run.copy)
    warn_overwritten(adata, key, {"varm": [key]})
    adata.varm[key] = latent
    adata.uns[key] = {PARAMS: record}
    return adata if run.copy or run.rows.paths else None


def _write_gene_embeddings(
    model: Any, run: Run, key: str, arguments: dict[str, Any], recorded: dict[str, Any]
) -> AnnData | None:
    """Write the embeddings of genes in each row, chunk by chunk."""
    given = {name: value for name, value in arguments.items() if name != "genes"}
    known = model.vocabulary.genes
    place = np.sort(model.vocabulary.align(run.whole.var_names).positions)
    if "genes" in arguments:
        wanted = pd.Index(np.atleast_1d(arguments["genes"]))
        place = known.get_indexer(wanted)
        if not len(place) or (place < 0).any() or not wanted.is_unique:
            raise KeyError(
                f"genes= holds {wanted[place < 0][:5].tolist()}, which are not in the model's "
                f"vocabulary (such as {', '.join(known[:3])}), no gene, or a gene twice."
            )
    names = known[place]

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        blocks = [
            embedded[:, place].reshape(len(embedded), -1)
            for _, embedded in model.get_gene_embeddings(part, **given)
        ]
        return {"embedding": np.concatenate(blocks)}

    settings = arguments | {"genes": names.tolist()}
    rows = max(1, _CHUNK_VALUES // (len(place) * _TYPICAL_WIDTH))
    with run.compute(
        compute,
        model,
        tool="embed genes",
        layers=[arguments["layer"]],
        arguments=settings,
        chunk_rows=rows,
    ):
        run.put("obsm", key, "embedding")
        share = run.rows.vocabulary_share(model)
        recorded = {name: value for name, value in recorded.items() if name != "genes"}
        record = model_record(model, share, key_added=key, level="gene", **recorded)
        run.target.uns[key] = {PARAMS: record, GENES: names.to_numpy(dtype=object)}
    return run.result


def _mean_gene_embeddings(model: Any, adata: AnnData, arguments: dict[str, Any]) -> np.ndarray:
    """Average the embeddings of each gene of ``adata`` over its observations, in one pass."""
    if "genes" in arguments:
        raise TypeError("genes= goes with output=; without it every gene of adata is embedded.")
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
