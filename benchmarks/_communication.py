"""What the benchmark of the knowledge graph computes: planted truth, liana, pairs of genes."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats
from sklearn.metrics import average_precision_score

import cfm
from cfm.tl._knowledge_graph._attention import attention_options, read_attention
from cfm.tl._knowledge_graph._codes import attention_lift, read_codes, read_expression
from cfm.tl._knowledge_graph._tool import MIN_CELLS, N_CELLS_PER_CODE, SEED

#: Every link and every gene, whatever its test says.
EVERYTHING: dict[str, Any] = {"N_LINKS": 100_000, "N_GENES": 100_000, "MAX_FDR": 1.0}
TRIPLE = ["source", "target", "ligand", "receptor"]
LIANA = {
    "liana, magnitude rank": ("magnitude_rank", False),
    "liana, specificity rank": ("specificity_rank", False),
    "liana, product of means": ("expr_prod", True),
    "liana, NATMI specificity weight": ("spec_weight", True),
    "liana, Connectome scaled weight": ("scaled_weight", True),
}


def has_liana() -> bool:
    """Whether liana can be imported."""
    return importlib.util.find_spec("liana") is not None


def all_edges(adata: ad.AnnData, codes: str, communication: Any = "permutation") -> pd.DataFrame:
    """Return every edge of a graph without a model, tested or not."""
    with mock.patch.multiple("cfm.tl._knowledge_graph._tool", **EVERYTHING):
        made = cfm.tl.knowledge_graph(
            adata, None, codes=codes, communication=communication, copy=True
        )
    return made.uns["knowledge_graph"]["edges"]


def gene_scores(adata: ad.AnnData, model: Any, codes: str) -> pd.DataFrame:
    """Return the attention to genes of each code, and its sum with expression, where above 0."""
    cells = read_codes(adata, codes, MIN_CELLS)
    columns = np.empty(0, dtype=np.int64)
    expression, _ = read_expression(adata.X, "adata.X", "counts", cells, columns)
    drawn = cells.sample(N_CELLS_PER_CODE, SEED)
    options = attention_options(model, None, "counts", None)
    found = read_attention(model, adata, drawn, expression.share, 1.1, 0, options)
    lift = attention_lift(found.attention)
    both = expression.log2_fold_change + lift
    code, gene = np.nonzero((both > 0) & (expression.share > 0))
    return pd.DataFrame(
        {
            "source": [f"code:{cells.names[i]}" for i in code],
            "target": "gene:" + adata.var_names[gene].astype(str),
            "kind": "importance",
            "attention_lift": lift[code, gene],
            "weight": both[code, gene],
        }
    )


def own_links(edges: pd.DataFrame) -> pd.DataFrame:
    """Return the links of a graph with the names of their codes."""
    links = edges[edges["kind"] == "communication"].copy()
    for side in ("source", "target"):
        links[side] = links[side].str.removeprefix("code:")
    return links[[*TRIPLE, "weight", "score", "p_value"]].reset_index(drop=True)


def liana_links(adata: ad.AnnData, groupby: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """Rank the same links by liana's ``rank_aggregate``, with the same pairs and filter."""
    import liana
    import scanpy as sc

    logged = ad.AnnData(adata.X.copy(), obs=adata.obs[[groupby]].copy(), var=adata.var[[]].copy())
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = liana.mt.rank_aggregate(
            logged,
            groupby=groupby,
            resource=pairs,
            expr_prop=0.1,
            min_cells=5,
            use_raw=False,
            n_perms=1000,
            n_jobs=1,
            inplace=False,
            verbose=False,
        )
    names = {"ligand_complex": "ligand", "receptor_complex": "receptor"}
    kept = [*TRIPLE, *(column for column, _ in LIANA.values())]
    return found.rename(columns=names)[kept].astype({n: str for n in TRIPLE})


