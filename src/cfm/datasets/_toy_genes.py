"""The genes, abundances and planted effects that the simulated data sets share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd

# How strongly each invented virus raises the interferon programme (IFN-beta raises only that).
INTERFERON_STRENGTH = {"virus_A": 1.0, "virus_B": 0.7, "virus_C": 0.4, "virus_D": 1.0}
STIMULUS, STIMULUS_STRENGTH = "IFN-beta", 1.2


@cache
def _table() -> pd.DataFrame:
    with (files("cfm.datasets") / "files" / "toy_genes.tsv").open("rb") as file:
        # A gene symbol such as "NA" is a name and not a missing value.
        return pd.read_csv(file, sep="\t", index_col="symbol", keep_default_na=False)


def toy_genes() -> pd.DataFrame:
    """The 3,000 genes, index `symbol`; written by ``training/build_toy_genes.py``.

    Returns
    -------
    pandas.DataFrame
        ``log2_cpm`` (abundance in uninfected cells), ``programme`` ("", "interferon" or a virus),
        ``log2_fc`` (planted effect at full strength), ``cell_type`` (of which it is a marker, or
        "").
    """
    return _table().copy()


def planted_effects(genes: pd.DataFrame, viruses: list[str]) -> pd.DataFrame:
    """Log2 fold change that each virus causes at full strength, genes × viruses, float32."""
    effects = {}
    for virus in viruses:
        interferon = INTERFERON_STRENGTH.get(virus, STIMULUS_STRENGTH)
        weight = np.where(genes["programme"] == "interferon", interferon, 0.0)
        weight = np.where(genes["programme"] == virus, 1.0, weight)
        effects[virus] = (weight * genes["log2_fc"]).astype(np.float32)
    return pd.DataFrame(effects, index=genes.index)


def negative_binomial(
    mean: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Counts of the given mean and variance mean + dispersion · mean², as float32."""
    rate = rng.standard_gamma(np.broadcast_to(1 / dispersion, mean.shape)) * (mean * dispersion)
    return rng.poisson(rate).astype(np.float32)


def type_abundance(genes: pd.DataFrame, types: Sequence[str]) -> np.ndarray:
    """Share of each gene in the counts of an unchanged cell of each type, for every seed.

    Parameters
    ----------
    genes
        With ``log2_cpm`` and ``marker_of``, the type that a gene is a marker of, or "".
    types
        Names of the types.

    Returns
    -------
    ``(n_types, n_genes)``, rows sum to 1.
    """
    markers = genes["marker_of"].to_numpy()
    shares = []
    for number, cell_type in enumerate(types):
        rng = np.random.default_rng(100 + number)
        level = genes["log2_cpm"].to_numpy() + 0.4 * rng.standard_normal(len(genes))
        level[markers == cell_type] = 9.0
        level[(markers != "") & (markers != cell_type)] = 2.0
        shares.append(np.exp2(level) / np.exp2(level).sum())
    return np.stack(shares)
