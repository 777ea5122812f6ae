"""Simulated cells that communicate, with a known answer."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm.datasets._bundled import ligand_receptor
from cfm.datasets._toy_genes import negative_binomial, toy_genes

_N_GENES = 400
_TYPES = (
    "B cell",
    "Monocyte",
    "NK cell",
    "T cell",
    "Dendritic cell",
    "Neutrophil",
    "Fibroblast",
    "Endothelial cell",
)
#: Planted markers of each type, beside its ligands and receptors.
_MARKERS = 10
#: Pairs of each kind that look like links and are none.
_DECOYS = 8
#: Expected counts of a cell for a gene that is off, and for a marker where it is none.
_OFF, _MARKER_BASE = 0.05, 0.3
_DISPERSION = 0.3


@checks_arguments()
def toy_communication(
    seed: int = 0, *, n_cells: int = 600, n_types: int = 5, n_links: int = 12
) -> ad.AnnData:
    r"""Simulated cells with a known answer: which types signal to which, and by which genes.

    Genes have real names; what they do is invented. Each planted link is a pair of
    :func:`cfm.datasets.ligand_receptor` whose ligand is raised in one type and whose receptor (all
    genes of a complex) in another. As many genes as that take part in pairs that are no links:
    eight pairs are on in every type, eight have a ligand raised in one type and a receptor that is
    off everywhere, eight the other way round. No other pair of the table has all of its genes in
    the panel. Each type has ten markers of its own.

    Counts are negative binomial (dispersion 0.3) with mean :math:`s_i\, m_g\, 2^{a_{cg} + e_{cg}}`:
    size of the cell (log-normal, median 1, standard deviation 0.35), level of the gene (0.05 where
    a ligand or receptor is off, 0.3 for markers, else log-normal around 1), noise :math:`a` of type
    and gene (normal, standard deviation 0.25) and planted log2 fold change :math:`e` (uniform, 2 to
    5 for ligands and receptors, 0.7 to 3 for markers).

    Parameters
    ----------
    seed
        Seed of the random draw; links, markers and their strengths differ between seeds.
    n_cells
        Number of cells. Types differ in size: the first has the most cells.
    n_types
        Number of cell types, 2 to 8.
    n_links
        Number of planted links, 1 to 40.

    Returns
    -------
    anndata.AnnData
        Cells × 400 genes in random order, `X` CSR float32 of whole numbers, and

        `adata.obs` : ``cell_type`` and ``batch`` (two levels without any effect) as categories.
        `adata.var` : ``marker_of``, the type in which the gene is raised, str, "" for none, and
        ``role`` ("marker", "ligand", "receptor", "decoy" or ""), str.
        `adata.uns["truth"]` : two DataFrames: ``links`` (``sender``, ``receiver``, ``ligand``,
        ``receptor``, str, and ``log2_fold_change`` float64, the smaller of its two sides) and
        ``markers`` (``gene``, ``cell_type``, str, and ``log2_fold_change`` float64).
        `adata.uns["params"]` : the arguments.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    See Also
    --------
    cfm.tl.knowledge_graph : what to do with them.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_communication()
    >>> cells.obs["cell_type"].nunique(), len(cells.uns["truth"]["links"])
    (5, 12)
    """
    if not 2 <= n_types <= len(_TYPES) or not 1 <= n_links <= 40 or n_cells < 10 * n_types:
        raise ValueError(
            f"n_cells is {n_cells}, n_types {n_types} and n_links {n_links}; expected 2 to "
            f"{len(_TYPES)} types of at least 10 cells each, and 1 to 40 links."
        )
    rng = np.random.default_rng(seed)
    types = np.array(_TYPES[:n_types], dtype=object)
    pairs = _pairs(n_links + 3 * _DECOYS)
    genes, level = _panel(pairs)
    place = {gene: i for i, gene in enumerate(genes)}
    raised = np.zeros((n_types, len(genes)))  # planted log2 fold change
    role = np.full(len(genes), "", dtype=object)

    links = []
    for number, (ligand, receptor) in enumerate(pairs):
        own = [place[g] for g in ligand.split("_")], [place[g] for g in receptor.split("_")]
        sender, receiver = rng.choice(n_types, 2, replace=False)
        effect = rng.uniform(2.0, 5.0, 2)
        kind = "link" if number < n_links else ("both", "ligand", "receptor")[number % 3]
        for side, (columns, home) in enumerate(zip(own, (sender, receiver), strict=True)):
            level[columns] = _OFF
            role[columns] = ("ligand", "receptor")[side] if kind == "link" else "decoy"
            if kind == "both":
                level[columns] = _OFF * 2 ** effect[side]
            elif kind in ("link", ("ligand", "receptor")[side]):
                raised[home, columns] = effect[side]
        if kind == "link":
            links.append((types[sender], types[receiver], ligand, receptor, effect.min()))
    free = rng.permutation(np.flatnonzero(role == ""))[: _MARKERS * n_types]
    for number, column in enumerate(free):
        level[column], role[column] = _MARKER_BASE, "marker"
        raised[number % n_types, column] = rng.uniform(0.7, 3.0)

    share = np.linspace(2.0, 1.0, n_types) / np.linspace(2.0, 1.0, n_types).sum()
    # At least a few cells of every type, the rest by chance.
    kind_of = np.concatenate(
        [np.repeat(np.arange(n_types), 5), rng.choice(n_types, n_cells - 5 * n_types, p=share)]
    )
    kind_of = rng.permutation(kind_of)
    change = raised + 0.25 * rng.standard_normal(raised.shape)
    size = np.exp(0.35 * rng.standard_normal(n_cells))
    mean = size[:, None] * level * np.exp2(change)[kind_of]
    adata = ad.AnnData(
        sparse.csr_matrix(negative_binomial(mean, np.array(_DISPERSION), rng)),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(kind_of, categories=pd.Index(types)),
                "batch": pd.Categorical(rng.choice(["one", "two"], n_cells)),
            },
            index=[f"cell{i:05d}" for i in range(n_cells)],
        ),
        var=pd.DataFrame({"marker_of": _homes(raised, types), "role": role}, index=genes),
    )
    named = ["sender", "receiver", "ligand", "receptor", "log2_fold_change"]
    where = np.argwhere(raised > 0)
    adata.uns["truth"] = {
        "links": _table(pd.DataFrame(links, columns=named)),
        "markers": _table(
            pd.DataFrame(
                {
                    "gene": np.array(genes, dtype=object)[where[:, 1]],
                    "cell_type": types[where[:, 0]],
                    "log2_fold_change": raised[where[:, 0], where[:, 1]],
                }
            )
        ),
    }
    adata.uns["params"] = {
        "seed": seed,
        "n_cells": n_cells,
        "n_types": n_types,
        "n_links": n_links,
    }
    return adata


def _pairs(n: int) -> list[tuple[str, str]]:
    """Choose pairs that share no gene, such that their genes form no other pair of the table."""
    table = ligand_receptor()
    listed = [
        (ligand, receptor, frozenset(f"{ligand}_{receptor}".split("_")))
        for ligand, receptor in table.itertuples(index=False, name=None)
    ]
    partners: dict[str, set[str]] = {}
    for _, _, members in listed:
        for gene in members:
            partners.setdefault(gene, set()).update(members)
    chosen: list[tuple[str, str]] = []
    near: set[str] = set()  # genes of the chosen pairs, and all that stand in a pair with them
    for i in np.random.default_rng(0).permutation(len(listed)):
        ligand, receptor, members = listed[i]
        size = len(ligand.split("_")) + len(receptor.split("_"))
        alone = sum(members >= other for _, _, other in listed) == 1
        if size > 3 or size > len(members) or not alone or members & near:
            continue
        chosen.append((ligand, receptor))
        near.update(*(partners[gene] for gene in members))
        if len(chosen) == n:
            break
    return chosen


def _panel(pairs: list[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
    """Return the genes, and their levels as far as nothing is planted in them."""
    known = {gene for pair in ligand_receptor().to_numpy().ravel() for gene in pair.split("_")}
    own = list(dict.fromkeys(gene for pair in pairs for gene in "_".join(pair).split("_")))
    table = toy_genes().sort_values("log2_cpm", ascending=False, kind="stable")
    others = [gene for gene in table.index if gene not in known][: _N_GENES - len(own)]
    level = np.exp2(np.random.default_rng(1).standard_normal(_N_GENES))
    return own + others, level


def _homes(raised: np.ndarray, types: np.ndarray) -> np.ndarray:
    home = types[raised.argmax(axis=0)]
    return np.where(raised.max(axis=0) > 0, home, "").astype(object)


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_axis(frame.index.astype(str))
