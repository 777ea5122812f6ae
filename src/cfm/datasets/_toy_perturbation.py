"""Simulated cytokine screen of single cells with a known answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm.datasets._bundled import hallmark
from cfm.datasets._toy_genes import negative_binomial, toy_genes, type_abundance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Each pathway raises genes it is known for and some of a hallmark set, and lowers some others.
_PATHWAYS = {
    "interferon I": (
        "HALLMARK_INTERFERON_ALPHA_RESPONSE",
        "ISG15 MX1 IFI44L IFIT1 IFIT2 IFIT3 RSAD2 OAS1 IFI27 IFI6 IFITM3 IRF7",
    ),
    "interferon II": (
        "HALLMARK_INTERFERON_GAMMA_RESPONSE",
        "CXCL10 IDO1 CIITA GBP1 GBP2 GBP4 IRF1 STAT1 SOCS1 TAP1 PSMB9 CD74",
    ),
    "NF-kB": (
        "HALLMARK_TNFA_SIGNALING_VIA_NFKB",
        "TNFAIP3 CCL20 CXCL1 CXCL2 RELB SOD2 IER3 TRAF1",
    ),
    "STAT3": (
        "HALLMARK_IL6_JAK_STAT3_SIGNALING",
        "SOCS3 PIM1 JUN IL4R STAT3 IL6ST OSMR FAS CD44 TNFRSF1A",
    ),
    "STAT5": (
        "HALLMARK_IL2_STAT5_SIGNALING",
        "CISH SOCS2 BCL2 TNFRSF4 TNFRSF9 IRF4 BATF MYC LTB",
    ),
}
_N_UP, _N_DOWN = 18, 6
#: Activity of the pathways under each cytokine, in their order.
_TARGETS = {
    "IFNB1": (1.0, 0.0, 0.0, 0.0, 0.0),
    "IFNA2": (0.7, 0.0, 0.0, 0.0, 0.0),
    "IFNG": (0.3, 1.0, 0.0, 0.0, 0.0),
    "TNF": (0.0, 0.0, 1.0, 0.0, 0.0),
    "IL1B": (0.0, 0.0, 0.8, 0.2, 0.0),
    "IL6": (0.0, 0.0, 0.0, 1.0, 0.0),
    "IL10": (0.0, 0.0, -0.5, 0.8, 0.0),
    "IL2": (0.0, 0.0, 0.0, 0.0, 1.0),
    "IL15": (0.0, 0.0, 0.2, 0.0, 0.7),
    "EPO": (0.0, 0.0, 0.0, 0.0, 0.0),
}
_CONTROL, _CONTROL_SHARE = "control", 0.2
_ADDITIVE, _SYNERGY = ("IFNB1", "IL6"), ("IFNG", "TNF")
#: What the second combination adds to the sum of its parts, log2, on so many genes of each part.
_EXTRA, _N_EXTRA = 1.2, 9
#: Share of cells, and how strongly a cell type answers through each pathway.
_CELL_TYPES = {
    "B cell": (0.15, (0.8, 0.4, 0.5, 0.3, 0.1)),
    "Monocyte": (0.25, (1.0, 1.0, 1.0, 0.8, 0.1)),
    "NK cell": (0.15, (0.9, 0.2, 0.3, 0.5, 1.0)),
    "T cell": (0.45, (0.7, 0.3, 0.4, 1.0, 0.8)),
}
#: Median counts of a cell.
_READS = 800


@checks_arguments()
def toy_perturbation(
    seed: int = 0, *, n_cells: int = 2000, n_genes: int = 300, n_donors: int = 3
) -> ad.AnnData:
    r"""Simulated single-cell cytokine screen with a known answer: effects, context, combinations.

    Blood cells of four types are left alone, given one of ten cytokines, or one of two pairs.
    Cytokines act through five pathways, some through the same one; IFNG+TNF does more than the sum
    of its parts, IFNB1+IL6 does not, and EPO does nothing. Cytokines and genes have real names;
    the effects are invented.

    The count of gene :math:`g` in cell :math:`i` of type :math:`c`, donor :math:`d` and
    perturbation :math:`p` is negative binomial (dispersion 0.2) with mean

    .. math:: N_i \, s_{cg}\, 2^{\,a_{dg} + e_{cpg}}, \qquad
        e_{cpg} = b_{cg} \sum_k f_{pk}\, r_{ck}\, w_{kg} \; + \; u_{cpg}

    with library size :math:`N_i` (log-normal, median 800 on these genes, standard deviation
    0.35), abundance :math:`s` with ten markers or so per type, donor effect :math:`a` (normal,
    standard deviation 0.15), activity :math:`f` of pathway :math:`k` under the perturbation, which
    of a pair is the sum of its parts, strength :math:`r` of the type's answer, the pathway's log2
    fold changes :math:`w` (18 genes rise, 6 fall), what is particular to the type :math:`b`
    (log-normal around 1, standard deviation 0.3), and interaction :math:`u` (zero but for
    IFNG+TNF, on 18 genes).

    Parameters
    ----------
    seed
        Seed of the random draw; the planted effects are the same for every seed, so that one seed
        can train and another one test.
    n_cells
        Number of cells, a fifth of them controls.
    n_genes
        Number of genes, at least 200; each panel contains the smaller ones.
    n_donors
        Number of donors; each gives cells to all conditions.

    Returns
    -------
    anndata.AnnData
        Cells × genes, `X` CSR float32 of whole numbers, and

        `adata.obs` : ``perturbation`` ("control", a cytokine, "IFNB1+IL6" or "IFNG+TNF"),
        ``cell_type`` and ``donor``, as categories.
        `adata.var` : ``pathway`` that a gene answers to and ``marker_of`` the cell type, str, ""
        for neither.
        `adata.uns["truth"]` : dict from cell type to DataFrame, genes × perturbations, float32:
        planted log2 fold change :math:`e` against control.
        `adata.uns["features"]` : DataFrame, cytokines × pathways, float32: the activities
        :math:`f`. Effects are linear in them within a cell type, so that a cytokine that was left
        out can be predicted.
        `adata.uns["params"]` : the arguments.

    Raises
    ------
    ValueError
        If there is no donor, or too few cells or genes, or more than 3,000 genes.

    See Also
    --------
    cfm.datasets.toy_infection_cells : infected cells, and :func:`~cfm.datasets.toy_infection` for
        where genes come from.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_perturbation()
    >>> adata.shape
    (2000, 300)
    >>> adata.uns["truth"]["Monocyte"].loc["ISG15", ["IFNB1", "EPO"]].round(1).tolist()
    [2.0, 0.0]
    """
    all_genes = toy_genes()
    types, levels = list(_CELL_TYPES), _levels()
    least = 10 * len(types) * len(levels)
    if n_cells < least or n_donors < 1:
        raise ValueError(
            f"n_cells is {n_cells} and n_donors is {n_donors}; at least {least} cells (ten for "
            "each cell type and condition) and one donor are needed."
        )
    if not 200 <= n_genes <= len(all_genes):
        raise ValueError(f"n_genes is {n_genes}; expected 200 to {len(all_genes)}.")
    rng = np.random.default_rng(seed)
    genes = _panel(all_genes).iloc[:n_genes]
    truth = _truth(genes)

    obs = _design(n_cells, n_donors, levels, rng)
    codes = {name: obs[name].cat.codes.to_numpy() for name in obs}
    abundance = type_abundance(genes, types)  # (types, genes), rows sum to 1
    donor_effect = 0.15 * rng.standard_normal((n_donors, n_genes))
    planted = np.stack([truth[t].reindex(columns=levels, fill_value=0.0).T for t in types])
    change = donor_effect[codes["donor"]] + planted[codes["cell_type"], codes["perturbation"]]
    reads = _READS * np.exp(0.35 * rng.standard_normal(n_cells))
    mean = reads[:, None] * abundance[codes["cell_type"]] * np.exp2(change)  # (cells, genes)
    counts = negative_binomial(mean, np.array(0.2), rng)

    adata = ad.AnnData(
        X=sparse.csr_matrix(counts),
        obs=obs,
        var=genes[["pathway", "marker_of"]].rename_axis(None),
    )
    adata.uns["truth"] = truth
    adata.uns["features"] = pd.DataFrame.from_dict(
        _TARGETS, orient="index", columns=list(_PATHWAYS), dtype=np.float32
    )
    adata.uns["params"] = {
        "seed": seed,
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_donors": n_donors,
    }
    return adata


def _levels() -> list[str]:
    return [_CONTROL, *_TARGETS, "+".join(_ADDITIVE), "+".join(_SYNERGY)]


def _design(
    n_cells: int, n_donors: int, levels: list[str], rng: np.random.Generator
) -> pd.DataFrame:
    """Give every condition its share of each cell type, to the nearest cell, in random order."""
    shares = np.array([share for share, _ in _CELL_TYPES.values()])
    dose = np.full(len(levels), (1 - _CONTROL_SHARE) / (len(levels) - 1))
    dose[0] = _CONTROL_SHARE
    edges = np.concatenate([[0.0], np.cumsum(np.outer(dose, shares))])
    number = np.diff(np.rint(edges / edges[-1] * n_cells)).astype(np.int64)
    cell = rng.permutation(np.repeat(np.arange(number.size), number))
    condition, kind = np.divmod(cell, len(shares))
    named = {
        "perturbation": (condition, levels),
        "cell_type": (kind, list(_CELL_TYPES)),
        "donor": (np.arange(n_cells) % n_donors, [f"donor{i + 1}" for i in range(n_donors)]),
    }
    return pd.DataFrame(
        {
            name: pd.Categorical.from_codes(codes.astype(np.int64), categories=pd.Index(names))
            for name, (codes, names) in named.items()
        },
        index=[f"cell{i:05d}" for i in range(n_cells)],
    )


def _panel(genes: pd.DataFrame) -> pd.DataFrame:
    """Return all toy genes with their planted roles, those that play one first."""
    rng = np.random.default_rng(0)
    sets = hallmark()
    level = genes["log2_cpm"].to_numpy(dtype=np.float64).copy()
    marker = genes["cell_type"].to_numpy(dtype=object)
    place = {gene: i for i, gene in enumerate(genes.index)}
    free = {gene: None for gene in genes.index[marker == ""]}  # ordered, unlike a set
    pathway = np.full(len(genes), "", dtype=object)
    log2_fc = np.zeros(len(genes))

    def give(name: str, chosen: list[str], effects: Array) -> None:
        rows = [place[gene] for gene in chosen]
        pathway[rows], log2_fc[rows] = name, effects
        for gene in chosen:
            del free[gene]

    for name, (set_name, known) in _PATHWAYS.items():
        members = frozenset(sets[set_name])
        order = dict.fromkeys([*known.split(), *(g for g in free if g in members)])
        up = [g for g in order if g in free][:_N_UP]
        give(name, up, rng.uniform(1.0, 2.5, len(up)))
    risen = frozenset(gene for set_name, _ in _PATHWAYS.values() for gene in sets[set_name])
    common = [g for g in free if level[place[g]] > 6 and g not in risen]
    for i, name in enumerate(_PATHWAYS):
        down = common[i * _N_DOWN : (i + 1) * _N_DOWN]
        give(name, down, -rng.uniform(1.0, 2.0, len(down)))
    # An induced gene has to be seen now and then in controls, or its fold change has no meaning.
    answers = pathway != ""
    level[answers] = np.clip(level[answers], 5.0, 9.0)
    # After them at random, but genes that are hardly seen last, as a real panel is chosen.
    rows = np.lexsort([rng.permutation(len(genes)), level < 3.0, ~(answers | (marker != ""))])
    table = pd.DataFrame(
        {"log2_cpm": level, "pathway": pathway, "log2_fc": log2_fc, "marker_of": marker},
        index=genes.index,
    )
    return table.iloc[rows]


def _truth(genes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    pathways = list(_PATHWAYS)
    weight = np.zeros((len(pathways), len(genes)))
    for k, pathway in enumerate(pathways):
        own = (genes["pathway"] == pathway).to_numpy()
        weight[k, own] = genes["log2_fc"].to_numpy()[own]
    activity = {name: np.array(values) for name, values in _TARGETS.items()}
    for pair in (_ADDITIVE, _SYNERGY):
        activity["+".join(pair)] = activity[pair[0]] + activity[pair[1]]
    involved = [pathways[np.argmax(_TARGETS[part])] for part in _SYNERGY]
    risen = (genes["log2_fc"] > 0).to_numpy()
    extra = np.zeros(len(genes))
    for pathway in involved:
        extra[np.flatnonzero((genes["pathway"] == pathway).to_numpy() & risen)[:_N_EXTRA]] = _EXTRA

    truth = {}
    for number, (cell_type, (_, strength)) in enumerate(_CELL_TYPES.items()):
        # Drawn gene by gene in the order of the panel: a larger one changes nothing in a smaller.
        own = np.exp(0.3 * np.random.default_rng(number + 1).standard_normal(len(genes)))
        answer = np.array(strength)
        effects = {name: own * ((values * answer) @ weight) for name, values in activity.items()}
        both = np.sqrt(np.prod([answer[pathways.index(pathway)] for pathway in involved]))
        effects["+".join(_SYNERGY)] += both * extra
        truth[cell_type] = pd.DataFrame(
            {name: effect.astype(np.float32) for name, effect in effects.items()},
            index=pd.Index(genes.index, name=None),
        )
    return truth
