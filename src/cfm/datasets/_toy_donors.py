from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm.datasets._toy_genes import negative_binomial, toy_genes

_N_GENES = 300
#: Cell types of blood, and their log odds in a healthy donor of 50 years.
_CELL_TYPES = {"B cell": -1.0, "Monocyte": -0.6, "NK cell": -1.0, "T cell": 0.0}
#: Rise of the log odds of monocytes in ill donors, and fall of those of T cells in ten years.
_MONOCYTES, _T_CELLS = 0.8, 0.25
#: Median counts of a cell.
_READS = 800


@checks_arguments()
def toy_donors(seed: int = 0, *, n_donors: int = 24, n_cells: int = 80) -> ad.AnnData:
    r"""Simulated blood cells of donors with a known answer: disease and age show in their cells.

    Half of the donors are ill: they have more monocytes, and interferon genes are raised in all of
    their cells. With age T cells become fewer. Donors differ beside that in composition and
    expression. Genes have real names; the effects are invented.

    The type of a cell of donor :math:`d` is drawn with log odds :math:`o_c + 0.8\, i_d` for
    monocytes and :math:`o_c - 0.025\,(\mathrm{age}_d - 50)` for T cells (:math:`i_d` is 1 for ill
    donors), plus a normal term for donor and type (standard deviation 0.3). Counts are negative
    binomial (dispersion 0.2) with mean :math:`N\, s_{cg}\, 2^{\,a_{dg} + i_d h_d w_g}`: library
    size (log-normal, median 800, standard deviation 0.35), abundance :math:`s` of gene and type,
    donor effect :math:`a` (normal, standard deviation 0.15), strength of the response :math:`h`
    (uniform, 0.5 to 1) and log2 fold change :math:`w` of the interferon genes.

    Parameters
    ----------
    seed
        Seed of the random draw; planted effects are the same for every seed.
    n_donors
        Number of donors, at least two.
    n_cells
        Cells of a donor, give or take a quarter: donors differ.

    Returns
    -------
    anndata.AnnData
        Cells × 300 genes in random order, `X` CSR float32 of whole numbers, and

        `adata.obs` : ``donor_id``, ``disease`` ("healthy" or "ill"), ``cell_type`` and ``tissue``
        ("blood") as categories; ``age`` float64, years.
        `adata.var` : ``interferon`` bool, and ``marker_of`` a cell type, str, "" for none.
        `adata.uns["truth"]` : DataFrame, donors × planted quantities: ``response`` float64
        (:math:`i_d h_d`) and, for each cell type, its expected share, float64.
        `adata.uns["params"]` : the arguments.

    Raises
    ------
    ValueError
        If there are too few donors or cells.

    See Also
    --------
    cfm.tl.embed_donors : what to do with them.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_donors()
    >>> cells.obs["donor_id"].nunique(), cells.n_vars
    (24, 300)
    """
    if n_donors < 2 or n_cells < 8:
        raise ValueError(
            f"n_donors is {n_donors} and n_cells is {n_cells}; at least 2 donors of 8 cells are "
            "needed."
        )
    rng = np.random.default_rng(seed)
    genes = _panel()
    types = list(_CELL_TYPES)
    ill = np.arange(n_donors) % 2 == 1
    age = rng.integers(20, 81, n_donors).astype(np.float64)
    response = ill * rng.uniform(0.5, 1.0, n_donors)

    odds = np.array(list(_CELL_TYPES.values())) + 0.3 * rng.standard_normal((n_donors, len(types)))
    odds[:, types.index("Monocyte")] += _MONOCYTES * ill
    odds[:, types.index("T cell")] -= _T_CELLS * (age - 50) / 10
    shares = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)

    spread = n_cells // 4
    sizes = rng.integers(n_cells - spread, n_cells + spread + 1, n_donors)
    donor = rng.permutation(np.repeat(np.arange(n_donors), sizes))
    kind = (rng.random(len(donor))[:, None] > shares.cumsum(axis=1)[donor]).sum(axis=1)
    kind = np.minimum(kind, len(types) - 1)  # the last sum may be a hair below 1

    change = 0.15 * rng.standard_normal((n_donors, _N_GENES))
    change += response[:, None] * genes["log2_fc"].to_numpy()
    reads = _READS * np.exp(0.35 * rng.standard_normal(len(donor)))
    mean = reads[:, None] * _abundance(genes)[kind] * np.exp2(change[donor])
    names = pd.Index([f"donor{i + 1:02d}" for i in range(n_donors)])
    disease = np.where(ill, "ill", "healthy")
    adata = ad.AnnData(
        sparse.csr_matrix(negative_binomial(mean, np.array(0.2), rng)),
        obs=pd.DataFrame(
            {
                "donor_id": pd.Categorical.from_codes(donor, categories=names),
                "disease": pd.Categorical(disease[donor]),
                "age": age[donor],
                "cell_type": pd.Categorical.from_codes(kind, categories=pd.Index(types)),
                "tissue": pd.Categorical(["blood"] * len(donor)),
            },
            index=[f"cell{i:05d}" for i in range(len(donor))],
        ),
        var=genes[["interferon", "marker_of"]].rename_axis(None),
    )
    truth = pd.DataFrame(shares, index=names, columns=types)
    truth.insert(0, "response", response)
    adata.uns["truth"] = truth
    adata.uns["params"] = {"seed": seed, "n_donors": n_donors, "n_cells": n_cells}
    return adata


def _panel() -> pd.DataFrame:
    """Return the genes: interferon genes and markers first, then the most abundant ones."""
    genes = toy_genes()
    interferon = (genes["programme"] == "interferon").to_numpy()
    known = interferon | (genes["cell_type"] != "").to_numpy()
    genes = genes.iloc[np.lexsort([-genes["log2_cpm"].to_numpy(), ~known])].iloc[:_N_GENES]
    interferon = (genes["programme"] == "interferon").to_numpy()
    return pd.DataFrame(
        {
            "log2_cpm": np.where(interferon, 6.0, genes["log2_cpm"]),
            "log2_fc": np.where(interferon, genes["log2_fc"], 0.0),
            "interferon": interferon,
            "marker_of": genes["cell_type"].to_numpy(dtype=object),
        },
        index=genes.index,
    )


def _abundance(genes: pd.DataFrame) -> np.ndarray:
    """Share of each gene in the counts of an unchanged cell of each type."""
    markers = genes["marker_of"].to_numpy()
    shares = []
    for number, cell_type in enumerate(_CELL_TYPES):
        rng = np.random.default_rng(100 + number)
        level = genes["log2_cpm"].to_numpy() + 0.4 * rng.standard_normal(len(genes))
        level[markers == cell_type] = 9.0
        level[(markers != "") & (markers != cell_type)] = 2.0
        shares.append(np.exp2(level) / np.exp2(level).sum())
    return np.stack(shares)
