"""A graph of codes, genes and annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._arguments import SHARE
from cfm._fields import (
    CELL_CODE_KEY,
    GRAPH_EDGES,
    GRAPH_NODES,
    KNOWLEDGE_GRAPH_KEY,
    PARAMS,
)
from cfm.data._counts import Units
from cfm.data._matrix import check_unique_names
from cfm.data._store import check_key, target, warn_overwritten
from cfm.data._takes_anndata import takes_anndata
from cfm.data._warn import warn_user
from cfm.datasets import ligand_receptor as bundled_pairs
from cfm.tl._knowledge_graph_annotations import enrichment, read_annotations
from cfm.tl._knowledge_graph_attention import Attended, read_attention
from cfm.tl._knowledge_graph_cells import (
    ExpressionReader,
    read_codes,
    sample_cells,
)
from cfm.tl._knowledge_graph_communication import communication, measured_pairs, strongest_links
from cfm.tl._knowledge_graph_importance import Importance, importance
from cfm.tl._knowledge_graph_model import attention_model, attention_options, graph_record
from cfm.tl._knowledge_graph_networks import read_network
from cfm.tl._knowledge_graph_relations import drug_targets, relations
from cfm.tl._knowledge_graph_tables import (
    RESERVED,
    communication_edges,
    edge_table,
    enrichment_edges,
    importance_edges,
    node_table,
    relation_edges,
    target_edges,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import AttentionModel, PretrainedModel

_NO_COLUMNS = np.empty(0, dtype=np.int64)


@takes_anndata(
    columns=("codes", "annotations", "total_counts"),
    ranges={
        "n_relations": 0,
        "n_links": 0,
        "n_permutations": 0,
        "min_share": SHARE,
        "max_fdr": SHARE,
    },
)
def knowledge_graph(
    adata: AnnData,
    model: str | Path | PretrainedModel | AttentionModel | None = "cellvq-mini",
    *,
    codes: str = CELL_CODE_KEY,
    annotations: Sequence[str] = (),
    ligand_receptor: pd.DataFrame | None = None,
    tf_network: pd.DataFrame | None = None,
    protein_network: pd.DataFrame | None = None,
    drugs: pd.DataFrame | None = None,
    importance_by: Importance = "expression",
    n_genes: int = 10,
    n_relations: int = 20,
    n_links: int = 5,
    min_cells: int = 10,
    min_share: float = 0.1,
    max_fdr: float = 0.05,
    n_cells_per_code: int = 20,
    n_permutations: int = 1000,
    layer: str | None = None,
    units: Units = "counts",
    total_counts: str | None = None,
    seed: int = 0,
    key_added: str = KNOWLEDGE_GRAPH_KEY,
    device: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Join codes of cells, their genes, and annotations in a graph (CellVQ-Graph).

    Nodes are codes, genes, levels of annotations and, if given, drugs. Edges are of five kinds:

    ``"importance"``
        Code and gene: the ``n_genes`` genes that set a code apart, by what they do in its cells
        and by what the model attends to there; see ``importance_by``.
    ``"relation"``
        Gene and gene: the ``n_relations`` pairs of a code that attend to each other most, beyond
        how much everything attends to them. Only with a model. Marked where ``tf_network`` or
        ``protein_network`` has the pair.
    ``"communication"``
        From code to code: a ligand in the sender and its receptor in the receiver. The score of
        a pair is :math:`\sqrt{L_a R_b}` with the mean expression of the ligand in the sender and
        of the receptor in the receiver, each the least over a complex; its weight is the score
        minus that of the average cell; tested by permuting the codes of cells.
    ``"enrichment"``
        Code and level of an annotation: the code has more such cells than expected
        (hypergeometric test); weight is the log odds ratio.
    ``"target"``
        From drug to gene, for genes that are in the graph.

    Parameters
    ----------
    adata
        Cells by genes, in any storage. Genes as symbols or Ensembl ids.
    model
        A model with attention (:class:`cfm.models.AttentionModel`), the name of a checkpoint, a
        folder, or ``hf://org/name``. ``None``: without; then there are no relations, and
        importance is by expression.
    codes
        Column of ``obs`` with the code of each cell, as :func:`cfm.tl.cell_codes` writes it, or
        any groups of cells, such as clusters. Cells without one take no part.
    annotations
        Columns of ``obs`` with categories: cell type, tissue, disease, drug … A missing value
        counts for nothing.
    ligand_receptor
        Pairs in the columns ``ligand`` and ``receptor``, genes of a complex joined by ``_``. By
        default :func:`cfm.datasets.ligand_receptor`.
    tf_network
        Regulation in the columns ``source`` and ``target``, such as DoRothEA.
    protein_network
        Interactions of proteins in the columns ``gene1`` and ``gene2``, such as Reactome FI.
    drugs
        Targets of drugs in the columns ``compound``, ``gene`` and, if there, ``action``, such as
        :func:`cfm.datasets.drug_targets`.
    importance_by
        Weight of the importance: ``"expression"`` (log2 fold change of the mean counts per 10,000
        of the code against those of all other cells, 1 added to each), ``"attention"`` (log2 ratio
        of the attention from the cell to the gene, 0 where it is no token, against the mean of the
        other codes) or ``"combined"`` (their sum). All are stored. Planted markers are recovered
        by expression; attention says little beyond which cells express a gene (see the
        benchmarks).
    n_genes
        Genes of a code at most.
    n_relations
        Pairs of genes of a code at most, 0 for none.
    n_links
        Ligand-receptor pairs from one code to another at most, 0 for none.
    min_cells
        Codes with fewer cells are left out; their cells still count as others.
    min_share
        Least share of the cells of a code that express a gene, for it to be important, to speak
        or to listen.
    max_fdr
        Largest false discovery rate of an edge that is tested.
    n_cells_per_code
        Cells of a code at most whose attention is read.
    n_permutations
        Of codes for the communication, and of genes for the support by networks; 0 for no tests.
    layer
        Layer to read instead of ``X``.
    units
        What is read: ``"counts"``, or ``"log1p_cp10k"``, the natural ``log1p`` of counts per
        10,000. Declared, and checked.
    total_counts
        Column of ``obs`` with the counts of a cell, for a model that reads ``"log1p_cp10k"``.
    seed
        Seed of the sample of cells and of the permutations.
    key_added
        Name of the result.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Ask it with
    :func:`cfm.tl.get_knowledge_graph`. Writes, with ``key`` = ``'knowledge_graph' | key_added``:

    ``adata.uns[key]['nodes']``
        DataFrame; index: ids such as ``"code:7"``, ``"gene:STAT1"``, ``"cell_type:B cells"``,
        ``"drug:imatinib"``. ``kind`` (``"code"``, ``"gene"``, ``"drug"`` or the name of an
        annotation) and ``label``, str; ``size`` int64: cells of a code or level, cells of the
        codes that express a gene, genes in the graph that a drug acts on; ``n_edges`` int64.
    ``adata.uns[key]['edges']``
        DataFrame, the strongest of each kind first: ``source``, ``target`` (ids) and ``kind``,
        str; ``weight`` float64 in the units of its kind; ``strength`` float64, its rank
        among the edges of the kind over their number (equal ones share the mean), so that kinds
        compare; ``directed`` bool; ``p_value`` and ``fdr`` float64
        (Benjamini & Hochberg; of expression within a code, of communication over all that was
        tested, of enrichment within an annotation), ``NaN`` where nothing is tested. What speaks
        for it: ``evidence``, a sentence, and by kind, else ``NaN`` or ``""``: ``attention`` (1 =
        as much as to any token; of relations, as chance has it), ``attention_lift`` (log2),
        ``log2_fold_change``, ``share`` (of the code's cells that express the gene); ``code`` (in
        which two genes are related), ``support`` (``"tf"``, ``"protein"`` or both joined by
        ``|``); ``ligand``, ``receptor``, ``score``, ``ligand_mean``, ``receptor_mean``;
        ``log_odds``, ``overlap`` and ``expected`` (cells).
    ``adata.uns[key]['params']``
        The arguments, the model, its SHA-256 and the share of its genes found; ``n_pairs``
        ligand-receptor pairs measured; under ``support`` for each network ``n_edges``,
        ``n_supported``, ``expected`` and ``p_value``: whether it has more of the relations than of
        edges between other genes that are about as much expressed (permuted within tenths).

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, ``model`` has no attention or does not take the units, or a
        table is no DataFrame.
    KeyError
        If a column of ``obs`` or the layer does not exist.
    ValueError
        If there are fewer than two codes or none has ``min_cells``, no pair or interaction of a
        table is measured or its columns are missing, an annotation is the column of the codes or
        has the name of another kind, an argument is out of range, names are not unique, or the
        values are not in the units declared. Whatever is raised, ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If codes are left out, an annotation has one level, nothing is found, no link passes for
        want of permutations, or a field that another tool wrote is replaced.

    Notes
    -----
    CellVQ-Graph trains a small network of its own on each data set; here the attention of the
    model itself is read. Attention is what a model looks at, not proof of regulation, and a
    communication edge says that two codes express a pair more than the average cell, not that
    their cells meet. Random draws go by the names of cells: their order changes nothing.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_communication()
    >>> cfm.tl.knowledge_graph(cells, model=None, codes="cell_type", annotations=["batch"])
    >>> edges = cells.uns["knowledge_graph"]["edges"]
    >>> sorted(edges["kind"].unique())
    ['communication', 'importance']
    """
    check_key(key_added)
    check_unique_names(adata.var_names, axis="var")
    labels = read_annotations(adata, annotations, codes, RESERVED)
    cells = read_codes(adata, codes, min_cells)
    reader = ExpressionReader(adata, layer, units)
    networks = {
        name: read_network(table, adata, name=f"{name}_network", columns=columns)
        for name, table, columns in (
            ("tf", tf_network, ("source", "target")),
            ("protein", protein_network, ("gene1", "gene2")),
        )
        if table is not None
    }
    acting = None if drugs is None else drug_targets(drugs, adata)
    pairs = None
    if n_links:
        pairs = measured_pairs(
            bundled_pairs() if ligand_receptor is None else ligand_receptor, adata
        )
    network = attention_model(model, device)
    if network is None and importance_by != "expression":
        raise ValueError(f"importance_by={importance_by!r} needs a model; found model=None.")
    options = {} if network is None else attention_options(network, layer, units, total_counts)

    names = adata.var_names.astype(str).to_numpy(dtype=object)
    expression, kept = reader.read(cells, _NO_COLUMNS if pairs is None else pairs.columns)
    attended: Attended | None = None
    if network is not None:
        attended = read_attention(
            network,
            adata,
            cells,
            sample_cells(cells, n_cells_per_code, seed),
            expression.share,
            min_share=min_share,
            relations=n_relations > 0,
            options=options,
        )
    genes = importance(
        expression,
        attended,
        names,
        measure=importance_by,
        n_genes=n_genes,
        min_share=min_share,
        max_fdr=max_fdr,
    )
    parts = [importance_edges(genes, cells.names, names)]
    support: dict[str, Any] = {}
    if attended is not None and n_relations:
        related, support = relations(
            attended,
            networks,
            n_relations,
            expression.share.mean(axis=0),
            n_permutations=n_permutations,
            seed=seed,
        )
        parts.append(relation_edges(related, cells.names, names))
    if pairs is not None:
        links = communication(
            kept,
            cells.code,
            len(cells.names),
            pairs,
            min_share=min_share,
            n_permutations=n_permutations,
            seed=seed,
        )
        links = strongest_links(links, n_links, max_fdr)
        parts.append(communication_edges(links, cells.names))
    enriched = enrichment(cells, labels)
    enriched = enriched[(enriched["fdr"] <= max_fdr) & (enriched["log_odds"] > 0)]
    parts.append(enrichment_edges(enriched, cells.names))
    labels = {name: labels[name] for name in labels if _levels(labels[name][cells.rows]) > 1}
    edges = edge_table(parts)
    if acting is not None:
        present = {end for end in edges["target"] if end.startswith("gene:")}
        present |= {end for end in edges["source"] if end.startswith("gene:")}
        shown = acting[[f"gene:{names[g]}" in present for g in acting["gene"]]]
        edges = edge_table([*parts, target_edges(shown, names)])
    nodes = node_table(adata, cells, expression, labels, edges)
    if not len(edges):
        warn_user(
            f"No edge of any kind was found among {len(nodes)} nodes: the codes differ in nothing "
            f"that passes max_fdr={max_fdr} and min_share={min_share}."
        )
    arguments: dict[str, Any] = {
        "codes": codes,
        "annotations": list(labels) or None,
        "importance_by": importance_by,
        "n_genes": n_genes,
        "n_relations": n_relations,
        "n_links": n_links,
        "min_cells": min_cells,
        "min_share": float(min_share),
        "max_fdr": float(max_fdr),
        "n_cells_per_code": n_cells_per_code,
        "n_permutations": n_permutations,
        "layer": layer,
        "units": units,
        "total_counts": total_counts,
        "seed": seed,
        "key_added": key_added,
        "ligand_receptor": None if pairs is None else _origin(ligand_receptor),
        "n_pairs": None if pairs is None else len(pairs.table),
        "n_cells": len(cells.rows),
        "n_cells_read": None if attended is None else attended.n_cells,
        "support": support or None,
    }
    record = graph_record(network, adata, arguments)
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"uns": [key_added]})
    adata.uns[key_added] = {PARAMS: record, GRAPH_NODES: nodes, GRAPH_EDGES: edges}
    return adata if copy else None


def _levels(labels: np.ndarray) -> int:
    return len(set(labels.tolist()) - {""})


def _origin(table: pd.DataFrame | None) -> str:
    return "given" if table is not None else "cfm.datasets.ligand_receptor"
