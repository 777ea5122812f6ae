"""Perturbed cells for unperturbed ones: from the model, and through the tool."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.models import LingshuCell
from tests._lingshu import EFFECTS, SIZES, mean_log, toy_counts, toy_lingshu, untrained
from tests._same import assert_unchanged

COLUMNS = {"key": "drug", "control": "none", "groupby": "cell_type"}


def controls(source: str = "T", n: int = 60) -> ad.AnnData:
    """Unperturbed cells of a type."""
    cells = toy_counts(seed=4, n=1200)
    chosen = (cells.obs["cell_type"] == source) & (cells.obs["drug"] == "none")
    return cells[chosen][:n].copy()


@pytest.mark.parametrize("start", ["cell", "noise"])
def test_a_held_out_pair_of_source_and_perturbation_is_predicted(start: str) -> None:
    cells = toy_counts(seed=4, n=1200)
    before = cells.copy()
    made = cfm.tl.simulate_perturbation(
        cells,
        "y",
        model=toy_lingshu(),
        start=start,
        groups=["T"],
        n_cells=150,
        n_steps=4,
        guidance=0.0,
        **COLUMNS,
    )
    assert_unchanged(cells, before)
    real = toy_counts(seed=8, n=3000, held_out=False)
    kind = real.obs["cell_type"] == "T"
    rest, truth = (real[kind & (real.obs["drug"] == d)] for d in ("none", "y"))
    effect = mean_log(truth) - mean_log(rest)
    found = mean_log(made) - mean_log(rest)
    assert np.corrcoef(effect, found)[0, 1] > 0.7
    assert found[EFFECTS["y"][0]].mean() < -0.3
    assert made.n_obs == 150
    assert (made.obs["drug"] == "y").all()
    assert (made.obs["cell_type"] == "T").all()
    assert (made.X.toarray() == np.rint(made.X.toarray())).all()
    params = made.uns["simulation"]["params"]
    assert params["start"] == start
    assert params["model"] == "LingshuCell"


def test_combinations_are_asked_for_in_any_order() -> None:
    cells = controls()
    made = [
        toy_lingshu().simulate(cells, parts, groupby="cell_type", n_steps=3)
        for parts in (["x", "y"], ["y", "x"])
    ]
    assert (made[0].X != made[1].X).nnz == 0
    effect = mean_log(made[0]) - mean_log(cells)
    assert effect[EFFECTS["x"][0]].mean() > 0.5
    assert effect[EFFECTS["y"][0]].mean() < -0.5


@pytest.mark.parametrize("start", ["cell", "noise"])
def test_cells_do_not_depend_on_each_other(start: str) -> None:
    model, cells = toy_lingshu(), controls(n=45)
    arguments = {"groupby": "cell_type", "n_steps": 3, "start": start}
    made = model.simulate(cells, ["x"], **arguments)
    order = np.random.default_rng(0).permutation(45)[:20]
    genes = np.random.default_rng(1).permutation(cells.n_vars)
    turned = model.simulate(cells[order, genes].copy(), ["x"], batch_size=1, **arguments)
    assert (turned[:, made.var_names].X != made[order].X).nnz == 0
    again = model.simulate(cells, ["x"], seed=1, **arguments)
    assert (again.X != made.X).nnz > 0


def test_what_a_cell_would_have_been_without_a_perturbation_is_itself() -> None:
    model, cells = toy_lingshu(), controls(n=10)
    cells.X[0, 3] = 97  # more than was ever seen of any gene
    same = model.simulate(cells, ["none"], groupby="cell_type", n_steps=5)
    assert (same.X != cells.X).nnz == 0
    other = model.simulate(cells, ["none"], groupby="cell_type", n_steps=5, start="noise")
    assert (other.X != cells.X).nnz > 100


def test_a_cell_keeps_what_the_perturbation_does_not_touch() -> None:
    model, cells = toy_lingshu(), controls()
    rest = slice(20, 30)  # the programme that half of the cells run
    correlation = {}
    for start in ("cell", "noise"):
        made = model.simulate(cells, ["x"], groupby="cell_type", n_steps=6, start=start)
        old, new = (np.log1p(a.X.toarray()[:, rest]).ravel() for a in (cells, made))
        correlation[start] = np.corrcoef(old, new)[0, 1]
    assert correlation["cell"] > 0.7
    assert correlation["noise"] < 0.4


@pytest.mark.parametrize("start", ["cell", "noise"])
def test_kept_genes_and_frozen_counts_stay(start: str) -> None:
    cells = controls(n=20)
    made = toy_lingshu().simulate(
        cells,
        ["x"],
        groupby="cell_type",
        keep_genes=["GENE10", "GENE3"],
        frozen={"GENE3": 77, "GENE5": 0},
        n_steps=2,
        start=start,
    )
    x = made.to_df()
    assert (x["GENE10"] == cells.to_df()["GENE10"]).all()
    assert (x["GENE3"] == 77).all()  # what is given wins over what is kept
    assert (x["GENE5"] == 0).all()


def test_genes_that_the_data_lack_are_generated_and_others_stay() -> None:
    cells = toy_counts(seed=4, n=300)
    more = np.full((cells.n_obs, 1), 3.0)
    panel = ad.AnnData(
        np.hstack([more, cells.X.toarray()[:, 5:]]),
        obs=cells.obs,
        var=pd.DataFrame(index=["OTHER", *cells.var_names[5:]]),
    )
    made = cfm.tl.simulate_perturbation(panel, "x", model=toy_lingshu(), n_steps=2, **COLUMNS)
    assert made.var_names.tolist() == [*panel.var_names, *(f"GENE{i}" for i in range(5))]
    assert made.var["simulated"].tolist() == [False] + [True] * 42
    assert (made[:, "OTHER"].X.toarray() == 3).all()
    b, t = (mean_log(made[made.obs["cell_type"] == kind][:, "GENE0"]) for kind in "BT")
    assert b > t + 0.5  # a marker of B cells, which was not measured


def test_a_baseline_and_a_checkpoint_answer_the_same_call(tmp_path) -> None:
    cells = toy_counts(seed=4, n=300)
    folder = toy_lingshu().save(tmp_path / "mine")
    made = cfm.tl.simulate_perturbation(cells, "x", model=folder, n_steps=2, **COLUMNS)
    expected = cfm.tl.simulate_perturbation(cells, "x", model=toy_lingshu(), n_steps=2, **COLUMNS)
    assert (made.X != expected.X).nnz == 0
    assert made.obs["simulated_by"].unique().tolist() == ["mine"]
    assert len(made.uns["simulation"]["params"]["sha256"]) == 64
    made.write_h5ad(tmp_path / "made.h5ad")
    assert ad.read_h5ad(tmp_path / "made.h5ad").shape == made.shape


def test_the_source_is_the_registered_column_or_groupby() -> None:
    cells = controls(n=5)
    model, arguments = toy_lingshu(), {"n_steps": 2}
    expected = model.simulate(cells, ["x"], **arguments)
    renamed = cells.copy()
    renamed.obs = renamed.obs.rename(columns={"cell_type": "kind"})
    found = model.simulate(renamed, ["x"], groupby="kind", **arguments)
    assert (found.X != expected.X).nnz == 0
    with pytest.raises(KeyError, match="no column 'cell_type'"):
        model.simulate(renamed, ["x"], **arguments)
    renamed.obs["kind"] = "NK"
    with pytest.raises(KeyError, match=r"source.*'NK'.*\['B', 'T'\]"):
        model.simulate(renamed, ["x"], groupby="kind", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"perturbation": ["z"]}, KeyError, r"perturbation 'z'; it has \['x', 'y'\].*'none'"),
        ({"keep_genes": "GENE1"}, TypeError, "single string"),
        ({"keep_genes": ["NOGENE"]}, KeyError, "not measured or not genes of the model"),
        ({"perturbation": "x"}, TypeError, "is one text"),
        ({"frozen": np.zeros((1, 42))}, ValueError, "1 rows for 4 cells"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    arguments: dict, error: type[Exception], message: str
) -> None:
    cells = controls(n=4)
    before = cells.copy()
    with pytest.raises(error, match=message):
        untrained().simulate(cells, **({"perturbation": ["x"], "n_steps": 1} | arguments))
    assert_unchanged(cells, before)


def test_cells_that_are_none_are_refused() -> None:
    model = untrained()
    with pytest.raises(ValueError, match="no cell to start from"):
        model.simulate(controls()[:0].copy(), ["x"])
    twice = controls(n=4)
    twice.obs_names = ["a"] * 4
    with pytest.raises(ValueError, match="more than once"):
        model.simulate(twice, ["x"])
    with pytest.raises(ValueError, match="has no perturbations"):
        LingshuCell(vocabulary=twice.var_names, **SIZES).simulate(controls(n=4), ["x"])


@pytest.mark.parametrize("start", ["cell", "noise"])
def test_prior_genes_have_the_counts_of_other_sources(start: str) -> None:
    """The network knows nothing; genes that y lowers in B cells are as low as there."""
    model, cells = untrained(), controls(n=80)
    prior = toy_counts()  # T cells under y are held out
    asked = {"groupby": "cell_type", "n_steps": 2, "start": start}
    plain = model.simulate(cells, ["y"], **asked).to_df()
    made = model.simulate(cells, ["y"], prior_cells=prior, **asked)
    x, there = made.to_df(), prior[(prior.obs["cell_type"] == "B") & (prior.obs["drug"] == "y")]
    moved, still = (made.var_names[g] for g in (EFFECTS["y"][0], slice(20, 42)))
    np.testing.assert_allclose(mean_log(made)[15:20], mean_log(there)[15:20], atol=0.25)
    assert (plain[moved].mean() > 3 * x[moved].mean()).all()
    assert (plain[still].mean() / x[still].mean()).between(0.3, 3).all()
    # what was measured of the same source is never read, and other genes keep their given counts
    leaked = prior[(prior.obs["cell_type"] == "B") & (prior.obs["drug"] == "y")].copy()
    leaked.obs["cell_type"], leaked.obs_names = "T", leaked.obs_names + "-T"
    leaked.X = leaked.X * 9
    both = model.simulate(cells, ["y"], prior_cells=ad.concat([prior, leaked]), **asked)
    assert (both.X != made.X).nnz == 0
    frozen = model.simulate(cells, ["y"], prior_cells=prior, frozen={"GENE16": 70}, **asked)
    assert (frozen.to_df()["GENE16"] == 70).all() and (
        frozen.to_df()["GENE17"] == x["GENE17"]
    ).all()


def test_prior_genes_need_another_source_with_the_perturbation() -> None:
    model, cells, prior = untrained(), controls(n=4), toy_counts()
    asked = {"groupby": "cell_type", "n_steps": 1}
    own = prior[(prior.obs["cell_type"] == "T").to_numpy()].copy()
    with pytest.raises(ValueError, match=r"no source other than \['T'\]"):
        model.simulate(cells, ["x"], prior_cells=own, **asked)
    del prior.obs["drug"]
    with pytest.raises(KeyError, match=r"prior_cells.obs has no column 'drug'"):
        model.simulate(cells, ["x"], prior_cells=prior, **asked)
    no_sources = toy_counts()
    LingshuCell.setup_anndata(no_sources, perturbation_key="drug", control="none")
    with pytest.raises(ValueError, match="trained without"):
        LingshuCell(no_sources, **SIZES).simulate(cells, ["x"], prior_cells=toy_counts())
