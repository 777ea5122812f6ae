from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm.datasets._toy_genes import negative_binomial, toy_genes

# Share of cells, and strength of the interferon programme after infection.
_CELL_TYPES = {
    "B cell": (0.15, 0.5),
    "Monocyte": (0.25, 1.0),
    "NK cell": (0.15, 0.7),
    "T cell": (0.45, 0.6),
}
_VIRUS = "virus_A"
_INFECTED_TYPE = "Monocyte"


@checks_arguments()
def toy_infection_cells(seed: int = 0, *, n_donors: int = 4, n_cells: int = 150) -> ad.AnnData:
    """Simulated single-cell counts of blood cells before and after infection, with a known answer.

    Each donor has one mock and one infected sample of four cell types. All cells raise the
    interferon programme, monocytes most; only monocytes are infected and show what *virus_A*
    itself does. Counts are negative binomial (dispersion 0.2), with a log-normal number of reads
    per cell (median 2,500), donor effects (standard deviation 0.25 on the log2 scale) and ten
    known marker genes or so per cell type.

    Parameters
    ----------
    seed
        Seed of the random draw; the planted effects are the same for every seed.
    n_donors
        Number of donors, each with both conditions.
    n_cells
        Cells per donor and condition, of all types together.

    Returns
    -------
    anndata.AnnData
        Cells × 3,000 genes (1,200 cells by default), `X` CSR float32 of whole numbers, and

        `adata.obs` : ``donor``, ``virus`` ("none" or "virus_A"), ``condition`` ("control" or
        "infected"), ``cell_type`` and ``sample`` (donor and virus; the key for pseudobulk) as
        categories.
        `adata.uns["truth"]` : DataFrame, genes × (``programme`` and one float32 column per cell
        type): planted log2 fold change, infected against mock.
        `adata.uns["params"]` : the arguments.

    Raises
    ------
    ValueError
        If a number is below one.

    See Also
    --------
    cfm.datasets.toy_infection : bulk samples with the same programmes, and where genes come from.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.toy_infection_cells()
    >>> adata.obs["cell_type"].cat.categories.tolist()
    ['B cell', 'Monocyte', 'NK cell', 'T cell']
    """
    rng = np.random.default_rng(seed)
    genes = toy_genes()
    types = list(_CELL_TYPES)
    shares = [share for share, _ in _CELL_TYPES.values()]
    truth = _truth(genes)

    donors = [f"donor{number + 1}" for number in range(n_donors)]
    obs = pd.DataFrame(
        {
            "donor": np.repeat(donors, 2 * n_cells),
            "virus": np.tile(np.repeat(["none", _VIRUS], n_cells), n_donors),
            "cell_type": rng.choice(types, p=shares, size=2 * n_donors * n_cells),
        }
    )
    obs["condition"] = np.where(obs["virus"] == "none", "control", "infected")
    obs["sample"] = obs["donor"] + "_" + obs["virus"]
    obs.index = [f"cell{number:05d}" for number in range(len(obs))]

    base = _type_levels(genes)  # (types, genes)
    donor_effect = 0.25 * rng.standard_normal((n_donors, len(genes)))
    type_code = pd.Categorical(obs["cell_type"], categories=types).codes
    donor_code = pd.Categorical(obs["donor"], categories=donors).codes
    share = np.exp2(base[type_code] + donor_effect[donor_code])  # (cells, genes)
    share /= share.sum(axis=1, keepdims=True)
    infected = (obs["virus"] == _VIRUS).to_numpy()
    change = truth[types].to_numpy().T[type_code]
    share *= np.where(infected[:, None], np.exp2(change), 1.0)
    reads = 2500 * np.exp(0.35 * rng.standard_normal(len(obs)))
    counts = negative_binomial(reads[:, None] * share, np.array(0.2), rng)

    columns = ["sample", "donor", "virus", "condition", "cell_type"]
    adata = ad.AnnData(
        X=sparse.csr_matrix(counts),
        obs=obs[columns].astype("category"),
        var=pd.DataFrame(index=pd.Index(genes.index, name=None)),
    )
    adata.uns["truth"] = truth
    adata.uns["params"] = {"seed": seed, "n_donors": n_donors, "n_cells": n_cells}
    return adata


def _truth(genes: pd.DataFrame) -> pd.DataFrame:
    truth = pd.DataFrame({"programme": genes["programme"].to_numpy()}, index=genes.index)
    # The programmes of other viruses play no part here.
    used = genes["programme"].isin(["interferon", _VIRUS])
    truth["programme"] = truth["programme"].where(used, "")
    for cell_type, (_, interferon) in _CELL_TYPES.items():
        own = 1.0 if cell_type == _INFECTED_TYPE else 0.0
        weight = genes["programme"].map({"interferon": interferon, _VIRUS: own}).fillna(0.0)
        truth[cell_type] = (weight * genes["log2_fc"]).astype(np.float32)
    return truth.rename_axis(None)


def _type_levels(genes: pd.DataFrame) -> np.ndarray:
    """Log2 abundance of each gene in each cell type, the same for every seed."""
    rng = np.random.default_rng(0)
    levels = genes["log2_cpm"].to_numpy() + 0.6 * rng.standard_normal((4, len(genes)))
    markers = genes["cell_type"].to_numpy()
    for row, cell_type in enumerate(_CELL_TYPES):
        levels[row, markers == cell_type] = 9.0
        levels[row, (markers != "") & (markers != cell_type)] = 0.0
    return levels
