"""Simulated blood cells with a known answer: before and after infection, and of donors."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm.datasets._toy_genes import negative_binomial, toy_genes, type_abundance

#: Share of cells, and strength of the interferon programme after infection.
_CELL_TYPES = {
    "B cell": (0.15, 0.5),
    "Monocyte": (0.25, 1.0),
    "NK cell": (0.15, 0.7),
    "T cell": (0.45, 0.6),
}
_VIRUS = "virus_A"
_INFECTED_TYPE = "Monocyte"

_N_DONOR_GENES = 300
#: Cell types of blood, and their log odds in a healthy donor of 50 years.
_DONOR_TYPES = {"B cell": -1.0, "Monocyte": -0.6, "NK cell": -1.0, "T cell": 0.0}
#: Rise of the log odds of monocytes in ill donors, and fall of those of T cells in ten years.
_MONOCYTES, _T_CELLS = 0.8, 0.25
#: Median counts of a cell.
_READS = 800


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
    genes = _donor_panel()
    types = list(_DONOR_TYPES)
    ill = np.arange(n_donors) % 2 == 1
    age = rng.integers(20, 81, n_donors).astype(np.float64)
    response = ill * rng.uniform(0.5, 1.0, n_donors)

    odds = np.array(list(_DONOR_TYPES.values())) + 0.3 * rng.standard_normal((n_donors, len(types)))
    odds[:, types.index("Monocyte")] += _MONOCYTES * ill
    odds[:, types.index("T cell")] -= _T_CELLS * (age - 50) / 10
    shares = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)

    spread = n_cells // 4
    sizes = rng.integers(n_cells - spread, n_cells + spread + 1, n_donors)
    donor = rng.permutation(np.repeat(np.arange(n_donors), sizes))
    kind = (rng.random(len(donor))[:, None] > shares.cumsum(axis=1)[donor]).sum(axis=1)
    kind = np.minimum(kind, len(types) - 1)  # the last sum may be a hair below 1

    change = 0.15 * rng.standard_normal((n_donors, _N_DONOR_GENES))
    change += response[:, None] * genes["log2_fc"].to_numpy()
    reads = _READS * np.exp(0.35 * rng.standard_normal(len(donor)))
    mean = reads[:, None] * type_abundance(genes, types)[kind] * np.exp2(change[donor])
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


def _donor_panel() -> pd.DataFrame:
    """Return the genes: interferon genes and markers first, then the most abundant ones."""
    genes = toy_genes()
    interferon = (genes["programme"] == "interferon").to_numpy()
    known = interferon | (genes["cell_type"] != "").to_numpy()
    genes = genes.iloc[np.lexsort([-genes["log2_cpm"].to_numpy(), ~known])].iloc[:_N_DONOR_GENES]
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
