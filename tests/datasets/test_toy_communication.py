"""Toy communication: the design, the planted links and markers, seeds and files."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.datasets import ligand_receptor, toy_communication


@pytest.fixture(scope="module")
def toy() -> ad.AnnData:
    return toy_communication()


def means(adata: ad.AnnData) -> pd.DataFrame:
    """Mean counts of each gene in each type."""
    counts = pd.DataFrame(adata.X.toarray(), columns=adata.var_names)
    return counts.groupby(adata.obs["cell_type"].to_numpy(), observed=True).mean()


def test_design(toy: ad.AnnData) -> None:
    assert toy.shape == (600, 400)
    assert toy.var_names.is_unique
    assert (toy.X.data == np.rint(toy.X.data)).all()
    assert toy.obs["cell_type"].value_counts().min() > 40
    links, markers = toy.uns["truth"]["links"], toy.uns["truth"]["markers"]
    assert len(links) == 12
    assert (links["sender"] != links["receiver"]).all()
    assert not links.duplicated(["ligand", "receptor"]).any()
    assert markers["gene"].is_unique  # a gene is raised in one type
    assert (toy.var["marker_of"] != "").sum() == len(markers)
    assert (toy.var.loc[markers["gene"], "marker_of"] == markers["cell_type"].to_numpy()).all()
    assert toy.var["role"].value_counts()["marker"] == 50


def test_no_other_pair_of_the_table_is_in_the_panel(toy: ad.AnnData) -> None:
    panel = set(toy.var_names)
    found = [
        pair
        for pair in ligand_receptor().itertuples(index=False, name=None)
        if set("_".join(pair).split("_")) <= panel
    ]
    assert len(found) == 12 + 3 * 8
    links = toy.uns["truth"]["links"]
    assert set(zip(links["ligand"], links["receptor"], strict=True)) <= set(found)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_truth_is_what_the_cells_show(seed: int) -> None:
    toy = toy_communication(seed, n_cells=3000, n_types=4, n_links=20)
    mean = means(toy)
    links, markers = toy.uns["truth"]["links"], toy.uns["truth"]["markers"]
    for side, home in (("ligand", "sender"), ("receptor", "receiver")):
        for names, own in zip(links[side], links[home], strict=True):
            for gene in names.split("_"):
                others = mean[gene].drop(own)
                assert mean.loc[own, gene] > 2 * others.max()
    own = [mean.loc[t, g] for t, g in zip(markers["cell_type"], markers["gene"], strict=True)]
    rest = [
        mean[g].drop(t).mean() for t, g in zip(markers["cell_type"], markers["gene"], strict=True)
    ]
    found = np.log2(np.array(own) / np.array(rest))
    assert np.corrcoef(found, markers["log2_fold_change"])[0, 1] > 0.9
    assert abs(np.mean(found - markers["log2_fold_change"])) < 0.3
    by_batch = pd.crosstab(toy.obs["cell_type"], toy.obs["batch"], normalize="index")
    assert by_batch["one"].between(0.4, 0.6).all()  # no effect


@pytest.mark.parametrize("n", [40])
def test_as_many_links_as_are_asked_for(n: int) -> None:
    toy = toy_communication(n_types=8, n_links=n)
    assert len(toy.uns["truth"]["links"]) == n
    assert toy.obs["cell_type"].nunique() == 8
