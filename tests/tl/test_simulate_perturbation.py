"""Simulated perturbations: baselines find what was planted, models answer by one protocol."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cfm.tl import simulate_perturbation
from tests._same import assert_same
from tests.tl._perturbed import (
    ARGUMENTS,
    EFFECT_A,
    EFFECT_B,
    N_GENES,
    AddsOne,
    effect_of,
    perturbed_cells,
    without,
)

LEARNING = ("mean_shift", "additive", "nearest", "linear")


@pytest.mark.parametrize("baseline", LEARNING)
@pytest.mark.parametrize(("asked", "effect"), [("A", EFFECT_A), ("B+A", EFFECT_A + EFFECT_B)])
def test_planted_effects_are_found_in_a_cell_type_without_them(
    baseline: str, asked: str, effect: np.ndarray
) -> None:
    cells = without(perturbed_cells(), "NK", "A+B" if "+" in asked else "A")
    made = simulate_perturbation(cells, asked, model=baseline, groups=["NK"], **ARGUMENTS)
    np.testing.assert_allclose(effect_of(made, cells), effect, atol=0.1)
    assert made.n_obs == 30
    assert set(made.obs["cell_type"]) == {"NK"}
    assert set(made.obs["treatment"]) == {"A+B" if "+" in asked else "A"}
    assert set(made.obs["simulated_by"]) == {baseline}
    assert made.uns["simulation"]["learned_from"]["group"].tolist() == ["NK"]


def test_control_changes_nothing() -> None:
    cells = perturbed_cells()
    made = simulate_perturbation(cells, "anything", model="control", **ARGUMENTS)
    assert made.n_obs == 90
    assert list(made.obs["simulated_from"]) == list(
        cells.obs_names[cells.obs["treatment"] == "ctrl"]
    )
    np.testing.assert_array_equal(effect_of(made, cells), 0.0)


@pytest.mark.parametrize("baseline", ("control", *LEARNING))
@pytest.mark.parametrize("asked", ["A", "A+B"])
def test_what_is_to_be_predicted_is_never_read(baseline: str, asked: str) -> None:
    cells = perturbed_cells()
    expected = simulate_perturbation(cells, asked, model=baseline, groups=["T"], **ARGUMENTS)
    target = (cells.obs["cell_type"] == "T") & (cells.obs["treatment"] == asked)
    cells.X[target.to_numpy()] = np.nan  # would be refused, if it were read
    found = simulate_perturbation(cells, asked, model=baseline, groups=["T"], **ARGUMENTS)
    np.testing.assert_array_equal(found.X, expected.X)


def test_each_group_is_predicted_from_the_others_only() -> None:
    cells = perturbed_cells()
    together = simulate_perturbation(cells, "A", model="mean_shift", **ARGUMENTS)
    for cell_type in ("T", "B", "NK"):
        alone = simulate_perturbation(
            without(cells, cell_type, "A"), "A", model="mean_shift", groups=[cell_type], **ARGUMENTS
        )
        part = together[together.obs["cell_type"].to_numpy() == cell_type]
        np.testing.assert_array_equal(part.X, alone.X)


def test_an_unseen_perturbation_is_the_mean_of_the_others_and_that_is_said() -> None:
    cells = perturbed_cells()
    with pytest.warns(UserWarning, match="No observation had 'C'"):
        made = simulate_perturbation(cells, "C", model="mean_shift", **ARGUMENTS)
    np.testing.assert_allclose(effect_of(made, cells), 2 * (EFFECT_A + EFFECT_B) / 3, atol=0.1)
    assert made.uns["simulation"]["learned_from"]["learned_from"].iloc[0] == "3 other perturbations"


@pytest.mark.parametrize("baseline", ["nearest", "linear"])
def test_an_unseen_perturbation_goes_by_its_features(baseline: str) -> None:
    cells = perturbed_cells()
    arguments = {"key": "treatment", "control": "ctrl"}
    features = pd.DataFrame(
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]], index=["A", "B", "like A"]
    )
    made = simulate_perturbation(
        cells, "like A", model=baseline, features=features, alpha=1e-6, **arguments
    )
    found = effect_of(made, cells)
    assert np.corrcoef(found, EFFECT_A)[0, 1] > 0.9
    with pytest.raises(KeyError, match="give features="):
        simulate_perturbation(cells, "like A", model=baseline, **arguments)


def test_genes_need_no_features() -> None:
    cells = perturbed_cells()
    cells.obs["treatment"] = cells.obs["treatment"].cat.rename_categories(
        {"A": "GENE0", "B": "GENE5", "A+B": "GENE0+GENE5"}
    )
    rng = np.random.default_rng(0)
    control = (cells.obs["treatment"] == "ctrl").to_numpy()
    # GENE1 goes with GENE0, and GENE6 with GENE5.
    for first in (0, 5):
        cells.X[control, first : first + 2] += rng.normal(size=(control.sum(), 1))
    made = simulate_perturbation(
        cells, "GENE1", model="nearest", key="treatment", control="ctrl", units="log"
    )
    assert effect_of(made, cells)[0] > 1.0
    assert abs(effect_of(made, cells)[7]) < 0.3


def test_counts_stay_counts_of_the_same_depth(rng: np.random.Generator) -> None:
    cells = perturbed_cells(n=60)
    cells.X = sp.csr_matrix(rng.poisson(np.exp(cells.X)).astype(np.float32))
    made = simulate_perturbation(cells, "A", model="mean_shift", **ARGUMENTS)
    assert sp.issparse(made.X)
    assert (made.X.data == np.rint(made.X.data)).all()
    assert made.X.min() >= 0
    assert made.uns["simulation"]["params"]["units"] == "counts"
    depth = np.asarray(cells[made.obs["simulated_from"].to_numpy()].X.sum(axis=1)).ravel()
    found = np.asarray(made.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(found, depth, rtol=0.05)
    assert abs(found.sum() / depth.sum() - 1) < 0.003  # rounding has no direction
    real = cells[(cells.obs["treatment"] == "A").to_numpy()].X.toarray().mean(axis=0)
    mean = made.X.toarray().mean(axis=0)
    # The depth is that of the controls, so shares of it are what can be compared.
    np.testing.assert_allclose(np.log(mean / mean.sum()), np.log(real / real.sum()), atol=0.1)


def test_log_values_do_not_fall_below_nothing_unless_they_may() -> None:
    cells = perturbed_cells()
    cells.X[:, 5:10] *= 0.05
    made = simulate_perturbation(cells, "B", model="mean_shift", units="log", **ARGUMENTS)
    assert made.X.min() >= 0
    cells.X[:, 39] = -1.0
    cells.X[(cells.obs["treatment"] == "B").to_numpy(), 5:10] = -3.0
    made = simulate_perturbation(cells, "B", model="mean_shift", units="log", **ARGUMENTS)
    assert made.X[:, 5:10].max() < -2


def test_the_number_of_cells_is_what_was_asked_for() -> None:
    cells = perturbed_cells()
    for n in (1, 7, 30, 65):
        made = simulate_perturbation(cells, "A", model="mean_shift", n_cells=n, **ARGUMENTS)
        assert made.obs["cell_type"].value_counts().tolist() == [n] * 3
        assert made.obs_names.is_unique
        # None is used a second time before all are used once.
        assert made.obs["simulated_from"].value_counts().max() == -(-n // 30)


def test_results_repeat_and_do_not_depend_on_the_order_of_observations() -> None:
    cells = perturbed_cells()
    cells.X = np.rint(np.exp(cells.X))
    arguments = ARGUMENTS | {"model": "mean_shift", "n_cells": 12}
    first = simulate_perturbation(cells, "A", **arguments)
    shuffled = cells[np.random.default_rng(1).permutation(cells.n_obs)].copy()
    second = simulate_perturbation(shuffled, "A", **arguments)[first.obs_names]
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    other = simulate_perturbation(cells, "A", seed=1, **arguments)
    assert set(other.obs_names) != set(first.obs_names)


def test_any_object_with_the_method_is_a_model() -> None:
    cells = perturbed_cells()
    model = AddsOne()
    made = simulate_perturbation(
        cells, "GENE3+GENE1", model=model, n_cells=35, seed=5, strength=2.0, **ARGUMENTS
    )
    change = np.zeros(N_GENES)
    change[[1, 3]] = 2.0
    np.testing.assert_allclose(effect_of(made[:, :-1], cells), change, atol=1e-5)
    assert made.var_names.tolist() == [*cells.var_names, "OWN"]
    assert made.var["simulated"].tolist() == [True] * 39 + [False, True]
    np.testing.assert_array_equal(made[:, "OWN"].X, 7.0)
    seen = model.seen["adata"]
    assert seen.obs_names.equals(made.obs_names)
    assert set(seen.obs["treatment"]) == {"ctrl"}
    assert (model.seen["groupby"], model.seen["seed"]) == ("cell_type", 5)
    params = made.uns["simulation"]["params"]
    assert (params["model"], params["strength"]) == ("AddsOne", 2.0)
    assert "learned_from" not in made.uns["simulation"]


def test_genes_that_only_the_model_has_leave_a_result_that_can_be_written(tmp_path: Path) -> None:
    cells = perturbed_cells()
    cells.var["highly_variable"] = np.arange(N_GENES) < 5
    made = simulate_perturbation(cells, "GENE3", model=AddsOne(), strength=np.int64(2))
    made.write_h5ad(tmp_path / "made.h5ad")
    made.write_zarr(tmp_path / "made.zarr")
    for read in (ad.read_h5ad(tmp_path / "made.h5ad"), ad.read_zarr(tmp_path / "made.zarr")):
        flags = read.var["highly_variable"]
        assert flags[:N_GENES].tolist() == cells.var["highly_variable"].tolist()
        assert flags[N_GENES:].isna().all()
        assert read.uns["simulation"]["params"]["strength"] == 2


def test_a_model_may_return_sparse_counts() -> None:
    class Sparse(AddsOne):
        def simulate(self, *args, **kwargs):
            made = super().simulate(*args, **kwargs)
            made.X = sp.csr_matrix(made.X)
            return made

    cells = perturbed_cells()
    dense = simulate_perturbation(cells, "GENE3", model=AddsOne())
    found = simulate_perturbation(cells, "GENE3", model=Sparse())
    assert sp.issparse(found.X)
    assert found.n_obs == cells.n_obs
    assert set(found.obs["perturbation"]) == {"GENE3"}
    np.testing.assert_array_equal(found.X.toarray(), dense.X)
    assert_same(found.var, dense.var)


def test_a_single_cell_in_each_condition_is_enough() -> None:
    cells = perturbed_cells(n=1)
    for baseline in LEARNING:
        made = simulate_perturbation(cells, "A", model=baseline, groups=["T"], **ARGUMENTS)
        assert made.n_obs == 1
        np.testing.assert_allclose(effect_of(made, cells), EFFECT_A, atol=0.5)
