"""Toy donors: the design, the planted effects, seeds and files."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.datasets import toy_donors

TYPES = ["B cell", "Monocyte", "NK cell", "T cell"]


@pytest.fixture(scope="module")
def toy() -> ad.AnnData:
    return toy_donors()


def test_design(toy: ad.AnnData) -> None:
    assert toy.n_vars == 300
    assert (toy.X.data == np.rint(toy.X.data)).all()
    assert toy.obs["cell_type"].cat.categories.tolist() == TYPES
    by_donor = toy.obs.groupby("donor_id", observed=True)
    assert by_donor.ngroups == 24
    assert by_donor.size().between(60, 100).all()
    assert by_donor.size().nunique() > 5
    for column in ("disease", "age", "tissue"):
        assert by_donor[column].nunique().eq(1).all()
    assert by_donor["disease"].first().value_counts().to_dict() == {"healthy": 12, "ill": 12}
    assert toy.obs["donor_id"].iloc[:100].nunique() > 10  # in random order


@pytest.mark.parametrize("seed", [1, 2])
def test_the_truth_is_what_the_cells_show(seed: int) -> None:
    toy = toy_donors(seed, n_donors=40, n_cells=200)
    truth = toy.uns["truth"]
    shares = pd.crosstab(toy.obs["donor_id"], toy.obs["cell_type"], normalize="index")
    assert np.abs(shares - truth[TYPES]).to_numpy().mean() < 0.04
    of_donor = toy.obs.groupby("donor_id", observed=True)
    ill = of_donor["disease"].first() == "ill"
    assert shares.loc[ill, "Monocyte"].mean() > shares.loc[~ill, "Monocyte"].mean() + 0.08
    assert np.corrcoef(shares["T cell"], of_donor["age"].first().astype(float))[0, 1] < -0.5
    x = toy.X.toarray() / np.asarray(toy.X.sum(axis=1))
    interferon = pd.Series(x[:, toy.var["interferon"]].sum(axis=1))
    level = np.log2(interferon.groupby(toy.obs["donor_id"].to_numpy()).mean())
    assert np.corrcoef(level, truth["response"])[0, 1] > 0.9
    assert (truth.loc[~ill, "response"] == 0).all()