def link_precision(
    truth: pd.DataFrame, n_types: int, n_pairs: int, links: pd.DataFrame, value: np.ndarray
) -> float:
    """Average precision of a ranking over all triples; those that are not ranked come last."""
    wanted = set(
        truth[["sender", "receiver", "ligand", "receptor"]].itertuples(index=False, name=None)
    )
    best = pd.Series(np.asarray(value, dtype=float)).groupby(
        [links[name].astype(str).to_numpy() for name in TRIPLE]
    )
    ranked = best.max()
    is_link = np.array([name in wanted for name in ranked.index])
    n_rest = n_types**2 * n_pairs - len(ranked)
    floor = float(ranked.min()) - 1.0
    missed = len(wanted) - int(is_link.sum())
    labels = np.concatenate([is_link, np.arange(n_rest) < missed])
    return float(average_precision_score(labels, np.append(ranked, np.full(n_rest, floor))))


def marker_precision(adata: ad.AnnData, edges: pd.DataFrame, column: str) -> float:
    """Mean over types of the average precision of a column over all genes."""
    genes = edges[edges["kind"] == "importance"]
    scores = []
    for name in adata.obs["cell_type"].cat.categories:
        own = genes[genes["source"] == f"code:{name}"]
        value = own.set_index(own["target"].str.removeprefix("gene:"))[column]
        value = value.reindex(adata.var_names).fillna(-1e9)
        scores.append(average_precision_score(adata.var["marker_of"] == name, value))
    return float(np.mean(scores))


def majority(codes: pd.Series, types: pd.Series) -> dict[str, str]:
    """Return the most frequent type of each code."""
    table = pd.crosstab(codes.astype(str), types.astype(str))
    return dict(table.idxmax(axis=1).items())


class UniformAttention:
    """Attends to every token alike: what is left is which cells express a gene."""

    def get_attention(self, adata: ad.AnnData, *, layer: str | None = None) -> Any:
        """Yield the maps."""
        matrix = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
        for row in matrix:
            genes = adata.var_names[np.sort(row.indices[row.data > 0])]
            n = len(genes) + 1
            yield genes.insert(0, "<summary>"), np.full((1, 1, n, n), 1.0 / n, dtype=np.float32)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval (Student's t); without one below three values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 3:
        return float(values.mean()), float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def coexpressed(
    adata: ad.AnnData, codes: str, per_code: dict[str, int], *, min_share: float
) -> pd.DataFrame:
    """Return as many pairs of each code, those of the largest correlation of log values."""
    rows = []
    values = sparse.csr_matrix(adata.X, dtype=np.float64)
    total = np.asarray(values.sum(axis=1)).ravel()
    log = values.multiply(1e4 / total[:, None]).tocsr()
    log.data = np.log1p(log.data)
    labels = adata.obs[codes].astype(str).to_numpy()
    for code, n in per_code.items():
        own = log[labels == code]
        share = np.asarray((own > 0).mean(axis=0)).ravel()
        genes = np.flatnonzero(share >= min_share)
        genes = genes[np.argsort(-share[genes], kind="stable")][:1000]
        with np.errstate(all="ignore"):
            correlation = np.corrcoef(own[:, genes].toarray().T)
        correlation = np.nan_to_num(np.triu(correlation, 1), nan=0.0)
        best = np.argsort(-correlation, axis=None, kind="stable")[:n]
        a, b = np.unravel_index(best, correlation.shape)
        rows += [
            (code, adata.var_names[genes[i]], adata.var_names[genes[j]])
            for i, j in zip(a, b, strict=True)
        ]
    return pd.DataFrame(rows, columns=["code", "a", "b"])


def known_pairs(table: pd.DataFrame, columns: tuple[str, str]) -> set[frozenset[str]]:
    """Return the interactions of a network without direction."""
    return {frozenset(pair) for pair in table[list(columns)].astype(str).itertuples(index=False)}


def share_known(pairs: pd.DataFrame, known: set[frozenset[str]]) -> float:
    """Return the share of different pairs that a network knows."""
    unique = {frozenset(pair) for pair in pairs[["a", "b"]].itertuples(index=False)}
    return float(np.mean([pair in known for pair in unique])) if unique else float("nan")
