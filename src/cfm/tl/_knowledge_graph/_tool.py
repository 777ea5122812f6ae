"""A graph of codes, genes and annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cfm._adata import check_key, params_of, takes_anndata, target, warn_overwritten, warn_user
from cfm._docs import fill_docs
from cfm._fields import (
    CELL_CODE_KEY,
    GRAPH_EDGES,
    GRAPH_NODES,
    KNOWLEDGE_GRAPH_KEY,
    PARAMS,
)
from cfm.data._counts import Units
from cfm.data._matrix import check_unique_names, get_matrix
from cfm.datasets import ligand_receptor as bundled_pairs
from cfm.models import PretrainedModel
from cfm.tl._knowledge_graph._attention import (
    Attended,
    attention_model,
    attention_options,
    mark_relations,
    read_attention,
)
from cfm.tl._knowledge_graph._codes import (
    enrichment,
    importance,
    read_annotations,
    read_codes,
    read_expression,
)
from cfm.tl._knowledge_graph._communication import liana_links, score_links, strongest_links
from cfm.tl._knowledge_graph._knowledge import (
    NETWORKS,
    drug_targets,
    measured_pairs,
    read_knowledge,
    read_network,
)
from cfm.tl._knowledge_graph._tables import (
    RESERVED,
    communication_edges,
    edge_table,
    enrichment_edges,
    importance_edges,
    node_table,
    relation_edges,
    target_edges,
)
from cfm.tl._run import TEXTS, run_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.models import AttentionModel

Communication = Literal["permutation", "liana"]

#: Edges of a code: more are unreadable in a plot, and the weakest of these are near chance.
N_GENES, N_RELATIONS, N_LINKS = 10, 20, 5
#: Fold changes of codes with fewer cells are too noisy.
MIN_CELLS = 10
#: Least share of the cells of a code that express a gene, as in liana and CellPhoneDB.
MIN_SHARE = 0.1
#: Largest false discovery rate of an edge that is tested.
MAX_FDR = 0.05
#: A map of attention grows with the square of the genes; the mean of 20 cells is stable.
N_CELLS_PER_CODE = 20
#: As in CellPhoneDB and liana.
N_PERMUTATIONS = 1000
SEED = 0


@takes_anndata(columns=("codes", "annotations"))
@fill_docs(TEXTS)
def knowledge_graph(
    adata: AnnData,
    model: str | Path | PretrainedModel | AttentionModel | None = "cellvq-mini",
    *,
    codes: str = CELL_CODE_KEY,
    annotations: Sequence[str] = (),
    knowledge: Mapping[str, pd.DataFrame] | None = None,
    communication: Communication | None = "permutation",
    layer: str | None = None,
    units: Units | None = None,
    key_added: str = KNOWLEDGE_GRAPH_KEY,
    copy: bool = False,
) -> AnnData | None:
    r"""Build a graph of codes of cells, their genes, and annotations (CellVQ-Graph).

    Nodes are codes, genes, levels of annotations and, if given, drugs. Edges are of five kinds:

    ``"importance"``
        Code and gene: the 10 genes with the largest fold changes among those that 10 % of the cells
        of the code express and that pass a false discovery rate of .05 (Welch's t-test). The weight
        is the log2 fold change of the mean counts per 10,000 against all other cells, 1 added to
        each.
    ``"relation"``
        Gene and gene: the 20 pairs of a code with most attention to each other relative to the mean
        attention to them, from 20 cells of the code. Only with a model. ``support`` lists the
        networks in ``knowledge`` with the pair.
    ``"communication"``
        From code to code: a ligand in the sender and its receptor in the receiver, the 5 strongest
        pairs of two codes; see ``communication``.
    ``"enrichment"``
        Code and level of an annotation: the code has more such cells than expected (hypergeometric
        test); the weight is the log odds ratio.
    ``"target"``
        From drug to gene, for genes in the graph.

    Codes with fewer than 10 cells are left out; their cells still count as others.

    Parameters
    ----------
    adata
        Cells by genes, in any storage. Genes as symbols or Ensembl ids.
    model
        A model with attention (:class:`cfm.models.AttentionModel`). ``None``: without relations.
        %(load)s
    codes
        Column of ``obs`` with the code of each cell, as :func:`cfm.tl.cell_codes` writes it, or
        any groups of cells, such as clusters. Cells without a code are left out.
    annotations
        Columns of ``obs`` with categories: cell type, tissue, disease, drug … Missing
        values are left out.
    knowledge
        Tables of known relations, by name:

        - ``"ligand_receptor"``: pairs in the columns ``ligand`` and ``receptor``, genes of a
          complex joined by ``_``; by default :func:`cfm.datasets.ligand_receptor`.
        - ``"tf"``: regulation in the columns ``source`` and ``target``, such as DoRothEA.
        - ``"protein"``: interactions of proteins in the columns ``gene1`` and ``gene2``, such as
          Reactome FI.
        - ``"drugs"``: targets of drugs in the columns ``compound``, ``gene`` and, optionally,
          ``action``, such as :func:`cfm.datasets.drug_targets`.
    communication
        Score of pairs. ``"permutation"``: :math:`\sqrt{L_a R_b}` with the mean expression of the
        ligand in the sender and of the receptor in the receiver, each the minimum over a complex;
        the weight is the difference from the average cell, the test permutes the codes of cells.
        ``"liana"``: the weight is :math:`-\log_{10}` of the consensus of liana's methods
        (``specificity_rank``), the test that of CellPhoneDB (needs ``cfm-tools[communication]``).
        ``None``: no such edges.
    layer, units
        Layer to read instead of ``X``, and its units: ``"counts"``, or ``"log1p_cp10k"``, the
        natural ``log1p`` of counts per 10,000. Values are checked against the units. By default
        those of the run of :func:`cfm.tl.cell_codes` for ``codes``, else counts in ``X``.
    %(key_added)s
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Query it with
    :func:`cfm.get.knowledge_graph`. Writes, with ``key`` = ``'knowledge_graph' | key_added``:

    ``adata.uns[key]['nodes']``
        DataFrame; index: ids such as ``"code:7"``, ``"gene:STAT1"``, ``"cell_type:B cells"``,
        ``"drug:imatinib"``. ``kind`` (``"code"``, ``"gene"``, ``"drug"`` or the name of an
        annotation) and ``label``, str; ``size`` int64: cells of a code or level, cells of the
        codes that express a gene, genes in the graph that a drug acts on; ``n_edges`` int64.
    ``adata.uns[key]['edges']``
        DataFrame, the strongest of each kind first: ``source``, ``target`` (ids) and ``kind``,
        str; ``weight`` float64 in the units of its kind; ``strength`` float64, its rank
        among the edges of the kind over their number (equal ones share the mean), comparable
        between kinds; ``directed`` bool; ``p_value`` and ``fdr`` float64
        (Benjamini & Hochberg; of expression within a code, of communication over all
        tests, of enrichment within an annotation), ``NaN`` without a test. The evidence:
        ``evidence``, a sentence, and by kind, else ``NaN`` or ``""``: ``attention`` (1 = mean
        attention to a token; of relations, the attention expected by chance), ``attention_lift``
        (log2 of the attention to the gene against the mean of the other codes),
        ``log2_fold_change``, ``share`` (of the code's cells that express the gene); ``code`` (of a
        relation),
        ``support`` (``"tf"``, ``"protein"`` or both joined by ``|``); ``ligand``, ``receptor``,
        ``score`` (:math:`\sqrt{L_a R_b}`), ``ligand_mean``, ``receptor_mean``; ``log_odds``,
        ``overlap`` and ``expected`` (cells).
    ``adata.uns[key]['params']``
        The arguments, layer and units, the model, its SHA-256 and the share of its genes found;
        ``n_pairs`` ligand-receptor pairs measured; under ``support`` for each network ``n_edges``,
        ``n_supported``, ``expected`` and ``p_value``: whether it supports more of the relations
        than of edges between genes of similar expression (permuted within tenths).

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, ``model`` has no attention or takes no ``units``, or a table
        is no DataFrame.
    KeyError
        If a column of ``obs`` or the layer does not exist.
    ValueError
        If there are fewer than two codes or none has 10 cells, no pair or interaction of a
        table is measured or its columns are missing, an annotation is the column of the codes or
        has the name of another kind, names are not unique, or the values are not in the
        declared units. ``adata`` stays unchanged.
    ImportError
        If ``communication="liana"`` and liana is not installed.

    Warns
    -----
    UserWarning
        If codes are left out, an annotation has one level, there is no edge, no link passes with so
        few permutations, or a field of another tool is replaced.

    Notes
    -----
    CellVQ-Graph trains a small network on each data set; this graph has the attention of the model
    itself. Attention is no proof of regulation. A communication edge means that two codes express a
    pair more than the average cell, not that their cells meet. Random draws depend on the names of
    cells, not on their order.

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
    cells = read_codes(adata, codes, MIN_CELLS)
    made = params_of(adata.uns, codes)
    made = made if "fingerprint" in made else {}  # only cell_codes writes it
    if layer is None and units is None:
        layer, units = made.get("layer"), made.get("units")
    units = units or "counts"
    matrix = get_matrix(adata, layer=layer)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    tables = read_knowledge({} if knowledge is None else knowledge)
    networks = {
        name: read_network(tables[name], adata, name) for name in NETWORKS if name in tables
    }
    acting = drug_targets(tables["drugs"], adata) if "drugs" in tables else None
    pairs = None
    if communication is not None:
        given = tables.get("ligand_receptor")
        pairs = measured_pairs(bundled_pairs() if given is None else given, adata)
    network = attention_model(model)
    options = {}
    if network is not None:
        options = attention_options(network, layer, units, made.get("total_counts"))

    names = adata.var_names.astype(str).to_numpy(dtype=object)
    columns = np.empty(0, dtype=np.int64) if pairs is None else pairs.columns
    expression, kept = read_expression(matrix, where, units, cells, columns)
    attended: Attended | None = None
    if network is not None:
        drawn = cells.sample(N_CELLS_PER_CODE, SEED)
        attended = read_attention(
            network, adata, drawn, expression.share, MIN_SHARE, N_RELATIONS, options
        )
    genes = importance(
        expression,
        None if attended is None else attended.attention,
        names,
        n_genes=N_GENES,
        min_share=MIN_SHARE,
        max_fdr=MAX_FDR,
    )
    parts = [importance_edges(genes, cells.names, names)]
    chance: dict[str, Any] = {"n_permutations": N_PERMUTATIONS, "seed": SEED}
    support: dict[str, Any] = {}
    if attended is not None:
        share = expression.share.mean(axis=0)
        related, support = mark_relations(attended, networks, share, **chance)
        parts.append(relation_edges(related, cells.names, names))
    if pairs is not None:
        chance["min_share"] = MIN_SHARE
        if communication == "liana":
            links = liana_links(kept, cells, pairs, **chance)
        else:
            links = score_links(kept, cells.code, len(cells.names), pairs, **chance)
        links = strongest_links(links, N_LINKS, MAX_FDR, N_PERMUTATIONS)
        parts.append(communication_edges(links, cells.names))
    enriched = enrichment(cells, labels)
    labels = {name: labels[name] for name in enriched["annotation"].unique()}
    enriched = enriched[(enriched["fdr"] <= MAX_FDR) & (enriched["log_odds"] > 0)]
    parts.append(enrichment_edges(enriched, cells.names))
    if acting is not None:
        ends = {end for part in parts if len(part) for end in (*part["source"], *part["target"])}
        acting = acting[[f"gene:{names[g]}" in ends for g in acting["gene"]]]
        parts.append(target_edges(acting, names))
    edges = edge_table(parts)
    nodes = node_table(adata, cells, expression, labels, edges)
    if not len(edges):
        warn_user(
            f"No edge of any kind was found among {len(nodes)} nodes: the codes differ in nothing "
            f"that passes a false discovery rate of {MAX_FDR}."
        )
    record: dict[str, Any] = {
        "codes": codes,
        "annotations": list(labels) or None,
        "communication": communication,
        "knowledge": list(tables) or None,
        "layer": layer,
        "units": units,
        "total_counts": options.get("total_counts"),
        "key_added": key_added,
        "n_pairs": None if pairs is None else len(pairs.table),
        "n_cells": len(cells.rows),
        "n_cells_read": None if attended is None else attended.n_cells,
        "support": support or None,
    }
    if isinstance(network, PretrainedModel):
        record = run_record(network, adata, **record)
    else:
        record = {name: value for name, value in record.items() if value is not None}
        record["model"] = "none" if network is None else type(network).__name__
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"uns": [key_added]})
    adata.uns[key_added] = {PARAMS: record, GRAPH_NODES: nodes, GRAPH_EDGES: edges}
    return adata if copy else None
